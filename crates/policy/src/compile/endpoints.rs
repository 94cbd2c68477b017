//! Which identity each pod and node has, and whose each address is.
//!
//! Where two claim one address the first has it: pods before nodes, then by
//! name. Invariant: an identity that somebody has is in the rulebook, and so
//! is the holder of every claimed address.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    net::IpAddr,
    sync::Arc,
};

use rapidhash::RapidHashMap;

use super::rulebook::{Endpoint, Holder, Identity, IdentityId, Rulebook, Who};
use crate::object::{Labels, Node, Objects, Pod, PodName};

#[derive(Debug, Default)]
pub struct Endpoints {
    endpoints: BTreeMap<Name, Endpoint>,
    claims: RapidHashMap<IpAddr, BTreeSet<Name>>,
    identities: RapidHashMap<Key, IdentityId>,
    /// By identity: its key and how many have it.
    users: Vec<Option<(Key, usize)>>,
    free: Vec<IdentityId>,
    touched: Touched,
}

#[derive(Debug, Default)]
struct Touched {
    fresh: Vec<IdentityId>,
    unused: Vec<IdentityId>,
    addresses: BTreeSet<IpAddr>,
}

/// Identities that somebody has for the first time, and those that nobody
/// has any more.
#[derive(Debug, Default)]
pub struct Settled {
    pub fresh: HashSet<IdentityId>,
    pub unused: HashSet<IdentityId>,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Name {
    Pod(PodName),
    Node(String),
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Key {
    Pod(String, Labels),
    Node(Labels),
}

impl Endpoints {
    pub fn put_pod(&mut self, pod: Arc<Pod>) {
        let key = Key::Pod(pod.name.namespace.clone(), pod.labels.clone());
        self.put(Name::Pod(pod.name.clone()), key, Holder::Pod(pod));
    }

    pub fn put_node(&mut self, node: Arc<Node>) {
        let key = Key::Node(node.labels.clone());
        self.put(Name::Node(node.name.clone()), key, Holder::Node(node));
    }

    pub fn remove_pod(&mut self, name: &PodName) {
        self.remove(&Name::Pod(name.clone()));
    }

    pub fn remove_node(&mut self, name: &str) {
        self.remove(&Name::Node(name.to_owned()));
    }

    /// The pods that have addresses, each with its identity.
    pub fn pods(&self) -> impl Iterator<Item = (&PodName, IdentityId)> {
        self.endpoints
            .iter()
            .filter_map(|(name, endpoint)| match name {
                Name::Pod(pod) if !addresses(&endpoint.holder).is_empty() => {
                    Some((pod, endpoint.identity))
                }
                _ => None,
            })
    }

    fn put(&mut self, name: Name, key: Key, holder: Holder) {
        self.remove(&name);
        for address in addresses(&holder) {
            self.claims
                .entry(*address)
                .or_default()
                .insert(name.clone());
            self.touched.addresses.insert(*address);
        }
        let identity = self.enter(key);
        self.endpoints.insert(name, Endpoint { holder, identity });
    }

    fn remove(&mut self, name: &Name) {
        let Some(endpoint) = self.endpoints.remove(name) else {
            return;
        };
        for address in addresses(&endpoint.holder) {
            if let Some(names) = self.claims.get_mut(address) {
                names.remove(name);
                if names.is_empty() {
                    self.claims.remove(address);
                }
            }
            self.touched.addresses.insert(*address);
        }
        if let Some((_, count)) = &mut self.users[endpoint.identity] {
            *count -= 1;
            if *count == 0 {
                self.touched.unused.push(endpoint.identity);
            }
        }
    }

    fn enter(&mut self, key: Key) -> IdentityId {
        if let Some(id) = self.identities.get(&key) {
            if let Some((_, count)) = &mut self.users[*id] {
                *count += 1;
            }
            return *id;
        }
        let user = Some((key.clone(), 1));
        let id = match self.free.pop() {
            Some(id) => {
                self.users[id] = user;
                id
            }
            None => {
                self.users.push(user);
                self.users.len() - 1
            }
        };
        self.identities.insert(key, id);
        self.touched.fresh.push(id);
        id
    }

    /// Addresses whose holders [`Self::settle`] will write.
    pub fn touched(&self) -> Vec<IpAddr> {
        self.touched.addresses.iter().copied().collect()
    }

    /// Writes what was touched into the rulebook. New identities belong to no
    /// set yet.
    pub fn settle(&mut self, objects: &Objects, rulebook: &mut Rulebook) -> Settled {
        let mut touched = std::mem::take(&mut self.touched);
        touched.unused.sort_unstable();
        touched.unused.dedup();
        touched.unused.retain(|id| self.leave(*id));
        touched.fresh.retain(|id| self.users[*id].is_some());
        for id in &touched.fresh {
            let who = match &self.users[*id] {
                Some((Key::Pod(namespace, labels), _)) => {
                    Who::Pod(objects.namespace(namespace), labels.clone())
                }
                Some((Key::Node(labels), _)) => Who::Node(labels.clone()),
                None => Who::Nobody,
            };
            *rulebook.identity_mut(*id) = Identity {
                who,
                ..Identity::nobody()
            };
        }
        for address in touched.addresses {
            let first = self.claims.get(&address).and_then(BTreeSet::first);
            let holder = first.and_then(|name| self.endpoints.get(name));
            rulebook.set_endpoint(address, holder.cloned());
        }
        Settled {
            fresh: touched.fresh.into_iter().collect(),
            unused: touched.unused.into_iter().collect(),
        }
    }

    /// Gives the identity's number back if nobody has it.
    fn leave(&mut self, id: IdentityId) -> bool {
        let is_unused = matches!(self.users[id], Some((_, 0)));
        if is_unused && let Some((key, _)) = self.users[id].take() {
            self.identities.remove(&key);
            self.free.push(id);
        }
        is_unused
    }
}

fn addresses(holder: &Holder) -> &[IpAddr] {
    match holder {
        Holder::Pod(pod) => &pod.addresses,
        Holder::Node(node) => &node.addresses,
    }
}

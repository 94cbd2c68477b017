//! What policies are made of, once read.
//!
//! NetworkPolicy (`networking.k8s.io/v1`) and ClusterNetworkPolicy
//! (`policy.networking.k8s.io/v1alpha2`) become one [`Policy`]: the tier tells
//! them apart, everything else they share. [`read()`] makes them, and a
//! `Policy` it makes holds no selector, network or port that the API would refuse.
//!
//! May call: nobody here. Invariant: [`Objects`] holds each name once.

mod cluster;
mod labels;
mod network;
mod place;
mod ports;
mod read;
mod spelling;

use std::{
    collections::BTreeMap,
    fmt::{self, Display, Formatter},
    net::IpAddr,
    sync::Arc,
};

use ipnet::IpNet;

pub use labels::{Labels, Requirement, Selector};
pub use place::{NamedPort, Namespace, Node, Pod, PodName};
pub use ports::{PortMatch, Protocol};
pub use read::{Origin, ReadError, documents, read, read_value};

/// One object that weft understands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Object {
    Policy(Policy),
    Pod(Pod),
    Namespace(Namespace),
    Node(Node),
}

/// What tells one object from every other.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ObjectName {
    Policy(PolicyName),
    Pod(PodName),
    Namespace(String),
    Node(String),
}

/// What happened to one object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// It is there now, or is other than it was.
    Put(Object),
    Remove(ObjectName),
}

/// A rule set for the pods that `subject` holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    pub name: PolicyName,
    pub tier: Tier,
    pub subject: Group,
    /// None says nothing of the direction; `Some` of no rule in the network
    /// tier forbids all of it.
    pub ingress: Option<Vec<Rule>>,
    pub egress: Option<Vec<Rule>>,
}

/// A NetworkPolicy has a namespace, a ClusterNetworkPolicy has none.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PolicyName {
    pub namespace: Option<String>,
    pub name: String,
}

/// In the order in which they are asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Tier {
    /// Lower numbers are asked first; of equal numbers, the first name.
    Admin(u16),
    /// NetworkPolicy: whatever one rule permits is permitted; a pod that any
    /// policy selects is closed otherwise.
    Network,
    Baseline(u16),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Direction {
    Ingress,
    Egress,
}

/// Matches when one of the peers and one of the ports does; no peers at all
/// are anyone, and no ports are everything.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// What its author calls it; may be empty.
    pub name: String,
    pub action: Action,
    pub peers: Vec<Peer>,
    pub ports: Vec<PortMatch>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize)]
pub enum Action {
    Accept,
    Deny,
    /// The tier has no more to say.
    Pass,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Peer {
    Pods(Group),
    Nodes(Selector),
    Block(Block),
}

/// Pods by their namespaces and their own labels. Pods on the node's own
/// network are in no group: their addresses are the node's.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Group {
    pub namespaces: Scope,
    pub pods: Selector,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Scope {
    Named(String),
    Matching(Selector),
}

/// Addresses by number, whoever holds them.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Block {
    pub net: IpNet,
    /// Each lies inside `net`.
    pub except: Vec<IpNet>,
}

/// All that is known, by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Objects {
    pub policies: BTreeMap<PolicyName, Arc<Policy>>,
    pub pods: BTreeMap<PodName, Arc<Pod>>,
    pub namespaces: BTreeMap<String, Arc<Namespace>>,
    pub nodes: BTreeMap<String, Arc<Node>>,
}

impl Objects {
    pub fn apply(&mut self, change: Change) {
        match change {
            Change::Put(Object::Policy(policy)) => {
                self.policies.insert(policy.name.clone(), Arc::new(policy));
            }
            Change::Put(Object::Pod(pod)) => {
                self.pods.insert(pod.name.clone(), Arc::new(pod));
            }
            Change::Put(Object::Namespace(namespace)) => {
                let name = namespace.name.clone();
                self.namespaces.insert(name, Arc::new(namespace));
            }
            Change::Put(Object::Node(node)) => {
                self.nodes.insert(node.name.clone(), Arc::new(node));
            }
            Change::Remove(ObjectName::Policy(name)) => {
                self.policies.remove(&name);
            }
            Change::Remove(ObjectName::Pod(name)) => {
                self.pods.remove(&name);
            }
            Change::Remove(ObjectName::Namespace(name)) => {
                self.namespaces.remove(&name);
            }
            Change::Remove(ObjectName::Node(name)) => {
                self.nodes.remove(&name);
            }
        }
    }

    /// The namespace, or what Kubernetes would say of one that it was not
    /// told of: it has its name for a label.
    pub fn namespace(&self, name: &str) -> Arc<Namespace> {
        match self.namespaces.get(name) {
            Some(namespace) => Arc::clone(namespace),
            None => Arc::new(Namespace::nameless(name)),
        }
    }
}

impl Object {
    pub fn name(&self) -> ObjectName {
        match self {
            Self::Policy(policy) => ObjectName::Policy(policy.name.clone()),
            Self::Pod(pod) => ObjectName::Pod(pod.name.clone()),
            Self::Namespace(namespace) => ObjectName::Namespace(namespace.name.clone()),
            Self::Node(node) => ObjectName::Node(node.name.clone()),
        }
    }
}

impl Policy {
    pub fn rules(&self, direction: Direction) -> Option<&[Rule]> {
        match direction {
            Direction::Ingress => self.ingress.as_deref(),
            Direction::Egress => self.egress.as_deref(),
        }
    }

    /// By tier, then by priority, then by name: the order in which policies
    /// are asked.
    pub fn order(&self) -> (Tier, &PolicyName) {
        (self.tier, &self.name)
    }
}

impl Group {
    pub fn holds(&self, namespace: &Namespace, labels: &Labels) -> bool {
        let inside = match &self.namespaces {
            Scope::Named(name) => *name == namespace.name,
            Scope::Matching(selector) => selector.matches(&namespace.labels),
        };
        inside && self.pods.matches(labels)
    }
}

impl Block {
    pub fn holds(&self, address: IpAddr) -> bool {
        self.net.contains(&address) && !self.except.iter().any(|net| net.contains(&address))
    }
}

impl Display for PolicyName {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match &self.namespace {
            Some(namespace) => write!(f, "NetworkPolicy {namespace}/{}", self.name),
            None => write!(f, "ClusterNetworkPolicy {}", self.name),
        }
    }
}

impl Display for ObjectName {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Policy(name) => name.fmt(f),
            Self::Pod(name) => write!(f, "Pod {name}"),
            Self::Namespace(name) => write!(f, "Namespace {name}"),
            Self::Node(name) => write!(f, "Node {name}"),
        }
    }
}

impl Display for Direction {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ingress => "ingress",
            Self::Egress => "egress",
        })
    }
}

#[cfg(test)]
mod tests;

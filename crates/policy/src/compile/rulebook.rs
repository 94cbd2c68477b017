//! What a packet asks: who holds an address, and what may it do.
//!
//! A rulebook never changes under its reader. Copies share all that is equal,
//! so a copy costs little, and so does the change of one pod after it.

use std::{net::IpAddr, sync::Arc};

use rapidhash::RapidHashMap;

use super::{
    mask::Mask,
    members::Candidate,
    program::{Program, Remote},
};
use crate::{
    object::{Direction, Labels, Namespace, Node, Pod},
    verdict::{Decision, Flow, Reason, Verdict},
};

/// Parts of the table of addresses; a change copies one of them.
const SHARDS: usize = 64;

pub type IdentityId = usize;

#[derive(Clone, Debug)]
pub struct Rulebook {
    identities: Arc<Vec<Arc<Identity>>>,
    endpoints: Vec<Arc<RapidHashMap<IpAddr, Endpoint>>>,
}

/// All pods of a namespace that have the same labels, or all nodes that do.
#[derive(Clone, Debug)]
pub struct Identity {
    pub who: Who,
    /// The sets that hold it.
    pub sets: Mask,
    /// None when no policy selects it.
    pub program: Option<Arc<Program>>,
}

#[derive(Clone, Debug)]
pub enum Who {
    Pod(Arc<Namespace>, Labels),
    Node(Labels),
    /// A number that nobody has at present.
    Nobody,
}

/// Who holds an address.
#[derive(Clone, Debug)]
pub struct Endpoint {
    pub holder: Holder,
    pub(super) identity: IdentityId,
}

#[derive(Clone, Debug)]
pub enum Holder {
    Pod(Arc<Pod>),
    Node(Arc<Node>),
}

impl Default for Rulebook {
    fn default() -> Self {
        Self {
            identities: Arc::default(),
            endpoints: vec![Arc::default(); SHARDS],
        }
    }
}

impl Rulebook {
    /// Judges a flow's first packet.
    pub fn judge(&self, flow: &Flow) -> Verdict {
        let ends = self.ends(flow);
        Verdict {
            egress: self.decide(Direction::Egress, &ends, flow),
            ingress: self.decide(Direction::Ingress, &ends, flow),
        }
    }

    /// Judges one direction alone, for whoever holds one end of the flow.
    pub fn judge_one(&self, direction: Direction, flow: &Flow) -> Decision {
        self.decide(direction, &self.ends(flow), flow)
    }

    pub fn endpoint(&self, address: IpAddr) -> Option<&Endpoint> {
        self.endpoints[shard(address)].get(&address)
    }

    pub fn identity(&self, endpoint: &Endpoint) -> &Identity {
        &self.identities[endpoint.identity]
    }

    fn ends(&self, flow: &Flow) -> Ends<'_> {
        Ends {
            source: self.endpoint(flow.source),
            destination: self.endpoint(flow.destination),
        }
    }

    fn decide(&self, direction: Direction, ends: &Ends<'_>, flow: &Flow) -> Decision {
        if ends.are_one_pod() {
            return Decision::allow(Reason::Itself);
        }
        let (own, other, address) = match direction {
            Direction::Egress => (ends.source, ends.destination, flow.destination),
            Direction::Ingress => (ends.destination, ends.source, flow.source),
        };
        let Some(pod) = own.filter(|endpoint| endpoint.pod().is_some()) else {
            return Decision::allow(Reason::Outside);
        };
        if direction == Direction::Ingress && ends.are_node_and_its_pod() {
            return Decision::allow(Reason::OwnNode);
        }
        let Some(program) = &self.identity(pod).program else {
            return Decision::allow(Reason::Unruled);
        };
        let sets = other.map(|endpoint| &self.identity(endpoint).sets);
        let remote = Remote { address, sets };
        program.decide(direction, remote, flow.transport, ends.destination)
    }

    pub(super) fn identities(&self) -> &[Arc<Identity>] {
        &self.identities
    }

    pub(super) fn identity_mut(&mut self, id: IdentityId) -> &mut Identity {
        let identities = Arc::make_mut(&mut self.identities);
        while identities.len() <= id {
            identities.push(Arc::new(Identity::nobody()));
        }
        Arc::make_mut(&mut identities[id])
    }

    pub(super) fn set_endpoint(&mut self, address: IpAddr, endpoint: Option<Endpoint>) {
        let table = Arc::make_mut(&mut self.endpoints[shard(address)]);
        match endpoint {
            Some(endpoint) => table.insert(address, endpoint),
            None => table.remove(&address),
        };
    }
}

struct Ends<'a> {
    source: Option<&'a Endpoint>,
    destination: Option<&'a Endpoint>,
}

impl Ends<'_> {
    /// All addresses of a pod have one holder.
    fn are_one_pod(&self) -> bool {
        let pod = |end: Option<&Endpoint>| end.and_then(Endpoint::pod).map(Arc::as_ptr);
        pod(self.source).is_some() && pod(self.source) == pod(self.destination)
    }

    fn are_node_and_its_pod(&self) -> bool {
        match (
            self.source.map(|end| &end.holder),
            self.destination.and_then(Endpoint::pod),
        ) {
            (Some(Holder::Node(node)), Some(pod)) => pod.node.as_ref() == Some(&node.name),
            _ => false,
        }
    }
}

/// By the last bytes, in which the addresses of a cluster differ.
fn shard(address: IpAddr) -> usize {
    let last = match address {
        IpAddr::V4(v4) => v4.octets()[3],
        IpAddr::V6(v6) => v6.octets()[15],
    };
    usize::from(last) % SHARDS
}

impl Identity {
    pub fn nobody() -> Self {
        Self {
            who: Who::Nobody,
            sets: Mask::default(),
            program: None,
        }
    }

    pub(super) fn candidate(&self) -> Option<Candidate<'_>> {
        match &self.who {
            Who::Pod(namespace, labels) => Some(Candidate::Pod(namespace, labels)),
            Who::Node(labels) => Some(Candidate::Node(labels)),
            Who::Nobody => None,
        }
    }
}

impl Endpoint {
    pub fn pod(&self) -> Option<&Arc<Pod>> {
        match &self.holder {
            Holder::Pod(pod) => Some(pod),
            Holder::Node(_) => None,
        }
    }
}

//! The IPAM server's protocol: one JSON object a line in each direction, one
//! answer per request, in order. After [`Request::Watch`] the server only
//! speaks, one [`Event`] a line.
//!
//! A request that cannot be granted gets an [`Error`] and changes nothing.

use std::{collections::BTreeMap, net::IpAddr};

use serde::{Deserialize, Serialize};

use crate::names::{Handle, Name};

mod answer;
mod objects;

pub use answer::*;
pub use objects::*;

/// Longest request line in bytes, newline included.
pub const REQUEST_MAX: usize = 8 << 20;

/// Milliseconds since 1970-01-01 UTC, as the server's clock has them.
pub type Time = u64;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Request {
    /// One address of each family asked for, all or none. The same attachment
    /// gets the same addresses however often it asks.
    Allocate(Box<Allocate>),
    /// What an `allocate` would be answered now; nothing is allocated.
    Probe(Box<Allocate>),
    /// Gives addresses back. What nobody holds is no error.
    Release(Release),
    /// Gives back what no listed attachment holds.
    Gc(Gc),
    /// Looks for leaks, double owners and faults of structure.
    Check {
        /// What runs, to be held against what is allocated.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        in_use: Option<Vec<InUse>>,
    },
    /// Nodes and routes as they change, from after a revision or, without
    /// one, from a snapshot on.
    Watch {
        #[serde(default, skip_serializing_if = "Option::is_none")]
        from: Option<u64>,
    },
    /// How full each pool is.
    Pools,
    /// How full each block is.
    Blocks,
    /// What is known of an address.
    Address {
        address: IpAddr,
    },
    /// All allocations, of a node or of all.
    Allocations {
        #[serde(default, skip_serializing_if = "Option::is_none")]
        node: Option<Name>,
        /// Only those that lie in a block of another node, or of none.
        #[serde(default)]
        borrowed: bool,
    },
    PoolCreate(Box<Pool>),
    /// Stops or resumes new allocations from a pool; its routes stay.
    PoolDisable {
        name: Name,
        disabled: bool,
    },
    /// Forgets a disabled pool without live addresses, and its blocks.
    PoolDelete {
        name: Name,
    },
    /// Keeps addresses from being newly allocated; held ones stay.
    Reserve(Reservation),
    Unreserve {
        name: Name,
    },
    Reservations,
    /// Makes a node known, or changes what is known of it.
    NodePut(Box<Node>),
    /// Forgets a node, with its tunnel addresses and its empty blocks.
    NodeDelete {
        name: Name,
    },
    Nodes,
    /// Makes the node that asks known for as long as this connection lives,
    /// and for the server's grace after it.
    NodeRegister(Box<Node>),
    /// Withdraws a node that registered with this server, without a grace.
    NodeLeave {
        name: Name,
    },
    /// Changes the settings that are given.
    Configure(ConfigChange),
    Config,
    /// Who answers: version, store, revision, counts.
    Status,
}

/// What CNI knows of an attachment; together they are the key of idempotence.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Attachment {
    /// The CNI network's name.
    pub network: Name,
    pub container: Name,
    pub interface: Name,
}

impl Attachment {
    /// `network/container/interface`.
    pub fn handle(&self) -> Handle {
        Handle::of([&self.network, &self.container, &self.interface])
    }

    pub fn place(&self) -> Place {
        Place {
            network: self.network.clone(),
            interface: self.interface.clone(),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Allocate {
    pub attachment: Attachment,
    /// Where the address is going to be used.
    pub node: Name,
    /// At least one, each at most once.
    pub families: Vec<Family>,
    #[serde(rename = "use", default)]
    pub purpose: Use,
    /// These very addresses, at most one of each family asked for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<IpAddr>,
    /// Only from these pools, by name or CIDR. All must exist and be enabled;
    /// their selectors are not asked.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pools: Vec<String>,
    /// Who gets the same addresses again after a release, on any node, for
    /// the same network and interface: `namespace/pod` of a StatefulSet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub identity: Option<Name>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<PodRef>,
    /// Labels of the pod's namespace, for the pools' namespace selectors.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub namespace_labels: BTreeMap<String, String>,
}

/// Where an identity has an address: a pod may be in several networks, and
/// have several interfaces.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Place {
    pub network: Name,
    pub interface: Name,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PodRef {
    pub namespace: Name,
    pub name: Name,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Family {
    V4,
    V6,
}

impl Family {
    pub fn of(address: IpAddr) -> Self {
        if address.is_ipv4() {
            Self::V4
        } else {
            Self::V6
        }
    }
}

/// What an address is for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Use {
    #[default]
    Workload,
    /// A node's own address in the pod network.
    Tunnel,
    LoadBalancer,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "by", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Release {
    Attachment(Attachment),
    /// All or none.
    Handle {
        handle: Handle,
    },
    /// All or none.
    Addresses {
        addresses: Vec<Held>,
    },
    /// What is kept for an identity that will not come back.
    Identity {
        identity: Name,
    },
}

/// An address and, where they are given, what must still be true of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Held {
    pub address: IpAddr,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub handle: Option<Handle>,
    /// The allocation's sequence number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sequence: Option<u64>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Gc {
    pub network: Name,
    /// Only what this node uses.
    pub node: Name,
    pub valid: Vec<Attachment>,
    /// The server's mark from before the list was made; without it, the mark
    /// that stands. Of what is young under it nothing is given back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before: Option<u64>,
}

/// Whether an allocation that was made under one mark is so young under
/// another that no list need name it. The servers raise the mark in an
/// interval that nobody's clock shortens: between two marks that differ by two
/// lies one of them at least.
pub fn is_young(made: u64, mark: u64) -> bool {
    made.saturating_add(2) > mark
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InUse {
    pub address: IpAddr,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub handle: Option<Handle>,
}

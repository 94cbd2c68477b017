//! The IPAM server's protocol: one JSON object a line in each direction, one
//! answer per request, in order. After [`Request::Watch`] the server only
//! speaks, one [`Event`] a line.
//!
//! A request that cannot be granted gets an [`Error`] and changes nothing.

use std::{collections::BTreeMap, net::IpAddr};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::{
    forwarder::DEFAULT_PORT,
    names::{Handle, Mac, Name, Vni},
};

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
    /// Forgets a pool without live addresses, and its blocks.
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
    /// Who gets the same addresses again after a release, on any node:
    /// `namespace/pod` of a StatefulSet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub identity: Option<Name>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<PodRef>,
    /// Labels of the pod's namespace, for the pools' namespace selectors.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub namespace_labels: BTreeMap<String, String>,
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
    /// When the list was made: younger allocations stay.
    pub before: Time,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InUse {
    pub address: IpAddr,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub handle: Option<Handle>,
}

/// A range that addresses come from, cut into blocks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pool {
    pub name: Name,
    pub cidr: IpNet,
    /// Prefix length of the blocks: 20 to 32, by default 26, of IPv4; 116 to
    /// 128, by default 122, of IPv6.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub block_size: Option<u8>,
    /// Calico's selector language, over node labels; empty selects all.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub node_selector: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub namespace_selector: String,
    /// Load balancers exclude the others.
    #[serde(default = "default_uses")]
    pub uses: Vec<Use>,
    /// Only for requests that name the pool.
    #[serde(default)]
    pub manual: bool,
    #[serde(default)]
    pub disabled: bool,
    #[serde(default)]
    pub nat_outgoing: bool,
    #[serde(default)]
    pub encapsulation: Encapsulation,
    #[serde(default)]
    pub when: When,
}

fn default_uses() -> Vec<Use> {
    vec![Use::Workload, Use::Tunnel]
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Encapsulation {
    #[default]
    Vxlan,
    /// IPv4 pools only.
    Ipip,
    None,
}

/// Which way takes the encapsulation.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum When {
    #[default]
    Always,
    /// Only between nodes that share no subnet.
    CrossSubnet,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reservation {
    pub name: Name,
    pub cidrs: Vec<IpNet>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Node {
    pub name: Name,
    /// With the prefix of the subnet they lie in; at most one of each family.
    pub underlay: Vec<IpNet>,
    pub vtep_mac: Mac,
    #[serde(default = "default_vni")]
    pub vni: Vni,
    #[serde(default = "default_port")]
    pub port: u16,
    /// The node's own addresses in the pod network.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tunnel: Vec<IpAddr>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
}

fn default_vni() -> Vni {
    Vni::DEFAULT
}

fn default_port() -> u16 {
    DEFAULT_PORT
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Addresses come from the node's own blocks only: nothing is borrowed.
    pub strict_affinity: bool,
    /// Nodes may claim blocks. False needs `strict_affinity` false.
    pub claim_blocks: bool,
    /// Most blocks of one family a node may own; none is no limit. At the
    /// limit addresses are borrowed, unless `strict_affinity` forbids it.
    pub blocks_per_node: Option<u32>,
    /// How long a released address rests before it is given out again.
    pub cooldown_seconds: u32,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            strict_affinity: false,
            claim_blocks: true,
            blocks_per_node: None,
            cooldown_seconds: 0,
        }
    }
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ConfigChange {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub strict_affinity: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub claim_blocks: Option<bool>,
    /// 0 takes the limit away.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub blocks_per_node: Option<u32>,
    /// At most [`COOLDOWN_MAX`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cooldown_seconds: Option<u32>,
}

/// As Calico's limit, in seconds.
pub const COOLDOWN_MAX: u32 = 1200;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Answer {
    Ok(Box<Reply>),
    Error(Error),
    /// After a `watch`.
    Event(Box<Event>),
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reply {
    Allocated(Allocated),
    Released(Released),
    Report(Report),
    Pools(Vec<PoolUsage>),
    Blocks(Vec<BlockUsage>),
    Address(Box<AddressInfo>),
    Allocations(Vec<Allocation>),
    Reservations(Vec<Reservation>),
    Nodes(Vec<Node>),
    Config(Config),
    Status(Status),
    /// The change is durable.
    Done,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Allocated {
    /// In the order of the families asked for.
    pub addresses: Vec<Assigned>,
    /// The attachment had them before.
    pub existing: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Assigned {
    pub address: IpAddr,
    pub block: IpNet,
    pub pool: Name,
    /// The block belongs to another node, or to none.
    pub borrowed: bool,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Released {
    pub released: Vec<IpAddr>,
    /// Taken from their attachment, and kept for the identity they belong to.
    pub kept: Vec<IpAddr>,
    /// Nobody held them.
    pub unallocated: Vec<IpAddr>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    pub pools: usize,
    pub blocks: usize,
    pub allocations: usize,
    pub problems: Vec<Problem>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    pub kind: ProblemKind,
    /// The address, block, handle or row it is about.
    pub object: String,
    pub message: String,
    pub hint: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ProblemKind {
    /// Allocated, but nothing that runs uses it.
    Leak,
    /// In use, but not allocated.
    NotAllocated,
    /// In use, and in no pool.
    OutsidePools,
    /// Two hold one address.
    DoubleOwner,
    /// A handle that names no address, or an address of an unknown handle.
    Handle,
    /// A row that contradicts itself or another.
    Structure,
    /// An ownership that was begun or ended and not finished.
    Unfinished,
    /// A time that lies ahead of the clock.
    Clock,
}

/// How many addresses a pool has. Counts of IPv6 pools stop at `u64::MAX`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PoolUsage {
    #[serde(flatten)]
    pub pool: Pool,
    pub blocks: u64,
    #[serde(flatten)]
    pub usage: Usage,
}

/// `total = used + kept + resting + reserved + free`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    pub total: u64,
    /// Held by an attachment.
    pub used: u64,
    /// Kept for an identity.
    pub kept: u64,
    /// In their cooldown.
    pub resting: u64,
    /// Reserved, and none of the above.
    pub reserved: u64,
    pub free: u64,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BlockUsage {
    pub block: IpNet,
    pub pool: Option<Name>,
    pub owner: Option<Name>,
    pub affinity: Option<AffinityState>,
    #[serde(flatten)]
    pub usage: Usage,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AffinityState {
    /// The node means to own the block; nobody counts on it yet.
    Pending,
    Confirmed,
    /// The node is giving the block up.
    PendingDeletion,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AddressInfo {
    pub address: IpAddr,
    pub pool: Option<Name>,
    pub block: Option<BlockUsage>,
    pub reserved: bool,
    pub allocation: Option<Allocation>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Allocation {
    pub address: IpAddr,
    /// None while it rests or is kept.
    pub handle: Option<Handle>,
    pub node: Name,
    #[serde(rename = "use")]
    pub purpose: Use,
    pub pod: Option<PodRef>,
    pub identity: Option<Name>,
    pub since: Time,
    pub released: Option<Time>,
    /// Differs each time the address is given out.
    pub sequence: u64,
    pub borrowed: bool,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Status {
    pub version: String,
    pub pid: u32,
    /// `redb` or `etcd`.
    pub store: String,
    pub revision: u64,
    pub pools: usize,
    pub blocks: usize,
    pub allocations: usize,
    pub nodes: usize,
    pub clients: usize,
}

/// What a forwarder builds its tables from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Event {
    /// All there is; whatever was known before is void.
    Snapshot {
        revision: u64,
        nodes: Vec<Node>,
        routes: Vec<Route>,
    },
    Node {
        revision: u64,
        node: Node,
    },
    NodeGone {
        revision: u64,
        name: Name,
    },
    /// New, or another node's from now on.
    Route {
        revision: u64,
        route: Route,
    },
    RouteGone {
        revision: u64,
        net: IpNet,
    },
    /// Nothing has changed for a while; the connection lives.
    Alive {
        revision: u64,
    },
}

/// A confirmed block, or a single borrowed address.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    pub net: IpNet,
    pub node: Name,
    pub encapsulation: Encapsulation,
    pub when: When,
    pub nat_outgoing: bool,
}

pub type Error = crate::Error<Code>;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Code {
    /// The line is not JSON, or not a request.
    Malformed,
    /// The line is longer than [`REQUEST_MAX`].
    Oversized,
    /// No such operation.
    Unknown,
    /// A value is out of its range, or contradicts another.
    Invalid,
    /// No such pool, node, reservation or address.
    NotFound,
    /// The name, range or address belongs to somebody else.
    Taken,
    /// No pool may serve the request.
    NoPool,
    /// The pools that may serve the request have no free address.
    Exhausted,
    /// The node owns as many blocks as it may, and may not borrow.
    BlockLimit,
    /// It is no longer as the request says (handle, sequence number).
    Changed,
    /// It still holds live addresses.
    InUse,
    /// Other servers kept changing the same rows; ask again.
    Contended,
    /// The store cannot be reached or written now; nothing was changed.
    Unavailable,
    /// No answer in time: it may have been done; ask again to learn.
    Deadline,
    /// All places for clients or requests are in use.
    Busy,
    /// The caller may not do this.
    Forbidden,
    /// A fault inside the server.
    Internal,
}

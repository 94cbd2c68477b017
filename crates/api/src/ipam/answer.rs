//! What the server says: answers, refusals and news.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::{Config, Encapsulation, Node, Place, PodRef, Pool, Reservation, Time, Use, When};
use crate::names::{Handle, Name};

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
    Registered(Registered),
    Config(Config),
    Status(Status),
    /// The change is durable.
    Done,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Registered {
    /// An operator's record says the same of the node, and stays.
    pub by_hand: bool,
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
    /// What may stay, and is perhaps not wanted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<Problem>,
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
    /// Kept for a node that is withdrawn: a note only.
    Kept,
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
    /// Where the identity has it.
    #[serde(default)]
    pub place: Option<Place>,
    pub since: Time,
    pub released: Option<Time>,
    /// Differs each time the address is given out.
    pub sequence: u64,
    /// The servers' mark when it was given out: see [`is_young`](super::is_young).
    #[serde(default)]
    pub mark: u64,
    pub borrowed: bool,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Status {
    pub version: String,
    pub pid: u32,
    /// `redb` or `etcd`.
    pub store: String,
    pub revision: u64,
    /// Raised now and then: what tells young allocations from old ones.
    #[serde(default)]
    pub mark: u64,
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
    /// The line is longer than [`REQUEST_MAX`](super::REQUEST_MAX).
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

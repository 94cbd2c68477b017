//! What is stored: one row for each pool, block, affinity, reservation and
//! node, one for each underlay address and each VTEP MAC, one for the settings
//! and one for the mark. Handles have no rows: which addresses a handle has
//! follows from the blocks.

use std::{
    collections::{BTreeMap, VecDeque},
    fmt,
    net::IpAddr,
    sync::Arc,
};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use weft_api::{
    ipam::{AffinityState, Config, Node, Place, PodRef, Pool, Reservation, Time, Use},
    names::{Handle, Mac, Name},
};

mod sound;

/// A row's name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Key {
    Config,
    Mark,
    Pool(Name),
    Reservation(Name),
    Node(Name),
    Block(IpNet),
    /// That a node owns, or is about to own, a block.
    Affinity(Name, IpNet),
    /// That a node has, or had, this underlay address or VTEP MAC.
    Underlay(IpAddr),
    Vtep(Mac),
}

/// A row's content, of the kind that its key says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    Config(Config),
    Mark(Mark),
    Pool(Pool),
    Reservation(Reservation),
    Node(Node),
    /// Shared, as whoever drafts, commits and indexes it only reads.
    Block(Arc<Block>),
    Affinity(Affinity),
    Taken(Taken),
    /// Of any kind: a foreign hand wrote it, and it is not to be believed. It
    /// keeps its place: nothing is made there as if it were free.
    Aside(Aside),
}

/// Most address bits of a block, of either family: a /20 or a /116.
pub const HOST_BITS_MAX: u8 = 12;

pub fn host_bits(net: &IpNet) -> u8 {
    net.max_prefix_len() - net.prefix_len()
}

/// Grows with each commit, over all rows.
pub type Revision = u64;

/// What a request changes, in an order in which each beginning alone leaves
/// rows that the next request can go on from.
pub type Changes = Vec<(Key, Option<Value>)>;

/// Some of a pool's addresses, the unit of ownership and of change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Block {
    pub cidr: IpNet,
    pub owner: Option<Name>,
    /// When the owner claimed it.
    pub claimed: Time,
    /// Starts at the wall clock in microseconds, so that a block that was
    /// deleted and made again never repeats a number; grows with each change
    /// of its allocations.
    pub sequence: u64,
    /// By ordinal, the distance from the block's first address.
    pub allocations: BTreeMap<u32, Arc<Allocation>>,
    /// Free ordinals; the head is given out first, what comes back goes to
    /// the tail.
    pub free: VecDeque<u32>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Allocation {
    /// None while it rests or is kept for `identity`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub handle: Option<Handle>,
    /// The block's sequence number when the ordinal was given out or back.
    pub sequence: u64,
    /// Where the address is used, and by whom.
    pub node: Name,
    #[serde(rename = "use")]
    pub purpose: Use,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<PodRef>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub identity: Option<Name>,
    /// Where the identity has it. Rows from before there was such a thing do
    /// not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub place: Option<Place>,
    pub since: Time,
    /// The mark that stood when it was given out.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub mark: u64,
    /// Since when nobody holds it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub released: Option<Time>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Affinity {
    pub state: AffinityState,
}

/// For people to read. Servers only compare the row's revision: it is written
/// with each node that comes to have the address, so of two nodes that come to
/// have one at the same moment, the second is planned anew. Which node has it
/// now, the nodes' rows say.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Taken {
    pub by: Name,
}

/// A number that the servers raise together, in an interval that one of them
/// measured without the wall clock. Absent, it is 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mark {
    pub number: u64,
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Aside {
    /// As they were found.
    pub bytes: Vec<u8>,
    pub reason: String,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RowError {
    #[error("row {0:?} has a key of no known kind; another program wrote it, or a newer weft-ipam")]
    Key(String),
    #[error("row {key:?} does not hold what its key says: {reason}")]
    Value { key: String, reason: String },
}

impl Key {
    /// Below the store's prefix; `/` of a CIDR becomes `-`.
    pub fn parse(text: &str) -> Result<Self, RowError> {
        let wrong = || RowError::Key(text.to_owned());
        if text == "config" {
            return Ok(Self::Config);
        }
        if text == "mark" {
            return Ok(Self::Mark);
        }
        let (kind, rest) = text.split_once('/').ok_or_else(wrong)?;
        let name = |rest: &str| Name::new(rest).map_err(|_| wrong());
        let cidr = |rest: &str| {
            let (address, length) = rest.rsplit_once('-').ok_or_else(wrong)?;
            let cidr: IpNet = format!("{address}/{length}").parse().map_err(|_| wrong())?;
            let is_block = cidr.trunc() == cidr && host_bits(&cidr) <= HOST_BITS_MAX;
            is_block.then_some(cidr).ok_or_else(wrong)
        };
        Ok(match kind {
            "pool" => Self::Pool(name(rest)?),
            "reservation" => Self::Reservation(name(rest)?),
            "node" => Self::Node(name(rest)?),
            "block" => Self::Block(cidr(rest)?),
            "affinity" => {
                // Names may hold a '/', CIDRs as written here do not.
                let (node, block) = rest.rsplit_once('/').ok_or_else(wrong)?;
                Self::Affinity(name(node)?, cidr(block)?)
            }
            "underlay" => Self::Underlay(rest.parse().map_err(|_| wrong())?),
            "vtep" => Self::Vtep(rest.parse().map_err(|_| wrong())?),
            _ => return Err(wrong()),
        })
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let flat = |cidr: &IpNet| format!("{}-{}", cidr.addr(), cidr.prefix_len());
        match self {
            Self::Config => f.write_str("config"),
            Self::Mark => f.write_str("mark"),
            Self::Pool(name) => write!(f, "pool/{name}"),
            Self::Reservation(name) => write!(f, "reservation/{name}"),
            Self::Node(name) => write!(f, "node/{name}"),
            Self::Block(cidr) => write!(f, "block/{}", flat(cidr)),
            Self::Affinity(node, cidr) => write!(f, "affinity/{node}/{}", flat(cidr)),
            Self::Underlay(address) => write!(f, "underlay/{address}"),
            Self::Vtep(mac) => write!(f, "vtep/{mac}"),
        }
    }
}

impl Value {
    /// Whether the row is to go when the server that wrote it is not heard.
    pub fn is_mortal(&self) -> bool {
        matches!(self, Self::Node(node) if node.registered.is_some())
    }

    /// JSON.
    pub fn encode(&self) -> Vec<u8> {
        let encoded = match self {
            Self::Config(row) => serde_json::to_vec(row),
            Self::Mark(row) => serde_json::to_vec(row),
            Self::Pool(row) => serde_json::to_vec(row),
            Self::Reservation(row) => serde_json::to_vec(row),
            Self::Node(row) => serde_json::to_vec(row),
            Self::Block(row) => serde_json::to_vec(row),
            Self::Affinity(row) => serde_json::to_vec(row),
            Self::Taken(row) => serde_json::to_vec(row),
            Self::Aside(row) => return row.bytes.clone(),
        };
        encoded.expect("string keys and no fallible serializers")
    }

    /// What is sound, and nothing else.
    pub fn decode(key: &Key, bytes: &[u8]) -> Result<Self, RowError> {
        let value = match key {
            Key::Config => serde_json::from_slice(bytes).map(Self::Config),
            Key::Mark => serde_json::from_slice(bytes).map(Self::Mark),
            Key::Pool(_) => serde_json::from_slice(bytes).map(Self::Pool),
            Key::Reservation(_) => serde_json::from_slice(bytes).map(Self::Reservation),
            Key::Node(_) => serde_json::from_slice(bytes).map(Self::Node),
            Key::Block(_) => serde_json::from_slice(bytes).map(Self::Block),
            Key::Affinity(..) => serde_json::from_slice(bytes).map(Self::Affinity),
            Key::Underlay(_) | Key::Vtep(_) => serde_json::from_slice(bytes).map(Self::Taken),
        };
        let wrong = |reason| RowError::Value {
            key: key.to_string(),
            reason,
        };
        let value = value.map_err(|error| wrong(error.to_string()))?;
        sound::sound(key, &value).map_err(wrong)?;
        Ok(value)
    }

    /// Where a foreign hand may write: what is not sound is set aside.
    pub fn read(key: &Key, bytes: &[u8]) -> Self {
        Self::decode(key, bytes).unwrap_or_else(|error| {
            let (RowError::Key(reason) | RowError::Value { reason, .. }) = error;
            Self::Aside(Aside {
                bytes: bytes.to_vec(),
                reason,
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_read_back_as_they_were_written() {
        for text in [
            "config",
            "mark",
            "pool/default",
            "node/rack/7",
            "reservation/infra",
            "block/10.0.0.64-26",
            "block/fd00::40-122",
            "affinity/rack/7/fd00::-122",
            "underlay/192.0.2.1",
            "underlay/2001:db8::1",
            "vtep/02:00:00:00:00:01",
        ] {
            assert_eq!(
                Key::parse(text).map(|key| key.to_string()).as_deref(),
                Ok(text)
            );
        }
        for text in [
            "",
            "pool",
            "pool/",
            "lease/x",
            "block/10.0.0.1-26",
            "block/10.0.0.0",
            "affinity/n1",
            "affinity/n1/10.0.0.0-8",
            "block/::-0",
            "underlay/n1",
            "vtep/02:00",
        ] {
            assert!(Key::parse(text).is_err(), "{text}");
        }
    }
}

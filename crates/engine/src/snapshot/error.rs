//! How rows can contradict each other.

use std::net::IpAddr;

use ipnet::IpNet;

use super::{PeerId, PortId};

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SnapshotError {
    #[error("address {address} is held by ports {first:?} and {second:?}")]
    Address {
        address: IpAddr,
        first: PortId,
        second: PortId,
    },
    #[error("ports {first:?} and {second:?} are both the host port")]
    Hosts { first: PortId, second: PortId },
    #[error("underlay address {address} is that of peers {first:?} and {second:?}")]
    Underlay {
        address: IpAddr,
        first: PeerId,
        second: PeerId,
    },
    #[error("block {block} lives at peers {first:?} and {second:?}")]
    Block {
        block: IpNet,
        first: PeerId,
        second: PeerId,
    },
    #[error("block {block} of peer {peer:?} is this node\'s own")]
    OwnBlock { block: IpNet, peer: PeerId },
    #[error("there are more than 65535 peers")]
    TooMany,
}

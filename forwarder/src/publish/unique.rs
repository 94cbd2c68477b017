//! What no two nodes may share, and where the addresses of a node are.

use std::{collections::HashMap, net::IpAddr};

use ipnet::IpNet;
use weft_api::{
    forwarder::{Code, Error, Node},
    names::{Mac, Name},
};

use super::{checks, refusal};

/// Most peers: as many as a `PeerId` can tell apart.
const PEERS_MAX: usize = 1 << 16;

/// Whether no two share anything, this one included.
pub(super) fn check(own: &Node, peers: &[Node]) -> Result<(), Error> {
    if peers.len() > PEERS_MAX {
        let message = format!("apply: {} peers are more than {PEERS_MAX}", peers.len());
        return Err(refusal(Code::Invalid, message, "split the network"));
    }
    let mut names = HashMap::new();
    let mut underlays = HashMap::new();
    let mut macs = HashMap::new();
    let mut places = HashMap::new();
    for (place, node) in std::iter::once(own).chain(peers).enumerate() {
        if place > 0 {
            checks::node(node)?;
        }
        let taken = |what: String, by: &Name| {
            let message = format!("node {}: {what} is also node {by}'s", node.name);
            refusal(Code::Taken, message, "correct one of the two")
        };
        if let Some(by) = names.insert(&node.name, &node.name) {
            return Err(taken(format!("the name {}", node.name), by));
        }
        for address in &node.underlay {
            if let Some(by) = underlays.insert(address, &node.name) {
                return Err(taken(format!("underlay address {address}"), by));
            }
        }
        for mac in macs_of(node) {
            if let Some(by) = macs.insert(mac, &node.name) {
                return Err(taken(format!("VTEP MAC {}", node.vtep_mac), by));
            }
        }
        for block in places_of(node) {
            if let Some(by) = places.insert(block, &node.name) {
                return Err(taken(format!("block {block}"), by));
            }
        }
    }
    Ok(())
}

/// The node's MAC in each family of its underlay: a node may be two peers, one
/// a family, of one MAC.
pub(crate) fn macs_of(node: &Node) -> impl Iterator<Item = (bool, Mac)> {
    let families = node.underlay.iter().map(IpAddr::is_ipv6);
    families.map(|v6| (v6, node.vtep_mac))
}

/// The node's blocks, and its tunnel addresses that lie outside of them.
pub(crate) fn places_of(node: &Node) -> Vec<IpNet> {
    let outside = |address: &&IpAddr| !node.blocks.iter().any(|block| block.contains(*address));
    let tunnel = node
        .tunnel
        .iter()
        .filter(outside)
        .map(|&address| IpNet::from(address));
    node.blocks.iter().copied().chain(tunnel).collect()
}

//! Node records and blocks as the forwarder's nodes, and this node as a
//! record.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use ipnet::IpNet;
use weft_api::{
    forwarder::Node,
    names::{Name, Vni},
};

use super::{Block, Record, Tunnel, block_key, derived_mac, node_key};
use crate::Error;

/// FelixConfiguration's `vxlanVNI` and `vxlanPort`, where it sets none.
pub const DEFAULT_VNI: Vni = Vni::DEFAULT;
pub const DEFAULT_PORT: u16 = weft_api::forwarder::DEFAULT_PORT;

/// What all tunnels of the network have in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wire {
    pub vni: Vni,
    pub port: u16,
}

#[derive(Debug, Clone, Default, PartialEq)]
pub struct Peers {
    pub nodes: Vec<Node>,
    /// Of the nodes and blocks that are left out.
    pub errors: Vec<Error>,
}

impl Default for Wire {
    fn default() -> Self {
        Self {
            vni: DEFAULT_VNI,
            port: DEFAULT_PORT,
        }
    }
}

/// The nodes but `own`, each with its blocks and with what others lent it. A
/// family in which a node has no address or no tunnel address is left out, as
/// Calico leaves it out.
pub fn peers<'a>(
    own: &str,
    records: impl IntoIterator<Item = &'a Record>,
    blocks: &[Block],
    wire: Wire,
) -> Peers {
    let mut peers = Peers::default();
    let places = places(blocks, &mut peers.errors);
    let mut underlays = BTreeMap::new();
    for record in records.into_iter().filter(|record| record.name != own) {
        for (v6, tunnel) in [(false, &record.v4), (true, &record.v6)] {
            let places = places.get(record.name.as_str());
            let of_family = |net: &&IpNet| net.addr().is_ipv6() == v6;
            let places = places.into_iter().flatten().filter(of_family).copied();
            let Some(node) = node(record, v6, tunnel, places.collect(), wire) else {
                continue;
            };
            let node = node.and_then(|node| {
                let address = node.underlay[0];
                match underlays.insert(address, &record.name) {
                    Some(other) => Err(Error::Taken {
                        key: record.key(),
                        what: address.to_string(),
                        other: node_key(other),
                    }),
                    None => Ok(node),
                }
            });
            match node {
                Ok(node) => peers.nodes.push(node),
                Err(error) => peers.errors.push(error),
            }
        }
    }
    peers
}

/// By node. Of two blocks that overlap the first counts.
fn places<'a>(blocks: &'a [Block], errors: &mut Vec<Error>) -> BTreeMap<&'a str, BTreeSet<IpNet>> {
    let mut places: BTreeMap<&str, BTreeSet<IpNet>> = BTreeMap::new();
    let mut taken: Vec<IpNet> = Vec::new();
    let mut ordered: Vec<_> = blocks.iter().filter(|block| !block.deleted).collect();
    ordered.sort_by_key(|block| block.cidr);
    for block in ordered {
        // Sorted: what overlaps starts within the one before.
        if let Some(other) = taken.last().filter(|other| other.contains(&block.cidr)) {
            errors.push(Error::Taken {
                key: block_key(block.cidr),
                what: format!("a part of {}", block.cidr),
                other: block_key(*other),
            });
            continue;
        }
        taken.push(block.cidr);
        if let Some(node) = block.node() {
            places.entry(node).or_default().insert(block.cidr);
        }
        for (node, address) in block.lent() {
            places.entry(node).or_default().insert(address);
        }
    }
    places
}

fn node(
    record: &Record,
    v6: bool,
    tunnel: &Tunnel,
    blocks: Vec<IpNet>,
    wire: Wire,
) -> Option<Result<Node, Error>> {
    let (address, inner) = (tunnel.address?, tunnel.tunnel?);
    let name = match v6 {
        false => record.name.clone(),
        true => format!("{}/v6", record.name),
    };
    let name = match Name::new(name) {
        Ok(name) => name,
        Err(error) => return Some(Err(Error::field(&record.key(), "metadata.name", error))),
    };
    Some(Ok(Node {
        name,
        underlay: vec![address.addr()],
        vtep_mac: record.mac(v6),
        vni: wire.vni,
        port: wire.port,
        blocks,
        ways: BTreeMap::new(),
        tunnel: vec![inner],
    }))
}

/// This node, whose links have prefixes of these lengths. Both tunnels have
/// its one MAC, which is named where it is not the derived one.
pub fn record(node: &Node, [v4_len, v6_len]: [u8; 2]) -> Record {
    let name = node.name.as_str();
    let of = |v6: bool, len: u8| {
        let family = |address: &&IpAddr| address.is_ipv6() == v6;
        let address = node.underlay.iter().find(family);
        Tunnel {
            address: address.and_then(|address| IpNet::new(*address, len).ok()),
            tunnel: node.tunnel.iter().find(family).copied(),
            mac: address
                .and(Some(node.vtep_mac))
                .filter(|mac| *mac != derived_mac(name, v6)),
        }
    };
    Record {
        name: name.to_owned(),
        v4: of(false, v4_len),
        v6: of(true, v6_len),
    }
}

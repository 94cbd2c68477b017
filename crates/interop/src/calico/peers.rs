//! Node records and blocks as the forwarder's nodes, and this node as a
//! record.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use ipnet::IpNet;
use weft_api::{
    forwarder::{Node, Way, sound},
    names::{Mac, Name},
};

use super::{Block, Pools, Record, Tunnel, Wire, block_key, derived_mac, node_key};
use crate::Error;

#[derive(Debug, Clone, Default, PartialEq)]
pub struct Peers {
    pub nodes: Vec<Node>,
    /// The blocks of this node, and what others lent it.
    pub own: Vec<IpNet>,
    /// Of what is left out.
    pub errors: Vec<Error>,
}

/// The nodes but `own`, each with its blocks and with what others lent it. A
/// family in which a node has no address is left out, as Calico leaves it out,
/// and without a tunnel address what has a tunnel. Of two nodes that want the
/// same the first has it.
pub fn peers<'a>(
    own: &Record,
    records: impl IntoIterator<Item = &'a Record>,
    blocks: impl IntoIterator<Item = &'a Block>,
    pools: &Pools,
    wire: Wire,
) -> Peers {
    let mut peers = Peers::default();
    let places = places(blocks, &mut peers.errors);
    let mut by_node: BTreeMap<&str, BTreeSet<IpNet>> = BTreeMap::new();
    for (net, node) in &places {
        by_node.entry(node).or_default().insert(*net);
    }
    let own_places = by_node.get(own.name.as_str()).cloned();
    peers.own = own_places.unwrap_or_default().into_iter().collect();
    let mut taken = Taken::by(own);
    for record in records.into_iter().filter(|record| record.name != own.name) {
        for (v6, tunnel) in [(false, &record.v4), (true, &record.v6)] {
            let all = by_node.get(record.name.as_str());
            let of_family = |net: &&IpNet| net.addr().is_ipv6() == v6;
            let mut ways = BTreeMap::new();
            for net in all.into_iter().flatten().filter(of_family) {
                let subnet = if v6 { &own.v6 } else { &own.v4 }.address;
                let same = same_subnet(subnet, tunnel.address);
                let Some(pool) = pools.of(net) else {
                    let problem = "no pool holds it; make one, or release the block";
                    peers
                        .errors
                        .push(Error::field(&block_key(*net), "cidr", problem));
                    continue;
                };
                ways.insert(*net, pool.way(same));
            }
            let node = node(record, v6, tunnel, ways, wire);
            match node.and_then(|node| {
                node.map(|node| taken.take(record, node, &places))
                    .transpose()
            }) {
                Ok(node) => peers.nodes.extend(node),
                Err(error) => peers.errors.push(error),
            }
        }
    }
    peers
}

/// Which node each block and each lent address is on. Of two blocks that
/// overlap the first counts.
fn places<'a>(
    blocks: impl IntoIterator<Item = &'a Block>,
    errors: &mut Vec<Error>,
) -> BTreeMap<IpNet, &'a str> {
    let mut places = BTreeMap::new();
    let mut taken: Vec<IpNet> = Vec::new();
    let mut ordered: Vec<_> = blocks.into_iter().filter(|block| !block.deleted).collect();
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
        if let Err(problem) = sound::block(&block.cidr) {
            errors.push(Error::field(&block_key(block.cidr), "cidr", problem));
            continue;
        }
        taken.push(block.cidr);
        if let Some(node) = block.node() {
            places.insert(block.cidr, node);
        }
        // In a pool of single addresses a loan and its block are one net.
        places.extend(block.lent().map(|(node, address)| (address, node)));
    }
    places
}

/// None of a family that the node is not reached in. Without a tunnel address
/// only what has no tunnel is.
fn node(
    record: &Record,
    v6: bool,
    tunnel: &Tunnel,
    mut ways: BTreeMap<IpNet, Way>,
    wire: Wire,
) -> Result<Option<Node>, Error> {
    let inner = tunnel.tunnel.or(tunnel.ipip);
    if inner.is_none() {
        ways.retain(|_, way| *way == Way::Direct);
    } else if tunnel.tunnel.is_none() {
        ways.retain(|_, way| *way != Way::Vxlan);
    }
    let Some(address) = tunnel.address else {
        return Ok(None);
    };
    if inner.is_none() && ways.is_empty() {
        return Ok(None);
    }
    let key = record.key();
    let wrong = |field| move |problem: String| Error::field(&record.key(), field, problem);
    let name = match v6 {
        false => record.name.clone(),
        true => format!("{}/v6", record.name),
    };
    let name = Name::new(name).map_err(|error| Error::field(&key, "metadata.name", error))?;
    sound::underlay(&[address.addr()]).map_err(wrong("spec.bgp"))?;
    let inner_is_sound = inner.map_or(Ok(()), sound::pod_address);
    inner_is_sound.map_err(wrong(match (v6, tunnel.tunnel) {
        (false, Some(_)) => "spec.ipv4VXLANTunnelAddr",
        (true, Some(_)) => "spec.ipv6VXLANTunnelAddr",
        (false, None) => "spec.bgp.ipv4IPIPTunnelAddr",
        (true, None) => "spec.bgp.ipv6IPIPTunnelAddr",
    }))?;
    let vtep_mac = sound::unicast_mac(record.mac(v6)).map_err(wrong(match v6 {
        false => "spec.vxlanTunnelMACAddr",
        true => "spec.vxlanTunnelMACAddrV6",
    }))?;
    let blocks = ways.keys().copied().collect();
    ways.retain(|_, way| *way != Way::Vxlan);
    Ok(Some(Node {
        name,
        underlay: vec![address.addr()],
        vtep_mac,
        vni: wire.vni,
        port: wire.port,
        blocks,
        ways,
        tunnel: inner.into_iter().collect(),
    }))
}

/// Whether another node is in this node's subnet.
fn same_subnet(own: Option<IpNet>, other: Option<IpNet>) -> bool {
    own.zip(other)
        .is_some_and(|(own, other)| own.contains(&other.addr()))
}

/// What the nodes so far have, and by which key.
struct Taken {
    names: BTreeMap<Name, String>,
    addresses: BTreeMap<IpAddr, String>,
    /// Of the tunnels over IPv4 and over IPv6: a node may have one for both.
    macs: [BTreeMap<Mac, String>; 2],
}

impl Taken {
    fn by(own: &Record) -> Self {
        let families = [&own.v4, &own.v6].into_iter();
        let addresses = families.flat_map(|tunnel| {
            let underlay = tunnel.address.map(|net| net.addr());
            underlay.into_iter().chain(tunnel.tunnel)
        });
        Self {
            names: BTreeMap::new(),
            addresses: addresses.map(|address| (address, own.key())).collect(),
            macs: [false, true].map(|v6| BTreeMap::from([(own.mac(v6), own.key())])),
        }
    }

    fn take(
        &mut self,
        record: &Record,
        node: Node,
        places: &BTreeMap<IpNet, &str>,
    ) -> Result<Node, Error> {
        let taken = |what: &dyn ToString, other: &str| Error::Taken {
            key: record.key(),
            what: what.to_string(),
            other: other.to_owned(),
        };
        if let Some(other) = self.names.get(&node.name) {
            return Err(taken(&node.name, other));
        }
        for address in node.underlay.iter().chain(&node.tunnel) {
            if let Some(other) = self.addresses.get(address) {
                return Err(taken(address, other));
            }
        }
        let macs = &mut self.macs[usize::from(node.underlay.iter().any(IpAddr::is_ipv6))];
        if let Some(other) = macs.get(&node.vtep_mac) {
            return Err(taken(&format!("the tunnel's MAC {}", node.vtep_mac), other));
        }
        for address in &node.tunnel {
            match places.get(&IpNet::from(*address)) {
                Some(other) if *other != record.name => {
                    return Err(taken(address, &node_key(other)));
                }
                _ => {}
            }
        }
        macs.insert(node.vtep_mac, record.key());
        self.names.insert(node.name.clone(), record.key());
        let addresses = node.underlay.iter().chain(&node.tunnel);
        self.addresses
            .extend(addresses.map(|address| (*address, record.key())));
        Ok(node)
    }
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
            ipip: None,
        }
    };
    Record {
        name: name.to_owned(),
        v4: of(false, v4_len),
        v6: of(true, v6_len),
    }
}

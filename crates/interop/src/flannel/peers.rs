//! Leases as the forwarder's nodes, and this node as a lease.

use std::{collections::BTreeMap, net::IpAddr};

use ipnet::IpNet;
use weft_api::{
    forwarder::{Node, Way, sound},
    names::{Mac, Name},
};

use super::{Config, Endpoint, Lease, Record, SubnetKey, VXLAN};
use crate::Error;

/// What came of leases.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Peers {
    pub nodes: Vec<Node>,
    /// Of the leases that are left out.
    pub errors: Vec<Error>,
}

/// The nodes behind leases, `own` left out, all of which speak at `port`. Of
/// two that want the same the first has it, the other is left out. Those whose
/// public address is `near` are reached without a tunnel.
pub fn peers<'a>(
    own: &Lease,
    leases: impl IntoIterator<Item = &'a Lease>,
    config: &Config,
    port: u16,
    near: impl Fn(IpAddr) -> bool,
) -> Peers {
    let mut peers = Peers::default();
    let mut taken = Taken::by(own);
    for lease in leases.into_iter().filter(|lease| lease.key != own.key) {
        match nodes(lease, config, port).and_then(|nodes| taken.take(lease, nodes)) {
            Ok(nodes) => peers.nodes.extend(nodes.into_iter().map(|mut node| {
                if node.underlay.iter().all(|public| near(*public)) {
                    let direct = node.blocks.iter().map(|block| (*block, Way::Direct));
                    node.ways = direct.collect();
                }
                node
            })),
            Err(error) => peers.errors.push(error),
        }
    }
    peers
}

fn nodes(lease: &Lease, config: &Config, port: u16) -> Result<Vec<Node>, Error> {
    let (key, record) = (lease.key.to_string(), &lease.record);
    if record.backend != VXLAN {
        let problem = format!(
            "{:?} is not vxlan; run flannel there with vxlan",
            record.backend
        );
        return Err(Error::field(&key, "BackendType", problem));
    }
    let tunnels = [
        (
            lease.key.v4.map(IpNet::V4),
            record.public_v4.map(IpAddr::V4),
            record.v4,
            ["PublicIP", "BackendData"],
        ),
        (
            lease.key.v6.map(IpNet::V6),
            record.public_v6.map(IpAddr::V6),
            record.v6,
            ["PublicIPv6", "BackendV6Data"],
        ),
    ];
    let mut nodes = Vec::new();
    for (subnet, public, endpoint, [public_field, data_field]) in tunnels {
        let Some(subnet) = subnet else { continue };
        let wrong = |field| {
            let key = &key;
            move |problem: String| Error::field(key, field, problem)
        };
        let missing = || "it is missing; the node is to write it".to_owned();
        let public = public.ok_or_else(missing).map_err(wrong(public_field))?;
        let endpoint = endpoint.ok_or_else(missing).map_err(wrong(data_field))?;
        inside(config, &subnet).map_err(wrong("its name"))?;
        sound::underlay(&[public]).map_err(wrong(public_field))?;
        nodes.push(Node {
            name: name(&lease.key, subnet).map_err(|e| Error::field(&key, "its name", e))?,
            underlay: vec![public],
            vtep_mac: sound::unicast_mac(endpoint.mac).map_err(wrong(data_field))?,
            vni: endpoint.vni,
            port,
            blocks: vec![subnet],
            ways: BTreeMap::new(),
            tunnel: vec![subnet.addr()],
        });
    }
    Ok(nodes)
}

/// Whether the network has the subnet, and its first address can be a node's.
fn inside(config: &Config, subnet: &IpNet) -> Result<(), String> {
    if !config.ranges().any(|range| range.network.contains(subnet)) {
        return Err(format!(
            "{subnet} lies outside the network; delete the lease"
        ));
    }
    sound::block(subnet)?;
    sound::pod_address(subnet.addr())
}

/// The lease's, with the family where it has two: an IPv6 address's colons
/// are in no name.
fn name(key: &SubnetKey, subnet: IpNet) -> Result<Name, weft_api::names::NameError> {
    match (key.v4, subnet) {
        (Some(v4), IpNet::V4(_)) => Name::new(format!("{}-{}", v4.addr(), v4.prefix_len())),
        (Some(v4), IpNet::V6(_)) => Name::new(format!("{}-{}/v6", v4.addr(), v4.prefix_len())),
        (None, _) => Name::new(
            subnet
                .to_string()
                .replace("::", "_")
                .replace([':', '/'], "-"),
        ),
    }
}

/// What the nodes so far have, and by which lease.
#[derive(Default)]
struct Taken {
    underlay: BTreeMap<IpAddr, SubnetKey>,
    subnets: Vec<(IpNet, SubnetKey)>,
    /// Of the tunnels over IPv4 and over IPv6: a node may have one for both.
    macs: [BTreeMap<Mac, SubnetKey>; 2],
}

impl Taken {
    fn by(own: &Lease) -> Self {
        let v4 = own.record.public_v4.map(IpAddr::V4).into_iter();
        let public = v4.chain(own.record.public_v6.map(IpAddr::V6));
        let macs = [own.record.v4, own.record.v6];
        Self {
            underlay: public.map(|address| (address, own.key)).collect(),
            subnets: own.key.subnets().map(|net| (net, own.key)).collect(),
            macs: macs.map(|endpoint| endpoint.iter().map(|one| (one.mac, own.key)).collect()),
        }
    }

    fn take(&mut self, lease: &Lease, nodes: Vec<Node>) -> Result<Vec<Node>, Error> {
        let taken = |what: String, other: &SubnetKey| Error::Taken {
            key: lease.key.to_string(),
            what,
            other: other.to_string(),
        };
        for node in &nodes {
            for address in &node.underlay {
                if let Some(other) = self.underlay.get(address) {
                    return Err(taken(address.to_string(), other));
                }
            }
            if let Some(other) = self.macs[family(node)].get(&node.vtep_mac) {
                return Err(taken(format!("VtepMAC {}", node.vtep_mac), other));
            }
            for block in &node.blocks {
                let overlaps = |other: &IpNet| other.contains(block) || block.contains(other);
                let other = self.subnets.iter().find(|(net, _)| overlaps(net));
                if let Some((_, other)) = other {
                    return Err(taken(format!("a part of {block}"), other));
                }
            }
        }
        for node in &nodes {
            let underlay = node.underlay.iter().map(|address| (*address, lease.key));
            self.underlay.extend(underlay);
            self.macs[family(node)].insert(node.vtep_mac, lease.key);
            let blocks = node.blocks.iter().map(|block| (*block, lease.key));
            self.subnets.extend(blocks);
        }
        Ok(nodes)
    }
}

/// Of the tunnel's outside.
fn family(node: &Node) -> usize {
    usize::from(node.underlay.iter().any(IpAddr::is_ipv6))
}

/// This node, as a lease tells it: a tunnel for each family of its underlay
/// that its subnets have. Both have its one MAC.
pub fn record(node: &Node, key: &SubnetKey) -> Record {
    let v4 = key.v4.and_then(|_| {
        node.underlay.iter().find_map(|address| match address {
            IpAddr::V4(v4) => Some(*v4),
            IpAddr::V6(_) => None,
        })
    });
    let v6 = key.v6.and_then(|_| {
        node.underlay.iter().find_map(|address| match address {
            IpAddr::V6(v6) => Some(*v6),
            IpAddr::V4(_) => None,
        })
    });
    let mac: Mac = node.vtep_mac;
    let endpoint = Endpoint { vni: node.vni, mac };
    Record {
        public_v4: v4,
        public_v6: v6,
        backend: VXLAN.to_owned(),
        v4: v4.map(|_| endpoint),
        v6: v6.map(|_| endpoint),
    }
}

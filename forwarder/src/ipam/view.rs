//! What the IPAM server has told so far, and the nodes that follow from it.
//! Pure. One record that cannot be used leaves out itself, not the others.

use std::{collections::BTreeMap, fmt, net::IpAddr};

use ipnet::IpNet;
use weft_api::{
    forwarder::{self, Nodes, Way},
    ipam::{Encapsulation, Event, Node, Route, When},
    names::{Mac, Name},
};

use crate::publish::{
    checks,
    unique::{macs_of, places_of},
};

#[derive(Debug, Default)]
pub struct View {
    revision: Option<u64>,
    resume: Option<u64>,
    nodes: BTreeMap<Name, Node>,
    routes: BTreeMap<IpNet, Route>,
}

/// Why something that the server told is not in the tables.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum LeftOut {
    NodeUnknown {
        net: IpNet,
        node: Name,
    },
    /// The server does not know the node that the forwarder serves.
    OwnUnknown(Name),
    Record {
        node: Name,
        problem: String,
    },
    /// Another node has what this one has.
    Taken {
        node: Name,
        what: String,
        by: Name,
    },
}

impl fmt::Display for LeftOut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NodeUnknown { net, node } => write!(
                f,
                "{net} gets no route: node {node} is unknown; make it known by weft ipam node put"
            ),
            Self::OwnUnknown(node) => write!(
                f,
                "no other node knows this one, {node}: make it known by weft ipam node put"
            ),
            Self::Record { node, problem } => {
                write!(f, "node {node} is left out: {problem}; correct its record")
            }
            Self::Taken { node, what, by } => write!(
                f,
                "node {node} is left out: {what} is also node {by}'s; correct one of the two"
            ),
        }
    }
}

impl View {
    pub fn take(&mut self, event: Event) {
        let (seen, whole) = match event {
            Event::Snapshot {
                revision,
                nodes,
                routes,
            } => {
                self.nodes = nodes.into_iter().map(|n| (n.name.clone(), n)).collect();
                self.routes = routes.into_iter().map(|r| (r.net, r)).collect();
                (revision, true)
            }
            Event::Node { revision, node } => {
                self.nodes.insert(node.name.clone(), node);
                (revision, false)
            }
            Event::NodeGone { revision, name } => {
                self.nodes.remove(&name);
                (revision, false)
            }
            Event::Route { revision, route } => {
                self.routes.insert(route.net, route);
                (revision, false)
            }
            Event::RouteGone { revision, net } => {
                self.routes.remove(&net);
                (revision, false)
            }
            Event::Alive { revision } => (revision, true),
        };
        self.revision = Some(seen);
        // More events of the same revision may be under way. To hear one
        // twice changes nothing.
        self.resume = Some(if whole { seen } else { seen.saturating_sub(1) });
    }

    /// The newest revision that was told of.
    pub fn revision(&self) -> Option<u64> {
        self.revision
    }

    /// After which revision to go on; none: from a snapshot on.
    pub fn resume(&self) -> Option<u64> {
        self.resume
    }

    /// The nodes as `own`'s forwarder has to see them, and what is not among
    /// them. `own` is what the forwarder knows of its node by itself, and the
    /// addresses that it had last: they stay as long as its record is unknown,
    /// but for those that another node has by now.
    pub fn nodes(&self, own: &forwarder::Node) -> (Nodes, Vec<LeftOut>) {
        let mut left_out = Vec::new();
        let mut blocks = self.blocks(&own.name, &mut left_out);
        let mut own = own.clone();
        match self.nodes.get(&own.name) {
            Some(node) => own = record(node, Vec::new()),
            None => {
                let nodes = || self.nodes.values();
                own.tunnel
                    .retain(|address| nodes().all(|node| !node.tunnel.contains(address)));
                left_out.push(LeftOut::OwnUnknown(own.name.clone()));
            }
        }
        own.blocks = blocks.remove(&own.name).unwrap_or_default();
        let mut seen = Seen::default();
        seen.add(&own);
        let mut peers = Vec::new();
        for node in self.nodes.values().filter(|node| node.name != own.name) {
            let mut peer = record(node, blocks.remove(&node.name).unwrap_or_default());
            peer.ways = self.ways(&peer.blocks, self.nodes.get(&own.name), node);
            match seen.check(&peer) {
                Ok(()) => {
                    seen.add(&peer);
                    peers.push(peer);
                }
                Err(problem) => left_out.push(problem),
            }
        }
        (Nodes { node: own, peers }, left_out)
    }

    /// All nodes, with those of their blocks whose routes are `wanted` and
    /// without their ways; none where the server does not know `own`.
    pub fn nodes_with(&self, own: &Name, wanted: impl Fn(&Route) -> bool) -> Option<Nodes> {
        let of = |node: &Node| {
            let routes = self.routes.values().filter(|route| route.node == node.name);
            let wanted = routes.filter(|route| wanted(route));
            record(node, wanted.map(|route| route.net).collect())
        };
        let peers = self.nodes.values().filter(|node| node.name != *own);
        Some(Nodes {
            node: of(self.nodes.get(own)?),
            peers: peers.map(of).collect(),
        })
    }

    /// Of the peer's blocks that have another than VXLAN.
    fn ways(&self, blocks: &[IpNet], own: Option<&Node>, peer: &Node) -> BTreeMap<IpNet, Way> {
        let near = |net: &IpNet| own.is_some_and(|own| share_subnet(own, peer, net));
        let way = |net: &IpNet| {
            let route = self.routes.get(net)?;
            match (route.encapsulation, route.when) {
                (Encapsulation::None, _) => Some((*net, Way::Direct)),
                (_, When::CrossSubnet) if near(net) => Some((*net, Way::Direct)),
                (Encapsulation::Ipip, _) => Some((*net, Way::Ipip)),
                (Encapsulation::Vxlan, _) => None,
            }
        };
        blocks.iter().filter_map(way).collect()
    }

    fn blocks(&self, own: &Name, left_out: &mut Vec<LeftOut>) -> BTreeMap<Name, Vec<IpNet>> {
        let mut blocks = BTreeMap::<Name, Vec<IpNet>>::new();
        for route in self.routes.values() {
            let (net, node) = (route.net, route.node.clone());
            if node != *own && !self.nodes.contains_key(&node) {
                left_out.push(LeftOut::NodeUnknown { net, node });
            } else {
                blocks.entry(node).or_default().push(net);
            }
        }
        blocks
    }
}

/// Whether the two are neighbours on the underlay of the block's family.
fn share_subnet(one: &Node, other: &Node, block: &IpNet) -> bool {
    let subnet = |node: &Node| {
        let same_family = |net: &&IpNet| net.addr().is_ipv4() == block.addr().is_ipv4();
        node.underlay.iter().find(same_family).copied()
    };
    let (Some(one), Some(other)) = (subnet(one), subnet(other)) else {
        return false;
    };
    one.contains(&other.addr()) && other.contains(&one.addr())
}

fn record(node: &Node, blocks: Vec<IpNet>) -> forwarder::Node {
    forwarder::Node {
        name: node.name.clone(),
        underlay: node.underlay.iter().map(IpNet::addr).collect(),
        vtep_mac: node.vtep_mac,
        vni: node.vni,
        port: node.port,
        blocks,
        ways: BTreeMap::new(),
        tunnel: node.tunnel.clone(),
    }
}

/// What no two nodes may share, and which has it.
#[derive(Default)]
struct Seen {
    underlays: BTreeMap<IpAddr, Name>,
    macs: BTreeMap<(bool, Mac), Name>,
    places: BTreeMap<IpNet, Name>,
}

impl Seen {
    fn check(&self, node: &forwarder::Node) -> Result<(), LeftOut> {
        checks::node(node).map_err(|error| LeftOut::Record {
            node: node.name.clone(),
            problem: error.message,
        })?;
        let places = places_of(node);
        let underlay = node.underlay.iter().find_map(|address| {
            let by = self.underlays.get(address)?;
            Some((format!("underlay address {address}"), by))
        });
        let mac = || {
            let by = macs_of(node).find_map(|mac| self.macs.get(&mac))?;
            Some((format!("VTEP MAC {}", node.vtep_mac), by))
        };
        let place = || {
            let of = |net| Some((format!("{net}"), self.places.get(net)?));
            places.iter().find_map(of)
        };
        match underlay.or_else(mac).or_else(place) {
            None => Ok(()),
            Some((what, by)) => Err(LeftOut::Taken {
                node: node.name.clone(),
                what,
                by: by.clone(),
            }),
        }
    }

    fn add(&mut self, node: &forwarder::Node) {
        let name = || node.name.clone();
        let underlays = node.underlay.iter().map(|address| (*address, name()));
        self.underlays.extend(underlays);
        self.macs.extend(macs_of(node).map(|mac| (mac, name())));
        let places = places_of(node).into_iter();
        self.places.extend(places.map(|net| (net, name())));
    }
}

#[cfg(test)]
mod tests;

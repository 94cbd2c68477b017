//! What the IPAM server has told so far, and the nodes that follow from it.
//! Pure. One record that cannot be used leaves out itself, not the others.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::IpAddr,
};

use ipnet::IpNet;
use weft_api::{
    forwarder::{self, Nodes, Way},
    ipam::{Encapsulation, Event, Node, Route},
    names::Name,
};

use crate::publish::{checks, unique::places_of};

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
    /// This forwarder only tunnels.
    NotTunnelled {
        net: IpNet,
        node: Name,
    },
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
}

impl fmt::Display for LeftOut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotTunnelled { net, node } => write!(
                f,
                "{net} of node {node} gets no route: the encapsulation of its pool is none"
            ),
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
    /// them. `own` is what the forwarder knows of its node by itself.
    pub fn nodes(&self, own: &forwarder::Node) -> (Nodes, Vec<LeftOut>) {
        let mut left_out = Vec::new();
        let mut blocks = self.blocks(&own.name, &mut left_out);
        let mut own = own.clone();
        match self.nodes.get(&own.name) {
            Some(node) => own = record(node, Vec::new()),
            None => left_out.push(LeftOut::OwnUnknown(own.name.clone())),
        }
        own.blocks = blocks.remove(&own.name).unwrap_or_default();
        let mut seen = Seen::default();
        seen.add(&own);
        let mut peers = Vec::new();
        for node in self.nodes.values().filter(|node| node.name != own.name) {
            let mut peer = record(node, blocks.remove(&node.name).unwrap_or_default());
            peer.ways = self.ways(&peer.blocks);
            match seen.check(&peer) {
                Ok(()) => {
                    seen.add(&peer);
                    peers.push(peer);
                }
                Err(problem) => left_out.push(LeftOut::Record {
                    node: peer.name,
                    problem,
                }),
            }
        }
        (Nodes { node: own, peers }, left_out)
    }

    /// Of those that have another than VXLAN.
    fn ways(&self, blocks: &[IpNet]) -> BTreeMap<IpNet, Way> {
        let by_ipip = |net: &&IpNet| {
            let route = self.routes.get(*net);
            route.is_some_and(|route| route.encapsulation == Encapsulation::Ipip)
        };
        let nets = blocks.iter().filter(by_ipip);
        nets.map(|&net| (net, Way::Ipip)).collect()
    }

    /// Of the own node all, since nothing on the way to its pods is tunnelled.
    fn blocks(&self, own: &Name, left_out: &mut Vec<LeftOut>) -> BTreeMap<Name, Vec<IpNet>> {
        let mut blocks = BTreeMap::<Name, Vec<IpNet>>::new();
        for route in self.routes.values() {
            let (net, node) = (route.net, route.node.clone());
            if node != *own && !self.nodes.contains_key(&node) {
                left_out.push(LeftOut::NodeUnknown { net, node });
            } else if node != *own && route.encapsulation == Encapsulation::None {
                left_out.push(LeftOut::NotTunnelled { net, node });
            } else {
                blocks.entry(node).or_default().push(net);
            }
        }
        blocks
    }
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

/// What no two nodes may share.
#[derive(Default)]
struct Seen {
    underlays: BTreeSet<IpAddr>,
    places: BTreeSet<IpNet>,
}

impl Seen {
    fn check(&self, node: &forwarder::Node) -> Result<(), String> {
        checks::node(node).map_err(|error| error.message)?;
        if let Some(address) = node.underlay.iter().find(|a| self.underlays.contains(a)) {
            return Err(format!("underlay address {address} is another node's"));
        }
        match places_of(node).iter().find(|net| self.places.contains(net)) {
            Some(net) => Err(format!("{net} is another node's")),
            None => Ok(()),
        }
    }

    fn add(&mut self, node: &forwarder::Node) {
        self.underlays.extend(&node.underlay);
        self.places.extend(places_of(node));
    }
}

#[cfg(test)]
mod tests;

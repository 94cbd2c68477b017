//! Nodes, and what of them the fabric has to carry, as the IPAM server tells
//! it.

use std::collections::BTreeMap;

use anyhow::bail;
use ipnet::IpNet;
use weft_api::{
    forwarder::{self, Nodes},
    ipam::{Encapsulation, Event, Node, Reply, Request, Route, When},
    names::Name,
};
use weft_socket::ipam::Client;

use crate::ipam;

#[derive(Debug, Default)]
pub struct Cluster {
    nodes: BTreeMap<Name, Node>,
    routes: BTreeMap<IpNet, Route>,
}

impl Cluster {
    /// Whether the event changes anything.
    pub fn take(&mut self, event: Event) -> bool {
        match event {
            Event::Snapshot { nodes, routes, .. } => {
                self.nodes = nodes.into_iter().map(|n| (n.name.clone(), n)).collect();
                self.routes = routes.into_iter().map(|r| (r.net, r)).collect();
            }
            Event::Node { node, .. } => drop(self.nodes.insert(node.name.clone(), node)),
            Event::NodeGone { name, .. } => drop(self.nodes.remove(&name)),
            Event::Route { route, .. } => drop(self.routes.insert(route.net, route)),
            Event::RouteGone { net, .. } => drop(self.routes.remove(&net)),
            Event::Alive { .. } => return false,
        }
        true
    }

    /// None where `own` is unknown. Blocks that are tunnelled are not among
    /// the nodes'.
    pub fn seen_by(&self, own: &Name) -> Option<Nodes> {
        let peers = self.nodes.values().filter(|node| node.name != *own);
        Some(Nodes {
            node: self.record(self.nodes.get(own)?),
            peers: peers.map(|node| self.record(node)).collect(),
        })
    }

    fn record(&self, node: &Node) -> forwarder::Node {
        let routes = self.routes.values();
        let routes = routes.filter(|route| route.node == node.name);
        let routes = routes.filter(|route| by_fabric(route.encapsulation, route.when));
        forwarder::Node {
            name: node.name.clone(),
            underlay: node.underlay.iter().map(IpNet::addr).collect(),
            vtep_mac: node.vtep_mac,
            vni: node.vni,
            port: node.port,
            blocks: routes.map(|route| route.net).collect(),
            ways: BTreeMap::new(),
            tunnel: Vec::new(),
        }
    }
}

/// The ranges that the fabric carries.
pub fn pools(client: &mut Client) -> anyhow::Result<Vec<IpNet>> {
    let Reply::Pools(pools) = client.request(&Request::Pools).map_err(ipam::told)? else {
        bail!("the IPAM server answered something else than pools");
    };
    let pools = pools.into_iter().map(|usage| usage.pool);
    let carried = pools.filter(|pool| by_fabric(pool.encapsulation, pool.when));
    Ok(carried.map(|pool| pool.cidr).collect())
}

/// At least between some nodes packets go as they are.
fn by_fabric(encapsulation: Encapsulation, when: When) -> bool {
    encapsulation == Encapsulation::None || when == When::CrossSubnet
}

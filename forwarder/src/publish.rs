//! The desired state and the tables that follow from it: plain records in,
//! one [`Snapshot`] out. A change yields a new [`State`] or a refusal, so a
//! refused change has changed nothing. No fd, thread or socket is known here.

pub(crate) mod checks;
mod paths;
mod ports;
pub mod unique;
pub mod ways;

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use weft_api::{
    forwarder::{Attach, Code, Error, GATEWAY_MAC, GATEWAY_V4, GATEWAY_V6, Node, Nodes},
    names::Name,
};
use weft_engine::{
    Epoch, Gateway, Ipip, Peer, Peers, Port, Snapshot, Vtep, counters::Traffic,
    snapshot::SnapshotError,
};
use weft_wire::ipip;

use crate::paths::Mtus;

/// Everything that was asked for and granted.
#[derive(Debug, Clone)]
pub struct State {
    own: Node,
    /// The addresses that the uplink is bound to.
    uplink: Arc<[IpAddr]>,
    uplink_mtu: u16,
    /// The MTU of the outer packet by peer, where it is known.
    mtus: Arc<Mtus>,
    /// The uplink has a raw socket.
    ipip: bool,
    /// Each at its `PortId`.
    ports: Vec<Option<PortRow>>,
    /// Shared by the states that differ in ports alone.
    peers: Arc<[PeerRow]>,
    tables: Arc<Peers>,
}

#[derive(Debug, Clone)]
pub struct PortRow {
    pub spec: Attach,
    pub port: Arc<Port>,
}

#[derive(Debug, Clone)]
pub struct PeerRow {
    pub node: Node,
    pub peer: Arc<Peer>,
}

/// What an open port can be given whole.
#[derive(Debug, Clone, Copy)]
pub struct Takes {
    pub udp: bool,
    pub tcp: bool,
}

impl State {
    /// A node without ports and peers; its underlay and port are the uplink's.
    pub fn new(own: Node, uplink_mtu: u16) -> Self {
        let uplink = own.underlay.as_slice().into();
        Self {
            own,
            uplink,
            uplink_mtu,
            mtus: Arc::default(),
            ipip: false,
            ports: Vec::new(),
            peers: Arc::default(),
            tables: Arc::default(),
        }
    }

    /// Says whether the uplink has a raw socket, which IP-in-IP needs.
    pub fn set_ipip(&mut self, ipip: bool) {
        self.ipip = ipip;
    }

    pub fn own(&self) -> &Node {
        &self.own
    }

    /// The addresses that the uplink is bound to.
    pub fn uplink(&self) -> &[IpAddr] {
        &self.uplink
    }

    pub fn uplink_mtu(&self) -> u16 {
        self.uplink_mtu
    }

    pub fn ports(&self) -> impl Iterator<Item = &PortRow> {
        self.ports.iter().flatten()
    }

    pub fn peers(&self) -> &[PeerRow] {
        &self.peers
    }

    /// The other nodes as `nodes` has them, and this one too.
    pub fn with_nodes(&self, nodes: Nodes) -> Result<Self, Error> {
        let Nodes { node: own, peers } = nodes;
        self.check_own(&own)?;
        unique::check(&own, &peers)?;
        ways::check(self.ipip, &peers)?;
        self.with_rows(own, peers)
    }

    /// Nodes that are known to be sound.
    fn with_rows(&self, own: Node, peers: Vec<Node>) -> Result<Self, Error> {
        let known: HashMap<&Name, &Arc<Peer>> = self
            .peers
            .iter()
            .map(|row| (&row.node.name, &row.peer))
            .collect();
        let peers: Arc<[PeerRow]> = peers
            .into_iter()
            .map(|node| {
                let before = known.get(&node.name);
                let to_peer = before
                    .map(|peer| Arc::clone(&peer.to_peer))
                    .unwrap_or_default();
                let from_peer = before
                    .map(|peer| Arc::clone(&peer.from_peer))
                    .unwrap_or_default();
                let peer = Arc::new(self.peer(&node, to_peer, from_peer));
                PeerRow { node, peer }
            })
            .collect();
        let all = peers.iter().map(|row| Arc::clone(&row.peer)).collect();
        let tables = Peers::build(&own.blocks, all).map_err(contradiction)?;
        Ok(Self {
            ports: self.ports_of(&own),
            own,
            peers,
            tables: Arc::new(tables),
            ..self.clone()
        })
    }

    pub fn snapshot(&self, epoch: Epoch) -> Result<Snapshot, Error> {
        let gateway = Gateway {
            mac: GATEWAY_MAC.0,
            v4: GATEWAY_V4,
            v6: GATEWAY_V6,
        };
        let vtep = Vtep {
            mac: self.own.vtep_mac.0,
            port: self.own.port,
            addresses: self.own.tunnel.clone(),
            blocks: self.own.blocks.clone(),
        };
        let ports = self
            .ports
            .iter()
            .map(|row| row.as_ref().map(|row| Arc::clone(&row.port)))
            .collect();
        let peers = Arc::clone(&self.tables);
        Snapshot::build(epoch, gateway, vtep, ports, peers).map_err(contradiction)
    }

    fn check_own(&self, own: &Node) -> Result<(), Error> {
        checks::node(own)?;
        let invalid = |what: String, hint: &str| {
            Err(refusal(
                Code::Invalid,
                format!("node {}: {what}", own.name),
                hint,
            ))
        };
        if let Some(address) = own.underlay.iter().find(|a| !self.uplink.contains(a)) {
            let what = format!("the uplink does not listen on {address}");
            return invalid(what, "apply what this forwarder's uplink.addresses say");
        }
        if own.port != self.own.port {
            let what = format!(
                "the uplink listens on port {}, not {}",
                self.own.port, own.port
            );
            return invalid(what, "apply what this forwarder's uplink.port says");
        }
        for port in self.ports().filter(|port| port.spec.host.is_none()) {
            if let Some(address) = own.tunnel.iter().find(|a| port.spec.addresses.contains(a)) {
                let message = format!(
                    "node {}: tunnel address {address} is port {}'s",
                    own.name, port.spec.name
                );
                return Err(refusal(Code::Taken, message, "give the node another"));
            }
        }
        Ok(())
    }

    fn peer(&self, node: &Node, to_peer: Arc<Traffic>, from_peer: Arc<Traffic>) -> Peer {
        let common = |theirs: &&IpAddr| self.uplink.iter().any(|a| a.is_ipv4() == theirs.is_ipv4());
        let remote = node.underlay.iter().find(common);
        let overhead = ways::vxlan_overhead(node, remote.is_some_and(IpAddr::is_ipv4));
        let outer = self.outer_mtu(node);
        Peer {
            remote: remote.map(|&address| SocketAddr::new(address, node.port)),
            underlay: node.underlay.clone(),
            mac: node.vtep_mac.0,
            vni: node.vni.value(),
            mtu: usize::from(outer.saturating_sub(overhead)),
            l3: ways::is_l3(node),
            ipip: self.ipip(node),
            blocks: ways::of(node),
            to_peer,
            from_peer,
        }
    }

    fn ipip(&self, node: &Node) -> Option<Ipip> {
        if !self.ipip {
            return None;
        }
        let remote = node.underlay.iter().find_map(|address| match address {
            IpAddr::V4(address) => Some(*address),
            IpAddr::V6(_) => None,
        });
        remote.map(|remote| Ipip {
            remote,
            mtu: usize::from(self.outer_mtu(node).saturating_sub(ipip::OVERHEAD)),
        })
    }
}

fn contradiction(fault: SnapshotError) -> Error {
    let message = format!("the tables contradict themselves: {fault}");
    refusal(
        Code::Internal,
        message,
        "report this with the forwarder's log",
    )
}

/// Longest message that goes back, in characters: what was asked may be
/// quoted in it.
const MESSAGE_MAX: usize = 600;

pub(crate) fn refusal(code: Code, message: impl Into<String>, hint: impl Into<String>) -> Error {
    let mut message: String = message.into();
    if let Some((end, _)) = message.char_indices().nth(MESSAGE_MAX) {
        message.truncate(end);
        message.push('…');
    }
    Error {
        code,
        message,
        hint: hint.into(),
    }
}

#[cfg(test)]
mod tests;

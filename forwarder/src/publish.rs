//! The desired state and the tables that follow from it: plain records in,
//! one [`Snapshot`] out. A change yields a new [`State`] or a refusal, so a
//! refused change has changed nothing. No fd, thread or socket is known here.

pub mod checks;
pub mod ways;

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    num::NonZeroU32,
    sync::Arc,
    time::Instant,
};

use ipnet::IpNet;
use weft_api::{
    forwarder::{
        Attach, Code, Error, GATEWAY_MAC, GATEWAY_V4, GATEWAY_V6, Limit, Node, Nodes, PortMapping,
    },
    names::Name,
};
use weft_conntrack::Account;
use weft_engine::{
    Epoch, Gateway, Ipip, Peer, Port, PortId, Shaper, Snapshot, Vtep, counters::Traffic,
};
use weft_wire::ipip;

/// Most ports: as many as a [`PortId`] can tell apart.
const PORTS_MAX: usize = 1 << 16;
/// Most peers, likewise.
const PEERS_MAX: usize = 1 << 16;

/// Everything that was asked for and granted.
#[derive(Debug, Clone)]
pub struct State {
    own: Node,
    /// The addresses that the uplink is bound to.
    uplink: Arc<[IpAddr]>,
    uplink_mtu: u16,
    /// The uplink has a raw socket.
    ipip: bool,
    /// Each at its `PortId`.
    ports: Vec<Option<PortRow>>,
    peers: Vec<PeerRow>,
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
            ipip: false,
            ports: Vec::new(),
            peers: Vec::new(),
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

    pub fn ports(&self) -> impl Iterator<Item = &PortRow> {
        self.ports.iter().flatten()
    }

    pub fn peers(&self) -> &[PeerRow] {
        &self.peers
    }

    /// The place that the port would get, if it may come at all.
    pub fn place_for(&self, spec: &Attach) -> Result<PortId, Error> {
        checks::attach(spec)?;
        let taken = |what: String, hint: &str| {
            Err(refusal(
                Code::Taken,
                format!("attach port {}: {what}", spec.name),
                hint,
            ))
        };
        for address in &spec.addresses {
            if self.own.tunnel.contains(address) {
                return taken(
                    format!("{address} is the node's own"),
                    "give the pod another",
                );
            }
        }
        for other in self.ports().map(|row| &row.spec) {
            if other.name == spec.name {
                return taken(
                    "the name is taken".to_owned(),
                    "detach the other, or choose another",
                );
            }
            if other.mac == spec.mac {
                let what = format!("MAC {} is port {}'s", spec.mac, other.name);
                return taken(what, "give each pod a MAC of its own");
            }
            if let Some(address) = spec.addresses.iter().find(|a| other.addresses.contains(a)) {
                let what = format!("address {address} is port {}'s", other.name);
                return taken(what, "detach the other, or give the pod another address");
            }
            let published = &other.capabilities.port_mappings;
            let collides = |mine: &&PortMapping| published.iter().any(|one| one.collides(mine));
            if let Some(mapping) = spec.capabilities.port_mappings.iter().find(collides) {
                let what = format!(
                    "{} is published by port {}",
                    mapping.published(),
                    other.name
                );
                return taken(
                    what,
                    "detach the other, or publish another port of the node",
                );
            }
        }
        let lowest = self
            .ports
            .iter()
            .position(Option::is_none)
            .unwrap_or(self.ports.len());
        u16::try_from(lowest).map(PortId).map_err(|_| {
            let message = format!("attach port {}: {PORTS_MAX} ports are attached", spec.name);
            refusal(
                Code::Invalid,
                message,
                "detach some, or run another forwarder",
            )
        })
    }

    pub fn with_port(&self, spec: Attach, takes: Takes) -> Result<(Self, PortId), Error> {
        let id = self.place_for(&spec)?;
        let connections = spec.capabilities.connections.map(NonZeroU32::get);
        let port = Arc::new(Port {
            id,
            mac: spec.mac.0,
            addresses: spec.addresses.clone(),
            mtu: usize::from(spec.mtu),
            takes_udp: takes.udp,
            takes_tcp: takes.tcp,
            from_pod_shaper: spec.capabilities.bandwidth.from_pod.map(shaper),
            to_pod_shaper: spec.capabilities.bandwidth.to_pod.map(shaper),
            connections: Arc::new(connections.map_or_else(Account::default, Account::new)),
            from_pod: Arc::default(),
            to_pod: Arc::default(),
        });
        let mut state = self.clone();
        let place = usize::from(id.0);
        if place == state.ports.len() {
            state.ports.push(None);
        }
        state.ports[place] = Some(PortRow { spec, port });
        Ok((state, id))
    }

    pub fn without_port(&self, name: &Name) -> Result<(Self, PortId), Error> {
        let named = |row: &Option<PortRow>| row.as_ref().is_some_and(|row| row.spec.name == *name);
        let Some(place) = self.ports.iter().position(named) else {
            let message = format!("detach port {name}: no port has that name");
            return Err(refusal(Code::NotFound, message, "`list` shows the ports"));
        };
        let mut state = self.clone();
        let id = state.ports[place]
            .take()
            .map_or(PortId(0), |row| row.port.id);
        while let Some(None) = state.ports.last() {
            state.ports.pop();
        }
        Ok((state, id))
    }

    /// The other nodes as `nodes` has them, and this one too.
    pub fn with_nodes(&self, nodes: Nodes) -> Result<Self, Error> {
        let Nodes { node: own, peers } = nodes;
        self.check_own(&own)?;
        check_peers(&own, &peers)?;
        ways::check(self.ipip, &peers)?;
        let known: HashMap<&Name, &Arc<Peer>> = self
            .peers
            .iter()
            .map(|row| (&row.node.name, &row.peer))
            .collect();
        let peers = peers
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
        Ok(Self {
            own,
            peers,
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
            addresses: self.own.tunnel.clone(),
            blocks: self.own.blocks.clone(),
        };
        let ports = self
            .ports
            .iter()
            .map(|row| row.as_ref().map(|row| Arc::clone(&row.port)))
            .collect();
        let peers = self.peers.iter().map(|row| Arc::clone(&row.peer)).collect();
        Snapshot::build(epoch, gateway, vtep, ports, peers).map_err(|fault| {
            let message = format!("the tables contradict themselves: {fault}");
            refusal(
                Code::Internal,
                message,
                "report this with the forwarder's log",
            )
        })
    }

    fn check_own(&self, own: &Node) -> Result<(), Error> {
        checks::node(own)?;
        let invalid = |what: String, hint: &str| {
            Err(refusal(
                Code::Invalid,
                format!("apply node {}: {what}", own.name),
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
        for port in self.ports() {
            if let Some(address) = own.tunnel.iter().find(|a| port.spec.addresses.contains(a)) {
                let message = format!(
                    "apply node {}: tunnel address {address} is port {}'s",
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
        Peer {
            remote: remote.map(|&address| SocketAddr::new(address, node.port)),
            underlay: node.underlay.clone(),
            mac: node.vtep_mac.0,
            vni: node.vni.value(),
            mtu: usize::from(self.uplink_mtu.saturating_sub(overhead)),
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
            mtu: usize::from(self.uplink_mtu.saturating_sub(ipip::OVERHEAD)),
        })
    }
}

fn shaper(limit: Limit) -> Shaper {
    Shaper::new(limit.rate.get(), limit.burst.get(), Instant::now())
}

/// What no two nodes may share, this one included.
fn check_peers(own: &Node, peers: &[Node]) -> Result<(), Error> {
    if peers.len() > PEERS_MAX {
        let message = format!("apply: {} peers are more than {PEERS_MAX}", peers.len());
        return Err(refusal(Code::Invalid, message, "split the network"));
    }
    let mut names = HashMap::new();
    let mut underlays = HashMap::new();
    let mut places = HashMap::new();
    for (place, node) in std::iter::once(own).chain(peers).enumerate() {
        if place > 0 {
            checks::node(node)?;
        }
        let taken = |what: String, by: &Name| {
            let message = format!("apply node {}: {what} is also node {by}'s", node.name);
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
        for block in places_of(node) {
            if let Some(by) = places.insert(block, &node.name) {
                return Err(taken(format!("block {block}"), by));
            }
        }
    }
    Ok(())
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

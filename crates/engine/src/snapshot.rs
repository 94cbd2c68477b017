//! The tables of one epoch. A snapshot never changes: a new one takes its
//! place, and what the flow cache learned from the old one dies with it.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
};

use ipnet::IpNet;
use rapidhash::fast::RandomState;
use weft_conntrack::Account;
use weft_wire::{Mac, Packet};

use crate::{Policy, Reach, Shaper, Way, counters::Traffic, holders::Holders};

mod error;

pub use error::SnapshotError;

/// Counts the snapshots of one forwarder.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Epoch(pub u64);

/// A port's place in the table; reused after detach.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PortId(pub u16);

/// A peer's place in the table of one epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PeerId(pub u16);

/// What every pod sees at the other end of its link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gateway {
    pub mac: Mac,
    pub v4: Ipv4Addr,
    /// Link-local.
    pub v6: Ipv6Addr,
}

/// This node's end of the tunnel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vtep {
    pub mac: Mac,
    /// The UDP port of VXLAN at this node's underlay addresses.
    pub port: u16,
    /// The node's own addresses in the pod network, at most one of each
    /// family. ICMP errors towards other nodes come from them.
    pub addresses: Vec<IpAddr>,
    /// Address blocks that live here: what no port holds, nobody holds.
    pub blocks: Vec<IpNet>,
}

#[derive(Debug)]
pub struct Port {
    pub id: PortId,
    pub mac: Mac,
    pub addresses: Vec<IpAddr>,
    /// Bytes of the largest IP packet the pod's link takes.
    pub mtu: usize,
    /// Whether the port takes whole UDP super-frames, TCP super-frames.
    pub takes_udp: bool,
    pub takes_tcp: bool,
    /// None of a pod's port.
    pub host: Option<Host>,
    pub from_pod_shaper: Option<Shaper>,
    pub to_pod_shaper: Option<Shaper>,
    /// What counts packets, each as a byte.
    pub from_pod_packets: Option<Shaper>,
    pub to_pod_packets: Option<Shaper>,
    /// How many connections the pod has, and may have.
    pub connections: Arc<Account>,
    pub from_pod: Arc<Traffic>,
    pub to_pod: Arc<Traffic>,
}

/// What makes a port the host port: the node itself is behind it, and whatever
/// the node's kernel routes. Its addresses are the node's own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Host {
    /// What pods' addresses come from. All else is outside, and leaves by the
    /// host port.
    pub pools: Vec<IpNet>,
}

#[derive(Debug)]
pub struct Peer {
    /// Where datagrams go, in the family both nodes have; none if there is
    /// no such family.
    pub remote: Option<SocketAddr>,
    /// Underlay addresses its datagrams may come from.
    pub underlay: Vec<IpAddr>,
    pub mac: Mac,
    /// The network's number on this way, in both directions.
    pub vni: u32,
    /// Bytes of the largest inner IP packet that fits a VXLAN datagram.
    pub mtu: usize,
    /// Its VXLAN datagrams hold IP packets without an Ethernet header.
    pub l3: bool,
    /// None if not both nodes have an IPv4 underlay.
    pub ipip: Option<Ipip>,
    /// What lives there, and how to get to it: inner sources are taken only
    /// from these.
    pub blocks: Vec<(IpNet, Reach)>,
    pub to_peer: Arc<Traffic>,
    pub from_peer: Arc<Traffic>,
}

/// The IP-in-IP way to a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ipip {
    pub remote: Ipv4Addr,
    /// Bytes of the largest inner packet that fits.
    pub mtu: usize,
}

/// The way through the tunnel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Route {
    pub peer: PeerId,
    pub way: Way,
}

/// Where an address lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Holder {
    /// On this node, whoever may hold it.
    Here,
    Peer(PeerId, Reach),
}

/// What every IPv6 link carries (RFC 8200 section 5).
const IPV6_MTU_MIN: usize = 1280;

impl Peer {
    /// Bytes of the largest packet of this one's kind that fits the way. No
    /// IPv6 sender goes below IPv6's least MTU, so what is smaller fits, if
    /// need be in fragments of the outer packet.
    pub fn mtu_of(&self, packet: &Packet, way: Way) -> usize {
        match (way, self.ipip) {
            (Way::Ipip, Some(ipip)) => ipip.mtu,
            _ if packet.is_v4() => self.mtu,
            _ => self.mtu.max(IPV6_MTU_MIN),
        }
    }

    /// Whether this node and the peer have what `way` needs.
    pub fn has(&self, way: Way) -> bool {
        match way {
            Way::Vxlan | Way::VxlanL3 => self.remote.is_some(),
            Way::Ipip => self.ipip.is_some(),
        }
    }

    /// The way to the peer itself, whatever lives there.
    pub fn vxlan(&self) -> Way {
        if self.l3 { Way::VxlanL3 } else { Way::Vxlan }
    }
}

#[derive(Debug)]
pub struct Snapshot {
    pub epoch: Epoch,
    pub gateway: Gateway,
    pub vtep: Vtep,
    /// None: everybody may speak to everybody, and no connection is tracked.
    pub policy: Option<Policy>,
    ports: Vec<Option<Arc<Port>>>,
    host: Option<PortId>,
    port_by_address: ByAddress<PortId>,
    peers: Arc<Peers>,
}

/// The other nodes, and what lives where: of many snapshots the same, as ports
/// come and go more often than nodes.
#[derive(Debug, Default)]
pub struct Peers {
    peers: Vec<Arc<Peer>>,
    by_underlay: ByAddress<PeerId>,
    holders: Holders,
}

type ByAddress<T> = HashMap<IpAddr, T, RandomState>;

impl Snapshot {
    /// Ports stand at their own [`PortId`]. `peers` are built with the blocks
    /// that `vtep` has.
    pub fn build(
        epoch: Epoch,
        gateway: Gateway,
        vtep: Vtep,
        ports: Vec<Option<Arc<Port>>>,
        peers: Arc<Peers>,
    ) -> Result<Self, SnapshotError> {
        let host = host_among(&ports)?;
        let port_by_address = by_address(&ports, &vtep, host)?;
        Ok(Self {
            epoch,
            gateway,
            vtep,
            policy: None,
            ports,
            host,
            port_by_address,
            peers,
        })
    }

    /// The same under rules.
    #[must_use]
    pub fn with_policy(self, policy: Policy) -> Self {
        let policy = Some(policy);
        Self { policy, ..self }
    }

    pub fn port(&self, id: PortId) -> Option<&Port> {
        self.ports.get(usize::from(id.0))?.as_deref()
    }

    /// `id` must come from this snapshot.
    pub fn peer(&self, id: PeerId) -> &Peer {
        &self.peers.peers[usize::from(id.0)]
    }

    pub fn peers(&self) -> &[Arc<Peer>] {
        &self.peers.peers
    }

    /// Whether the gateway itself answers for `address`.
    pub fn is_gateway(&self, address: IpAddr) -> bool {
        address == IpAddr::V4(self.gateway.v4)
            || address == IpAddr::V6(self.gateway.v6)
            || self.answers_for_node(address)
    }

    /// Whether `address` is the node's own, and the node is not there to speak
    /// for itself.
    pub fn answers_for_node(&self, address: IpAddr) -> bool {
        self.host.is_none() && self.vtep.addresses.contains(&address)
    }

    pub fn host(&self) -> Option<&Port> {
        self.port(self.host?)
    }

    /// The host port, if `address`, which lies in no block, is outside.
    pub fn way_out(&self, address: IpAddr) -> Option<PortId> {
        let port = self.host()?;
        let pools = &port.host.as_ref()?.pools;
        let inside = pools.iter().any(|pool| pool.contains(&address));
        (!inside).then_some(port.id)
    }

    pub fn port_of(&self, address: IpAddr) -> Option<PortId> {
        self.port_by_address.get(&address).copied()
    }

    pub fn peer_from(&self, underlay: IpAddr) -> Option<PeerId> {
        self.peers.by_underlay.get(&underlay).copied()
    }

    pub fn holder_of(&self, address: IpAddr) -> Option<Holder> {
        self.peers.holders.of(address)
    }

    /// The peer behind which `address` lives, or is.
    pub fn peer_of(&self, address: IpAddr) -> Option<PeerId> {
        match self.holder_of(address) {
            Some(Holder::Peer(peer, _)) => Some(peer),
            Some(Holder::Here) => None,
            None => self.peer_from(address),
        }
    }
}

impl Peers {
    /// Each gets its [`PeerId`] by position. `own` are this node's blocks.
    pub fn build(own: &[IpNet], peers: Vec<Arc<Peer>>) -> Result<Self, SnapshotError> {
        Ok(Self {
            by_underlay: by_underlay(&peers)?,
            holders: by_block(own, &peers)?,
            peers,
        })
    }
}

fn host_among(ports: &[Option<Arc<Port>>]) -> Result<Option<PortId>, SnapshotError> {
    let hosts = ports.iter().flatten().filter(|port| port.host.is_some());
    let mut ids = hosts.map(|port| port.id);
    match (ids.next(), ids.next()) {
        (Some(first), Some(second)) => Err(SnapshotError::Hosts { first, second }),
        (host, _) => Ok(host),
    }
}

/// Whatever is the node's own, the host port holds, where there is one.
fn by_address(
    ports: &[Option<Arc<Port>>],
    vtep: &Vtep,
    host: Option<PortId>,
) -> Result<ByAddress<PortId>, SnapshotError> {
    let mut port_by_address = ByAddress::default();
    if let Some(host) = host {
        port_by_address.extend(vtep.addresses.iter().map(|&address| (address, host)));
    }
    for port in ports.iter().flatten() {
        for &address in &port.addresses {
            let first = port_by_address.insert(address, port.id);
            if let Some(first) = first.filter(|first| *first != port.id || host != Some(*first)) {
                return Err(SnapshotError::Address {
                    address,
                    first,
                    second: port.id,
                });
            }
        }
    }
    Ok(port_by_address)
}

fn by_underlay(peers: &[Arc<Peer>]) -> Result<ByAddress<PeerId>, SnapshotError> {
    let mut peer_by_underlay = ByAddress::default();
    for (id, peer) in numbered(peers) {
        let second = id?;
        for &address in &peer.underlay {
            if let Some(first) = peer_by_underlay.insert(address, second) {
                return Err(SnapshotError::Underlay {
                    address,
                    first,
                    second,
                });
            }
        }
    }
    Ok(peer_by_underlay)
}

fn by_block(own: &[IpNet], peers: &[Arc<Peer>]) -> Result<Holders, SnapshotError> {
    let mut holders = Holders::default();
    for &block in own {
        holders.insert(block, Holder::Here);
    }
    for (id, peer) in numbered(peers) {
        let second = id?;
        for &(block, reach) in &peer.blocks {
            match holders.insert(block, Holder::Peer(second, reach)) {
                None => {}
                Some(Holder::Here) => {
                    return Err(SnapshotError::OwnBlock {
                        block,
                        peer: second,
                    });
                }
                Some(Holder::Peer(first, _)) => {
                    return Err(SnapshotError::Block {
                        block,
                        first,
                        second,
                    });
                }
            }
        }
    }
    Ok(holders)
}

fn numbered(
    peers: &[Arc<Peer>],
) -> impl Iterator<Item = (Result<PeerId, SnapshotError>, &Arc<Peer>)> {
    peers.iter().enumerate().map(|(place, peer)| {
        let id = u16::try_from(place).map(PeerId);
        (id.map_err(|_| SnapshotError::TooMany), peer)
    })
}

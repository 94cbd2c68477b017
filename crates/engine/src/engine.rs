//! The whole way of a packet, from either side.

use std::time::Instant;

use weft_wire::{
    ETHERNET_LEN, Ethernet, Packet, ParseError, VnetHeader, edit, parse,
    parse::{dst_mac, src_mac},
    vxlan::{VxlanError, decap},
};

use crate::{
    Batch, Counters, DropReason, PeerId, Port, Snapshot, Tunnel, Verdict, admit,
    coalesce::Runs,
    flow::{Egress, FlowCache, Ingress},
    gateway::{self, icmp::Complaint},
    inbox::{Inbox, Train},
    limit::Bucket,
    lookup,
};

/// One worker's mind: what it remembers between batches.
#[derive(Debug)]
pub struct Engine {
    flows: FlowCache,
    complaints: Bucket,
    reply: Vec<u8>,
}

/// ICMP errors a second, and at once (RFC 4443 section 2.4(f)); Linux's own
/// figures (`icmp_msgs_per_sec`, `icmp_msgs_burst`).
const COMPLAINTS_PER_SECOND: u32 = 1000;
const COMPLAINTS_BURST: u32 = 50;

/// What a decision may look at besides the frame.
struct Scene<'a> {
    tables: &'a Snapshot,
    counters: &'a Counters,
    replies: &'a mut Batch,
    now: Instant,
}

impl Engine {
    /// `seed` should be random: it hides which flows collide.
    pub fn new(seed: u64) -> Self {
        Self {
            flows: FlowCache::new(seed),
            complaints: Bucket::new(COMPLAINTS_PER_SECOND, COMPLAINTS_BURST),
            reply: Vec::new(),
        }
    }

    /// Decides each frame of a batch that came from one port. What the
    /// gateway answers is put into `replies`, with its own verdict.
    pub fn from_port(
        &mut self,
        tables: &Snapshot,
        ingress: &Port,
        batch: &mut Batch,
        replies: &mut Batch,
        counters: &Counters,
        now: Instant,
    ) {
        let mut scene = Scene {
            tables,
            counters,
            replies,
            now,
        };
        for place in 0..batch.len() {
            let (frame, bytes) = batch.frame_mut(place);
            let (packets, decided) = match parse(bytes) {
                Ok(ethernet) => {
                    self.decide_from_port(&mut scene, ingress, bytes, ethernet, frame.vnet)
                }
                Err(error) => (1, Err(error.into())),
            };
            frame.packets = packets;
            frame.verdict = decided.unwrap_or_else(Verdict::Drop);
            counters.received_from_ports.add(packets);
            ingress.from_pod.add(packets, frame.len);
            match frame.verdict {
                Verdict::Drop(reason) => counters.lose(reason, packets),
                Verdict::Answered => counters.answered.add(packets),
                Verdict::Deliver(_) | Verdict::Tunnel(_) => {}
            }
        }
    }

    fn decide_from_port(
        &mut self,
        scene: &mut Scene<'_>,
        ingress: &Port,
        bytes: &mut [u8],
        ethernet: Ethernet,
        vnet: VnetHeader,
    ) -> (u64, Result<Verdict, DropReason>) {
        if let Err(reason) = admit::source_mac(src_mac(bytes), ingress) {
            return (1, Err(reason));
        }
        let packet = match ethernet {
            Ethernet::Ip(packet) => packet,
            Ethernet::Arp => return (1, self.arp(scene, ingress, bytes)),
            Ethernet::Other(_) => return (1, Err(DropReason::UnsupportedEthertype)),
        };
        match admit::packets(&vnet, &packet) {
            Ok(packets) => (
                packets,
                self.route_from_port(scene, ingress, bytes, &packet, vnet),
            ),
            Err(reason) => (1, Err(reason)),
        }
    }

    fn route_from_port(
        &mut self,
        scene: &mut Scene<'_>,
        ingress: &Port,
        bytes: &mut [u8],
        packet: &Packet,
        vnet: VnetHeader,
    ) -> Result<Verdict, DropReason> {
        let tables = scene.tables;
        if gateway::ndp::is_ndp(packet, bytes) {
            gateway::ndp::answer(bytes, packet, &tables.gateway, ingress, &mut self.reply)?;
            return Ok(self.reply_to_port(scene, ingress));
        }
        admit::source_address(packet, ingress, &tables.gateway)?;
        let to = dst_mac(bytes);
        if to != tables.gateway.mac {
            let group = to[0] & 1 != 0;
            return Err(if group {
                DropReason::Multicast
            } else {
                DropReason::NotForGateway
            });
        }
        if tables.is_gateway(packet.key.dst) {
            gateway::icmp::echo(bytes, packet, &mut self.reply)?;
            return Ok(self.reply_to_port(scene, ingress));
        }
        let hash = self.flows.hash(&packet.key);
        let from = Ingress::Port(ingress.id);
        let egress = match self.flows.find(hash, tables.epoch, from, &packet.key) {
            Some(egress) => {
                scene.counters.flow_hits.add(1);
                egress
            }
            None => {
                scene.counters.flow_misses.add(1);
                let found = lookup::from_port(tables, packet.key.dst);
                let egress = found.inspect_err(|&reason| {
                    if reason == DropReason::NoRoute {
                        self.complain_to_port(scene, Complaint::NoRoute, bytes, packet, ingress);
                    }
                })?;
                self.flows
                    .learn(hash, tables.epoch, from, packet.key, egress);
                egress
            }
        };
        if packet.hop_limit <= 1 {
            self.complain_to_port(scene, Complaint::HopLimit, bytes, packet, ingress);
            return Err(DropReason::HopLimit);
        }
        let (mtu, dst, src, verdict) = match egress {
            Egress::Port(id) => {
                let port = tables.port(id).ok_or(DropReason::PortDown)?;
                (port.mtu, port.mac, tables.gateway.mac, Verdict::Deliver(id))
            }
            Egress::Peer(id) => {
                let peer = tables.peer(id);
                (peer.mtu, peer.mac, tables.vtep.mac, tunnel(id, hash, bytes))
            }
        };
        if largest(packet, &vnet) > mtu {
            self.complain_to_port(scene, Complaint::TooBig { mtu }, bytes, packet, ingress);
            return Err(DropReason::TooBig);
        }
        edit::decrement_hop_limit(bytes, packet);
        edit::set_macs(bytes, dst, src);
        Ok(verdict)
    }

    fn arp(
        &mut self,
        scene: &mut Scene<'_>,
        ingress: &Port,
        bytes: &[u8],
    ) -> Result<Verdict, DropReason> {
        gateway::arp::answer(bytes, &scene.tables.gateway, ingress, &mut self.reply)?;
        Ok(self.reply_to_port(scene, ingress))
    }

    fn reply_to_port(&self, scene: &mut Scene<'_>, port: &Port) -> Verdict {
        if scene.replies.push(&self.reply, Verdict::Deliver(port.id)) {
            scene.counters.originated.add(1);
        }
        Verdict::Answered
    }

    fn complain_to_port(
        &mut self,
        scene: &mut Scene<'_>,
        complaint: Complaint,
        bytes: &[u8],
        packet: &Packet,
        port: &Port,
    ) {
        if !self.complaints.take(scene.now) {
            scene.counters.icmp_suppressed.add(1);
            return;
        }
        let gateway = &scene.tables.gateway;
        let source = if packet.is_v4() {
            gateway.v4.into()
        } else {
            gateway.v6.into()
        };
        let reply = &mut self.reply;
        if gateway::icmp::complain(
            complaint,
            bytes,
            packet,
            source,
            port.mac,
            gateway.mac,
            reply,
        ) && scene.replies.push(reply, Verdict::Deliver(port.id))
        {
            scene.counters.originated.add(1);
        }
    }

    /// Decides each datagram of one read of the uplink. What goes to ports
    /// is put into `runs`; what the gateway answers into `replies`.
    pub fn from_uplink(
        &mut self,
        tables: &Snapshot,
        inbox: &mut Inbox,
        runs: &mut Runs,
        replies: &mut Batch,
        counters: &Counters,
        now: Instant,
    ) {
        let mut scene = Scene {
            tables,
            counters,
            replies,
            now,
        };
        let (trains, buffer) = inbox.split();
        for train in trains {
            counters.received_from_peers.add(train.count());
            let Some(peer) = tables.peer_from(train.from) else {
                counters.lose(DropReason::UnknownPeer, train.count());
                continue;
            };
            if train.truncated {
                counters.lose(DropReason::DatagramTruncated, train.count());
                continue;
            }
            self.decide_train(&mut scene, train, peer, buffer, runs);
        }
        runs.finish();
    }

    fn decide_train(
        &mut self,
        scene: &mut Scene<'_>,
        train: &Train,
        peer: PeerId,
        buffer: &mut [u8],
        runs: &mut Runs,
    ) {
        let mut bytes = 0;
        for range in train.datagrams() {
            let end = range.end;
            let decided = match decap(&buffer[range]) {
                Ok((vni, frame)) => {
                    let start = end - frame.len();
                    bytes += frame.len();
                    let frame = &mut buffer[start..end];
                    self.decide_from_peer(scene, peer, (vni, train.ecn), frame, start, runs)
                }
                Err(error) => Err(error.into()),
            };
            if let Err(reason) = decided {
                scene.counters.lose(reason, 1);
            }
        }
        scene.tables.peer(peer).from_peer.add(train.count(), bytes);
    }

    /// `start` is where the frame stands in the inbox.
    fn decide_from_peer(
        &mut self,
        scene: &mut Scene<'_>,
        from: PeerId,
        (vni, outer_ecn): (u32, u8),
        frame: &mut [u8],
        start: usize,
        runs: &mut Runs,
    ) -> Result<(), DropReason> {
        let tables = scene.tables;
        if vni != tables.peer(from).vni {
            return Err(DropReason::WrongVni);
        }
        let Ethernet::Ip(packet) = parse(frame)? else {
            return Err(DropReason::UnsupportedEthertype);
        };
        if dst_mac(frame) != tables.vtep.mac {
            return Err(DropReason::WrongVtep);
        }
        let hash = self.flows.hash(&packet.key);
        let ingress = Ingress::Peer(from);
        let egress = match self.flows.find(hash, tables.epoch, ingress, &packet.key) {
            Some(egress) => {
                scene.counters.flow_hits.add(1);
                egress
            }
            None => {
                scene.counters.flow_misses.add(1);
                if tables.peer_of(packet.key.src) != Some(from) {
                    return Err(DropReason::ForeignSource);
                }
                if tables.vtep.addresses.contains(&packet.key.dst) {
                    gateway::icmp::echo(frame, &packet, &mut self.reply)?;
                    self.reply_to_peer(scene, from, hash);
                    scene.counters.answered.add(1);
                    return Ok(());
                }
                let found = lookup::from_peer(tables, packet.key.dst);
                let egress = found.inspect_err(|&reason| {
                    if reason == DropReason::NotHere {
                        self.complain_to_peer(scene, Complaint::NoRoute, frame, &packet, from);
                    }
                })?;
                self.flows
                    .learn(hash, tables.epoch, ingress, packet.key, egress);
                egress
            }
        };
        let Egress::Port(id) = egress else {
            return Err(DropReason::NotHere);
        };
        let port = tables.port(id).ok_or(DropReason::PortDown)?;
        if packet.hop_limit <= 1 {
            self.complain_to_peer(scene, Complaint::HopLimit, frame, &packet, from);
            return Err(DropReason::HopLimit);
        }
        if packet.ip_len() > port.mtu {
            let complaint = Complaint::TooBig { mtu: port.mtu };
            self.complain_to_peer(scene, complaint, frame, &packet, from);
            return Err(DropReason::TooBig);
        }
        if outer_ecn == edit::ECN_CE && !edit::mark_congestion(frame, &packet) {
            return Err(DropReason::CongestionUnmarked);
        }
        runs.push(frame, start, &packet, port, tables.gateway.mac);
        Ok(())
    }

    fn reply_to_peer(&self, scene: &mut Scene<'_>, peer: PeerId, hash: u64) -> bool {
        let verdict = Verdict::Tunnel(Tunnel {
            peer,
            entropy: entropy(hash),
            ecn: edit::ecn(&self.reply),
        });
        if !scene.replies.push(&self.reply, verdict) {
            return false;
        }
        let (_, bytes) = scene.replies.frame_mut(scene.replies.len() - 1);
        edit::set_macs(bytes, scene.tables.peer(peer).mac, scene.tables.vtep.mac);
        scene.counters.originated.add(1);
        true
    }

    /// An error about a packet out of the tunnel goes back in, from the
    /// node's own address; a node that has none stays silent.
    fn complain_to_peer(
        &mut self,
        scene: &mut Scene<'_>,
        complaint: Complaint,
        frame: &[u8],
        packet: &Packet,
        peer: PeerId,
    ) {
        let same_family = |a: &&std::net::IpAddr| a.is_ipv4() == packet.is_v4();
        let Some(&source) = scene.tables.vtep.addresses.iter().find(same_family) else {
            return;
        };
        if !self.complaints.take(scene.now) {
            scene.counters.icmp_suppressed.add(1);
            return;
        }
        let (dst, src) = (scene.tables.peer(peer).mac, scene.tables.vtep.mac);
        let reply = &mut self.reply;
        if gateway::icmp::complain(complaint, frame, packet, source, dst, src, reply) {
            let hash = self.flows.hash(&packet.key);
            self.reply_to_peer(scene, peer, hash);
        }
    }
}

/// Bytes of the largest IP packet that a frame is on a wire.
fn largest(packet: &Packet, vnet: &VnetHeader) -> usize {
    if vnet.is_super_frame() {
        let segment = packet.payload - ETHERNET_LEN + usize::from(vnet.gso_size);
        segment.min(packet.ip_len())
    } else {
        packet.ip_len()
    }
}

fn tunnel(peer: PeerId, hash: u64, bytes: &[u8]) -> Verdict {
    Verdict::Tunnel(Tunnel {
        peer,
        entropy: entropy(hash),
        ecn: edit::ecn(bytes),
    })
}

/// The hash's high bits: its low ones place the flow in the cache.
fn entropy(hash: u64) -> u16 {
    (hash >> 48) as u16
}

impl From<ParseError> for DropReason {
    fn from(error: ParseError) -> Self {
        match error {
            ParseError::Ethernet => Self::MalformedEthernet,
            ParseError::IpLength
            | ParseError::IpVersion
            | ParseError::IpChecksum
            | ParseError::Extensions => Self::MalformedIp,
            ParseError::Transport => Self::MalformedTransport,
        }
    }
}

impl From<VxlanError> for DropReason {
    fn from(error: VxlanError) -> Self {
        match error {
            VxlanError::Truncated => Self::VxlanTruncated,
            VxlanError::NoVni => Self::VxlanNoVni,
            VxlanError::Reserved => Self::VxlanReserved,
        }
    }
}

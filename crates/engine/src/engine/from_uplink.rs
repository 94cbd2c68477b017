//! A datagram from the underlay: a known peer's, for a pod on this node.

use std::{ops::Range, time::Instant};

use weft_wire::{
    ETHERNET_LEN, Ethernet, Packet, VnetHeader, checksum, edit, ethertype, ipip, parse,
    parse::dst_mac, vxlan,
};

use super::{Engine, Heard, Scene};
use crate::{
    DropReason, Peer, PeerId, Port, Runs, Way,
    admit::{self, largest},
    bandwidth,
    flow::{Egress, Ingress, Known},
    fragment,
    gateway::{icmp, icmp::Complaint},
    inbox::Train,
    lookup,
    policy::{End, Ends},
    unfinished,
};

/// What became of a datagram.
enum Fate {
    /// It goes to a port.
    Delivered,
    Answered,
    Fragmented,
}

/// Where a packet goes on, or that it does not.
enum Next<'a> {
    /// To the port, and when, if it has to wait.
    Port(&'a Port, Option<Instant>),
    /// The same in fragments that fit it.
    Fragments(&'a Port, Option<Instant>),
    Answered,
}

/// What is known of a datagram besides its frame.
struct Arrival {
    peer: PeerId,
    way: Way,
    outer_ecn: u8,
    /// Of its segments, where it holds a super-frame of UDP.
    segment: Option<usize>,
}

/// Bytes of the inner Ethernet frame, or of what it would be, in an arrival
/// of `len` bytes.
fn inner_len(way: Way, len: usize) -> usize {
    match way {
        Way::Vxlan => len.saturating_sub(vxlan::LEN),
        Way::VxlanL3 => len + ETHERNET_LEN - vxlan::LEN,
        Way::Ipip => (len + ETHERNET_LEN).saturating_sub(usize::from(ipip::OVERHEAD)),
    }
}

/// The Ethernet frame that came in `datagram`. Where there is none, an Ethernet
/// header is written over what stands before the IP packet: outer headers, the
/// end of the datagram before, which is done with, or the train's headroom.
fn decap<'a>(
    scene: &Scene<'_>,
    arrival: &Arrival,
    datagram: Range<usize>,
    buffer: &'a mut [u8],
) -> Result<&'a mut [u8], DropReason> {
    let peer = scene.tables.peer(arrival.peer);
    let (start, bytes) = (datagram.start, &buffer[datagram]);
    match arrival.way {
        Way::Vxlan | Way::VxlanL3 => {
            let (vni, inner) = vxlan::decap(bytes)?;
            if vni != peer.vni {
                return Err(DropReason::WrongVni);
            }
            let end = start + bytes.len();
            let at = end - inner.len();
            if arrival.way == Way::Vxlan {
                return Ok(&mut buffer[at..end]);
            }
            let kind = match inner.first() {
                Some(first) if first >> 4 == 6 => ethertype::IPV6,
                _ => ethertype::IPV4,
            };
            let frame = &mut buffer[at - ETHERNET_LEN..end];
            Ok(framed(frame, scene, peer, kind))
        }
        Way::Ipip => {
            let Range { start: at, end } = ipip::decap(bytes)?;
            let frame = &mut buffer[start + at - ETHERNET_LEN..start + end];
            Ok(framed(frame, scene, peer, ethertype::IPV4))
        }
    }
}

fn framed<'a>(frame: &'a mut [u8], scene: &Scene<'_>, peer: &Peer, ethertype: u16) -> &'a mut [u8] {
    edit::set_macs(frame, scene.tables.vtep.mac, peer.mac);
    edit::set_ethertype(frame, ethertype);
    frame
}

/// How many packets a frame is on a wire; `vnet` is that of a super-frame.
fn packets(vnet: Option<VnetHeader>, packet: &Packet) -> u64 {
    vnet.map_or(1, |vnet| admit::packets(&vnet, packet).unwrap_or(1))
}

impl Engine {
    pub(super) fn decide_train(
        &mut self,
        scene: &mut Scene<'_>,
        train: &Train,
        peer: PeerId,
        buffer: &mut [u8],
        runs: &mut Runs,
    ) {
        let mut train = *train;
        let mut arrival = Arrival {
            peer,
            way: match train.way {
                Way::Vxlan if scene.tables.peer(peer).l3 => Way::VxlanL3,
                way => way,
            },
            outer_ecn: train.ecn,
            segment: None,
        };
        let bytes = &buffer[train.start..train.start + train.len];
        if arrival.way == Way::Vxlan && unfinished::is_one_datagram(bytes, train.stride) {
            arrival.segment = Some(train.stride);
            train.stride = train.len;
        }
        let (mut count, mut inner) = (0, 0);
        for datagram in train.datagrams() {
            inner += inner_len(arrival.way, datagram.len());
            let (packets, decided) = self.decide_datagram(scene, &arrival, datagram, buffer, runs);
            count += packets;
            match decided {
                Ok(Fate::Delivered) => {}
                Ok(Fate::Answered) => scene.counters.answered.add(packets),
                Ok(Fate::Fragmented) => scene.counters.fragmented.add(packets),
                Err(reason) => scene.counters.lose(reason, packets),
            }
        }
        scene.counters.received_from_peers.add(count);
        scene.tables.peer(peer).from_peer.add(count, inner);
    }

    /// How many packets the datagram is, and what becomes of it.
    fn decide_datagram(
        &mut self,
        scene: &mut Scene<'_>,
        arrival: &Arrival,
        datagram: Range<usize>,
        buffer: &mut [u8],
        runs: &mut Runs,
    ) -> (u64, Result<Fate, DropReason>) {
        let frame = match decap(scene, arrival, datagram, buffer) {
            Ok(frame) => frame,
            Err(reason) => return (1, Err(reason)),
        };
        let packet = match parse(frame) {
            Ok(Ethernet::Ip(packet)) => packet,
            Ok(_) => return (1, Err(DropReason::UnsupportedEthertype)),
            Err(error) => return (1, Err(error.into())),
        };
        let mut vnet = arrival
            .segment
            .and_then(|size| unfinished::udp_super_frame(frame, &packet, size));
        let decided = match self.route_from_peer(scene, arrival, frame, &packet, &mut vnet) {
            Ok(Next::Port(port, due)) => {
                runs.due = due;
                runs.push(frame, &packet, vnet, port, scene.tables.gateway.mac)
                    .map(|()| Fate::Delivered)
            }
            Ok(Next::Fragments(port, due)) => {
                runs.due = due;
                let pieces = runs.push_fragments(frame, &packet, port, scene.tables.gateway.mac);
                scene.counters.originated.add(pieces);
                Ok(Fate::Fragmented)
            }
            Ok(Next::Answered) => Ok(Fate::Answered),
            Err(reason) => Err(reason),
        };
        (packets(vnet, &packet), decided)
    }

    /// Where the frame goes; whether it is a super-frame is known then.
    fn route_from_peer<'a>(
        &mut self,
        scene: &mut Scene<'a>,
        arrival: &Arrival,
        frame: &mut [u8],
        packet: &Packet,
        vnet: &mut Option<VnetHeader>,
    ) -> Result<Next<'a>, DropReason> {
        let (tables, peer) = (scene.tables, arrival.peer);
        if dst_mac(frame) != tables.vtep.mac {
            return Err(DropReason::WrongVtep);
        }
        if self.hears_answer(scene, peer, frame, packet)? {
            return Ok(Next::Answered);
        }
        let Some(egress) = self.egress_from_peer(scene, peer, frame, packet)? else {
            return Ok(Next::Answered);
        };
        let Egress::Port(id) = egress else {
            return Err(DropReason::NotHere);
        };
        let port = tables.port(id).ok_or(DropReason::PortDown)?;
        if packet.hop_limit <= 1 {
            self.complain_to_peer(scene, Complaint::HopLimit, frame, packet, peer);
            return Err(DropReason::HopLimit);
        }
        if arrival.outer_ecn == edit::ECN_CE && !edit::mark_congestion(frame, packet) {
            return Err(DropReason::CongestionUnmarked);
        }
        *vnet = vnet.or_else(|| unfinished::tcp_super_frame(frame, packet, port.mtu));
        let too_big = largest(packet, &vnet.unwrap_or_default()) > port.mtu;
        if too_big && (vnet.is_some() || !fragment::allowed(frame, packet)) {
            let complaint = Complaint::TooBig { mtu: port.mtu };
            self.complain_to_peer(scene, complaint, frame, packet, peer);
            return Err(DropReason::TooBig);
        }
        let due = bandwidth::to_pod(port, packet, packets(*vnet, packet), scene.now)?;
        if !too_big {
            return Ok(Next::Port(port, due));
        }
        if checksum::is_partial(frame, packet) {
            checksum::complete(frame, packet);
        }
        Ok(Next::Fragments(port, due))
    }

    /// Nothing if the packet was for the node itself, and is answered for it.
    fn egress_from_peer(
        &mut self,
        scene: &mut Scene<'_>,
        peer: PeerId,
        frame: &[u8],
        packet: &Packet,
    ) -> Result<Option<Egress>, DropReason> {
        let (epoch, from) = (scene.tables.epoch, Ingress::Peer(peer));
        let (hash, known) = self.flows.find(epoch, from, &packet.key);
        if let Some(known) = known
            && known.suffices(frame, packet, scene.now)
        {
            scene.counters.flow_hits.add(1);
            return Ok(Some(known.egress));
        }
        scene.counters.flow_misses.add(1);
        let egress = match known {
            Some(known) => known.egress,
            None => match self.look_up_from_peer(scene, peer, hash, frame, packet)? {
                Some(egress) => egress,
                None => return Ok(None),
            },
        };
        let ends = Ends {
            source: End::Elsewhere,
            destination: End::behind(scene.tables, egress, packet.key.dst)?,
        };
        let until = self.pass(scene, ends, frame, packet)?;
        let known = Known { egress, until };
        self.flows.learn(hash, epoch, from, packet.key, known);
        Ok(Some(egress))
    }

    fn look_up_from_peer(
        &mut self,
        scene: &mut Scene<'_>,
        peer: PeerId,
        hash: u64,
        frame: &[u8],
        packet: &Packet,
    ) -> Result<Option<Egress>, DropReason> {
        if scene.tables.peer_of(packet.key.src) != Some(peer) {
            return Err(DropReason::ForeignSource);
        }
        if scene.tables.answers_for_node(packet.key.dst) {
            return self
                .answer_peer(scene, peer, hash, frame, packet)
                .map(|()| None);
        }
        let egress = lookup::from_peer(scene.tables, packet.key.dst);
        if egress == Err(DropReason::NotHere) {
            self.complain_to_peer(scene, Complaint::NoRoute, frame, packet, peer);
        }
        egress.map(Some)
    }

    /// Whether the packet is the peer's answer to a probe of this node, which
    /// is noted.
    fn hears_answer(
        &mut self,
        scene: &Scene<'_>,
        peer: PeerId,
        frame: &[u8],
        packet: &Packet,
    ) -> Result<bool, DropReason> {
        let tables = scene.tables;
        let Some(seal) = self.seal.as_ref().filter(|seal| {
            seal.is_claimed(frame, packet) && tables.vtep.addresses.contains(&packet.key.dst)
        }) else {
            return Ok(false);
        };
        let answer = seal.read(frame, packet);
        let is_whole = checksum::verify(frame, packet) || checksum::is_partial(frame, packet);
        let answer = answer.filter(|answer| tables.peer_of(answer.from) == Some(peer) && is_whole);
        let answer = answer.ok_or(DropReason::ForgedAnswer)?;
        self.heard.push(Heard {
            from: answer.from,
            number: answer.number,
            at: scene.now,
        });
        Ok(true)
    }

    fn answer_peer(
        &mut self,
        scene: &mut Scene<'_>,
        peer: PeerId,
        hash: u64,
        frame: &[u8],
        packet: &Packet,
    ) -> Result<(), DropReason> {
        if !checksum::verify(frame, packet) && !checksum::is_partial(frame, packet) {
            return Err(DropReason::MalformedTransport);
        }
        let answered = icmp::echo(frame, packet, &mut self.reply);
        match answered {
            Ok(()) => self.reply_to_peer(scene, peer, hash, packet),
            Err(_) => self.complain_to_peer(scene, Complaint::PortUnreachable, frame, packet, peer),
        }
        answered
    }
}

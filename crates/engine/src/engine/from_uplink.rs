//! A datagram from the underlay: a known peer's, for a pod on this node.

use weft_wire::{Ethernet, Packet, edit, parse, parse::dst_mac, vxlan::decap};

use super::{Engine, Scene};
use crate::{
    DropReason, PeerId, Port, Runs, Verdict,
    flow::{Egress, Ingress},
    fragment,
    gateway::{icmp, icmp::Complaint},
    inbox::Train,
    lookup,
};

/// What became of a datagram.
enum Fate {
    /// It goes to a port.
    Delivered,
    Answered,
    Fragmented,
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
        let mut inner = 0;
        for datagram in train.datagrams() {
            let end = datagram.end;
            let decided = match decap(&buffer[datagram]) {
                Ok((vni, _)) if vni != scene.tables.peer(peer).vni => Err(DropReason::WrongVni),
                Ok((_, frame)) => {
                    let start = end - frame.len();
                    inner += frame.len();
                    let frame = &mut buffer[start..end];
                    self.decide_from_peer(scene, peer, train.ecn, frame, runs)
                }
                Err(error) => Err(error.into()),
            };
            match decided {
                Ok(Fate::Delivered) => {}
                Ok(Fate::Answered) => scene.counters.answered.add(1),
                Ok(Fate::Fragmented) => scene.counters.fragmented.add(1),
                Err(reason) => scene.counters.lose(reason, 1),
            }
        }
        scene.tables.peer(peer).from_peer.add(train.count(), inner);
    }

    fn decide_from_peer(
        &mut self,
        scene: &mut Scene<'_>,
        peer: PeerId,
        outer_ecn: u8,
        frame: &mut [u8],
        runs: &mut Runs,
    ) -> Result<Fate, DropReason> {
        let Ethernet::Ip(packet) = parse(frame)? else {
            return Err(DropReason::UnsupportedEthertype);
        };
        let tables = scene.tables;
        if dst_mac(frame) != tables.vtep.mac {
            return Err(DropReason::WrongVtep);
        }
        let Some(egress) = self.egress_from_peer(scene, peer, frame, &packet)? else {
            return Ok(Fate::Answered);
        };
        let Egress::Port(id) = egress else {
            return Err(DropReason::NotHere);
        };
        let port = tables.port(id).ok_or(DropReason::PortDown)?;
        if packet.hop_limit <= 1 {
            self.complain_to_peer(scene, Complaint::HopLimit, frame, &packet, peer);
            return Err(DropReason::HopLimit);
        }
        if outer_ecn == edit::ECN_CE && !edit::mark_congestion(frame, &packet) {
            return Err(DropReason::CongestionUnmarked);
        }
        if packet.ip_len() > port.mtu {
            return self.too_big_for_port(scene, peer, frame, &packet, port);
        }
        runs.push(frame, &packet, port, tables.gateway.mac);
        Ok(Fate::Delivered)
    }

    /// Nothing if the packet was for the node itself, and is answered.
    fn egress_from_peer(
        &mut self,
        scene: &mut Scene<'_>,
        peer: PeerId,
        frame: &[u8],
        packet: &Packet,
    ) -> Result<Option<Egress>, DropReason> {
        let (epoch, from) = (scene.tables.epoch, Ingress::Peer(peer));
        let (hash, known) = self.flows.find(epoch, from, &packet.key);
        if known.is_some() {
            scene.counters.flow_hits.add(1);
            return Ok(known);
        }
        scene.counters.flow_misses.add(1);
        if scene.tables.peer_of(packet.key.src) != Some(peer) {
            return Err(DropReason::ForeignSource);
        }
        if scene.tables.vtep.addresses.contains(&packet.key.dst) {
            icmp::echo(frame, packet, &mut self.reply)?;
            self.reply_to_peer(scene, peer, hash);
            return Ok(None);
        }
        let egress = lookup::from_peer(scene.tables, packet.key.dst);
        match egress {
            Ok(egress) => self.flows.learn(hash, epoch, from, packet.key, egress),
            Err(DropReason::NotHere) => {
                self.complain_to_peer(scene, Complaint::NoRoute, frame, packet, peer);
            }
            Err(_) => {}
        }
        egress.map(Some)
    }

    fn too_big_for_port(
        &mut self,
        scene: &mut Scene<'_>,
        peer: PeerId,
        frame: &mut [u8],
        packet: &Packet,
        port: &Port,
    ) -> Result<Fate, DropReason> {
        if !fragment::allowed(frame, packet) {
            let complaint = Complaint::TooBig { mtu: port.mtu };
            self.complain_to_peer(scene, complaint, frame, packet, peer);
            return Err(DropReason::TooBig);
        }
        edit::decrement_hop_limit(frame, packet);
        edit::set_macs(frame, port.mac, scene.tables.gateway.mac);
        fragment::fragment(frame, packet, port.mtu, |piece| {
            if scene.replies.push(piece, Verdict::Deliver(port.id)) {
                scene.counters.originated.add(1);
            }
        });
        Ok(Fate::Fragmented)
    }
}

//! A pod's frame: admitted, answered by the gateway, or sent on its way.

use weft_wire::{
    Ethernet, Packet, VnetHeader, checksum, edit, parse,
    parse::{dst_mac, src_mac},
};

use super::{Engine, Scene, tunnel};
use crate::{
    DropReason, Port, Verdict,
    admit::{self, largest},
    flow::{Egress, Ingress},
    fragment,
    gateway::{arp, icmp, icmp::Complaint, ndp},
    lookup,
};

impl Engine {
    /// How many packets the frame is, and what becomes of it.
    pub(super) fn decide_from_port(
        &mut self,
        scene: &mut Scene<'_>,
        ingress: &Port,
        bytes: &mut [u8],
        vnet: VnetHeader,
    ) -> (u64, Result<Verdict, DropReason>) {
        let ethernet = match parse(bytes) {
            Ok(ethernet) => ethernet,
            Err(error) => return (1, Err(error.into())),
        };
        if src_mac(bytes) != ingress.mac {
            return (1, Err(DropReason::SpoofedMac));
        }
        let packet = match ethernet {
            Ethernet::Ip(packet) => packet,
            Ethernet::Arp => return (1, self.answer_arp(scene, ingress, bytes)),
            Ethernet::Other(_) => return (1, Err(DropReason::UnsupportedEthertype)),
        };
        match admit::packets(&vnet, &packet) {
            Ok(packets) => (
                packets,
                self.decide_packet(scene, ingress, bytes, &packet, vnet),
            ),
            Err(reason) => (1, Err(reason)),
        }
    }

    fn answer_arp(
        &mut self,
        scene: &mut Scene<'_>,
        ingress: &Port,
        bytes: &[u8],
    ) -> Result<Verdict, DropReason> {
        arp::answer(bytes, &scene.tables.gateway, ingress, &mut self.reply)?;
        Ok(self.reply_to_port(scene, ingress))
    }

    fn decide_packet(
        &mut self,
        scene: &mut Scene<'_>,
        ingress: &Port,
        bytes: &mut [u8],
        packet: &Packet,
        vnet: VnetHeader,
    ) -> Result<Verdict, DropReason> {
        let gateway = scene.tables.gateway;
        if ndp::is_ndp(packet, bytes) {
            ndp::answer(bytes, packet, &gateway, ingress, &mut self.reply)?;
            return Ok(self.reply_to_port(scene, ingress));
        }
        admit::source_address(packet, ingress, &gateway)?;
        let to = dst_mac(bytes);
        if to != gateway.mac {
            let group = to[0] & 1 != 0;
            return Err(if group {
                DropReason::Multicast
            } else {
                DropReason::NotForGateway
            });
        }
        if scene.tables.is_gateway(packet.key.dst) {
            icmp::echo(bytes, packet, &mut self.reply)?;
            return Ok(self.reply_to_port(scene, ingress));
        }
        self.route(scene, ingress, bytes, packet, vnet)
    }

    fn route(
        &mut self,
        scene: &mut Scene<'_>,
        ingress: &Port,
        bytes: &mut [u8],
        packet: &Packet,
        vnet: VnetHeader,
    ) -> Result<Verdict, DropReason> {
        let (hash, egress) = self.egress_from_port(scene, ingress, bytes, packet)?;
        if packet.hop_limit <= 1 {
            self.complain_to_port(scene, Complaint::HopLimit, bytes, packet, ingress);
            return Err(DropReason::HopLimit);
        }
        let tables = scene.tables;
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
        let fits = largest(packet, &vnet) <= mtu;
        if !fits && (vnet.is_super_frame() || !fragment::allowed(bytes, packet)) {
            self.complain_to_port(scene, Complaint::TooBig { mtu }, bytes, packet, ingress);
            return Err(DropReason::TooBig);
        }
        edit::decrement_hop_limit(bytes, packet);
        edit::set_macs(bytes, dst, src);
        if fits {
            return Ok(verdict);
        }
        if vnet.needs_checksum() {
            checksum::complete(bytes, packet);
        }
        fragment::fragment(bytes, packet, mtu, |piece| {
            if scene.replies.push(piece, verdict) {
                scene.counters.originated.add(1);
            }
        });
        Ok(Verdict::Fragmented)
    }

    /// The flow's hash and its egress.
    fn egress_from_port(
        &mut self,
        scene: &mut Scene<'_>,
        ingress: &Port,
        bytes: &[u8],
        packet: &Packet,
    ) -> Result<(u64, Egress), DropReason> {
        let (epoch, from) = (scene.tables.epoch, Ingress::Port(ingress.id));
        let (hash, known) = self.flows.find(epoch, from, &packet.key);
        if let Some(egress) = known {
            scene.counters.flow_hits.add(1);
            return Ok((hash, egress));
        }
        scene.counters.flow_misses.add(1);
        let egress = lookup::from_port(scene.tables, packet.key.dst);
        match egress {
            Ok(egress) => self.flows.learn(hash, epoch, from, packet.key, egress),
            Err(DropReason::NoRoute) => {
                self.complain_to_port(scene, Complaint::NoRoute, bytes, packet, ingress);
            }
            Err(_) => {}
        }
        Ok((hash, egress?))
    }
}

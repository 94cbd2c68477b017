//! A pod's frame: admitted, answered by the gateway, or sent on its way.

use weft_wire::{
    Ethernet, Packet, VnetHeader, checksum, edit, parse,
    parse::{Fragment, dst_mac, src_mac},
};

use super::{Engine, Scene, tunnel};
use crate::{
    DropReason, Port, Snapshot, Verdict,
    admit::{self, largest},
    bandwidth,
    batch::Frame,
    flow::{Egress, Ingress, Known},
    fragment,
    gateway::{arp, icmp, icmp::Complaint, ndp},
    lookup,
    policy::{End, Ends},
};

impl Engine {
    /// Settles how many packets the frame is, and what becomes of it.
    pub(super) fn decide_from_port(
        &mut self,
        scene: &mut Scene<'_>,
        ingress: &Port,
        frame: &mut Frame,
        bytes: &mut [u8],
    ) {
        let (packets, decided) = match self.admit(scene, ingress, frame.vnet, bytes) {
            Ok(Admitted::Packet(packet, packets)) => {
                frame.packets = packets;
                let decided = self.decide_packet(scene, ingress, frame, bytes, &packet);
                (packets, decided)
            }
            Ok(Admitted::Settled(verdict)) => (1, Ok(verdict)),
            Err(reason) => (1, Err(reason)),
        };
        scene.counters.received_from_ports.add(packets);
        ingress.from_pod.add(packets, frame.len);
        frame.verdict = decided.unwrap_or_else(Verdict::Drop);
        frame.packets = packets;
        if let Some(mtu) = frame.cut {
            // The fragments are new packets, and the frame goes on as they.
            frame.packets = fragments(bytes, mtu);
            scene.counters.fragmented.add(packets);
            scene.counters.originated.add(frame.packets);
        }
    }

    fn admit(
        &mut self,
        scene: &mut Scene<'_>,
        ingress: &Port,
        vnet: VnetHeader,
        bytes: &[u8],
    ) -> Result<Admitted, DropReason> {
        let ethernet = parse(bytes)?;
        if src_mac(bytes) != ingress.mac {
            return Err(DropReason::SpoofedMac);
        }
        match ethernet {
            Ethernet::Ip(packet) => {
                let packets = admit::packets(&vnet, &packet)?;
                Ok(Admitted::Packet(packet, packets))
            }
            Ethernet::Arp => {
                arp::answer(bytes, &scene.tables.gateway, ingress, &mut self.reply)?;
                Ok(Admitted::Settled(self.reply_to_port(scene, ingress)))
            }
            Ethernet::Other(_) => Err(DropReason::UnsupportedEthertype),
        }
    }

    fn decide_packet(
        &mut self,
        scene: &mut Scene<'_>,
        ingress: &Port,
        frame: &mut Frame,
        bytes: &mut [u8],
        packet: &Packet,
    ) -> Result<Verdict, DropReason> {
        let gateway = scene.tables.gateway;
        if ndp::is_ndp(packet, bytes) {
            ndp::answer(bytes, packet, &gateway, ingress, &mut self.reply)?;
            return Ok(self.reply_to_port(scene, ingress));
        }
        if ingress.host.is_none() {
            admit::source_address(packet, ingress, &gateway)?;
        }
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
            if !frame.vnet.needs_checksum() && !checksum::verify(bytes, packet) {
                return Err(DropReason::MalformedTransport);
            }
            let answered = icmp::echo(bytes, packet, &mut self.reply);
            if answered == Err(DropReason::GatewayUnserved) {
                self.complain_to_port(scene, Complaint::PortUnreachable, bytes, packet, ingress);
            }
            return answered.map(|()| self.reply_to_port(scene, ingress));
        }
        self.route(scene, ingress, frame, bytes, packet)
    }

    fn route(
        &mut self,
        scene: &mut Scene<'_>,
        ingress: &Port,
        frame: &mut Frame,
        bytes: &mut [u8],
        packet: &Packet,
    ) -> Result<Verdict, DropReason> {
        let (hash, egress) = self.egress_from_port(scene, ingress, bytes, packet)?;
        if packet.hop_limit <= 1 {
            self.complain_to_port(scene, Complaint::HopLimit, bytes, packet, ingress);
            return Err(DropReason::HopLimit);
        }
        let tables = scene.tables;
        let (mtu, macs, verdict, to) = match egress {
            Egress::Port(id) => {
                let port = tables.port(id).ok_or(DropReason::PortDown)?;
                let macs = (port.mac, tables.gateway.mac);
                (port.mtu, macs, Verdict::Deliver(id), Some(port))
            }
            Egress::Peer(route) => {
                let peer = tables.peer(route.peer);
                let macs = (peer.mac, tables.vtep.mac);
                let mtu = peer.mtu_of(packet, route.way);
                (mtu, macs, tunnel(route, hash, bytes), None)
            }
        };
        let too_big = largest(packet, &frame.vnet) > mtu;
        if too_big && (frame.vnet.is_super_frame() || !fragment::allowed(bytes, packet)) {
            self.complain_to_port(scene, Complaint::TooBig { mtu }, bytes, packet, ingress);
            return Err(DropReason::TooBig);
        }
        let (packets, now) = (frame.packets, scene.now);
        let leaves = bandwidth::from_pod(ingress, packet, packets, now)?;
        frame.due = match to {
            Some(port) => leaves.max(bandwidth::to_pod(port, packet, packets, now)?),
            None => leaves,
        };
        if too_big {
            if frame.vnet.needs_checksum() {
                checksum::complete(bytes, packet);
                frame.vnet = VnetHeader::default();
            }
            frame.cut = Some(mtu);
        }
        edit::decrement_hop_limit(bytes, packet);
        edit::set_macs(bytes, macs.0, macs.1);
        Ok(verdict)
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
        let sufficient = known.filter(|known| known.suffices(bytes, packet, scene.now));
        match sufficient {
            Some(_) => scene.counters.flow_hits.add(1),
            None => scene.counters.flow_misses.add(1),
        }
        let is_new = sufficient.is_none() || packet.fragment == Fragment::First;
        if is_new {
            let forged = admit::no_tunnel_of_its_own(scene.tables, packet, bytes);
            // The node's is the tunnel's own, and would come back in another.
            forged.map_err(|forged| match ingress.host {
                Some(_) => DropReason::HostLoop,
                None => forged,
            })?;
        }
        if let Some(known) = sufficient {
            return Ok((hash, known.egress));
        }
        let egress = match known {
            Some(known) => Ok(known.egress),
            None => look_up_from_port(scene.tables, ingress, packet),
        };
        if let Err(
            DropReason::NoRoute
            | DropReason::NoUplink
            | DropReason::NoHostPort
            | DropReason::HostLoop
            | DropReason::OutsideSource,
        ) = egress
        {
            self.complain_to_port(scene, Complaint::NoRoute, bytes, packet, ingress);
        }
        let egress = egress?;
        let ends = Ends {
            source: End::of(scene.tables, ingress, packet.key.src),
            destination: End::behind(scene.tables, egress, packet.key.dst)?,
        };
        let until = self.pass(scene, ends, bytes, packet)?;
        let known = Known { egress, until };
        self.flows.learn(hash, epoch, from, packet.key, known);
        Ok((hash, egress))
    }
}

/// The egress of a new flow, if its sender may have it.
fn look_up_from_port(
    tables: &Snapshot,
    ingress: &Port,
    packet: &Packet,
) -> Result<Egress, DropReason> {
    let egress = lookup::from_port(tables, ingress.id, packet.key.dst);
    if ingress.host.is_none() {
        return egress;
    }
    // What comes back may be a pod's, and it is to be told.
    if egress != Err(DropReason::HostLoop) {
        admit::host_source(tables, packet.key.src)?;
    }
    if matches!(egress, Ok(Egress::Peer(_))) {
        admit::tunnel_source(tables, packet.key.src)?;
    }
    egress
}

/// A pod's frame that may be what it is.
enum Admitted {
    /// An IP packet, and how many it is on a wire.
    Packet(Packet, u64),
    Settled(Verdict),
}

/// How many fragments fit `mtu`, of a frame that is to be cut.
fn fragments(bytes: &[u8], mtu: usize) -> u64 {
    match parse(bytes) {
        Ok(Ethernet::Ip(packet)) => fragment::count(&packet, mtu) as u64,
        _ => 1,
    }
}

//! What the gateway says: answers to pods and peers, and errors about their
//! packets.

use std::net::IpAddr;

use weft_wire::{Packet, edit};

use super::{Engine, Scene, tunnel};
use crate::{
    DropReason, Holder, PeerId, Port, Reach, Route, Snapshot, Verdict,
    gateway::icmp::{self, Complaint},
};

impl Engine {
    /// Sends the reply at hand to the pod it answers.
    pub(super) fn reply_to_port(&self, scene: &mut Scene<'_>, port: &Port) -> Verdict {
        self.reply(scene, Verdict::Deliver(port.id));
        Verdict::Answered
    }

    /// Sends the reply at hand into the tunnel, to whom `packet` came from.
    /// `hash` is that of the flow it belongs to.
    pub(super) fn reply_to_peer(
        &mut self,
        scene: &mut Scene<'_>,
        peer: PeerId,
        hash: u64,
        packet: &Packet,
    ) {
        let row = scene.tables.peer(peer);
        let way = match scene.tables.holder_of(packet.key.src) {
            Some(Holder::Peer(_, Reach::Tunnel(way))) => way,
            _ => row.vxlan(),
        };
        let (dst, src) = (row.mac, scene.tables.vtep.mac);
        edit::set_macs(&mut self.reply, dst, src);
        self.reply(scene, tunnel(Route { peer, way }, hash, &self.reply));
    }

    fn reply(&self, scene: &mut Scene<'_>, verdict: Verdict) {
        scene.counters.originated.add(1);
        if !scene.replies.push(&self.reply, verdict) {
            scene.counters.lose(DropReason::ReplyLost, 1);
        }
    }

    /// Tells the sender of a packet from a port what is wrong with it, if errors
    /// may be sent: a pod at its own port, though the packet came by the host's.
    pub(super) fn complain_to_port(
        &mut self,
        scene: &mut Scene<'_>,
        complaint: Complaint,
        frame: &[u8],
        packet: &Packet,
        ingress: &Port,
    ) {
        let tables = scene.tables;
        let own = tables
            .port_of(packet.key.src)
            .and_then(|id| tables.port(id));
        let port = own.unwrap_or(ingress);
        let Some(source) = speaker(tables, packet, port) else {
            return;
        };
        let (dst, src) = (port.mac, tables.gateway.mac);
        if icmp::complain(complaint, frame, packet, source, dst, src, &mut self.reply)
            && self.may_complain(scene, complaint)
        {
            self.reply_to_port(scene, port);
        }
    }

    /// Tells the sender behind a peer what is wrong with its packet. The
    /// error comes from the node's own address; a node that has none stays
    /// silent.
    pub(super) fn complain_to_peer(
        &mut self,
        scene: &mut Scene<'_>,
        complaint: Complaint,
        frame: &[u8],
        packet: &Packet,
        peer: PeerId,
    ) {
        let same_family = |address: &&IpAddr| address.is_ipv4() == packet.is_v4();
        let Some(&source) = scene.tables.vtep.addresses.iter().find(same_family) else {
            return;
        };
        let (dst, src) = (scene.tables.peer(peer).mac, scene.tables.vtep.mac);
        if icmp::complain(complaint, frame, packet, source, dst, src, &mut self.reply)
            && self.may_complain(scene, complaint)
        {
            let hash = self.flows.hash(&packet.key);
            self.reply_to_peer(scene, peer, hash, packet);
        }
    }

    /// Errors have a rate limit (RFC 4443 section 2.4(f)), all but those that
    /// path MTU discovery cannot do without; Linux exempts the same.
    fn may_complain(&mut self, scene: &Scene<'_>, complaint: Complaint) -> bool {
        let exempt = matches!(complaint, Complaint::TooBig { .. });
        let may = exempt || self.complaints.take(scene.now);
        if !may {
            scene.counters.icmp_suppressed.add(1);
        }
        may
    }
}

/// Whom an error about a port's packet comes from: the gateway, which is a
/// hop of pods and of the node. Beyond the node nobody knows the gateway's
/// link-local addresses, so there it is the node itself; a node without an
/// address of the family stays silent.
fn speaker(tables: &Snapshot, packet: &Packet, port: &Port) -> Option<IpAddr> {
    let gateway = match packet.is_v4() {
        true => tables.gateway.v4.into(),
        false => tables.gateway.v6.into(),
    };
    if port.host.is_none() || tables.port_of(packet.key.src) == Some(port.id) {
        return Some(gateway);
    }
    let own = tables.vtep.addresses.iter().chain(&port.addresses);
    let same_family = |address: &&IpAddr| address.is_ipv4() == packet.is_v4();
    own.copied().find(|address| same_family(&address))
}

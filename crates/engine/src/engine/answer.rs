//! What the gateway says: answers to pods and peers, and errors about their
//! packets.

use std::net::IpAddr;

use weft_wire::{Packet, edit};

use super::{Engine, Scene, tunnel};
use crate::{
    DropReason, Gateway, PeerId, Port, Route, Verdict, Way,
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
        let way = scene
            .tables
            .route_to(packet.key.src)
            .map_or(Way::default(), |route| route.way);
        let (dst, src) = (scene.tables.peer(peer).mac, scene.tables.vtep.mac);
        edit::set_macs(&mut self.reply, dst, src);
        self.reply(scene, tunnel(Route { peer, way }, hash, &self.reply));
    }

    fn reply(&self, scene: &mut Scene<'_>, verdict: Verdict) {
        scene.counters.originated.add(1);
        if !scene.replies.push(&self.reply, verdict) {
            scene.counters.lose(DropReason::ReplyLost, 1);
        }
    }

    /// Tells a pod what is wrong with its packet, if errors may be sent.
    pub(super) fn complain_to_port(
        &mut self,
        scene: &mut Scene<'_>,
        complaint: Complaint,
        frame: &[u8],
        packet: &Packet,
        port: &Port,
    ) {
        let Gateway { mac, v4, v6 } = scene.tables.gateway;
        let source: IpAddr = if packet.is_v4() { v4.into() } else { v6.into() };
        if icmp::complain(
            complaint,
            frame,
            packet,
            source,
            port.mac,
            mac,
            &mut self.reply,
        ) && self.may_complain(scene, complaint)
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

//! The whole way of a packet, from either side: [`from_port`] and
//! [`from_uplink`] decide, [`answer`] makes what the gateway says.

use std::{net::IpAddr, sync::Arc, time::Instant};

use weft_wire::{Packet, ParseError, edit, ipip::IpipError, vxlan::VxlanError};

use crate::{
    Batch, Counters, DropReason, Inbox, Port, Route, Runs, Snapshot, Tunnel, Verdict,
    flow::FlowCache, gateway::probe::Seal, limit::Bucket, pieces::Pieces, policy::Ends,
};

mod answer;
mod from_port;
mod from_uplink;

/// One worker's mind: what it remembers between batches.
#[derive(Debug)]
pub struct Engine {
    flows: FlowCache,
    pieces: Pieces,
    complaints: Bucket,
    reply: Vec<u8>,
    seal: Option<Arc<Seal>>,
    /// Answers to probes.
    heard: Vec<Heard>,
}

/// An answer to a probe, as soon as it was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Heard {
    /// The peer's address in the pod network.
    pub from: IpAddr,
    pub number: u16,
    pub at: Instant,
}

/// ICMP errors a second, and at once (RFC 4443 section 2.4(f)); Linux's own
/// figures (`icmp_msgs_per_sec`, `icmp_msgs_burst`).
const COMPLAINTS_PER_SECOND: u32 = 1000;
const COMPLAINTS_BURST: u32 = 50;

/// What a decision may look at besides the packet, and where answers go.
#[derive(Debug)]
pub struct Scene<'a> {
    pub tables: &'a Snapshot,
    pub counters: &'a Counters,
    /// Frames that the engine makes, each with its verdict.
    pub replies: &'a mut Batch,
    pub now: Instant,
}

impl Engine {
    /// `seed` should be random: it hides which flows collide.
    pub fn new(seed: u64) -> Self {
        Self {
            flows: FlowCache::new(seed),
            pieces: Pieces::new(seed),
            complaints: Bucket::new(COMPLAINTS_PER_SECOND, COMPLAINTS_BURST),
            reply: Vec::new(),
            seal: None,
            heard: Vec::new(),
        }
    }

    /// Takes answers to questions under `seal` for this node's probes.
    #[must_use]
    pub fn listening(self, seal: Option<Arc<Seal>>) -> Self {
        Self { seal, ..self }
    }

    /// The answers to probes since the last time.
    pub fn take_heard(&mut self) -> impl Iterator<Item = Heard> {
        self.heard.drain(..)
    }

    /// Decides each frame of a batch that came from one port.
    pub fn from_port(&mut self, scene: &mut Scene<'_>, ingress: &Port, batch: &mut Batch) {
        for place in 0..batch.len() {
            let (frame, bytes) = batch.frame_mut(place);
            self.decide_from_port(scene, ingress, frame, bytes);
            match frame.verdict {
                Verdict::Drop(reason) => scene.counters.lose(reason, frame.packets),
                Verdict::Answered => scene.counters.answered.add(frame.packets),
                Verdict::Deliver(_) | Verdict::Tunnel(_) => {}
            }
        }
        sweep(scene);
    }

    /// Decides each datagram of one read of the uplink. What goes to ports
    /// is put into `runs`.
    pub fn from_uplink(&mut self, scene: &mut Scene<'_>, inbox: &mut Inbox, runs: &mut Runs) {
        let (trains, buffer) = inbox.split();
        for train in trains {
            let lost = match scene.tables.peer_from(train.from) {
                None => DropReason::UnknownPeer,
                Some(_) if train.truncated => DropReason::DatagramTruncated,
                Some(peer) => {
                    self.decide_train(scene, train, peer, buffer, runs);
                    continue;
                }
            };
            scene.counters.received_from_peers.add(train.count());
            scene.counters.lose(lost, train.count());
        }
        runs.finish();
        sweep(scene);
    }

    /// Until when the flow's other packets may go; none if all may.
    fn pass(
        &mut self,
        scene: &Scene<'_>,
        ends: Ends<'_>,
        frame: &[u8],
        packet: &Packet,
    ) -> Result<Option<Instant>, DropReason> {
        let policy = scene.tables.policy.as_ref();
        policy
            .map(|policy| policy.pass(ends, frame, packet, &mut self.pieces, scene.now))
            .transpose()
    }
}

fn sweep(scene: &Scene<'_>) {
    if let Some(policy) = &scene.tables.policy {
        policy.connections.sweep(scene.now);
    }
}

/// The verdict for a frame that takes `route` and whose flow has `hash`.
fn tunnel(route: Route, hash: u64, frame: &[u8]) -> Verdict {
    // The hash's high bits: its low ones place the flow in the cache.
    let entropy = (hash >> 48) as u16;
    Verdict::Tunnel(Tunnel {
        peer: route.peer,
        way: route.way,
        entropy,
        ecn: edit::ecn(frame),
    })
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

impl From<IpipError> for DropReason {
    fn from(IpipError: IpipError) -> Self {
        Self::MalformedIp
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

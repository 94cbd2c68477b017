//! May this packet pass? The first of a connection is judged by the rules;
//! what follows, answers and errors about it included, belongs to it.
//!
//! A pod's egress is judged on the sender's node and its ingress on the
//! receiver's, so each node judges for the ends that are its own pods.
//! What the gateway says itself, and what is said to it, never comes here.

use std::{net::IpAddr, sync::Arc, time::Instant};

use weft_conntrack::{Account, Direction, Owners, Passed, REFRESH, Refused, Says, Seen, Tracker};
use weft_policy::{Flow, Rulebook, Transport, object};
use weft_wire::{Key, Packet, protocol};

use crate::{
    DropReason, Port, Snapshot,
    denied::{Denial, Denied},
    flow::Egress,
    pieces::Pieces,
};

/// The rules of one epoch, and what was judged by them.
#[derive(Debug)]
pub struct Policy {
    pub rules: Rulebook,
    /// Tells these rules from all before them: a connection that was judged by
    /// others is judged again.
    pub edition: u32,
    /// The same for every epoch and worker.
    pub connections: Arc<Tracker>,
    /// Likewise.
    pub denied: Arc<Denied>,
}

/// What is at an end of a packet's way.
#[derive(Debug, Clone, Copy)]
pub enum End<'a> {
    /// A pod on this node.
    Pod(&'a Port),
    /// This node itself: its probes reach its pods whatever the rules say.
    Node,
    Elsewhere,
}

/// Both ends of a packet's way.
#[derive(Debug, Clone, Copy)]
pub struct Ends<'a> {
    pub source: End<'a>,
    pub destination: End<'a>,
}

impl Policy {
    /// Until when other packets of the same key may pass that do not change
    /// their connection's state ([`weft_conntrack::changes_state`]).
    pub fn pass(
        &self,
        ends: Ends<'_>,
        frame: &[u8],
        packet: &Packet,
        pieces: &mut Pieces,
        now: Instant,
    ) -> Result<Instant, DropReason> {
        let Some(seen) = Seen::of(frame, packet) else {
            let is_known = pieces.knows(self.edition, frame, packet, now);
            return is_known.then_some(now).ok_or(DropReason::FragmentAlone);
        };
        if let Says::Error(Some(about)) = seen.says
            && !self.may_complain(ends.source, packet.key.src, &about)
        {
            return Err(DropReason::ConntrackUnrelated);
        }
        let owners = Owners {
            source: ends.source.account(),
            destination: ends.destination.account(),
        };
        let judge = |direction| self.judge(ends, seen.key, direction, now);
        let passed = self
            .connections
            .pass(&seen, owners, self.edition, now, judge);
        let Passed { settled } = passed.map_err(|refused| match refused {
            Refused::Forbidden(reason) => reason,
            Refused::Unrelated => DropReason::ConntrackUnrelated,
            Refused::Full => DropReason::ConntrackFull,
            Refused::AccountFull => DropReason::ConntrackLimit,
        })?;
        pieces.learn(self.edition, frame, packet, now);
        Ok(if settled { now + REFRESH } else { now })
    }

    /// Errors about a packet come from where it went, or from a router on its
    /// way, which no pod is.
    fn may_complain(&self, source: End<'_>, address: IpAddr, about: &Key) -> bool {
        let is_pod = || {
            let endpoint = self.rules.endpoint(address);
            endpoint.is_some_and(|endpoint| endpoint.pod().is_some())
        };
        address == about.dst || !(matches!(source, End::Pod(_)) || is_pod())
    }

    /// Judges the connection in which a packet with this key goes in
    /// `direction`.
    fn judge(
        &self,
        ends: Ends<'_>,
        key: Key,
        direction: Direction,
        now: Instant,
    ) -> Result<(), DropReason> {
        let (opener, target, flow) = match direction {
            Direction::Original => (ends.source, ends.destination, flow(key)),
            Direction::Reply => (ends.destination, ends.source, flow(exchanged(key))),
        };
        let allows = |direction| self.allows(direction, flow, now);
        if matches!(opener, End::Pod(_)) && !allows(object::Direction::Egress) {
            return Err(DropReason::PolicyEgress);
        }
        match (opener, target) {
            (End::Pod(_) | End::Elsewhere, End::Pod(_)) if !allows(object::Direction::Ingress) => {
                Err(DropReason::PolicyIngress)
            }
            _ => Ok(()),
        }
    }

    fn allows(&self, direction: object::Direction, flow: Flow, now: Instant) -> bool {
        let decision = self.rules.judge_one(direction, &flow);
        let allowed = decision.allowed;
        if !allowed {
            self.denied.note(Denial {
                flow,
                direction,
                decision,
                edition: self.edition,
                packets: 1,
                at: now,
            });
        }
        allowed
    }
}

impl<'a> End<'a> {
    pub fn of(port: &'a Port) -> Self {
        Self::Pod(port)
    }

    /// What packets that take this way come to.
    pub fn behind(tables: &'a Snapshot, egress: Egress) -> Result<Self, DropReason> {
        match egress {
            Egress::Port(id) => tables.port(id).map(Self::of).ok_or(DropReason::PortDown),
            Egress::Peer(_) => Ok(Self::Elsewhere),
        }
    }

    fn account(self) -> Option<&'a Arc<Account>> {
        match self {
            Self::Pod(port) => Some(&port.connections),
            Self::Node | Self::Elsewhere => None,
        }
    }
}

fn exchanged(key: Key) -> Key {
    Key {
        src: key.dst,
        dst: key.src,
        src_port: key.dst_port,
        dst_port: key.src_port,
        ..key
    }
}

fn flow(key: Key) -> Flow {
    let transport = match key.protocol {
        protocol::TCP => Transport::Tcp(key.dst_port),
        protocol::UDP => Transport::Udp(key.dst_port),
        protocol::SCTP => Transport::Sctp(key.dst_port),
        other => Transport::Other(other),
    };
    Flow {
        source: key.src,
        destination: key.dst,
        transport,
    }
}

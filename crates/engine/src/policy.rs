//! May this packet pass? The first of a connection is judged by the rules;
//! what follows, answers and errors about it included, belongs to it.
//!
//! A pod's egress is judged on the sender's node and its ingress on the
//! receiver's, so each node judges for the ends that are its own pods.
//! What the gateway says itself, and what is said to it, never comes here.

use std::{net::IpAddr, sync::Arc, time::Instant};

use weft_conntrack::{
    self as conntrack, Account, Owners, Passed, REFRESH, Refused, Says, Seen, Tracker,
};
use weft_policy::{Flow, Rulebook, Transport, object};
use weft_wire::{Key, Packet, parse::Fragment, protocol};

use crate::{
    DropReason, Port, Snapshot,
    denied::{Denial, Denied},
    flow::Egress,
    flow_log::{FlowLog, Record},
    pieces::Pieces,
};

/// The rules of one epoch, and what was judged by them.
#[derive(Debug)]
pub struct Policy {
    pub rules: Rulebook,
    /// Tells these rules from all before them that judge otherwise: a
    /// connection that was judged by others is judged again. A new edition comes
    /// with a new epoch, since flows that the cache knows are not judged; and it
    /// comes only if some flow may be judged otherwise, since it costs every
    /// connection of the node a judgement, whichever pod's rules have changed.
    pub edition: u32,
    /// The same for every epoch and worker.
    pub connections: Arc<Tracker>,
    /// Likewise.
    pub denied: Arc<Denied>,
    /// Likewise.
    pub log: Arc<FlowLog>,
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
        if !ends.judges() {
            return Ok(now + REFRESH);
        }
        let Some(seen) = Seen::of(frame, packet) else {
            return pieces.admit(frame, packet, now).map(|()| now);
        };
        let mut ends = ends;
        if seen.says == Says::Error && packet.key.src != seen.key.src {
            if self.is_pod(ends.source, packet.key.src) {
                return Err(DropReason::ConntrackUnrelated);
            }
            // A router on the way to what is not here complains.
            ends.source = End::Elsewhere;
        }
        let owners = Owners {
            source: self.account(ends.source),
            destination: self.account(ends.destination),
        };
        let judge = |direction| self.judge(ends, seen.key, direction, now);
        let passed = self
            .connections
            .pass(&seen, owners, self.edition, now, judge);
        let Passed { settled, opened } = passed.map_err(|refused| match refused {
            Refused::Forbidden(reason) => reason,
            Refused::Unrelated => DropReason::ConntrackUnrelated,
            Refused::Full => DropReason::ConntrackFull,
            Refused::AccountFull => DropReason::ConntrackLimit,
        })?;
        if opened && self.log.is_on() {
            let opening = Opening::of(ends, seen.key, conntrack::Direction::Original);
            self.record(opening, now);
        }
        pieces.learn(frame, packet, now);
        // A first fragment bears the key of whole packets without ports.
        let others_too = settled && packet.fragment == Fragment::Whole;
        Ok(if others_too { now + REFRESH } else { now })
    }

    fn account<'a>(&'a self, end: End<'a>) -> Option<&'a Arc<Account>> {
        match end {
            End::Pod(port) => Some(&port.connections),
            End::Node => Some(self.connections.node()),
            End::Elsewhere => None,
        }
    }

    fn is_pod(&self, end: End<'_>, address: IpAddr) -> bool {
        let here = matches!(end, End::Pod(_));
        let elsewhere = || self.rules.endpoint(address)?.pod();
        here || elsewhere().is_some()
    }

    /// Judges the connection in which a packet with this key goes in
    /// `direction`.
    fn judge(
        &self,
        ends: Ends<'_>,
        key: Key,
        direction: conntrack::Direction,
        now: Instant,
    ) -> Result<(), DropReason> {
        let opening = Opening::of(ends, key, direction);
        let flow = flow(opening.key);
        let mut sides = opening.judged().into_iter();
        let denying = sides.find(|side| !self.allows(*side, flow, now));
        let Some(side) = denying else {
            return Ok(());
        };
        if self.log.is_on() {
            self.record(opening, now);
        }
        Err(match side {
            object::Direction::Egress => DropReason::PolicyEgress,
            object::Direction::Ingress => DropReason::PolicyIngress,
        })
    }

    /// Judges once more, which only who reads the log has to wait for.
    fn record(&self, opening: Opening<'_>, now: Instant) {
        let Opening { key, .. } = opening;
        let flow = flow(key);
        let side = |side| {
            let is_judged = opening.judged().into_iter().any(|judged| judged == side);
            is_judged.then(|| self.rules.judge_one(side, &flow))
        };
        let pod = |address| self.rules.endpoint(address)?.pod().cloned();
        self.log.note(Record {
            key,
            source: pod(key.src),
            destination: pod(key.dst),
            egress: side(object::Direction::Egress),
            ingress: side(object::Direction::Ingress),
            edition: self.edition,
            packets: 1,
            at: now,
        });
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

/// A connection as its first packet has it, whichever way it is looked at.
#[derive(Debug, Clone, Copy)]
struct Opening<'a> {
    opener: End<'a>,
    target: End<'a>,
    key: Key,
}

impl<'a> Opening<'a> {
    /// Of the connection in which a packet with this key goes in `direction`.
    fn of(ends: Ends<'a>, key: Key, direction: conntrack::Direction) -> Self {
        let (opener, target, key) = match direction {
            conntrack::Direction::Original => (ends.source, ends.destination, key),
            conntrack::Direction::Reply => (ends.destination, ends.source, key.exchanged()),
        };
        Self {
            opener,
            target,
            key,
        }
    }

    /// The sides on which this node has to judge it, in this order.
    fn judged(self) -> impl IntoIterator<Item = object::Direction> {
        let leaves = matches!(self.opener, End::Pod(_));
        let comes = matches!(
            (self.opener, self.target),
            (End::Pod(_) | End::Elsewhere, End::Pod(_))
        );
        let egress = leaves.then_some(object::Direction::Egress);
        egress
            .into_iter()
            .chain(comes.then_some(object::Direction::Ingress))
    }
}

impl Ends<'_> {
    /// Whether this node has a say: others judge for theirs.
    fn judges(&self) -> bool {
        [self.source, self.destination]
            .iter()
            .any(|end| matches!(end, End::Pod(_)))
    }
}

impl<'a> End<'a> {
    /// What `address`, that of a packet, is behind the port.
    pub fn of(tables: &Snapshot, port: &'a Port, address: IpAddr) -> Self {
        match &port.host {
            None => Self::Pod(port),
            Some(_) if tables.port_of(address) == Some(port.id) => Self::Node,
            Some(_) => Self::Elsewhere,
        }
    }

    /// What packets to `address` that take this way come to.
    pub fn behind(
        tables: &'a Snapshot,
        egress: Egress,
        address: IpAddr,
    ) -> Result<Self, DropReason> {
        match egress {
            Egress::Port(id) => {
                let port = tables.port(id).ok_or(DropReason::PortDown)?;
                Ok(Self::of(tables, port, address))
            }
            Egress::Peer(_) => Ok(Self::Elsewhere),
        }
    }
}

/// What the rules are asked about a connection that a packet with this key
/// opens.
pub fn flow(key: Key) -> Flow {
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

//! One connection: which way it was opened, and how far it has come.

use crate::{Owners, Says, Seen, Timeouts, account::Parties, pair::Pair, sctp::Sctp, tcp::Tcp};

/// Which way a packet goes in its connection: that of the one that opened
/// it, or the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    Original,
    Reply,
}

#[derive(Debug)]
pub(crate) struct Connection {
    /// It was opened against the order of its key in the table.
    pub flipped: bool,
    /// The rules that it was judged by last, and that they forbid it.
    pub edition: u32,
    pub forbidden: bool,
    pub parties: Parties,
    state: State,
}

#[derive(Debug)]
enum State {
    Tcp(Tcp),
    Sctp(Sctp),
    Pair(Pair),
}

impl Connection {
    /// Opened by this packet; none if it opens nothing.
    pub fn new(seen: &Seen, owners: Owners<'_>, flipped: bool, edition: u32) -> Option<Self> {
        let state = match seen.says {
            Says::Tcp(segment) => State::Tcp(Tcp::new(segment)?),
            Says::Sctp(chunk) => State::Sctp(Sctp::new(chunk)?),
            says => State::Pair(Pair::new(says)?),
        };
        Some(Self {
            flipped,
            edition,
            forbidden: false,
            parties: Parties::of(owners),
            state,
        })
    }

    /// Takes note of a packet. Says whether it keeps the connection alive.
    pub fn advance(&mut self, direction: Direction, seen: &Seen, second: u32) -> bool {
        match (&mut self.state, seen.says) {
            (State::Tcp(tcp), Says::Tcp(segment)) => tcp.advance(direction, segment, second),
            (State::Sctp(sctp), Says::Sctp(chunk)) => sctp.advance(direction, chunk),
            (State::Pair(pair), _) => pair.advance(direction),
            // The key bears the protocol, so the two agree.
            _ => false,
        }
    }

    /// Which way a packet goes whose key stands in the table's order, or not.
    pub fn direction(&self, flipped: bool) -> Direction {
        match self.flipped == flipped {
            true => Direction::Original,
            false => Direction::Reply,
        }
    }

    pub fn name(&self) -> &'static str {
        match &self.state {
            _ if self.forbidden => "forbidden",
            State::Tcp(tcp) => tcp.name(),
            State::Sctp(sctp) => sctp.name(),
            State::Pair(pair) if pair.answered => "answered",
            State::Pair(_) => "unanswered",
        }
    }

    /// Seconds of silence after which it is forgotten.
    pub fn timeout(&self, timeouts: &Timeouts) -> u32 {
        Timeouts::at_least(match &self.state {
            _ if self.forbidden && self.stays_forbidden() => timeouts.forbidden,
            _ if self.forbidden => timeouts.forbidden_other,
            State::Tcp(tcp) => tcp.timeout(timeouts),
            State::Sctp(sctp) => sctp.timeout(timeouts),
            State::Pair(pair) => pair.timeout(timeouts),
        })
    }

    /// Both ends have spoken and neither is done, or the rules forbid it: such
    /// a connection does not make room for others.
    pub fn is_assured(&self) -> bool {
        match &self.state {
            _ if self.forbidden => true,
            State::Tcp(tcp) => tcp.is_assured(),
            State::Sctp(sctp) => sctp.is_assured(),
            State::Pair(pair) => pair.answered,
        }
    }

    /// Its ends are free for another.
    pub fn is_over(&self) -> bool {
        match &self.state {
            State::Tcp(tcp) => tcp.is_over(),
            State::Sctp(sctp) => sctp.is_over(),
            State::Pair(_) => false,
        }
    }

    /// Ordinary packets no longer change its state.
    pub fn is_settled(&self) -> bool {
        match &self.state {
            State::Tcp(tcp) => tcp.is_settled(),
            State::Sctp(sctp) => sctp.is_settled(),
            State::Pair(_) => true,
        }
    }

    /// While its packets come they are its own: such a connection's first
    /// packet is told from the others. Not so in other protocols, where either
    /// end may begin anew.
    pub fn stays_forbidden(&self) -> bool {
        !matches!(self.state, State::Pair(_))
    }
}

impl Direction {
    pub(crate) fn other(self) -> Self {
        match self {
            Self::Original => Self::Reply,
            Self::Reply => Self::Original,
        }
    }
}

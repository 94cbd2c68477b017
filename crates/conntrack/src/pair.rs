//! What is known of UDP, of ICMP and of all that is not looked into: whether
//! the other end has answered.

use crate::{Direction, Says, Timeouts};

#[derive(Debug)]
pub(crate) struct Pair {
    kind: Kind,
    pub answered: bool,
}

#[derive(Debug)]
enum Kind {
    Udp,
    Echo,
    Other,
}

impl Pair {
    /// None if the packet opens nothing.
    pub fn new(says: Says) -> Option<Self> {
        let kind = match says {
            Says::Udp => Kind::Udp,
            Says::EchoRequest => Kind::Echo,
            Says::Other => Kind::Other,
            _ => return None,
        };
        let answered = false;
        Some(Self { kind, answered })
    }

    pub fn advance(&mut self, direction: Direction) -> bool {
        self.answered |= direction == Direction::Reply;
        true
    }

    pub fn timeout(&self, timeouts: &Timeouts) -> u32 {
        match self.kind {
            Kind::Udp if self.answered => timeouts.udp,
            Kind::Udp => timeouts.udp_unanswered,
            Kind::Echo => timeouts.icmp,
            Kind::Other => timeouts.other,
        }
    }
}

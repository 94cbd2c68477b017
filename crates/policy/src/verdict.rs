//! The question and its answer: a flow's first packet, and who decided what
//! about it.
//!
//! The interpreter and the compiled rules share these words and nothing else.

use std::{
    fmt::{self, Display, Formatter},
    net::IpAddr,
    sync::Arc,
};

use crate::object::{Direction, Policy, Protocol, Rule};

/// What the first packet of a flow says. Answers are not judged: they belong
/// to the flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Flow {
    pub source: IpAddr,
    pub destination: IpAddr,
    pub transport: Transport,
}

/// The protocol, and the destination's port where there are ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Transport {
    Tcp(u16),
    Udp(u16),
    Sctp(u16),
    /// By its IP protocol number, ICMP among them. Only rules that name no
    /// port match it.
    Other(u8),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// What the source's policies say.
    pub egress: Decision,
    /// What the destination's policies say.
    pub ingress: Decision,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    pub allowed: bool,
    pub reason: Reason,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reason {
    /// `rule` counts from 0 among the policy's rules of the direction.
    Rule { policy: Arc<Policy>, rule: usize },
    /// These NetworkPolicies select the pod, and none has a rule that permits
    /// the flow.
    Isolated { by: Arc<[Arc<Policy>]> },
    /// No policy has a word for it, and what nobody forbids is allowed.
    Unruled,
    /// The address is no pod's, so that no policy governs this end.
    Outside,
    /// Nobody can forbid a pod to speak to itself.
    Itself,
    /// A pod's own node always reaches it: its probes come from there.
    OwnNode,
}

impl Transport {
    pub const fn of(protocol: Protocol, port: u16) -> Self {
        match protocol {
            Protocol::Tcp => Self::Tcp(port),
            Protocol::Udp => Self::Udp(port),
            Protocol::Sctp => Self::Sctp(port),
        }
    }

    pub const fn port(self) -> Option<(Protocol, u16)> {
        match self {
            Self::Tcp(port) => Some((Protocol::Tcp, port)),
            Self::Udp(port) => Some((Protocol::Udp, port)),
            Self::Sctp(port) => Some((Protocol::Sctp, port)),
            Self::Other(_) => None,
        }
    }
}

impl Verdict {
    pub const fn allowed(&self) -> bool {
        self.egress.allowed && self.ingress.allowed
    }

    pub const fn decision(&self, direction: Direction) -> &Decision {
        match direction {
            Direction::Ingress => &self.ingress,
            Direction::Egress => &self.egress,
        }
    }
}

impl Decision {
    pub const fn allow(reason: Reason) -> Self {
        let allowed = true;
        Self { allowed, reason }
    }

    pub const fn deny(reason: Reason) -> Self {
        let allowed = false;
        Self { allowed, reason }
    }

    /// The rule that decided, if one did.
    pub fn rule(&self, direction: Direction) -> Option<(&Arc<Policy>, &Rule)> {
        match &self.reason {
            Reason::Rule { policy, rule } => Some((policy, policy.rules(direction)?.get(*rule)?)),
            _ => None,
        }
    }
}

impl Display for Transport {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        const ICMP: u8 = 1;
        const ICMP_V6: u8 = 58;
        match (self.port(), self) {
            (Some((protocol, port)), _) => write!(f, "{port}/{protocol}"),
            (None, Self::Other(ICMP)) => f.write_str("ICMP"),
            (None, Self::Other(ICMP_V6)) => f.write_str("ICMPv6"),
            (None, Self::Other(number)) => write!(f, "protocol {number}"),
            (None, _) => Ok(()),
        }
    }
}

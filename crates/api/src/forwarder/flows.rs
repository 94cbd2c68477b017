//! The flow log: a page of it, and what a record says.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::Decision;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Flows {
    /// What the next request gives as `after`.
    pub next: u64,
    /// Records that came since `after` and were not kept.
    pub lost: u64,
    /// Earliest first.
    pub flows: Vec<LoggedFlow>,
}

/// A connection that was opened, or a flow that was denied.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LoggedFlow {
    /// Of its first packet: milliseconds since 1970, by the node's clock.
    pub time_ms: u64,
    /// `allowed` or `denied`.
    pub verdict: String,
    /// `tcp`, `udp`, `sctp`, `icmp`, `icmpv6`, or a number.
    pub protocol: String,
    pub from: FlowEnd,
    pub to: FlowEnd,
    /// What the policies of the source say; none if it is no pod of the node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub egress: Option<Decision>,
    /// Likewise of the destination. None too if the node itself speaks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ingress: Option<Decision>,
    /// Of the rules that it was judged by.
    pub edition: u32,
    /// More than one of a denied flow that went on.
    pub packets: u64,
}

/// What rules would do that are not in force.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trial {
    /// Connections that are alive, and flows that were denied of late.
    pub judged: usize,
    /// Flows that change but are not listed.
    pub unlisted: usize,
    pub changes: Vec<Changed>,
}

/// A flow that would be judged otherwise.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Changed {
    /// `allowed` or `denied`: what it would be, and is not now.
    pub verdict: String,
    pub protocol: String,
    /// A denied flow's source has no port: it was tried from many, maybe.
    pub from: FlowEnd,
    pub to: FlowEnd,
    /// `egress` or `ingress`: whose decision makes it so.
    pub direction: String,
    pub decision: Decision,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct FlowEnd {
    pub address: IpAddr,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// `namespace/name`, if the address is a pod's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<String>,
}

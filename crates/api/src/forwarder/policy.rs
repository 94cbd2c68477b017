//! What the forwarder is told of policies, and what it says of them. Objects
//! are Kubernetes' own JSON; who reads them is not known here.

use std::net::IpAddr;

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

use crate::names::Name;

/// All objects of a source, or a part of them: parts follow each other on one
/// connection, and the last puts all in force at once.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Policies {
    pub source: Name,
    pub objects: Vec<Value>,
    /// Counts the parts from 0; the first begins anew.
    #[serde(default, skip_serializing_if = "is_first")]
    pub part: u32,
    /// Another part follows.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub more: bool,
    /// Of the last part: put nothing in force, and tell for what flows now
    /// what would change.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub dry_run: bool,
}

fn is_first(part: &u32) -> bool {
    *part == 0
}

/// `delete` is done before `put`, and both at once.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PolicyChange {
    pub source: Name,
    #[serde(default)]
    pub put: Vec<Value>,
    #[serde(default)]
    pub delete: Vec<ObjectRef>,
}

/// Names an object.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ObjectRef {
    pub kind: String,
    /// Of what has one, `default` where it is left out or empty.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "filled"
    )]
    pub namespace: Option<String>,
    pub name: String,
}

fn filled<'de, D: Deserializer<'de>>(text: D) -> Result<Option<String>, D::Error> {
    let text = Option::<String>::deserialize(text)?;
    Ok(text.filter(|text| !text.is_empty()))
}

/// A flow's ends may be addresses, names of ports, pods (`namespace/name`, or
/// `name` in `default`) or nodes (`node/name`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Explain {
    pub from: String,
    pub to: String,
    /// `80/tcp`, `53/udp`, `80/sctp` or `icmp`.
    pub port: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rules {
    /// Counts the rules that were in force; 0 before the first.
    pub edition: u32,
    /// Connections that are tracked.
    pub connections: usize,
    pub sources: Vec<PolicySource>,
    pub policies: Vec<PolicyRow>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicySource {
    pub source: Name,
    pub objects: usize,
}

/// In the order in which policies are asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyRow {
    /// Kind and name.
    pub policy: String,
    pub source: Name,
    /// `admin 10`, `network`, `baseline 0`.
    pub tier: String,
    /// Of the rules that it came with, or was last changed by.
    pub edition: u32,
    /// None: it says nothing of that direction.
    pub ingress_rules: Option<usize>,
    pub egress_rules: Option<usize>,
    pub pods: usize,
    /// The names of the pods and the object as it was given, if it alone was
    /// asked for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub selected: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub object: Option<Value>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Explanation {
    pub allowed: bool,
    pub source: IpAddr,
    pub destination: IpAddr,
    pub port: String,
    pub egress: Decision,
    pub ingress: Decision,
    /// All of it in sentences.
    pub text: String,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Decision {
    pub allowed: bool,
    /// `rule`, `isolated`, `unruled`, `outside`, `itself` or `own-node`.
    pub reason: String,
    /// The one whose rule decided, or those that isolate the pod.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub policies: Vec<String>,
    /// From 0, among the policy's rules of the direction.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule: Option<usize>,
    /// If no rule permitted it: those that came nearest.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub nearest: Vec<Nearest>,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Nearest {
    pub policy: String,
    pub rule: usize,
    pub misses: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Denied {
    /// Denials that fell out of the list, or were not noted.
    pub forgotten: u64,
    /// Latest first.
    pub flows: Vec<DeniedFlow>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeniedFlow {
    pub source: IpAddr,
    pub destination: IpAddr,
    pub port: String,
    /// Whose policies denied it: the source's `egress`, the destination's
    /// `ingress`.
    pub direction: String,
    pub decision: Decision,
    pub edition: u32,
    /// Packets in a row.
    pub packets: u64,
    /// Since the last of them.
    pub age_ms: u64,
}

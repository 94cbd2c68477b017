//! Cases generated over the dimensions of Cyclonus: peers, ports and
//! protocols, conflicts, targets, rules, and what changes at run time.
//!
//! Every value of a dimension stands beside what it lets through, in words of
//! its own: a list of pods or of ports. What a case expects is put together
//! from those lists, not from the policy.

mod changes;
mod conflicts;
mod peers;
mod ports;
mod targets;

use serde_json::{Value, json};
use weft_policy::Transport;

use super::{Case, Edit, Stage, Step, fits, network_policy, nine_pods};

const SIX_PORTS: [Transport; 6] = [
    Transport::Tcp(80),
    Transport::Tcp(81),
    Transport::Udp(80),
    Transport::Udp(81),
    Transport::Sctp(80),
    Transport::Sctp(81),
];

pub fn cases() -> Vec<Case> {
    let parts = [
        peers::cases,
        ports::cases,
        conflicts::cases,
        targets::cases,
        changes::cases,
    ];
    parts.iter().flat_map(|cases| cases()).collect()
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Ingress,
    Egress,
}

impl Way {
    const BOTH: [Self; 2] = [Self::Ingress, Self::Egress];

    const fn name(self) -> &'static str {
        match self {
            Self::Ingress => "ingress",
            Self::Egress => "egress",
        }
    }

    /// Of a flow, the end that a policy of this direction belongs to, and the
    /// other one.
    const fn ends<'a>(self, from: &'a str, to: &'a str) -> (&'a str, &'a str) {
        match self {
            Self::Ingress => (to, from),
            Self::Egress => (from, to),
        }
    }

    const fn policy_type(self) -> &'static str {
        match self {
            Self::Ingress => "Ingress",
            Self::Egress => "Egress",
        }
    }

    /// A policy of this direction alone, for the pods.
    fn spec(self, pods: &Value, rules: &Value) -> Value {
        json!({"podSelector": pods, "policyTypes": [self.policy_type()], self.name(): rules})
    }

    fn rule(self, peers: &Value, ports: &Value) -> Value {
        let peers_key = match self {
            Self::Ingress => "from",
            Self::Egress => "to",
        };
        json!({peers_key: peers, "ports": ports})
    }
}

fn pod_a() -> Value {
    json!({"matchLabels": {"pod": "a"}})
}

/// What a policy of one direction does to the pods that fit `subject`: it
/// lets through what fits one of the openings.
struct Isolation<'a> {
    way: Way,
    subject: &'a str,
    openings: Vec<Opening<'a>>,
}

struct Opening<'a> {
    pods: &'a [&'a str],
    /// None for all.
    ports: Option<&'a [Transport]>,
}

const EVERYTHING: Opening<'_> = Opening {
    pods: &["*"],
    ports: None,
};

/// True unless one of the isolations closes an end that it does not open.
fn passes(isolations: &[Isolation<'_>], from: &str, to: &str, transport: Transport) -> bool {
    isolations.iter().all(|isolation| {
        let (own, other) = isolation.way.ends(from, to);
        !fits(isolation.subject, own)
            || isolation.openings.iter().any(|opening| {
                opening.pods.iter().any(|pods| fits(pods, other))
                    && opening.ports.is_none_or(|ports| ports.contains(&transport))
            })
    })
}

/// The nine pods under the policies, each a name and a spec.
fn one_step(name: String, policies: &[(&str, Value)], isolations: &[Isolation<'_>]) -> Case {
    let stage = nine_pods();
    let mut edits = stage.edits();
    edits.extend(
        policies
            .iter()
            .map(|(name, spec)| network_policy(name, spec)),
    );
    let steps = vec![expecting(&stage, "created", edits, isolations)];
    Case { name, steps }
}

fn expecting(stage: &Stage, name: &str, edits: Vec<Edit>, isolations: &[Isolation<'_>]) -> Step {
    Step {
        name: name.to_owned(),
        edits,
        probes: stage.matrix(&SIX_PORTS, |from, to, transport| {
            passes(isolations, from, to, transport)
        }),
    }
}

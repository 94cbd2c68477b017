//! Why a flow may pass, or may not.
//!
//! The verdict is the rulebook's own. What stands beside it is found by
//! looking at the objects once more: for a pod that is closed, the rules that
//! came nearest to letting the flow in, and what each of them missed.
//! Everything here is data; [`Explanation`] prints as sentences, a line each.

mod miss;

use std::{
    fmt::{self, Display, Formatter},
    net::IpAddr,
    sync::Arc,
};

use crate::{
    compile::{Endpoint, Holder, Rulebook, Who},
    object::{Action, Direction, Labels, NamedPort, Namespace, Policy, Tier},
    verdict::{Decision, Flow, Reason, Verdict},
};

pub use miss::Miss;

/// As many rules as help; the rest are farther away.
const CANDIDATES_MAX: usize = 3;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explanation {
    pub flow: Flow,
    pub source: End,
    pub destination: End,
    pub verdict: Verdict,
    /// Of a direction that is closed, the nearest rules, nearest first.
    pub egress_candidates: Vec<Candidate>,
    pub ingress_candidates: Vec<Candidate>,
}

/// One end of a flow, as policies see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct End {
    pub address: IpAddr,
    pub who: Known,
    ports: Vec<NamedPort>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Known {
    Pod {
        name: String,
        namespace: Arc<Namespace>,
        labels: Labels,
    },
    Node {
        name: String,
        labels: Labels,
    },
    Stranger,
}

/// A rule that would have permitted the flow, had it not been for `misses`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    pub policy: Arc<Policy>,
    pub direction: Direction,
    pub rule: usize,
    pub misses: Vec<Miss>,
}

/// Judges the flow and says why.
pub fn explain(rulebook: &Rulebook, flow: &Flow) -> Explanation {
    let ends = [flow.source, flow.destination];
    let [source, destination] = ends.map(|address| End::at(rulebook, address));
    let verdict = rulebook.judge(flow);
    let asked = Asked {
        flow,
        ports: &destination.ports,
    };
    Explanation {
        egress_candidates: asked.candidates(Direction::Egress, &verdict.egress, &destination),
        ingress_candidates: asked.candidates(Direction::Ingress, &verdict.ingress, &source),
        flow: *flow,
        verdict,
        source,
        destination,
    }
}

struct Asked<'a> {
    flow: &'a Flow,
    /// The destination's.
    ports: &'a [NamedPort],
}

impl Asked<'_> {
    /// For who is denied because nothing opens it.
    fn candidates(
        &self,
        direction: Direction,
        decision: &Decision,
        remote: &End,
    ) -> Vec<Candidate> {
        let Reason::Isolated { by } = &decision.reason else {
            return Vec::new();
        };
        let mut candidates = Vec::new();
        for policy in by.iter() {
            for (place, rule) in policy
                .rules(direction)
                .unwrap_or_default()
                .iter()
                .enumerate()
            {
                candidates.push(Candidate {
                    policy: Arc::clone(policy),
                    direction,
                    rule: place,
                    misses: miss::misses(rule, remote, self.flow.transport, self.ports),
                });
            }
        }
        candidates.sort_by_key(|candidate| candidate.misses.len());
        candidates.truncate(CANDIDATES_MAX);
        candidates
    }
}

impl End {
    fn at(rulebook: &Rulebook, address: IpAddr) -> Self {
        let endpoint = rulebook.endpoint(address);
        Self {
            address,
            who: endpoint.map_or(Known::Stranger, |endpoint| Known::of(rulebook, endpoint)),
            ports: endpoint
                .and_then(Endpoint::pod)
                .map_or_else(Vec::new, |pod| pod.ports.clone()),
        }
    }
}

impl Known {
    fn of(rulebook: &Rulebook, endpoint: &Endpoint) -> Self {
        match (&endpoint.holder, &rulebook.identity(endpoint).who) {
            (Holder::Pod(pod), Who::Pod(namespace, labels)) => Self::Pod {
                name: pod.name.to_string(),
                namespace: Arc::clone(namespace),
                labels: labels.clone(),
            },
            (Holder::Node(node), _) => Self::Node {
                name: node.name.clone(),
                labels: node.labels.clone(),
            },
            _ => Self::Stranger,
        }
    }
}

impl Explanation {
    pub fn candidates(&self, direction: Direction) -> &[Candidate] {
        match direction {
            Direction::Ingress => &self.ingress_candidates,
            Direction::Egress => &self.egress_candidates,
        }
    }

    fn side(&self, f: &mut Formatter<'_>, direction: Direction, own: &End) -> fmt::Result {
        let decision = self.verdict.decision(direction);
        let word = if decision.allowed {
            "allowed"
        } else {
            "denied"
        };
        write!(f, "{direction} of {own} is {word}: ")?;
        match &decision.reason {
            Reason::Rule { policy, rule } => {
                write_rule(f, policy, direction, *rule)?;
                let action = decision.rule(direction).map(|(_, rule)| rule.action);
                f.write_str(match (action, policy.tier) {
                    (Some(Action::Deny), _) => " forbids it",
                    (_, Tier::Network) => " permits it",
                    _ => " accepts it",
                })?;
            }
            Reason::Isolated { by } => {
                let names: Vec<_> = by.iter().map(|policy| policy.name.to_string()).collect();
                let verb = if names.len() == 1 {
                    "isolates"
                } else {
                    "isolate"
                };
                write!(
                    f,
                    "{} {verb} it and no rule permits the flow",
                    names.join(", ")
                )?;
                for candidate in self.candidates(direction) {
                    write!(f, "\n  {candidate}")?;
                }
            }
            Reason::Unruled => write!(f, "no policy has a word for this {direction}")?,
            Reason::Outside => f.write_str("policies govern pods alone")?,
            Reason::Itself => f.write_str("a pod may always speak to itself")?,
            Reason::OwnNode => f.write_str("a pod's own node may always reach it")?,
        }
        writeln!(f)
    }
}

fn write_rule(
    f: &mut Formatter<'_>,
    policy: &Policy,
    direction: Direction,
    place: usize,
) -> fmt::Result {
    write!(f, "{}, {direction}[{place}]", policy.name)?;
    let rule = policy.rules(direction).and_then(|rules| rules.get(place));
    match rule {
        Some(rule) if !rule.name.is_empty() => write!(f, " \"{}\"", rule.name),
        _ => Ok(()),
    }
}

impl Display for Explanation {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let word = if self.verdict.allowed() {
            "allowed"
        } else {
            "denied"
        };
        let Self {
            source,
            destination,
            flow,
            ..
        } = self;
        writeln!(
            f,
            "{source} to {destination} at {} is {word}",
            flow.transport
        )?;
        self.side(f, Direction::Egress, source)?;
        self.side(f, Direction::Ingress, destination)
    }
}

impl Display for Candidate {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write_rule(f, &self.policy, self.direction, self.rule)?;
        let misses: Vec<_> = self.misses.iter().map(ToString::to_string).collect();
        write!(f, ": {}", misses.join("; "))
    }
}

impl Display for End {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match &self.who {
            Known::Pod { name, .. } => f.write_str(name),
            Known::Node { name, .. } => write!(f, "node {name}"),
            Known::Stranger => self.address.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests;

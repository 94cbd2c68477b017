//! Verdicts in the words of the control protocol.

use std::time::Instant;

use weft_api::forwarder as api;
use weft_engine::denied::{Denial, Denied};
use weft_policy::{Decision, Explanation, Reason, explain::Candidate, object::Direction};

/// What [`weft_policy::explain()`] found.
pub fn explanation(found: &Explanation) -> api::Explanation {
    let side = |direction| {
        let told = decision(found.verdict.decision(direction));
        let nearest = found.candidates(direction).iter().map(nearest).collect();
        api::Decision { nearest, ..told }
    };
    api::Explanation {
        allowed: found.verdict.allowed(),
        source: found.flow.source,
        destination: found.flow.destination,
        port: found.flow.transport.to_string(),
        egress: side(Direction::Egress),
        ingress: side(Direction::Ingress),
        text: found.to_string(),
    }
}

pub fn denied(denied: &Denied, now: Instant) -> api::Denied {
    let flow = |denial: Denial| api::DeniedFlow {
        source: denial.flow.source,
        destination: denial.flow.destination,
        port: denial.flow.transport.to_string(),
        direction: denial.direction.to_string(),
        decision: decision(&denial.decision),
        edition: denial.edition,
        packets: denial.packets,
        age_ms: u64::try_from(now.saturating_duration_since(denial.at).as_millis())
            .unwrap_or(u64::MAX),
    };
    api::Denied {
        forgotten: denied.forgotten(),
        flows: denied.flows().into_iter().map(flow).collect(),
    }
}

pub fn decision(decision: &Decision) -> api::Decision {
    let (reason, policies, rule) = match &decision.reason {
        Reason::Rule { policy, rule } => ("rule", vec![policy.name.to_string()], Some(*rule)),
        Reason::Isolated { by } => {
            let names = by.iter().map(|policy| policy.name.to_string());
            ("isolated", names.collect(), None)
        }
        Reason::Unruled => ("unruled", Vec::new(), None),
        Reason::Outside => ("outside", Vec::new(), None),
        Reason::Itself => ("itself", Vec::new(), None),
        Reason::OwnNode => ("own-node", Vec::new(), None),
    };
    api::Decision {
        allowed: decision.allowed,
        reason: reason.to_owned(),
        policies,
        rule,
        nearest: Vec::new(),
    }
}

fn nearest(candidate: &Candidate) -> api::Nearest {
    api::Nearest {
        policy: candidate.policy.name.to_string(),
        rule: candidate.rule,
        misses: candidate.misses.iter().map(ToString::to_string).collect(),
    }
}

//! Policies that contradict each other: whatever one opens is open.

use serde_json::{Value, json};

use super::{Case, EVERYTHING, Isolation, Way, one_step, pod_a};

/// Rules as a policy has them, and whether they open everything; the others
/// open nothing.
type Rules = (&'static str, Value, bool);

fn rules(way: Way) -> Vec<Rules> {
    let peer = |peer: Value| json!([way.rule(&json!([peer]), &json!([]))]);
    let nobody = json!({"namespaceSelector": {"matchLabels": {"never": "here"}}});
    vec![
        ("no rule", json!([]), false),
        ("a rule of nothing", json!([{}]), true),
        ("all pods", peer(json!({"namespaceSelector": {}})), true),
        (
            "all addresses",
            peer(json!({"ipBlock": {"cidr": "0.0.0.0/0"}})),
            true,
        ),
        ("no pods", peer(nobody), false),
        (
            "no addresses",
            peer(json!({"ipBlock": {"cidr": "0.0.0.0/31"}})),
            false,
        ),
        (
            "no addresses but by another name",
            peer(json!({"ipBlock": {"cidr": "10.244.0.0/16",
                                    "except": ["10.244.0.0/17", "10.244.128.0/17"]}})),
            false,
        ),
    ]
}

pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for way in Way::BOTH {
        let rules = rules(way);
        for (number, one) in rules.iter().enumerate() {
            for other in &rules[number + 1..] {
                cases.push(same_direction(way, one, other));
            }
        }
    }
    for source in [false, true] {
        for destination in [false, true] {
            cases.push(both_ends(source, destination));
        }
    }
    cases
}

fn isolation(way: Way, subject: &'static str, open: bool) -> Isolation<'static> {
    let openings = if open { vec![EVERYTHING] } else { vec![] };
    Isolation {
        way,
        subject,
        openings,
    }
}

fn same_direction(way: Way, one: &Rules, other: &Rules) -> Case {
    let name = format!("conflict, {}: {} and {}", way.name(), one.0, other.0);
    let policies = [
        ("x/one", way.spec(&pod_a(), &one.1)),
        ("x/other", way.spec(&pod_a(), &other.1)),
    ];
    one_step(name, &policies, &[isolation(way, "x/a", one.2 || other.2)])
}

/// x/a's egress and y/a's ingress, each open or closed.
fn both_ends(source: bool, destination: bool) -> Case {
    let rules = |open| if open { json!([{}]) } else { json!([]) };
    let word = |open| if open { "open" } else { "closed" };
    let name = format!(
        "conflict: {} source, {} destination",
        word(source),
        word(destination)
    );
    let policies = [
        ("x/egress", Way::Egress.spec(&pod_a(), &rules(source))),
        (
            "y/ingress",
            Way::Ingress.spec(&pod_a(), &rules(destination)),
        ),
    ];
    let isolations = [
        isolation(Way::Egress, "x/a", source),
        isolation(Way::Ingress, "y/a", destination),
    ];
    one_step(name, &policies, &isolations)
}

//! Peers: none, each alone, and every pair.

use serde_json::{Value, json};

use super::{Case, EVERYTHING, Isolation, Opening, Way, one_step, pod_a};

/// A peer as a policy of x names it, and the pods it means.
struct Peer {
    name: &'static str,
    text: Value,
    means: &'static [&'static str],
}

fn peers() -> Vec<Peer> {
    let peer = |name, means, text| Peer { name, text, means };
    let pod_c = json!({"matchLabels": {"pod": "c"}});
    let ns_x = json!({"matchLabels": {"ns": "x"}});
    let bc = json!({"matchExpressions": [{"key": "pod", "operator": "In", "values": ["b", "c"]}]});
    let yz = json!({"matchExpressions": [{"key": "ns", "operator": "NotIn", "values": ["x"]}]});
    let named = json!({"matchExpressions": [{"key": "pod", "operator": "Exists"}]});
    let unnamed = json!({"matchExpressions": [{"key": "pod", "operator": "DoesNotExist"}]});
    vec![
        peer("all pods here", &["x/*"], json!({"podSelector": {}})),
        peer("c here", &["x/c"], json!({"podSelector": pod_c})),
        peer("all namespaces", &["*"], json!({"namespaceSelector": {}})),
        peer(
            "all pods of all namespaces",
            &["*"],
            json!({"podSelector": {}, "namespaceSelector": {}}),
        ),
        peer(
            "c of all namespaces",
            &["*/c"],
            json!({"podSelector": pod_c, "namespaceSelector": {}}),
        ),
        peer("namespace x", &["x/*"], json!({"namespaceSelector": ns_x})),
        peer(
            "all pods of x",
            &["x/*"],
            json!({"podSelector": {}, "namespaceSelector": ns_x}),
        ),
        peer(
            "c of x",
            &["x/c"],
            json!({"podSelector": pod_c, "namespaceSelector": ns_x}),
        ),
        peer(
            "b and c of y and z",
            &["y/b", "y/c", "z/b", "z/c"],
            json!({"podSelector": bc, "namespaceSelector": yz}),
        ),
        peer(
            "named pods of y and z",
            &["y/*", "z/*"],
            json!({"podSelector": named, "namespaceSelector": yz}),
        ),
        peer(
            "unnamed pods",
            &[],
            json!({"podSelector": unnamed, "namespaceSelector": {}}),
        ),
        peer(
            "the addresses of y",
            &["y/*"],
            json!({"ipBlock": {"cidr": "10.244.2.0/24"}}),
        ),
        peer(
            "all addresses but those of y",
            &["x/*", "z/*"],
            json!({"ipBlock": {"cidr": "10.244.0.0/16", "except": ["10.244.2.0/24"]}}),
        ),
    ]
}

pub fn cases() -> Vec<Case> {
    let peers = peers();
    let mut cases = Vec::new();
    for way in Way::BOTH {
        let all = Isolation {
            way,
            subject: "x/a",
            openings: vec![EVERYTHING],
        };
        cases.push(case(way, "no peers at all", &json!([]), all));
        for (number, one) in peers.iter().enumerate() {
            let alone = of(way, &[one]);
            cases.push(case(way, one.name, &json!([one.text]), alone));
            for other in &peers[number + 1..] {
                let name = format!("{} or {}", one.name, other.name);
                let either = of(way, &[one, other]);
                cases.push(case(way, &name, &json!([one.text, other.text]), either));
            }
        }
    }
    cases
}

fn of(way: Way, peers: &[&Peer]) -> Isolation<'static> {
    let openings = peers.iter().map(|peer| Opening {
        pods: peer.means,
        ports: None,
    });
    Isolation {
        way,
        subject: "x/a",
        openings: openings.collect(),
    }
}

fn case(way: Way, name: &str, peers: &Value, isolation: Isolation<'_>) -> Case {
    let spec = way.spec(&pod_a(), &json!([way.rule(peers, &json!([]))]));
    let name = format!("peers, {}: {name}", way.name());
    one_step(name, &[("x/peers", spec)], &[isolation])
}

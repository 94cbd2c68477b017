//! The tests that stand alone: networks, priorities, the three tiers
//! together, named ports and nodes.

use serde_json::{Value, json};
use weft_policy::Transport::{Sctp, Tcp, Udp};

use super::{
    Case, Draft, EVERY_PORT, G, H, HOUSE, R, S, Step, between, families, house, houses, namespace,
    pods, rule, step,
};
use crate::policy::{kubernetes::removal, network_policy};

pub fn cases() -> Vec<Case> {
    vec![
        networks("Admin"),
        networks("Baseline"),
        priority(),
        three_tiers(),
        named_port("Admin", "egress of TCP", "web"),
        named_port("Admin", "ingress of UDP", "dns"),
        named_port("Baseline", "egress of UDP", "dns"),
        named_port("Baseline", "ingress of TCP", "web"),
        nodes_of_admin(),
        nodes_of_baseline(),
    ]
}

fn anywhere() -> Value {
    json!({"networks": ["0.0.0.0/0", "::/0"]})
}

fn linux_nodes() -> Value {
    json!({"nodes": {"matchLabels": {"kubernetes.io/os": "linux"}}})
}

fn networks(tier: &str) -> Case {
    let mut stage = houses();
    let subject = if tier == "Admin" {
        pods(G)
    } else {
        namespace(G)
    };
    let mut draft = Draft {
        name: "networks",
        spec: json!({
            "tier": tier, "priority": 85, "subject": subject,
            "egress": [
                rule("egress", "Accept", &[pods(S)], &[]),
                rule("egress", "Deny", &[anywhere()], &[]),
            ],
        }),
    };
    let (deny, allow) = ("deny to networks", "accept to networks");
    let to = |stage: &_, house, allowed| between(stage, G, house, &EVERY_PORT, allowed);
    let mut first = stage.edits();
    first.push(draft.put());
    let probes = [
        to(&stage, R, false),
        to(&stage, H, false),
        to(&stage, S, true),
    ]
    .concat();
    let mut steps = vec![step(deny, first, probes)];
    for (label, allowed) in [("denied-namespace-label", false), (S, true)] {
        let labels = stage.namespaces.get_mut(S).expect("the house");
        labels.insert(HOUSE.to_owned(), label.to_owned());
        steps.push(step(deny, vec![stage.namespace(S)], to(&stage, S, allowed)));
    }
    let single = json!({"networks": ["10.244.4.1/32", "10.244.3.1/32"]});
    draft
        .rules("egress")
        .insert(0, rule("egress", "Accept", &[single], &[]));
    let probes = [R, H].into_iter().flat_map(|house| {
        let mut probes = to(&stage, house, true);
        for probe in &mut probes {
            probe.allowed = probe.to.ends_with("/0");
        }
        probes
    });
    steps.push(step(allow, vec![draft.put()], probes.collect()));
    let name = format!("{tier} tier, egress to networks");
    Case { name, steps }
}

/// A policy for gryffindor that does one thing with slytherin, both ways.
fn with_slytherin(
    name: &'static str,
    (tier, priority): (&str, u16),
    action: &str,
    who: fn(&str) -> Value,
) -> Draft {
    Draft {
        name,
        spec: json!({
            "tier": tier, "priority": priority, "subject": who(G),
            "ingress": [rule("ingress", action, &[who(S)], &[])],
            "egress": [rule("egress", action, &[who(S)], &[])],
        }),
    }
}

fn priority() -> Case {
    let stage = houses();
    let deny = with_slytherin("priority-50", ("Admin", 50), "Deny", pods);
    let mut pass = with_slytherin("priority-60", ("Admin", 60), "Pass", pods);
    let accept = with_slytherin("default", ("Baseline", 10), "Accept", pods);
    let mut first = stage.edits();
    first.extend([deny.put(), pass.put(), accept.put()]);
    let inwards = |allowed| between(&stage, S, G, &EVERY_PORT, allowed);
    let outwards = |allowed| between(&stage, G, S, &EVERY_PORT, allowed);
    pass.spec["priority"] = json!(40);
    Case {
        name: "Admin tier, priorities".to_owned(),
        steps: vec![
            step("ingress denied", first, inwards(false)),
            step("egress denied", vec![], outwards(false)),
            step(
                "passed to the Baseline tier at the higher priority",
                vec![pass.put()],
                [inwards(true), outwards(true)].concat(),
            ),
        ],
    }
}

fn three_tiers() -> Case {
    const NETWORK_POLICY: &str = "gryffindor/slytherin-both-ways";
    let stage = houses();
    let mut admin = with_slytherin("admin", ("Admin", 10), "Deny", house);
    let baseline = with_slytherin("default", ("Baseline", 10), "Deny", house);
    let selector = json!({"namespaceSelector": {"matchLabels": {HOUSE: S}}});
    let network = network_policy(
        NETWORK_POLICY,
        &json!({
            "podSelector": null, "policyTypes": ["Ingress", "Egress"],
            "ingress": [{"from": [selector]}], "egress": [{"to": [selector]}],
        }),
    );
    let mut first = stage.edits();
    first.extend([admin.put(), baseline.put(), network]);
    let inwards = |allowed| between(&stage, S, G, &EVERY_PORT, allowed);
    let outwards = |allowed| between(&stage, G, S, &EVERY_PORT, allowed);
    let mut pass = |direction| {
        admin.rules(direction)[0]["action"] = json!("Pass");
        vec![admin.put()]
    };
    let (pass_ingress, pass_egress) = (pass("ingress"), pass("egress"));
    Case {
        name: "all three tiers".to_owned(),
        steps: vec![
            step("ingress denied by the Admin tier", first, inwards(false)),
            step("egress denied by the Admin tier", vec![], outwards(false)),
            step(
                "ingress passed to the NetworkPolicy",
                pass_ingress,
                inwards(true),
            ),
            step(
                "egress passed to the NetworkPolicy",
                pass_egress,
                outwards(true),
            ),
            step(
                "ingress passed to the Baseline tier",
                vec![removal(NETWORK_POLICY)],
                inwards(false),
            ),
            step(
                "egress passed to the Baseline tier",
                vec![],
                outwards(false),
            ),
        ],
    }
}

/// The rule that opens one port of the specified house names it.
fn named_port(tier: &str, family: &str, port: &str) -> Case {
    let stage = houses();
    let mut draft = families::draft(tier, family);
    let direction = family.split(' ').next().expect("a direction");
    let opening = if tier == "Admin" { 5 } else { 3 };
    draft.rules(direction)[opening]["protocols"] = json!([{"destinationNamedPort": port}]);
    let mut edits = stage.edits();
    edits.push(draft.put());
    let (opened, left_closed) = match port {
        "web" => (Tcp(80), Tcp(8080)),
        _ => (Udp(53), Udp(5353)),
    };
    let (from, to) = match (direction, port) {
        ("egress", "web") | ("ingress", "dns") => (G, H),
        _ => (H, G),
    };
    let mut probes = between(&stage, from, to, &[opened], true);
    probes.extend(between(&stage, from, to, &[left_closed], false));
    Case {
        name: format!("{tier} tier, {direction} to the named port {port}"),
        steps: vec![step("accept at the named port", edits, probes)],
    }
}

fn nodes_of_admin() -> Case {
    let stage = houses();
    let draft = Draft {
        name: "nodes",
        spec: json!({
            "tier": "Admin", "priority": 75, "subject": pods(G),
            "egress": [
                rule("egress", "Accept", &[linux_nodes()], &[Tcp(34345)]),
                rule("egress", "Pass", &[linux_nodes()], &[Udp(34347)]),
                rule("egress", "Deny", &[pods(S), linux_nodes(), anywhere()], &[]),
            ],
        }),
    };
    let mut first = stage.edits();
    first.push(draft.put());
    let to_node = |port, allowed| stage.probe("gryffindor/1", "node/2", port, allowed);
    let denied = [Tcp(34346), Udp(34348), Sctp(34349)].map(|port| to_node(port, false));
    nodes(
        "Admin",
        vec![
            step("accept to nodes", first, vec![to_node(Tcp(34345), true)]),
            step("pass to nodes", vec![], vec![to_node(Udp(34347), true)]),
            step("deny to nodes", vec![], denied.to_vec()),
        ],
    )
}

fn nodes_of_baseline() -> Case {
    let stage = houses();
    let mut accept = rule("egress", "Accept", &[linux_nodes()], &[]);
    let range = json!({"start": 34345, "end": 34346});
    accept["protocols"] = json!([{"tcp": {"destinationPort": {"range": range}}}]);
    let draft = Draft {
        name: "nodes",
        spec: json!({
            "tier": "Baseline", "priority": 10, "subject": namespace(G),
            "egress": [accept, rule("egress", "Deny", &[linux_nodes(), anywhere()], &[])],
        }),
    };
    let mut first = stage.edits();
    first.push(draft.put());
    let to_node = |port, allowed| stage.probe("gryffindor/1", "node/2", port, allowed);
    let accepted = [Tcp(34345), Tcp(34346)].map(|port| to_node(port, true));
    let denied = [Udp(34348), Sctp(34349)].map(|port| to_node(port, false));
    nodes(
        "Baseline",
        vec![
            step("accept to nodes", first, accepted.to_vec()),
            step("deny to nodes", vec![], denied.to_vec()),
        ],
    )
}

fn nodes(tier: &str, steps: Vec<Step>) -> Case {
    let name = format!("{tier} tier, egress to nodes");
    Case { name, steps }
}

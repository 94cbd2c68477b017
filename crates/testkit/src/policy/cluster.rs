//! The 24 tests and 92 sub-tests of the ClusterNetworkPolicy suite, told
//! anew. A step is a sub-test, or a part of one when steps share its name.
//!
//! Four houses are namespaces, each with two pods. A pod serves 80 (named
//! web) and 8080 of TCP, 53 (named dns) and 5353 of UDP, 9003 and 9005 of
//! SCTP. Where the suite asks one pair of pods, all pairs are asked.

mod families;
mod singles;

use std::collections::BTreeMap;

use serde_json::{Value, json};
use weft_policy::{
    Transport,
    Transport::{Sctp, Tcp, Udp},
    object::Protocol,
};

use super::{Case, Edit, Place, Probe, Stage, Step};

const G: &str = "gryffindor";
const S: &str = "slytherin";
const H: &str = "hufflepuff";
const R: &str = "ravenclaw";

const EVERY_PORT: [Transport; 6] = [
    Tcp(80),
    Tcp(8080),
    Udp(53),
    Udp(5353),
    Sctp(9003),
    Sctp(9005),
];

/// The label that tells a house, of namespaces and of pods.
const HOUSE: &str = "conformance-house";

pub fn cases() -> Vec<Case> {
    let mut cases = families::cases();
    cases.extend(singles::cases());
    cases
}

fn houses() -> Stage {
    let mut stage = Stage::default();
    for (h, house) in (1u8..).zip([G, S, H, R]) {
        let labels = BTreeMap::from([(HOUSE.to_owned(), house.to_owned())]);
        stage.namespaces.insert(house.to_owned(), labels.clone());
        for p in [0, 1] {
            let place = Place {
                address: [10, 244, h, p + 1].into(),
                labels: labels.clone(),
                ports: vec![
                    ("web".to_owned(), Protocol::Tcp, 80),
                    ("dns".to_owned(), Protocol::Udp, 53),
                ],
            };
            stage.put(&format!("{house}/{p}"), place);
        }
    }
    for n in [1, 2] {
        let place = Place {
            address: [192, 0, 2, n].into(),
            labels: BTreeMap::from([("kubernetes.io/os".to_owned(), "linux".to_owned())]),
            ports: Vec::new(),
        };
        stage.put(&format!("node/{n}"), place);
    }
    stage
}

/// A ClusterNetworkPolicy that a test changes as it goes.
#[derive(Clone, Debug)]
struct Draft {
    name: &'static str,
    spec: Value,
}

impl Draft {
    fn put(&self) -> Edit {
        Edit::Put(json!({
            "apiVersion": "policy.networking.k8s.io/v1alpha2", "kind": "ClusterNetworkPolicy",
            "metadata": {"name": self.name}, "spec": self.spec,
        }))
    }

    fn rules(&mut self, direction: &str) -> &mut Vec<Value> {
        self.spec[direction]
            .as_array_mut()
            .expect("rules of the direction")
    }
}

/// The namespace by the label that it always has.
fn namespace(house: &str) -> Value {
    json!({"namespaces": {"matchLabels": {"kubernetes.io/metadata.name": house}}})
}

/// The namespace by the house's label.
fn house(house: &str) -> Value {
    json!({"namespaces": {"matchLabels": {HOUSE: house}}})
}

/// The pods by the house's label, on them and on their namespace.
fn pods(house: &str) -> Value {
    let labels = json!({"matchLabels": {HOUSE: house}});
    json!({"pods": {"namespaceSelector": labels, "podSelector": labels}})
}

/// A rule of the direction; of every port when it names none.
fn rule(direction: &str, action: &str, peers: &[Value], ports: &[Transport]) -> Value {
    let peers_key = if direction == "egress" { "to" } else { "from" };
    let ports = ports.iter().filter_map(|transport| transport.port()).map(|(protocol, port)| {
        json!({protocol.to_string().to_lowercase(): {"destinationPort": {"number": port}}})
    });
    let mut rule = json!({"action": action, peers_key: peers});
    let ports: Vec<_> = ports.collect();
    if !ports.is_empty() {
        rule["protocols"] = json!(ports);
    }
    rule
}

/// Both pods of one house to both of the other.
fn between(stage: &Stage, from: &str, to: &str, ports: &[Transport], allowed: bool) -> Vec<Probe> {
    let mut probes = Vec::new();
    for f in [0, 1] {
        for t in [0, 1] {
            for port in ports {
                let (from, to) = (format!("{from}/{f}"), format!("{to}/{t}"));
                probes.push(stage.probe(&from, &to, *port, allowed));
            }
        }
    }
    probes
}

fn step(name: &str, edits: Vec<Edit>, probes: Vec<Probe>) -> Step {
    Step {
        name: name.to_owned(),
        edits,
        probes,
    }
}

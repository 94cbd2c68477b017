//! Conformance tables of network policies: who may reach whom, step by step.
//!
//! A [`Case`] is whole: its changes make pods, namespaces and policies out of
//! nothing, and its probes say what must come of them. A runner applies the
//! changes of a step and asks every probe of it, whatever it is that judges:
//! the interpreter, the compiled rules, or packets through a forwarder.
//! What a table expects is what its suite means, and is computed from no
//! policy.

pub mod cluster;
pub mod generated;
mod kubernetes;

use std::{collections::BTreeMap, net::IpAddr};

use serde_json::{Value, json};
use weft_policy::{Change, Flow, ObjectName, Origin, Transport, object::Protocol, read_value};

pub use kubernetes::kubernetes;

#[derive(Clone, Debug)]
pub struct Case {
    pub name: String,
    pub steps: Vec<Step>,
}

#[derive(Clone, Debug)]
pub struct Step {
    pub name: String,
    pub edits: Vec<Edit>,
    pub probes: Vec<Probe>,
}

/// What happens to one object, as its owner tells it.
#[derive(Clone, Debug)]
pub enum Edit {
    /// Of a Kubernetes manifest.
    Put(Value),
    Remove(ObjectName),
}

/// One cell of the matrix.
#[derive(Clone, Debug)]
pub struct Probe {
    /// `namespace/pod`, or `node/name`.
    pub from: String,
    pub to: String,
    pub flow: Flow,
    pub allowed: bool,
}

impl Step {
    pub fn changes(&self) -> Vec<Change> {
        self.edits.iter().map(Edit::change).collect()
    }
}

impl Edit {
    fn change(&self) -> Change {
        match self {
            Self::Put(manifest) => {
                let objects = read_value(Origin::object(1), manifest.clone());
                let mut objects = objects.expect("a manifest that reads");
                assert_eq!(objects.len(), 1, "a list is no object");
                Change::Put(objects.remove(0))
            }
            Self::Remove(name) => Change::Remove(name.clone()),
        }
    }
}

/// The pods, namespaces and nodes of a case as they are at one step.
#[derive(Clone, Debug, Default)]
pub struct Stage {
    pub places: BTreeMap<String, Place>,
    pub namespaces: BTreeMap<String, BTreeMap<String, String>>,
}

#[derive(Clone, Debug)]
pub struct Place {
    pub address: IpAddr,
    pub labels: BTreeMap<String, String>,
    pub ports: Vec<(String, Protocol, u16)>,
}

const NODE: &str = "node";

impl Stage {
    pub fn put(&mut self, name: &str, place: Place) {
        self.places.insert(name.to_owned(), place);
    }

    /// All of it, for a world without objects.
    pub fn edits(&self) -> Vec<Edit> {
        let namespaces = self.namespaces.keys().map(|name| self.namespace(name));
        let places = self.places.keys().map(|name| self.place(name));
        namespaces.chain(places).collect()
    }

    pub fn namespace(&self, name: &str) -> Edit {
        Edit::Put(json!({
            "apiVersion": "v1", "kind": "Namespace",
            "metadata": {"name": name, "labels": self.namespaces[name]},
        }))
    }

    /// The pod or node as it is now.
    pub fn place(&self, name: &str) -> Edit {
        let place = &self.places[name];
        let (namespace, own) = name.split_once('/').expect("a name as namespace/pod");
        if namespace == NODE {
            return Edit::Put(json!({
                "apiVersion": "v1", "kind": "Node",
                "metadata": {"name": own, "labels": place.labels},
                "status": {"addresses": [{"type": "InternalIP", "address": place.address}]},
            }));
        }
        let ports = place.ports.iter().map(|(name, protocol, port)| {
            json!({"name": name, "protocol": protocol.to_string(), "containerPort": port})
        });
        Edit::Put(json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": own, "namespace": namespace, "labels": place.labels},
            "spec": {"containers": [{"name": "server", "ports": ports.collect::<Vec<_>>()}]},
            "status": {"podIPs": [{"ip": place.address}]},
        }))
    }

    pub fn probe(&self, from: &str, to: &str, transport: Transport, allowed: bool) -> Probe {
        Probe {
            from: from.to_owned(),
            to: to.to_owned(),
            flow: Flow {
                source: self.places[from].address,
                destination: self.places[to].address,
                transport,
            },
            allowed,
        }
    }

    /// Every place to every other. What a place sends to itself is left out:
    /// no suite says what becomes of it.
    pub fn matrix(
        &self,
        transports: &[Transport],
        allowed: impl Fn(&str, &str, Transport) -> bool,
    ) -> Vec<Probe> {
        let mut probes = Vec::new();
        for from in self.places.keys() {
            for to in self.places.keys().filter(|to| *to != from) {
                for transport in transports {
                    let allowed = allowed(from, to, *transport);
                    probes.push(self.probe(from, to, *transport, allowed));
                }
            }
        }
        probes
    }
}

/// Runs all cases; `wrong` tells of each probe that is not as it should be.
pub fn expect_right(cases: &[Case], wrong: impl FnMut(&Case) -> Vec<String>) {
    let wrong: Vec<_> = cases.iter().flat_map(wrong).collect();
    let count = wrong.len();
    assert!(count == 0, "{count} probes:\n{}", wrong.join("\n"));
}

/// Puts the NetworkPolicy `namespace/name`.
pub fn network_policy(name: &str, spec: &Value) -> Edit {
    let (namespace, name) = name.split_once('/').expect("a name as namespace/policy");
    Edit::Put(json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"namespace": namespace, "name": name}, "spec": spec,
    }))
}

/// Whether `name`, a `namespace/pod`, fits a pattern whose parts may be `*`.
pub fn fits(pattern: &str, name: &str) -> bool {
    let fits = |pattern: &str, part: &str| pattern == "*" || pattern == part;
    match (pattern.split_once('/'), name.split_once('/')) {
        (Some(pattern), Some(name)) => fits(pattern.0, name.0) && fits(pattern.1, name.1),
        _ => fits(pattern, name),
    }
}

/// x, y and z, with `ns: x` and so on for their label, and pods that carry
/// their names as the label `pod` and serve 80 and 81 of each protocol under
/// names such as serve-80-tcp. x/a is 10.244.1.1, z/c is 10.244.3.3.
pub fn nine_pods() -> Stage {
    let mut stage = Stage::default();
    for (n, namespace) in (1u8..).zip(["x", "y", "z"]) {
        let label = BTreeMap::from([("ns".to_owned(), namespace.to_owned())]);
        stage.namespaces.insert(namespace.to_owned(), label);
        for (p, pod) in (1u8..).zip(["a", "b", "c"]) {
            stage.put(&format!("{namespace}/{pod}"), server(pod, [10, 244, n, p]));
        }
    }
    stage
}

/// A pod of [`nine_pods`].
pub fn server(pod: &str, address: [u8; 4]) -> Place {
    let ports = [80, 81].into_iter().flat_map(|port| {
        Protocol::ALL.map(|protocol| {
            let name = format!("serve-{port}-{protocol}").to_lowercase();
            (name, protocol, port)
        })
    });
    Place {
        address: address.into(),
        labels: BTreeMap::from([("pod".to_owned(), pod.to_owned())]),
        ports: ports.collect(),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn the_tables_are_as_long_as_their_suites() {
        let steps = |cases: &[Case]| -> usize {
            let names = |case: &Case| -> BTreeSet<String> {
                case.steps.iter().map(|step| step.name.clone()).collect()
            };
            cases.iter().map(|case| names(case).len()).sum()
        };
        assert_eq!(kubernetes().len(), 48);
        assert_eq!((cluster::cases().len(), steps(&cluster::cases())), (24, 92));
        assert!(
            generated::cases().len() >= 230,
            "{}",
            generated::cases().len()
        );
    }

    #[test]
    fn every_case_has_a_name_of_its_own_and_probes_in_every_step() {
        for cases in [kubernetes(), cluster::cases(), generated::cases()] {
            let names: BTreeSet<_> = cases.iter().map(|case| &case.name).collect();
            assert_eq!(names.len(), cases.len());
            for case in &cases {
                for step in &case.steps {
                    assert!(!step.probes.is_empty(), "{}: {}", case.name, step.name);
                }
            }
        }
    }

    #[test]
    fn patterns_fit_by_their_parts() {
        assert!(fits("*", "x/a") && fits("x/*", "x/a") && fits("*/a", "x/a"));
        assert!(!fits("y/*", "x/a") && !fits("x/b", "x/a"));
    }
}

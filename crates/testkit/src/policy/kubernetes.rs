//! The table of Kubernetes' own suite, read from `kubernetes.yaml`.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;
use weft_policy::{ObjectName, PolicyName, Transport, object::Protocol};

use super::{Case, Edit, Stage, Step, fits, network_policy, nine_pods};

const TABLE: &str = include_str!("kubernetes.yaml");

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CaseText {
    name: String,
    steps: Vec<StepText>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct StepText {
    /// NetworkPolicies' specs by `namespace/name`.
    #[serde(default)]
    put: BTreeMap<String, Value>,
    #[serde(default)]
    remove: Vec<String>,
    /// Pods' labels from now on.
    #[serde(default)]
    pods: BTreeMap<String, BTreeMap<String, String>>,
    #[serde(default)]
    namespaces: BTreeMap<String, BTreeMap<String, String>>,
    /// By port: `deny from > to` or `allow from > to`.
    expect: BTreeMap<String, Vec<String>>,
}

struct Exception<'a> {
    allow: bool,
    from: &'a str,
    to: &'a str,
}

pub fn kubernetes() -> Vec<Case> {
    let cases: Vec<CaseText> = serde_saphyr::from_str(TABLE).expect("the table reads");
    cases.into_iter().map(CaseText::case).collect()
}

impl CaseText {
    fn case(self) -> Case {
        let mut stage = nine_pods();
        let mut edits = stage.edits();
        let steps = self.steps.iter().enumerate().map(|(number, step)| {
            edits.extend(step.edits(&mut stage));
            Step {
                name: format!("step {}", number + 1),
                edits: std::mem::take(&mut edits),
                probes: step.probes(&stage),
            }
        });
        Case {
            steps: steps.collect(),
            name: self.name,
        }
    }
}

impl StepText {
    fn edits(&self, stage: &mut Stage) -> Vec<Edit> {
        let put = self
            .put
            .iter()
            .map(|(name, spec)| network_policy(name, spec));
        let mut edits: Vec<_> = put.collect();
        edits.extend(self.remove.iter().map(|name| removal(name)));
        for (name, labels) in &self.pods {
            let place = stage.places.get_mut(name).expect("a pod of the case");
            place.labels.clone_from(labels);
            edits.push(stage.place(name));
        }
        for (name, labels) in &self.namespaces {
            stage.namespaces.insert(name.clone(), labels.clone());
            edits.push(stage.namespace(name));
        }
        edits
    }

    fn probes(&self, stage: &Stage) -> Vec<super::Probe> {
        let ports = self.expect.iter().flat_map(|(port, texts)| {
            let exceptions: Vec<_> = texts.iter().map(|text| Exception::read(text)).collect();
            stage.matrix(&[transport(port)], |from, to, _| {
                let of = |one: &&Exception<'_>| fits(one.from, from) && fits(one.to, to);
                exceptions.iter().rev().find(of).is_none_or(|one| one.allow)
            })
        });
        ports.collect()
    }
}

impl<'a> Exception<'a> {
    fn read(text: &'a str) -> Self {
        let words: Vec<_> = text.split(' ').collect();
        let [word @ ("allow" | "deny"), from, ">", to] = words.as_slice() else {
            panic!("{text}: neither `allow from > to` nor `deny from > to`");
        };
        let allow = *word == "allow";
        Self { allow, from, to }
    }
}

fn transport(text: &str) -> Transport {
    let (port, protocol) = text.split_once('/').expect("a port as 80/TCP");
    let protocol = match protocol {
        "TCP" => Protocol::Tcp,
        "UDP" => Protocol::Udp,
        "SCTP" => Protocol::Sctp,
        other => panic!("{other} is no protocol"),
    };
    Transport::of(protocol, port.parse().expect("a port's number"))
}

pub(super) fn removal(name: &str) -> Edit {
    let (namespace, name) = name.split_once('/').expect("a name as namespace/policy");
    Edit::Remove(ObjectName::Policy(PolicyName {
        namespace: Some(namespace.to_owned()),
        name: name.to_owned(),
    }))
}

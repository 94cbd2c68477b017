//! What changes at run time: policies, pods, namespaces and their labels
//! come, change and go.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use weft_policy::{ObjectName, Transport::Udp, object::PodName};

use super::{Case, EVERYTHING, Edit, Isolation, Opening, Way, expecting, pod_a};
use crate::policy::{Stage, Step, kubernetes::removal, network_policy, nine_pods, server};

const POLICY: &str = "x/changing";

/// A case as it is told: the stage, and the steps so far.
struct Story {
    way: Way,
    stage: Stage,
    steps: Vec<Step>,
}

impl Story {
    fn begin(way: Way, peers: &Value, openings: Vec<Opening<'_>>) -> Self {
        let stage = nine_pods();
        let mut edits = stage.edits();
        let rule = way.rule(peers, &json!([]));
        edits.push(network_policy(POLICY, &way.spec(&pod_a(), &json!([rule]))));
        let steps = vec![];
        let mut story = Self { way, stage, steps };
        story.then("created", edits, openings);
        story
    }

    fn then(&mut self, name: &str, edits: Vec<Edit>, openings: Vec<Opening<'_>>) {
        let isolation = Isolation {
            way: self.way,
            subject: "x/a",
            openings,
        };
        self.steps
            .push(expecting(&self.stage, name, edits, &[isolation]));
    }

    fn end(self, name: &str) -> Case {
        Case {
            name: format!("change, {}: {name}", self.way.name()),
            steps: self.steps,
        }
    }
}

pub fn cases() -> Vec<Case> {
    let stories = [
        policy_deleted,
        policy_updated,
        pod_comes_and_goes,
        pod_relabelled,
        target_relabelled,
        pod_gets_another_address,
        namespace_comes_and_goes,
        namespace_relabelled,
    ];
    let both = Way::BOTH.into_iter();
    both.flat_map(|way| stories.iter().map(move |story| story(way)))
        .collect()
}

fn opening<'a>(pods: &'a [&'a str]) -> Vec<Opening<'a>> {
    vec![Opening { pods, ports: None }]
}

fn ns_y() -> Value {
    json!([{"namespaceSelector": {"matchLabels": {"ns": "y"}}}])
}

fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs
        .iter()
        .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
        .collect()
}

fn policy_deleted(way: Way) -> Case {
    let mut story = Story::begin(way, &ns_y(), opening(&["y/*"]));
    story.then("deleted", vec![removal(POLICY)], vec![EVERYTHING]);
    story.end("a policy deleted")
}

fn policy_updated(way: Way) -> Case {
    let mut story = Story::begin(way, &ns_y(), opening(&["y/*"]));
    let rule = way.rule(
        &json!([]),
        &json!([{"protocol": "UDP", "port": "serve-81-udp"}]),
    );
    let update = network_policy(POLICY, &way.spec(&pod_a(), &json!([rule])));
    let ports = Some(&[Udp(81)][..]);
    story.then(
        "updated",
        vec![update],
        vec![Opening {
            pods: &["*"],
            ports,
        }],
    );
    story.end("a policy updated")
}

fn pod_comes_and_goes(way: Way) -> Case {
    let mut story = Story::begin(way, &ns_y(), opening(&["y/*"]));
    story.stage.put("y/d", server("d", [10, 244, 2, 4]));
    let come = story.stage.place("y/d");
    story.then("a pod more", vec![come], opening(&["y/*"]));
    story.stage.places.remove("y/d");
    let gone = Edit::Remove(ObjectName::Pod(PodName {
        namespace: "y".to_owned(),
        name: "d".to_owned(),
    }));
    story.then("the pod gone", vec![gone], opening(&["y/*"]));
    story.end("a pod comes and goes")
}

fn pod_relabelled(way: Way) -> Case {
    let peers = json!([{"namespaceSelector": {}, "podSelector": {"matchLabels": {"new": "abc"}}}]);
    let mut story = Story::begin(way, &peers, vec![]);
    for (name, pairs, open) in [
        (
            "labelled",
            &[("pod", "b"), ("new", "abc")][..],
            &["y/b"][..],
        ),
        ("another value", &[("pod", "b"), ("new", "xyz")], &[]),
        ("label gone", &[("pod", "b")], &[]),
    ] {
        story.stage.places.get_mut("y/b").expect("the pod").labels = labels(pairs);
        let change = story.stage.place("y/b");
        story.then(name, vec![change], opening(open));
    }
    story.end("a pod relabelled")
}

/// The policy's subject leaves it, and comes back.
fn target_relabelled(way: Way) -> Case {
    let mut story = Story::begin(way, &ns_y(), opening(&["y/*"]));
    for (name, pod, open) in [("left", "free", &["*"][..]), ("back", "a", &["y/*"])] {
        story.stage.places.get_mut("x/a").expect("the pod").labels = labels(&[("pod", pod)]);
        let change = story.stage.place("x/a");
        story.then(name, vec![change], opening(open));
    }
    story.end("the target relabelled")
}

fn pod_gets_another_address(way: Way) -> Case {
    let peers = json!([{"ipBlock": {"cidr": "10.244.2.0/24"}}]);
    let mut story = Story::begin(way, &peers, opening(&["y/*"]));
    let place = story.stage.places.get_mut("y/b").expect("the pod");
    place.address = [10, 244, 3, 9].into();
    let change = story.stage.place("y/b");
    story.then("moved", vec![change], opening(&["y/a", "y/c"]));
    story.end("a pod gets another address")
}

fn namespace_comes_and_goes(way: Way) -> Case {
    let mut story = Story::begin(way, &ns_y(), opening(&["y/*"]));
    story
        .stage
        .namespaces
        .insert("w".to_owned(), labels(&[("ns", "y")]));
    story.stage.put("w/a", server("a", [10, 244, 9, 1]));
    let come = vec![story.stage.namespace("w"), story.stage.place("w/a")];
    story.then("a namespace more", come, opening(&["y/*", "w/*"]));
    story.stage.places.remove("w/a");
    story.stage.namespaces.remove("w");
    let pod = PodName {
        namespace: "w".to_owned(),
        name: "a".to_owned(),
    };
    let gone = vec![
        Edit::Remove(ObjectName::Pod(pod)),
        Edit::Remove(ObjectName::Namespace("w".to_owned())),
    ];
    story.then("the namespace gone", gone, opening(&["y/*"]));
    story.end("a namespace comes and goes")
}

fn namespace_relabelled(way: Way) -> Case {
    let peers = json!([{"namespaceSelector": {"matchLabels": {"new": "qrs"}}}]);
    let mut story = Story::begin(way, &peers, vec![]);
    for (name, pairs, open) in [
        ("labelled", &[("ns", "y"), ("new", "qrs")][..], &["y/*"][..]),
        ("label gone", &[("ns", "y")], &[]),
    ] {
        story.stage.namespaces.insert("y".to_owned(), labels(pairs));
        let change = story.stage.namespace("y");
        story.then(name, vec![change], opening(open));
    }
    story.end("a namespace relabelled")
}

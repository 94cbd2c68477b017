//! Whom a policy is for, and how many rules it has.

use serde_json::{Value, json};
use weft_policy::Transport::{Tcp, Udp};

use super::{Case, EVERYTHING, Isolation, Opening, Way, one_step, pod_a};

/// A namespace, a selector of its pods, and the pods they mean.
type Target = (&'static str, Value, &'static [&'static str]);

fn targets() -> Vec<Target> {
    let expression = |operator: &str, values: Value| {
        let mut expression = json!({"key": "pod", "operator": operator});
        if !values.is_null() {
            expression["values"] = values;
        }
        json!({"matchExpressions": [expression]})
    };
    vec![
        ("x", json!({}), &["x/*"]),
        ("y", json!({}), &["y/*"]),
        ("x", pod_a(), &["x/a"]),
        ("y", json!({"matchLabels": {"pod": "c"}}), &["y/c"]),
        ("x", json!({"matchLabels": {"pod": "nobody"}}), &[]),
        ("x", expression("In", json!(["a", "b"])), &["x/a", "x/b"]),
        ("z", expression("NotIn", json!(["a", "b"])), &["z/c"]),
        ("z", expression("Exists", Value::Null), &["z/*"]),
        ("z", expression("DoesNotExist", Value::Null), &[]),
    ]
}

pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for way in Way::BOTH {
        cases.extend(targets().iter().map(|target| of_target(way, target)));
        cases.extend(of_rules(way));
    }
    cases
}

fn of_target(way: Way, (namespace, selector, means): &Target) -> Case {
    let name = format!("target, {}: {selector} of {namespace}", way.name());
    let policy = format!("{namespace}/target");
    let isolations: Vec<_> = means
        .iter()
        .map(|subject| Isolation {
            way,
            subject,
            openings: vec![],
        })
        .collect();
    one_step(
        name,
        &[(&policy, way.spec(selector, &json!([])))],
        &isolations,
    )
}

fn of_rules(way: Way) -> [Case; 4] {
    let case = |name: &str, rules: Value, openings| {
        let isolation = Isolation {
            way,
            subject: "x/a",
            openings,
        };
        let name = format!("rules, {}: {name}", way.name());
        one_step(
            name,
            &[("x/rules", way.spec(&pod_a(), &rules))],
            &[isolation],
        )
    };
    let b = way.rule(
        &json!([{"podSelector": {"matchLabels": {"pod": "b"}}}]),
        &json!([{"protocol": "TCP", "port": 80}]),
    );
    let z = way.rule(
        &json!([{"namespaceSelector": {"matchLabels": {"ns": "z"}}}]),
        &json!([{"protocol": "UDP", "port": 81}]),
    );
    let opening = |pods, ports| Opening {
        pods,
        ports: Some(ports),
    };
    [
        case("none", json!([]), vec![]),
        case("one that is empty", json!([{}]), vec![EVERYTHING]),
        case(
            "two, each with ports of its own",
            json!([b, z]),
            vec![opening(&["x/b"], &[Tcp(80)]), opening(&["z/*"], &[Udp(81)])],
        ),
        case("two, one that is empty", json!([b, {}]), vec![EVERYTHING]),
    ]
}

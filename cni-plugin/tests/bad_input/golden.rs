//! What goes to stdout in each version, to the letter.

use serde_json::{Value, json};

use crate::fake::{Reply, Scene, honestly};

const VERSIONS: [&str; 4] = ["0.3.1", "0.4.0", "1.0.0", "1.1.0"];

/// The fixture's text, with the pod's namespace in it.
fn expected(name: &str, version: &str, sandbox: &str) -> Value {
    let path = format!(
        "{}/tests/golden/{name}-{version}.json",
        env!("CARGO_MANIFEST_DIR")
    );
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
    serde_json::from_str(&text.replace("SANDBOX", sandbox)).expect("JSON")
}

#[test]
fn an_add_answers_in_the_shape_of_each_version() {
    weft_testkit::needs_namespaces!();
    let previous = json!({
        "interfaces": [{"name": "br0", "mac": "02:00:00:00:00:02", "mtu": 1500}],
        "ips": [{"address": "192.0.2.1/24", "interface": 0}],
        "routes": [{"dst": "198.51.100.0/24", "mtu": 1400, "scope": 253}],
        "dns": {"nameservers": ["192.0.2.53"]},
    });
    for version in VERSIONS {
        for (name, previous) in [("add", Value::Null), ("chained", previous.clone())] {
            let scene = Scene::new(honestly, honestly);
            let change = json!({
                "cniVersion": version, "prevResult": previous,
                "runtimeConfig": {"mac": "02:00:00:00:00:01"},
            });
            let result = scene.call("ADD", &change).expect("added");
            assert_eq!(
                result,
                expected(name, version, &scene.attachment().netns),
                "{version}"
            );
        }
    }
}

#[test]
fn a_failure_answers_in_the_shape_of_each_version() {
    weft_testkit::needs_namespaces!();
    for version in VERSIONS {
        let scene = Scene::new(honestly, |op| {
            let refused = || {
                Reply::Json(json!({"error": {"code": "exhausted",
                    "message": "pool pods: no address is left", "hint": "make it larger"}}))
            };
            (op == "allocate").then(refused)
        });
        let failure = scene.call("ADD", &json!({"cniVersion": version}));
        let expected = expected("failure", version, "");
        assert_eq!(failure.expect_err("no address"), expected, "{version}");
    }
}

#[test]
fn the_other_verbs_say_nothing_on_success() {
    weft_testkit::needs_namespaces!();
    let scene = Scene::new(honestly, honestly);
    for verb in ["DEL", "GC", "STATUS"] {
        assert_eq!(scene.call(verb, &json!({})), Ok(Value::Null), "{verb}");
    }
}

//! A wrong environment, configuration or namespace.

use std::{fs::File, os::fd::AsRawFd};

use serde_json::{Value, json};
use weft_cni::netns::Netns;
use weft_testkit::cni::{Runtime, answer, finish};

use crate::fake::{PLUGIN, Scene, honestly};

#[test]
fn what_is_no_configuration_is_code_6_and_changes_nothing() {
    weft_testkit::needs_namespaces!();
    let scene = Scene::new(honestly, honestly);
    let good = scene.config().to_string();
    let huge = format!("{good}{}", " ".repeat(9 << 20));
    let deep = "[".repeat(1 << 20);
    let trailing = format!("{good} x");
    let twice = format!("{good}{good}");
    for stdin in [
        "", "[]", "{", "\u{0}", "null", &huge, &deep, &trailing, &twice,
    ] {
        for verb in ["ADD", "DEL", "CHECK", "GC", "STATUS"] {
            let failure = scene.call_with(verb, &scene.attachment(), stdin.as_bytes());
            let failure = failure.expect_err("no configuration");
            assert_eq!(failure["code"], 6, "{verb}: {failure}");
            assert!(failure["cniVersion"].is_string(), "{failure}");
        }
    }
    assert_eq!(
        (scene.forwarder.asked(), scene.ipam.asked()),
        (Vec::new(), Vec::new())
    );
}

#[test]
fn a_version_that_nobody_speaks_is_code_1_and_version_answers_all_the_same() {
    weft_testkit::needs_namespaces!();
    let scene = Scene::new(honestly, honestly);
    for verb in ["ADD", "DEL", "CHECK", "GC", "STATUS"] {
        let failure = scene
            .call(verb, &json!({"cniVersion": "0.9.9"}))
            .expect_err(verb);
        assert_eq!(failure["code"], 1, "{failure}");
        assert_eq!(failure["cniVersion"], "0.9.9");
    }
    for (verb, version) in [("CHECK", "0.3.1"), ("GC", "1.0.0"), ("STATUS", "1.0.0")] {
        let failure = scene
            .call(verb, &json!({"cniVersion": version}))
            .expect_err(verb);
        assert_eq!(failure["code"], 1, "{failure}");
    }
    let answered = scene
        .call("VERSION", &json!({"cniVersion": "0.9.9"}))
        .expect("an answer");
    assert_eq!(answered["cniVersion"], "0.9.9");
    assert_eq!(
        answered["supportedVersions"],
        json!(["0.3.1", "0.4.0", "1.0.0", "1.1.0"])
    );
    // It needs no other variable, nor any configuration.
    let child = Runtime::new([]).start(PLUGIN.as_ref(), "VERSION", None);
    assert_eq!(
        answer(&finish(child, b"")).expect("an answer")["cniVersion"],
        "1.1.0"
    );
}

#[test]
fn a_path_that_is_no_network_namespace_is_named() {
    weft_testkit::needs_namespaces!();
    let scene = Scene::new(honestly, honestly);
    let file = scene.dir.path().join("file");
    std::fs::write(&file, "").expect("write");
    let uts = File::open("/proc/self/ns/uts").expect("procfs");
    let uts = format!("/proc/{}/fd/{}", std::process::id(), uts.as_raw_fd());
    let missing = scene.dir.path().join("missing").display().to_string();
    let directory = scene.dir.path().display().to_string();
    let socket = scene.ipam.path.display().to_string();
    for (path, code, word) in [
        (missing, 3, "does its pod still run"),
        (file.display().to_string(), 4, "no network namespace"),
        (directory, 4, "no network namespace"),
        (uts, 4, "no network namespace"),
        (socket, 5, "open network namespace"),
        ("relative".to_owned(), 4, "absolute"),
        (String::new(), 4, "CNI_NETNS"),
    ] {
        let mut pod = scene.attachment();
        pod.netns.clone_from(&path);
        let config = scene.config().to_string();
        let failure = scene
            .call_with("ADD", &pod, config.as_bytes())
            .expect_err(&path);
        assert_eq!(failure["code"], code, "{path}: {failure}");
        let said = failure["msg"].as_str().expect("a sentence");
        assert!(said.contains(word), "{path}: {said}");
        // Whatever is there now, the address goes back.
        assert_eq!(
            scene.call_with("DEL", &pod, config.as_bytes()),
            Ok(Value::Null)
        );
    }
    let asked = scene.ipam.asked();
    assert_eq!(asked, ["release"; 7].map(str::to_owned));
}

#[test]
fn an_interface_that_exists_stays_and_nothing_is_allocated() {
    weft_testkit::needs_namespaces!();
    let scene = Scene::new(honestly, honestly);
    let inside = weft_cni::netlink::Netlink::open_in(&scene.pod);
    inside
        .expect("enter")
        .expect("netlink")
        .add_bridge("eth0")
        .expect("a bridge");
    let failure = scene.call("ADD", &json!({})).expect_err("eth0 is there");
    assert_eq!(failure["code"], 100, "{failure}");
    assert_eq!(
        (scene.forwarder.asked(), scene.ipam.asked()),
        (Vec::new(), Vec::new())
    );
}

#[test]
fn del_deletes_what_add_refused_for_its_input() {
    weft_testkit::needs_namespaces!();
    let scene = Scene::new(honestly, honestly);
    let mut deleted = 0;
    for change in [
        json!({"runtimeConfig": {"mac": "no"}}),
        json!({"prevResult": 7}),
        json!({"prevResult": {"cniVersion": "9.0.0"}}),
        json!({"mtu": 1}),
        json!({"queues": 0}),
        json!({"attach": "macvlan"}),
        json!({"args": {"cni": {"ips": ["x"]}}}),
    ] {
        scene.call("ADD", &change).expect_err("it is wrong");
        assert_eq!(scene.call("DEL", &change), Ok(Value::Null), "{change}");
        deleted += 1;
        assert_eq!(scene.ipam.asked().len(), deleted, "{change}");
    }
    let mut pod = scene.attachment();
    pod.args = "UNKNOWN=1".to_owned();
    let config = scene.config().to_string();
    let failure = scene
        .call_with("ADD", &pod, config.as_bytes())
        .expect_err("unknown");
    assert_eq!(failure["code"], 4, "{failure}");
    assert_eq!(
        scene.call_with("DEL", &pod, config.as_bytes()),
        Ok(Value::Null)
    );
    assert_eq!(scene.ipam.asked().len(), deleted + 1);
    // Each name is short enough, but not all of them together.
    let long = json!({"name": "n".repeat(126)});
    let failure = scene.call("ADD", &long).expect_err("too long");
    assert_eq!(failure["code"], 4, "{failure}");
    assert_eq!(scene.call("DEL", &long), Ok(Value::Null));
}

#[test]
fn del_needs_neither_namespace_nor_prev_result() {
    weft_testkit::needs_namespaces!();
    let scene = Scene::new(honestly, honestly);
    let gone = Netns::make("gone").expect("a namespace");
    let path = format!("/proc/{}/fd/{}", std::process::id(), gone.as_raw_fd());
    drop(gone);
    for netns in [String::new(), path, "/run/netns/never".to_owned()] {
        for previous in [
            json!(null),
            json!({}),
            json!({"cniVersion": "1.1.0", "ips": []}),
        ] {
            let mut pod = scene.attachment();
            pod.netns.clone_from(&netns);
            let mut config = scene.config();
            config["prevResult"] = previous;
            let deleted = scene.call_with("DEL", &pod, config.to_string().as_bytes());
            assert_eq!(deleted, Ok(Value::Null), "{netns:?}");
        }
    }
    assert_eq!(scene.forwarder.asked(), ["detach"; 9].map(str::to_owned));
    assert_eq!(scene.ipam.asked(), ["release"; 9].map(str::to_owned));
}

#[test]
fn check_judges_our_part_of_prev_result_and_needs_it() {
    weft_testkit::needs_namespaces!();
    let scene = Scene::new(honestly, honestly);
    let failure = scene.call("CHECK", &json!({})).expect_err("no prevResult");
    assert_eq!(failure["code"], 7, "{failure}");
    for (previous, code) in [
        (json!({}), 101),
        (
            json!({"interfaces": [{"name": "eth0", "sandbox": "/elsewhere"}]}),
            101,
        ),
        (json!("foreign"), 6),
        (json!({"cniVersion": "7.0.0"}), 1),
        (json!({"ips": [{"address": "x"}]}), 6),
        (
            json!({"ips": [{"address": "10.0.0.1/32", "interface": 4}]}),
            6,
        ),
        (
            json!({"interfaces": [{"name": "eth0", "sandbox": scene.attachment().netns}]}),
            101,
        ),
    ] {
        let failure = scene
            .call("CHECK", &json!({"prevResult": previous}))
            .expect_err("foreign");
        assert_eq!(failure["code"], code, "{previous}: {failure}");
    }
}

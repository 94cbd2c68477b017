//! An ADD that is killed, wherever: the DEL that follows leaves nothing.

use std::{os::unix::process::ExitStatusExt, thread, time::Duration};

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use weft_testkit::cni::finish;

use crate::{
    node::{Node, Pod},
    proxy::{self, Points},
};

#[test]
fn del_cleans_up_after_an_add_that_was_killed_at_any_message() {
    weft_testkit::needs_namespaces!();
    let node = Node::start();
    for attach in ["tap", "veth"] {
        let mut number = 0;
        while let Some(points) = killed_at(&node, attach, number) {
            println!("{attach}: killed {}", points.last().expect("a point"));
            number += 1;
        }
        // Status, allocate and attach, before and after.
        assert!(number >= 6, "an ADD with {attach} has {number} points");
    }
}

/// What had passed when ADD was killed; None where it came through.
fn killed_at(node: &Node, attach: &str, number: usize) -> Option<Vec<String>> {
    let points = Points::new(number);
    let via = |socket: &str| {
        let path = node.at(&format!("{attach}-{number}-{socket}"));
        proxy::start(&path, &node.at(socket), &points);
        path
    };
    let config = json!({
        "attach": attach,
        "forwarder": via("forwarder.sock"),
        "ipam": {"socket": via("ipam.sock"), "families": ["v4", "v6"]},
    });
    let pod = Pod::new("c1");
    let child = node.run(|| {
        let plugin = node.at("bin/weft-cni");
        node.runtime()
            .start(&plugin, "ADD", Some(&pod.attachment()))
    });
    points.aim(child.id());
    let output = finish(child, whole(&config).as_bytes());
    let killed = output.status.signal() == Some(Signal::SIGKILL as i32);
    assert!(killed || output.status.success(), "{output:?}");
    clean_up(node, &pod, attach, &format!("{attach}, point {number}"));
    killed.then(|| points.passed())
}

#[test]
fn del_cleans_up_after_an_add_that_was_killed_at_any_moment() {
    const ROUNDS: u64 = 40;
    /// Steps that together span more than an ADD takes here.
    const STEP: Duration = Duration::from_micros(500);

    weft_testkit::needs_namespaces!();
    let node = Node::start();
    let mut killed = 0;
    for round in 0..2 * ROUNDS {
        let attach = ["tap", "veth"][usize::from(round % 2 == 1)];
        let pod = Pod::new("c1");
        let mut config = node.plugin();
        config["attach"] = attach.into();
        let mut child = node.run(|| {
            let plugin = node.at("bin/weft-cni");
            node.runtime()
                .start(&plugin, "ADD", Some(&pod.attachment()))
        });
        let stdin = child.stdin.take().expect("piped");
        serde_json::to_writer(
            stdin,
            &serde_json::from_str::<Value>(&whole(&config)).expect("JSON"),
        )
        .expect("written");
        thread::sleep(STEP * u32::try_from(round / 2).expect("small"));
        child.kill().expect("not waited for");
        killed += u64::from(!child.wait().expect("it has ended").success());
        clean_up(&node, &pod, attach, &format!("{attach}, round {round}"));
    }
    println!("{killed} of {} were killed", 2 * ROUNDS);
    assert!(killed > 0, "each ADD was over in no time");
}

fn whole(config: &Value) -> String {
    let mut config = config.clone();
    for (key, value) in [
        ("cniVersion", "1.1.0"),
        ("name", "pods"),
        ("type", "weft-cni"),
    ] {
        config[key] = value.into();
    }
    config.to_string()
}

fn clean_up(node: &Node, pod: &Pod, attach: &str, when: &str) {
    let deleted = node.call("DEL", pod, &json!({"attach": attach}));
    assert_eq!(deleted, Ok(Value::Null), "{when}");
    assert!(!pod.has("eth0"), "{when}");
    node.assert_clean(when);
}

//! GC frees what no list names, and nothing that is newer than the list.

use serde_json::{Value, json};
use weft_testkit::cni::{Attachment, answer, finish};

use crate::node::{Node, Pod, SMALL, list, script};

fn handles(node: &Node) -> Vec<String> {
    let all = node.allocations();
    let mut handles: Vec<_> = all
        .iter()
        .filter_map(|one| one.handle.as_ref())
        .map(|one| one.as_str().to_owned())
        .collect();
    handles.sort();
    handles.dedup();
    handles
}

fn ports(node: &Node) -> Vec<String> {
    let mut names: Vec<_> = node
        .ports()
        .iter()
        .map(|port| port.name.as_str().to_owned())
        .collect();
    names.sort();
    names
}

#[test]
fn gc_frees_what_is_not_listed_and_nothing_of_other_networks() {
    weft_testkit::needs_namespaces!();
    let node = Node::start();
    let mut runtime = node.runtime();
    let mut other = node.list();
    other["name"] = "others".into();
    let pods = ["kept", "stale", "other"].map(Pod::new);
    let [kept, stale, foreign] = [0, 1, 2].map(|place: usize| pods[place].attachment());
    for (list, pod) in [
        (&node.list(), &kept),
        (&node.list(), &stale),
        (&other, &foreign),
    ] {
        node.run(|| runtime.add(list, pod)).expect("added");
    }
    node.wait_until_old();
    node.run(|| runtime.gc(&node.list(), &[&kept]))
        .expect("collected");
    let left = ["others/other/eth0", "pods/kept/eth0"];
    assert_eq!(ports(&node), left);
    assert_eq!(handles(&node), left);
    assert!(!pods[1].has("eth0"));
    node.run(|| runtime.check(&node.list(), &kept))
        .expect("nothing differs");
    node.run(|| runtime.gc(&node.list(), &[]))
        .expect("collected");
    assert_eq!(ports(&node), left[..1]);
}

/// A veth does not go with the forwarder's fds as a tap does.
#[test]
fn gc_takes_the_link_of_a_stale_veth() {
    weft_testkit::needs_namespaces!();
    let node = Node::start();
    let mut runtime = node.runtime();
    let mut plugin = node.plugin();
    plugin["attach"] = "veth".into();
    let list = list("1.1.0", &[plugin]);
    let stale = Pod::new("stale");
    node.run(|| runtime.add(&list, &stale.attachment()))
        .expect("added");
    node.wait_until_old();
    node.run(|| runtime.gc(&list, &[])).expect("collected");
    node.assert_clean("after GC");
    assert!(!stale.has("eth0"));
}

/// Runs GC with the list that its runtime had before `add`.
fn gc_across(node: &Node, config: &Value, add: impl FnOnce()) -> Result<Value, Value> {
    let child = node.run(|| node.runtime().start(&node.at("bin/weft-cni"), "GC", None));
    add();
    let mut config = config.clone();
    config["cniVersion"] = "1.1.0".into();
    config["name"] = "pods".into();
    // As Go programs write a list of none.
    config["cni.dev/valid-attachments"] = Value::Null;
    answer(&finish(child, config.to_string().as_bytes()))
}

#[test]
fn an_attachment_newer_than_the_list_survives() {
    weft_testkit::needs_namespaces!();
    let node = Node::start();
    let mut runtime = node.runtime();
    let (old, new) = (Pod::new("old"), Pod::new("new"));
    node.run(|| runtime.add(&node.list(), &old.attachment()))
        .expect("added");
    node.wait_until_old();
    let attachment = new.attachment();
    let collected = gc_across(&node, &node.plugin(), || {
        node.run(|| runtime.add(&node.list(), &attachment))
            .expect("added");
    });
    assert_eq!(collected, Ok(Value::Null));
    assert_eq!(ports(&node), ["pods/new/eth0"]);
    assert_eq!(handles(&node), ["pods/new/eth0"]);
    node.run(|| runtime.check(&node.list(), &attachment))
        .expect("nothing differs");
}

/// An IPAM plugin that gives one address and notes how it was called.
fn recorder(node: &Node) -> Value {
    let record = node.at("record");
    let text = format!(
        "cat > {0}/$CNI_COMMAND\necho \"$CNI_CONTAINERID $CNI_IFNAME\" > {0}/environment\n\
         case $CNI_COMMAND in ADD) echo '{{\"cniVersion\":\"1.1.0\",\
         \"ips\":[{{\"address\":\"10.66.0.9/24\"}}]}}';;\n\
         STATUS) test ! -e {0}/fail || \
         {{ echo '{{\"cniVersion\":\"1.1.0\",\"code\":51,\"msg\":\"half away\"}}'; exit 1; }};; esac",
        record.display()
    );
    std::fs::create_dir(&record).expect("a directory");
    script(&node.at("bin/recorder"), &text);
    let mut plugin = node.plugin();
    plugin["ipam"] = json!({"type": "recorder", "own": "field"});
    plugin
}

fn recorded(node: &Node, verb: &str) -> Value {
    let text = std::fs::read(node.at("record").join(verb)).expect("it was called");
    serde_json::from_slice(&text).expect("a configuration")
}

#[test]
fn gc_goes_to_the_delegate_with_what_is_newer_as_valid() {
    weft_testkit::needs_namespaces!();
    let node = Node::start();
    let plugin = recorder(&node);
    let mut runtime = node.runtime();
    let delegated = list("1.1.0", std::slice::from_ref(&plugin));
    let old = Pod::new("old");
    node.run(|| runtime.add(&delegated, &old.attachment()))
        .expect("added");
    let valid = Attachment {
        container: "valid".to_owned(),
        interface: "eth0".to_owned(),
        ..Attachment::default()
    };
    node.run(|| runtime.gc(&delegated, &[&valid]))
        .expect("collected");
    assert_eq!(ports(&node), [""; 0]);
    let config = recorded(&node, "GC");
    assert_eq!(config["ipam"]["own"], "field");
    let listed = json!([{"containerID": "valid", "ifname": "eth0"}]);
    assert_eq!(config["cni.dev/valid-attachments"], listed);

    let new = Pod::new("new");
    let attachment = new.attachment();
    let collected = gc_across(&node, &plugin, || {
        node.run(|| runtime.add(&delegated, &attachment))
            .expect("added");
    });
    assert_eq!(collected, Ok(Value::Null));
    assert_eq!(ports(&node), ["pods/new/eth0"]);
    let config = recorded(&node, "GC");
    let newer = json!([{"containerID": "new", "ifname": "eth0"}]);
    assert_eq!(config["cni.dev/valid-attachments"], newer);
}

#[test]
fn gc_goes_on_after_failures_and_tells_them_all() {
    weft_testkit::needs_namespaces!();
    let node = Node::start();
    let mut runtime = node.runtime();
    let stale = Pod::new("stale");
    node.run(|| runtime.add(&node.list(), &stale.attachment()))
        .expect("added");

    node.wait_until_old();
    // Without a forwarder the addresses are released all the same.
    let mut plugin = node.plugin();
    plugin["forwarder"] = json!("/nonexistent/forwarder.sock");
    plugin["node"] = "n1".into();
    let failures = node.run(|| runtime.gc(&list("1.1.0", &[plugin.clone()]), &[]));
    let failures = failures.expect_err("no forwarder");
    assert_eq!(failures[0]["code"], 11, "{failures:?}");
    assert_eq!((handles(&node).len(), node.ports().len()), (0, 1));

    // Of a plugin that fails, nobody else's part depends.
    script(
        &node.at("bin/broken"),
        "echo '{\"code\":100,\"msg\":\"broken\"}'; exit 1",
    );
    let mut delegating = node.plugin();
    delegating["ipam"] = json!({"type": "broken"});
    let both = list("1.1.0", &[delegating, plugin]);
    let failures = node.run(|| runtime.gc(&both, &[])).expect_err("two fail");
    let said: Vec<_> = failures
        .iter()
        .map(|one| one["msg"].as_str().unwrap_or_default())
        .collect();
    assert!(said[0].contains("broken"), "{said:?}");
    assert!(said[1].contains("/nonexistent/forwarder.sock"), "{said:?}");
    assert_eq!(node.ports().len(), 0);
}

#[test]
fn status_tells_what_is_away() {
    weft_testkit::needs_namespaces!();
    let mut node = Node::with_pools(&[SMALL]);
    let mut plugin = node.plugin();
    plugin["ipam"]["families"] = json!(["v4"]);
    let mut runtime = node.runtime();
    let list = list("1.1.0", &[plugin]);
    let pods: Vec<_> = (0..4)
        .map(|number| Pod::new(&format!("c{number}")))
        .collect();
    for pod in &pods {
        node.run(|| runtime.status(&list)).expect("it serves");
        node.run(|| runtime.add(&list, &pod.attachment()))
            .expect("added");
    }
    let failure = node
        .run(|| runtime.status(&list))
        .expect_err("no address is left");
    assert_eq!(failure["code"], 50, "{failure}");
    let fifth = Pod::new("c5");
    let failure = node
        .run(|| runtime.add(&list, &fifth.attachment()))
        .expect_err("none is left");
    assert_eq!(failure["code"], 103, "{failure}");
    assert!(!fifth.has("eth0"));
    let first = pods[0].attachment();
    node.run(|| runtime.del(&list, &first)).expect("deleted");
    node.run(|| runtime.status(&list)).expect("it serves again");
    assert_eq!(node.allocations().len(), 3, "a question allocates nothing");

    node.kill_daemon("weft-ipam");
    let failure = node
        .run(|| runtime.status(&list))
        .expect_err("no IPAM server");
    assert_eq!(failure["code"], 50, "{failure}");
    node.kill_daemon("weft-forwarder");
    let failure = node
        .run(|| runtime.status(&list))
        .expect_err("no forwarder");
    assert_eq!(failure["code"], 51, "{failure}");
}

#[test]
fn a_delegate_gets_the_same_environment_and_configuration() {
    weft_testkit::needs_namespaces!();
    let node = Node::start();
    let plugin = recorder(&node);
    let mut runtime = node.runtime();
    let delegated = list("1.1.0", std::slice::from_ref(&plugin));
    let one = Pod::new("c1");
    let pod = one.attachment();
    let result = node.run(|| runtime.add(&delegated, &pod)).expect("added");
    let mut config = plugin;
    config["cniVersion"] = "1.1.0".into();
    config["name"] = "pods".into();
    assert_eq!(recorded(&node, "ADD"), config);
    config["prevResult"] = result;
    node.run(|| runtime.check(&delegated, &pod))
        .expect("nothing differs");
    assert_eq!(recorded(&node, "CHECK"), config);
    node.run(|| runtime.del(&delegated, &pod)).expect("deleted");
    assert_eq!(recorded(&node, "DEL"), config);
    let environment = std::fs::read_to_string(node.at("record/environment"));
    assert_eq!(environment.expect("it was called"), "c1 eth0\n");
}

#[test]
fn status_asks_the_delegate() {
    weft_testkit::needs_namespaces!();
    let node = Node::start();
    let list = list("1.1.0", &[recorder(&node)]);
    let runtime = node.runtime();
    node.run(|| runtime.status(&list)).expect("it serves");
    assert_eq!(recorded(&node, "STATUS")["ipam"]["own"], "field");
    std::fs::write(node.at("record/fail"), "").expect("write");
    let failure = node
        .run(|| runtime.status(&list))
        .expect_err("the delegate fails");
    assert_eq!(failure["code"], 51, "{failure}");
    assert!(
        failure["msg"]
            .as_str()
            .expect("a sentence")
            .contains("half away"),
        "{failure}"
    );
}

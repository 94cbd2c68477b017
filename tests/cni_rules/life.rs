//! The verbs one by one, as a runtime calls them for pods that live and end.

use serde_json::{Value, json};

use crate::node::{Node, Pod, address, reaches};

/// Ports and addresses.
fn counts(node: &Node) -> (usize, usize) {
    (node.ports().len(), node.allocations().len())
}

#[test]
fn two_pods_are_added_reach_each_other_and_are_deleted_twice() {
    weft_testkit::needs_namespaces!();
    let node = Node::start();
    let (one, two) = (Pod::new("c1"), Pod::new("c2"));
    let (first, second) = (node.add(&one), node.add(&two));
    for index in 0..2 {
        reaches(&one, &two, address(&second, index));
        reaches(&two, &one, address(&first, index));
    }
    node.call("CHECK", &one, &json!({"prevResult": first}))
        .expect("nothing differs");
    let no_previous = node
        .call("CHECK", &one, &json!({}))
        .expect_err("no prevResult");
    assert_eq!(no_previous["code"], 7);
    for _ in 0..2 {
        assert_eq!(node.call("DEL", &one, &json!({})), Ok(Value::Null));
    }
    assert!(!one.has("eth0"));
    let failure = node
        .call("CHECK", &one, &json!({"prevResult": first}))
        .expect_err("gone");
    assert_eq!(failure["code"], 101, "{failure}");
    assert_eq!(counts(&node), (1, 2));
}

#[test]
fn a_second_add_is_refused_and_leaves_the_first_as_it_was() {
    weft_testkit::needs_namespaces!();
    let node = Node::start();
    let (one, two) = (Pod::new("c1"), Pod::new("c2"));
    let (first, second) = (node.add(&one), node.add(&two));
    let twice = node
        .call("ADD", &one, &json!({}))
        .expect_err("eth0 is there");
    assert_eq!(twice["code"], 100, "{twice}");
    let elsewhere = Pod::new("c1");
    let twice = node
        .call("ADD", &elsewhere, &json!({}))
        .expect_err("c1 is attached");
    assert_eq!(twice["code"], 100, "{twice}");
    assert!(!elsewhere.has("eth0"));
    reaches(&one, &two, address(&second, 0));
    node.call("CHECK", &one, &json!({"prevResult": first}))
        .expect("nothing differs");
}

#[test]
fn gc_frees_what_is_not_listed() {
    weft_testkit::needs_namespaces!();
    let node = Node::start();
    let (kept, stale) = (Pod::new("kept"), Pod::new("stale"));
    let result = node.add(&kept);
    node.add(&stale);
    assert_eq!(counts(&node), (2, 4));
    let unlisted = node.call("GC", &kept, &json!({})).expect_err("no list");
    assert_eq!(unlisted["code"], 7, "{unlisted}");
    let list = json!({"cni.dev/valid-attachments": [{"containerID": "kept", "ifname": "eth0"}]});
    node.wait_until_old();
    assert_eq!(node.call("GC", &kept, &list), Ok(Value::Null));
    assert_eq!(counts(&node), (1, 2));
    node.call("CHECK", &kept, &json!({"prevResult": result}))
        .expect("nothing differs");
}

#[test]
fn gc_leaves_what_its_list_is_too_old_to_know() {
    weft_testkit::needs_namespaces!();
    let node = Node::with_grace(600);
    let young = Pod::new("young");
    let result = node.add(&young);
    let list = json!({"cni.dev/valid-attachments": []});
    assert_eq!(node.call("GC", &young, &list), Ok(Value::Null));
    assert_eq!(counts(&node), (1, 2));
    node.call("CHECK", &young, &json!({"prevResult": result}))
        .expect("nothing differs");
}

#[test]
fn a_sticky_pod_has_its_address_again() {
    weft_testkit::needs_namespaces!();
    let node = Node::start();
    let mut ipam = node.plugin()["ipam"].clone();
    ipam["sticky"] = true.into();
    let sticky = json!({ "ipam": ipam });
    let first = Pod::named("pg-0", "c1");
    let had = node.call("ADD", &first, &sticky).expect("added");
    node.call("DEL", &first, &sticky).expect("deleted");
    let other = node.add(&Pod::named("web", "c2"));
    let again = Pod::named("pg-0", "c3");
    let again = node.call("ADD", &again, &sticky).expect("added");
    for index in 0..2 {
        assert_eq!(address(&again, index), address(&had, index));
        assert_ne!(address(&other, index), address(&had, index));
    }
}

#[test]
fn what_fails_half_way_leaves_nothing() {
    weft_testkit::needs_namespaces!();
    let node = Node::start();
    let pod = Pod::new("c1");
    // IPv6 needs a larger MTU, which shows once the addresses are known.
    let failure = node
        .call("ADD", &pod, &json!({"mtu": 600}))
        .expect_err("too small");
    assert_eq!(failure["code"], 7, "{failure}");
    let taken = node.add(&Pod::new("c2"));
    let asked = json!({"runtimeConfig": {"ips": [address(&taken, 0)]}});
    node.call("ADD", &pod, &asked)
        .expect_err("the address is taken");
    assert!(!pod.has("eth0"));
    assert_eq!(counts(&node), (1, 2));
    node.call("STATUS", &pod, &json!({})).expect("it serves");
    let nowhere = json!({"ipam": {"socket": "/nonexistent/ipam.sock"}});
    let failure = node
        .call("STATUS", &pod, &nowhere)
        .expect_err("no addresses");
    assert_eq!(failure["code"], 50, "{failure}");
    let nowhere = json!({"forwarder": "/nonexistent/forwarder.sock"});
    let failure = node
        .call("STATUS", &pod, &nowhere)
        .expect_err("no forwarder");
    assert_eq!(failure["code"], 51, "{failure}");
    assert_eq!(node.call("DEL", &pod, &nowhere), Ok(Value::Null));
}

#[test]
fn a_link_of_somebody_else_is_neither_taken_nor_deleted() {
    weft_testkit::needs_namespaces!();
    let node = Node::start();
    let pod = Pod::new("c1");
    pod.ip("link add eth0 type bridge");
    let refused = node
        .call("ADD", &pod, &json!({}))
        .expect_err("eth0 is there");
    assert_eq!(refused["code"], 100, "{refused}");
    assert_eq!(counts(&node), (0, 0));
    // As a runtime does after an ADD that failed.
    assert_eq!(node.call("DEL", &pod, &json!({})), Ok(Value::Null));
    assert!(pod.has("eth0"));
}

//! Nodes that register: they live with their connections, and for a grace.

use std::{thread, time::Duration};

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::{Client, Server, allocate, code, node, pool};

const SHORT: &str = "node_grace_seconds = 1\n";

fn register(name: &str, n: u8) -> Value {
    let mut request = node(name, n);
    request["op"] = json!("node-register");
    request
}

fn registered(by_hand: bool) -> Value {
    json!({"ok": {"registered": {"by_hand": by_hand}}})
}

fn nodes(client: &mut Client) -> Vec<String> {
    let answer = client.ask(json!({"op": "nodes"}));
    let nodes = answer["ok"]["nodes"].as_array().expect("nodes");
    let name = |node: &Value| node["name"].as_str().expect("a name").to_owned();
    nodes.iter().map(name).collect()
}

/// Of the next events but those that only say that the server lives.
fn event(watcher: &mut Client) -> Value {
    loop {
        let event = watcher.answer()["event"].take();
        if event.get("alive").is_none() {
            return event;
        }
    }
}

#[test]
fn a_node_lives_with_its_connection_and_a_grace() {
    let server = Server::with_config(SHORT);
    let mut operator = server.client();
    operator.done(pool("p", "10.7.0.0/24"));
    let mut forwarder = server.client();
    assert_eq!(forwarder.ask(register("n1", 1)), registered(false));
    operator.ask(allocate("c1", "n1"));
    forwarder.send("{\"op\":\"watch\"}\n");
    let snapshot = event(&mut forwarder)["snapshot"].take();
    assert!(snapshot["nodes"][0]["registered"].is_u64(), "{snapshot}");
    assert_eq!(snapshot["routes"].as_array().map(Vec::len), Some(1));

    let mut watcher = server.client();
    watcher.send("{\"op\":\"watch\"}\n");
    event(&mut watcher);
    thread::sleep(Duration::from_secs(3));
    assert_eq!(nodes(&mut operator), ["n1"], "its connection lives");
    drop(forwarder);
    let gone = event(&mut watcher);
    assert_eq!(gone["node-gone"]["name"], json!("n1"), "{gone}");
    let held = operator.ask(json!({"op": "allocations", "node": "n1"}));
    let held = held["ok"]["allocations"].as_array().expect("allocations");
    assert_eq!(held.len(), 2, "the pod's address and its own stay its own");

    let mut forwarder = server.client();
    assert_eq!(forwarder.ask(register("n1", 1)), registered(false));
    let again = event(&mut watcher);
    assert_eq!(again["node"]["node"]["name"], json!("n1"), "{again}");
}

#[test]
fn who_comes_back_within_its_grace_was_never_gone() {
    let mut server = Server::with_config("node_grace_seconds = 4\n");
    let mut forwarder = server.client();
    forwarder.ask(register("n1", 1));
    let since = |client: &mut Client| {
        client.ask(json!({"op": "nodes"}))["ok"]["nodes"][0]["registered"].take()
    };
    let before = since(&mut forwarder);
    drop(forwarder);
    let mut forwarder = server.client();
    assert_eq!(forwarder.ask(register("n1", 1)), registered(false));
    // So for the server itself.
    server.signal(Signal::SIGKILL);
    server.wait();
    let server = server.again();
    let mut forwarder = server.client();
    assert_eq!(nodes(&mut forwarder), ["n1"], "the file keeps it");
    assert_eq!(forwarder.ask(register("n1", 1)), registered(false));
    thread::sleep(Duration::from_secs(6));
    assert_eq!(since(&mut forwarder), before);
}

#[test]
fn who_does_not_come_back_after_a_restart_is_withdrawn() {
    let mut server = Server::with_config(SHORT);
    server.client().ask(register("n1", 1));
    server.client().done(node("n2", 2));
    server.signal(Signal::SIGKILL);
    server.wait();
    let server = server.again();
    let mut watcher = server.client();
    watcher.send("{\"op\":\"watch\"}\n");
    let first = event(&mut watcher);
    let still = first["snapshot"]["nodes"].as_array().expect("nodes").len();
    if still == 2 {
        let gone = event(&mut watcher);
        assert_eq!(gone["node-gone"]["name"], json!("n1"), "{gone}");
    }
    assert_eq!(nodes(&mut server.client()), ["n2"], "an operator's stays");
}

#[test]
fn who_leaves_is_withdrawn_at_once_and_only_by_itself() {
    let server = Server::start();
    let mut forwarder = server.client();
    forwarder.ask(register("n1", 1));
    let mut operator = server.client();
    operator.done(node("n2", 2));
    let refused = operator.ask(json!({"op": "node-delete", "name": "n1"}));
    assert_eq!(code(&refused), "in-use", "{refused}");
    operator.done(json!({"op": "node-leave", "name": "n2"}));
    assert_eq!(nodes(&mut operator), ["n1", "n2"]);
    operator.done(json!({"op": "node-leave", "name": "n1"}));
    assert_eq!(nodes(&mut operator), ["n2"]);
    thread::sleep(Duration::from_secs(2));
    assert_eq!(nodes(&mut operator), ["n2"], "it is not written again");
}

#[test]
fn of_two_with_one_name_or_address_the_second_is_told_of_the_first() {
    let server = Server::start();
    let mut first = server.client();
    first.ask(register("n1", 1));
    let mut second = server.client();
    let mut elsewhere = register("n1", 2);
    for (request, parts) in [
        (elsewhere.clone(), ["node n1", "192.0.2.1"]),
        (register("n2", 1), ["192.0.2.1", "node n1"]),
    ] {
        let refused = second.ask(request);
        assert_eq!(code(&refused), "taken", "{refused}");
        let message = refused["error"]["message"].as_str().expect("a message");
        for part in parts {
            assert!(message.contains(part), "{message}");
        }
    }
    elsewhere["registered"] = json!(7);
    assert_eq!(code(&second.ask(elsewhere)), "invalid");
    drop(second);
    assert_eq!(nodes(&mut first), ["n1"]);
}

#[test]
fn an_operators_record_stands_above_what_a_node_says() {
    let server = Server::with_config(SHORT);
    let mut operator = server.client();
    operator.done(node("n1", 1));
    let mut forwarder = server.client();
    assert_eq!(forwarder.ask(register("n1", 1)), registered(true));
    let refused = forwarder.ask(register("n1", 2));
    assert_eq!(code(&refused), "taken", "{refused}");
    drop(forwarder);
    thread::sleep(Duration::from_secs(3));
    assert_eq!(nodes(&mut operator), ["n1"]);

    // Once it is deleted, the node that runs speaks for itself.
    let mut forwarder = server.client();
    forwarder.ask(register("n1", 1));
    operator.done(json!({"op": "node-delete", "name": "n1"}));
    let mut watcher = server.client();
    watcher.send("{\"op\":\"watch\"}\n");
    let mut seen = event(&mut watcher);
    if seen["snapshot"]["nodes"]
        .as_array()
        .is_some_and(Vec::is_empty)
    {
        seen = event(&mut watcher);
    }
    assert!(seen.to_string().contains("registered"), "{seen}");
}

fn tunnel(client: &mut Client, name: &str) -> Value {
    let answer = client.ask(json!({"op": "nodes"}));
    let nodes = answer["ok"]["nodes"].as_array().expect("nodes");
    let node = nodes.iter().find(|node| node["name"] == name);
    node.map_or(Value::Null, |node| node["tunnel"].clone())
}

/// But that a block's owner is withdrawn.
fn problems(client: &mut Client) -> Value {
    let mut problems = client.ask(json!({"op": "check"}))["ok"]["report"]["problems"].take();
    let list = problems.as_array_mut().expect("a list");
    list.retain(|one| one["kind"] != "unfinished");
    problems
}

fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let until = std::time::Instant::now() + Duration::from_secs(30);
    while !holds() {
        assert!(std::time::Instant::now() < until, "it did not come: {what}");
        thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn who_registers_has_an_address_of_its_own_until_it_is_deleted() {
    let mut server = Server::with_config(SHORT);
    let mut operator = server.client();
    operator.done(pool("p", "10.7.0.0/24"));
    operator.done(node("n2", 2));
    let mut forwarder = server.client();
    forwarder.ask(register("n1", 1));
    let own = tunnel(&mut operator, "n1");
    let address = own[0].as_str().expect("an address").to_owned();
    assert!(address.starts_with("10.7.0."), "{own}");
    assert_eq!(tunnel(&mut operator, "n2"), Value::Null, "an operator says");
    forwarder.ask(register("n1", 1));
    assert_eq!(tunnel(&mut operator, "n1"), own, "once is enough");
    for release in [
        json!({"op": "release", "by": "handle", "handle": "tunnel:n1"}),
        json!({"op": "release", "by": "addresses", "addresses": [{"address": address}]}),
    ] {
        assert_eq!(code(&operator.ask(release)), "in-use");
    }
    // Neither a pod nor a list of pods takes it.
    let pod = operator.ask(allocate("c1", "n1"));
    assert_ne!(pod["ok"]["allocated"]["addresses"][0]["address"], own[0]);
    operator.ask(json!({"op": "gc", "network": "pods", "node": "n1", "valid": []}));
    drop(forwarder);
    eventually("it is withdrawn", || nodes(&mut operator) == ["n2"]);
    assert_eq!(problems(&mut operator), json!([]), "no leak");
    server.signal(Signal::SIGKILL);
    server.wait();
    let server = server.again();
    let mut operator = server.client();
    let mut forwarder = server.client();
    forwarder.ask(register("n1", 1));
    assert_eq!(tunnel(&mut operator, "n1"), own, "it has the same again");
    operator.done(json!({"op": "node-leave", "name": "n1"}));
    assert_eq!(problems(&mut operator), json!([]), "no leak");
    let held = operator.ask(json!({"op": "allocations", "node": "n1"}));
    for one in held["ok"]["allocations"].as_array().expect("a list") {
        if one["use"] == "workload" {
            let by = json!({"op": "release", "by": "handle", "handle": one["handle"]});
            operator.ask(by);
        }
    }
    operator.done(json!({"op": "node-delete", "name": "n1"}));
    let held = operator.ask(json!({"op": "allocations", "node": "n1"}));
    assert_eq!(held["ok"]["allocations"], json!([]), "{held}");
}

#[test]
fn a_nodes_own_address_follows_the_pools() {
    let server = Server::start();
    let mut operator = server.client();
    let mut forwarder = server.client();
    assert_eq!(forwarder.ask(register("n1", 1)), registered(false));
    assert_eq!(tunnel(&mut operator, "n1"), Value::Null, "there is no pool");
    operator.done(pool("p", "10.7.0.0/24"));
    let lies = |operator: &mut Client, pools: &[&str]| {
        let own = tunnel(operator, "n1");
        let own = own.as_array().cloned().unwrap_or_default();
        let of = |(one, pool): (&Value, &&str)| one.as_str().is_some_and(|a| a.starts_with(*pool));
        own.len() == pools.len() && own.iter().zip(pools).all(of)
    };
    eventually("it has one", || lies(&mut operator, &["10.7.0."]));
    operator.done(pool("six", "fd00:7::/112"));
    eventually("and one of IPv6", || {
        lies(&mut operator, &["10.7.0.", "fd00:7:"])
    });
    operator.done(pool("q", "10.8.0.0/24"));
    operator.done(json!({"op": "pool-disable", "name": "p", "disabled": true}));
    eventually("it moves", || lies(&mut operator, &["10.8.0.", "fd00:7:"]));
    operator.done(json!({"op": "pool-delete", "name": "p"}));
    assert_eq!(problems(&mut operator), json!([]));
    // A pool that a withdrawn node's address lies in does not wait for it.
    operator.done(json!({"op": "node-leave", "name": "n1"}));
    operator.done(json!({"op": "pool-disable", "name": "q", "disabled": true}));
    operator.done(json!({"op": "pool-delete", "name": "q"}));
    assert_eq!(problems(&mut operator), json!([]));
}

#[test]
fn pools_choose_by_the_labels_that_a_node_registers_with() {
    let server = Server::start();
    let mut operator = server.client();
    for (name, cidr, selector) in [
        ("a", "10.7.0.0/24", "rack == 'a'"),
        ("b", "10.8.0.0/24", "rack == 'b'"),
    ] {
        let mut pool = pool(name, cidr);
        pool["node_selector"] = json!(selector);
        operator.done(pool);
    }
    let mut forwarder = server.client();
    let mut request = register("n1", 1);
    request["labels"] = json!({"rack": "b"});
    assert_eq!(forwarder.ask(request), registered(false));
    let own = tunnel(&mut operator, "n1");
    assert!(
        own[0].as_str().is_some_and(|a| a.starts_with("10.8.0.")),
        "{own}"
    );
    // There is none for it, and it does not wait.
    assert_eq!(forwarder.ask(register("n2", 2)), registered(false));
    assert_eq!(tunnel(&mut operator, "n2"), Value::Null);
    operator.done(pool("c", "10.9.0.0/24"));
    eventually("it has one", || {
        let own = tunnel(&mut operator, "n2");
        own[0].as_str().is_some_and(|a| a.starts_with("10.9.0."))
    });
}

#[test]
fn a_node_registers_though_the_pool_is_full_and_has_what_becomes_free() {
    let server = Server::start();
    let mut operator = server.client();
    operator.done(json!({"op": "configure", "cooldown_seconds": 0}));
    let mut small = pool("p", "10.7.0.0/30");
    small["block_size"] = json!(30);
    operator.done(small);
    operator.done(node("n2", 2));
    let mut freed = Value::Null;
    for container in ["c1", "c2", "c3", "c4"] {
        let mut given = operator.ask(allocate(container, "n2"));
        freed = given["ok"]["allocated"]["addresses"][0]["address"].take();
        assert!(freed.is_string(), "{given}");
    }
    assert_eq!(code(&operator.ask(allocate("c5", "n2"))), "exhausted");
    let mut forwarder = server.client();
    assert_eq!(forwarder.ask(register("n1", 1)), registered(false));
    assert_eq!(tunnel(&mut operator, "n1"), Value::Null, "the pool is full");
    let by = json!({"op": "release", "by": "addresses", "addresses": [{"address": freed}]});
    operator.ask(by);
    eventually("it has what is free", || {
        tunnel(&mut operator, "n1") == json!([freed])
    });
    assert_eq!(problems(&mut operator), json!([]));
}

//! Lines in, answers out: what is refused changes nothing, and the next
//! request is served.

use std::{
    io::Write,
    thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use weft_api::ipam::REQUEST_MAX;

use crate::{Client, Server, allocate, code, node, pool};

/// A line and the code of its refusal.
fn refusals() -> Vec<(String, &'static str)> {
    let with = |base: &Value, key: &str, value: Value| {
        let mut changed = base.clone();
        changed[key] = value;
        changed.to_string()
    };
    let (ask, pool, node) = (
        allocate("c9", "n1"),
        pool("other", "10.2.0.0/24"),
        node("n2", 2),
    );
    vec![
        (String::new(), "malformed"),
        ("hello".into(), "malformed"),
        ("{\"op\":\"status\"".into(), "malformed"),
        ("[1]".into(), "malformed"),
        ("\"status\"".into(), "malformed"),
        ("{}".into(), "malformed"),
        (r#"{"op":7}"#.into(), "malformed"),
        ("\u{0}\u{1b}".into(), "malformed"),
        ("[".repeat(100_000), "malformed"),
        (r#"{"op":"reboot"}"#.into(), "unknown"),
        (r#"{"op":"Status"}"#.into(), "unknown"),
        (r#"{"op":"status","verbose":true}"#.into(), "invalid"),
        (r#"{"op":"allocate"}"#.into(), "invalid"),
        (r#"{"op":"address","address":"10.1.0.256"}"#.into(), "invalid"),
        (r#"{"op":"watch","from":-1}"#.into(), "invalid"),
        (r#"{"op":"release","by":"magic"}"#.into(), "invalid"),
        (with(&ask, "families", json!([])), "invalid"),
        (with(&ask, "families", json!(["v4", "v4"])), "invalid"),
        (with(&ask, "families", json!(["v5"])), "invalid"),
        (with(&ask, "addresses", json!(["fd00::1"])), "invalid"),
        (with(&ask, "colour", json!("red")), "invalid"),
        (with(&ask, "node", json!("")), "invalid"),
        (with(&ask, "families", json!(["v6"])), "no-pool"),
        (with(&ask, "pools", json!(["nowhere"])), "not-found"),
        (with(&ask, "addresses", json!(["10.1.0.1"])), "taken"),
        (with(&pool, "cidr", json!("10.2.0.0/33")), "invalid"),
        (with(&pool, "block_size", json!(19)), "invalid"),
        (with(&pool, "node_selector", json!("has(")), "invalid"),
        (with(&pool, "uses", json!([])), "invalid"),
        (with(&pool, "cidr", json!("10.1.0.0/25")), "taken"),
        (with(&pool, "name", json!("default")), "taken"),
        (with(&node, "vni", json!(1 << 24)), "invalid"),
        (with(&node, "port", json!(65536)), "invalid"),
        (with(&node, "vtep_mac", json!("02:00")), "invalid"),
        (r#"{"op":"pool-delete","name":"default"}"#.into(), "in-use"),
        (r#"{"op":"pool-delete","name":"none"}"#.into(), "not-found"),
        (r#"{"op":"unreserve","name":"none"}"#.into(), "not-found"),
        (r#"{"op":"node-delete","name":"none"}"#.into(), "not-found"),
        (r#"{"op":"configure","cooldown_seconds":1201}"#.into(), "invalid"),
        (
            r#"{"op":"release","by":"addresses","addresses":[{"address":"10.1.0.1","handle":"pods/c2/eth0"}]}"#.into(),
            "changed",
        ),
    ]
}

fn everything(client: &mut Client) -> Vec<Value> {
    [
        "pools",
        "blocks",
        "allocations",
        "reservations",
        "nodes",
        "config",
    ]
    .map(|op| client.ask(json!({"op": op})))
    .to_vec()
}

#[test]
fn what_is_refused_changes_nothing_and_the_connection_goes_on() {
    let server = Server::start();
    let mut client = server.client();
    client.done(pool("default", "10.1.0.0/24"));
    client.done(node("n1", 1));
    let mut first = allocate("c1", "n1");
    first["addresses"] = json!(["10.1.0.1"]);
    assert_eq!(code(&client.ask(first)), "none");
    let (before, revision) = (everything(&mut client), client.revision());
    for (line, expected) in refusals() {
        let shown: String = line.chars().take(200).collect();
        client.send(format!("{line}\n"));
        let answer = client.answer();
        assert_eq!(code(&answer), expected, "{shown}: {answer}");
        for words in ["message", "hint"] {
            let words = answer["error"][words].as_str();
            assert!(words.is_some_and(|words| !words.is_empty()), "{answer}");
        }
        assert_eq!(client.revision(), revision, "{shown} changed something");
    }
    client.send([0xff, 0xfe, b'\n']);
    assert_eq!(code(&client.answer()), "malformed");
    assert_eq!(everything(&mut client), before);
}

#[test]
fn an_oversized_line_is_swallowed() {
    let server = Server::start();
    let mut client = server.client();
    client.send(vec![b' '; REQUEST_MAX + 1]);
    client.send("{\"op\":\"status\"}\n{\"op\":\"config\"}\n");
    assert_eq!(code(&client.answer()), "oversized");
    assert!(client.answer()["ok"]["config"].is_object());
    let mut longest = vec![b' '; REQUEST_MAX - 1 - 15];
    longest.extend_from_slice(b"{\"op\":\"status\"}\n");
    client.send(longest);
    assert!(client.answer()["ok"]["status"].is_object());
    // A swallowed line is over: nobody waits for its end.
    client.send(vec![b' '; REQUEST_MAX + 1]);
    client.send("\n");
    assert_eq!(code(&client.answer()), "oversized");
    thread::sleep(Duration::from_secs(6));
    assert!(client.revision() == 0);
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    let server = Server::start();
    let mut client = server.client();
    client.done(pool("default", "10.1.0.0/16"));
    let mut lines = String::new();
    for n in 0..500 {
        lines += &format!("{}\n", allocate(&format!("c{n}"), "n1"));
        lines += &format!("{{\"op\":\"nonsense-{n}\"}}\n");
    }
    lines += "{\"op\":\"status\"}\n";
    let mut writer = client.0.get_ref().try_clone().expect("a socket");
    let sender = thread::spawn(move || writer.write_all(lines.as_bytes()).expect("it reads"));
    let mut given = std::collections::BTreeSet::new();
    for n in 0..500 {
        let answer = client.answer();
        let address = answer["ok"]["allocated"]["addresses"][0]["address"].as_str();
        assert!(given.insert(address.expect("an address").to_owned()));
        let refusal = client.answer()["error"]["message"].to_string();
        assert!(
            refusal.contains(&format!("nonsense-{n}\\")),
            "{n}: {refusal}"
        );
    }
    assert_eq!(client.answer()["ok"]["status"]["allocations"], 500);
    sender.join().expect("it sent all");
    let again = client.ask(allocate("c7", "n1"));
    assert_eq!(again["ok"]["allocated"]["existing"], true);
}

#[test]
fn half_a_line_and_a_deaf_client_disturb_nobody() {
    let server = Server::start();
    let mut client = server.client();
    client.done(pool("default", "10.1.0.0/16"));
    let (mut half, mut deaf) = (server.client(), server.client());
    half.send("{\"op\":\"sta");
    // A half that came behind a whole one.
    let mut behind = server.client();
    behind.send("{\"op\":\"status\"}\n{\"op\":\"sta");
    // A request that waits for its turn behind answers that nobody reads.
    deaf.0.get_ref().set_nonblocking(true).expect("a socket");
    let line = format!("{}\n", json!({"op": "nonsense"})).repeat(1000);
    while deaf.0.get_mut().write(line.as_bytes()).is_ok() {
        thread::sleep(Duration::from_millis(1));
    }
    let begun = Instant::now();
    for n in 0..100 {
        assert_eq!(code(&client.ask(allocate(&format!("c{n}"), "n1"))), "none");
    }
    assert!(
        begun.elapsed() < Duration::from_secs(30),
        "{:?}",
        begun.elapsed()
    );
    assert_eq!(code(&half.answer()), "deadline");
    assert_eq!(half.line(), None, "it is cut off");
    assert_eq!(code(&behind.answer()), "none");
    assert_eq!(code(&behind.answer()), "deadline");
    let until = Instant::now() + Duration::from_secs(15);
    while client.ask(json!({"op": "status"}))["ok"]["status"]["clients"] != 1 {
        assert!(Instant::now() < until, "the deaf client is kept");
        thread::sleep(Duration::from_millis(50));
    }
    let kept = client.ask(
        json!({"op": "release", "by": "attachment", "network": "pods",
        "container": "c1", "interface": "eth0"}),
    );
    assert_eq!(
        kept["ok"]["released"]["released"].as_array().map(Vec::len),
        Some(1)
    );
}

#[test]
fn a_line_that_the_stream_ends_within_is_told() {
    let server = Server::start();
    let mut client = server.client();
    client.send("{\"op\":\"status\"}");
    client
        .0
        .get_ref()
        .shutdown(std::net::Shutdown::Write)
        .expect("a socket");
    assert_eq!(code(&client.answer()), "malformed");
    assert_eq!(client.line(), None);
}

//! A forwarder that follows an IPAM server, here one that says what the test
//! tells it to.

use std::{
    io::{BufRead, BufReader, Write},
    os::unix::net::{UnixListener, UnixStream},
    path::Path,
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use weft_api::{
    forwarder::{Code, Peer, Reply, Status, Way},
    ipam::Request,
};

use crate::server::{LIMIT, Server};

/// One connection of the forwarder, with the request that it began with.
struct Watcher {
    stream: UnixStream,
    from: Option<u64>,
}

struct Ipam {
    listener: UnixListener,
}

impl Ipam {
    fn listen(path: &Path) -> Self {
        let listener = UnixListener::bind(path).expect("a free path");
        listener.set_nonblocking(true).expect("set");
        Self { listener }
    }

    fn watcher(&self) -> Watcher {
        let until = Instant::now() + LIMIT;
        let stream = loop {
            match self.listener.accept() {
                Ok((stream, _)) => break stream,
                Err(_) => assert!(Instant::now() < until, "the forwarder does not come"),
            }
            std::thread::sleep(Duration::from_millis(5));
        };
        stream.set_nonblocking(false).expect("set");
        stream.set_read_timeout(Some(LIMIT)).expect("set a limit");
        let mut line = String::new();
        BufReader::new(&stream).read_line(&mut line).expect("read");
        match serde_json::from_str(&line) {
            Ok(Request::Watch { from }) => Watcher { stream, from },
            other => panic!("a watch was due: {other:?}"),
        }
    }
}

impl Watcher {
    fn say(&mut self, answer: &Value) {
        writeln!(self.stream, "{answer}").expect("the forwarder listens");
    }

    fn event(&mut self, event: &Value) {
        self.say(&json!({ "event": event }));
    }
}

/// Each test has a network of its own, 127.83.`net`.0/24: an uplink shares
/// its address with nobody.
fn node(net: u8, number: u8) -> Value {
    json!({
        "name": format!("n{number}"),
        "underlay": [format!("127.83.{net}.{number}/24")],
        "vtep_mac": format!("02:00:00:00:01:{number:02x}"),
        "port": 4790,
    })
}

fn route(net: &str, node: &str) -> Value {
    json!({"net": net, "node": node, "encapsulation": "vxlan", "when": "always", "nat_outgoing": false})
}

fn snapshot(net: u8, revision: u64) -> Value {
    json!({"snapshot": {
        "revision": revision,
        "nodes": [node(net, 1), node(net, 2)],
        "routes": [route("10.1.0.0/24", "n1"), route("10.2.0.0/24", "n2")],
    }})
}

fn forwarder(net: u8, socket: &Path) -> Server {
    forwarder_with("", net, socket)
}

/// `uplink` is more of that section.
fn forwarder_with(uplink: &str, net: u8, socket: &Path) -> Server {
    Server::with_config(&format!(
        "node = 'n1'\nworkers = 2\n[uplink]\naddresses = ['127.83.{net}.1']\nport = 4790\n{uplink}\n\
         [ipam]\nsocket = '{}'\n",
        socket.display()
    ))
}

fn status(server: &Server) -> Status {
    match server.client().ok(r#"{"op":"status"}"#) {
        Reply::Status(status) => *status,
        other => panic!("status answers with a status: {other:?}"),
    }
}

/// Waits until the forwarder is so.
fn becomes(server: &Server, connected: bool, revision: u64) {
    let until = Instant::now() + LIMIT;
    loop {
        let ipam = status(server).ipam.expect("it follows");
        if (ipam.connected, ipam.revision) == (connected, Some(revision)) {
            return;
        }
        assert!(Instant::now() < until, "{ipam:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn peers(server: &Server) -> Vec<(String, String)> {
    let Reply::Peers(peers) = server.client().ok(r#"{"op":"peers"}"#) else {
        panic!("peers answers with peers");
    };
    let row = |peer: &Peer| {
        let blocks: Vec<_> = peer.node.blocks.iter().map(ToString::to_string).collect();
        (peer.node.name.to_string(), blocks.join(" "))
    };
    peers.iter().map(row).collect()
}

fn table(rows: &[(&str, &str)]) -> Vec<(String, String)> {
    rows.iter()
        .map(|(name, blocks)| (name.to_string(), blocks.to_string()))
        .collect()
}

#[test]
fn nodes_come_from_the_server_and_outlive_it() {
    let folder = tempfile::tempdir().expect("a folder");
    let socket = folder.path().join("ipam.sock");
    let server = forwarder(1, &socket);
    let before = status(&server).ipam.expect("it follows");
    assert_eq!((before.connected, before.revision), (false, None));

    let ipam = Ipam::listen(&socket);
    let mut watcher = ipam.watcher();
    assert_eq!(watcher.from, None);
    watcher.event(&snapshot(1, 7));
    becomes(&server, true, 7);
    assert_eq!(peers(&server), table(&[("n2", "10.2.0.0/24")]));

    watcher.event(&json!({"node": {"revision": 8, "node": node(1, 3)}}));
    watcher.event(&json!({"route": {"revision": 9, "route": route("10.2.0.9/32", "n3")}}));
    becomes(&server, true, 9);
    let known = table(&[("n2", "10.2.0.0/24"), ("n3", "10.2.0.9/32")]);
    assert_eq!(peers(&server), known);

    drop((watcher, ipam));
    becomes(&server, false, 9);
    assert_eq!(peers(&server), known, "the tables stay while it is away");

    std::fs::remove_file(&socket).expect("remove");
    let ipam = Ipam::listen(&socket);
    let mut watcher = ipam.watcher();
    assert_eq!(watcher.from, Some(8), "more of revision 9 may be due");
    watcher.event(&json!({"route-gone": {"revision": 9, "net": "10.2.0.9/32"}}));
    watcher.event(&json!({"alive": {"revision": 12}}));
    becomes(&server, true, 12);
    assert_eq!(peers(&server), table(&[("n2", "10.2.0.0/24"), ("n3", "")]));
    let text = server.visit(b"GET /metrics HTTP/1.1\r\n\r\n");
    for line in ["weft_ipam_connected 1", "weft_ipam_revision 12"] {
        assert!(text.lines().any(|l| l == line), "{line}: {text}");
    }
}

#[test]
fn nobody_else_says_what_nodes_there_are() {
    let folder = tempfile::tempdir().expect("a folder");
    let socket = folder.path().join("ipam.sock");
    let server = forwarder(2, &socket);
    let ipam = Ipam::listen(&socket);
    let mut watcher = ipam.watcher();
    watcher.event(&snapshot(2, 7));
    becomes(&server, true, 7);
    let apply = r#"{"op":"apply","node":{"name":"n1","underlay":["127.83.2.1"],"vtep_mac":"02:00:00:00:01:01","port":4790}}"#;
    assert_eq!(server.client().refused(apply), Code::Ruled);
    assert_eq!(peers(&server), table(&[("n2", "10.2.0.0/24")]));
}

#[test]
fn what_contradicts_the_uplink_changes_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    let socket = folder.path().join("ipam.sock");
    let server = forwarder(3, &socket);
    let ipam = Ipam::listen(&socket);
    let mut watcher = ipam.watcher();
    watcher.event(&snapshot(3, 7));
    becomes(&server, true, 7);

    // The own node at port 4789, where the uplink does not listen.
    let mut elsewhere = snapshot(3, 8);
    elsewhere["snapshot"]["nodes"][0]["port"] = json!(4789);
    watcher.event(&elsewhere);
    watcher.event(&json!({"alive": {"revision": 9}}));
    // Both have been heard once a third one has been asked about.
    watcher.say(&json!({"error": {"code": "internal", "message": "m", "hint": "h"}}));
    let mut watcher = ipam.watcher();
    assert_eq!(watcher.from, None, "what was refused begins anew");
    becomes(&server, false, 7);
    assert_eq!(peers(&server), table(&[("n2", "10.2.0.0/24")]));

    watcher.event(&snapshot(3, 10));
    becomes(&server, true, 10);
}

#[test]
fn a_server_that_speaks_nonsense_is_left_and_asked_again() {
    let folder = tempfile::tempdir().expect("a folder");
    let socket = folder.path().join("ipam.sock");
    let server = forwarder(4, &socket);
    let ipam = Ipam::listen(&socket);
    for nonsense in [json!("hello"), json!({"ok": "done"}), json!({"event": {}})] {
        ipam.watcher().say(&nonsense);
    }
    ipam.watcher().event(&snapshot(4, 3));
    let until = Instant::now() + LIMIT;
    while peers(&server).is_empty() {
        assert!(Instant::now() < until, "the snapshot never came in force");
    }
}

#[test]
fn a_pool_behind_ipip_is_reached_so_or_left_out() {
    for (net, uplink) in [(8, "ipip = true"), (9, "ipip = false")] {
        let folder = tempfile::tempdir().expect("a folder");
        let socket = folder.path().join("ipam.sock");
        let server = forwarder_with(uplink, net, &socket);
        // What it can depends on the user's rights too.
        let ipip = status(&server).ipip;
        assert!(!ipip || net == 8);
        let mut watcher = Ipam::listen(&socket).watcher();
        watcher.event(&snapshot(net, 7));
        let mut route = route("10.3.0.0/24", "n2");
        route["encapsulation"] = "ipip".into();
        watcher.event(&json!({"route": {"revision": 8, "route": route}}));
        becomes(&server, true, 8);
        let Reply::Peers(peers) = server.client().ok(r#"{"op":"peers"}"#) else {
            panic!("peers answers with peers");
        };
        let node = &peers[0].node;
        let block = |text: &str| text.parse().expect("a block");
        let (vxlan, by_ipip) = (block("10.2.0.0/24"), block("10.3.0.0/24"));
        let (blocks, ways) = match ipip {
            true => (vec![vxlan, by_ipip], vec![(by_ipip, Way::Ipip)]),
            false => (vec![vxlan], vec![]),
        };
        assert_eq!(node.blocks, blocks);
        assert_eq!(node.ways, ways.into_iter().collect());
    }
}

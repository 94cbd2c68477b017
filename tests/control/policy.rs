//! Policies as an operator gives them, and real connections under them.

use std::{
    fs,
    io::{BufRead, BufReader, ErrorKind, Read, Write},
    net::{TcpListener, TcpStream, UdpSocket},
    path::Path,
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;
use weft_api::forwarder::Code;

use crate::{
    attach::{Pod, attached, pod, request},
    operator::{json, run, started, text},
    server::{LIMIT, Server},
};

const PORT: u16 = 8000;

/// Three pods; p3 lets those in whose label is named.
pub fn write(folder: &Path, labels: &str) {
    let pod = |number: u8, app: &str| {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: p{number}, labels: {{app: {app}}}}}\n\
             status: {{podIPs: [{{ip: 10.1.0.{number}}}]}}\n---\n"
        )
    };
    let pods = [pod(1, "a"), pod(2, "b"), pod(3, "c")].concat();
    let policy = format!(
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: door}}\n\
         spec:\n  podSelector: {{matchLabels: {{app: c}}}}\n  ingress:\n  - from:\n    \
         - podSelector: {{matchExpressions: [{{key: app, operator: In, values: [{labels}]}}]}}\n"
    );
    fs::write(folder.join("pods.yaml"), pods).expect("write");
    fs::write(folder.join("door.yaml"), policy).expect("write");
}

fn three_pods(server: &Server) -> [Pod; 3] {
    let mut client = server.client();
    [1, 2, 3].map(|number| {
        let pod = pod(number);
        attached(&mut client, &request(&format!("n1p{number}"), number), &pod);
        pod
    })
}

/// p1, which has these capabilities, and p3.
fn one_limited(server: &Server, capabilities: &str) -> [Pod; 2] {
    let mut client = server.client();
    let pods = [1, 3].map(pod);
    let limited = format!("\"mtu\":1450,\"capabilities\":{capabilities}");
    let limited = request("n1p1", 1).replace("\"mtu\":1450", &limited);
    attached(&mut client, &limited, &pods[0]);
    attached(&mut client, &request("n1p3", 3), &pods[1]);
    pods
}

/// Both ends of a connection to p3.
fn connection(from: &Pod, listener: &TcpListener) -> [TcpStream; 2] {
    let connect = || TcpStream::connect_timeout(&([10, 1, 0, 3], PORT).into(), LIMIT);
    let near = from.netns.run(connect).expect("enter").expect("connect");
    let (far, _) = listener.accept().expect("accept");
    far.set_read_timeout(Some(LIMIT)).expect("set a limit");
    [near, far]
}

fn carries([near, far]: &mut [TcpStream; 2]) {
    let mut byte = [0];
    near.write_all(b"x").expect("write");
    far.read_exact(&mut byte).expect("it arrives");
}

fn denied(server: &Server) -> Value {
    json(&run(server, &["drops", "--denied", "--json"]))["flows"].clone()
}

#[test]
fn a_change_cuts_the_connection_that_it_forbids_and_no_other() {
    weft_testkit::needs_namespaces!();
    let server = Server::start();
    let pods = three_pods(&server);
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().to_str().expect("a path");
    let apply = ["policy", "apply", "-f", path];
    write(folder.path(), "a, b");
    assert!(text(&run(&server, &apply)).starts_with("4 objects of files in force"));
    let listen = || TcpListener::bind(("10.1.0.3", PORT));
    let listener = pods[2].netns.run(listen).expect("enter").expect("listen");
    let mut first = connection(&pods[0], &listener);
    let mut second = connection(&pods[1], &listener);
    carries(&mut first);
    carries(&mut second);
    assert_eq!(denied(&server), serde_json::json!([]));

    write(folder.path(), "b");
    text(&run(&server, &apply));
    first[0].write_all(b"x").expect("into the socket");
    let until = Instant::now() + LIMIT;
    let flow = loop {
        if let Some(flow) = denied(&server).get(0) {
            break flow.clone();
        }
        assert!(Instant::now() < until, "nothing was denied");
        thread::sleep(Duration::from_millis(20));
    };
    assert_eq!(flow["source"], "10.1.0.1");
    assert_eq!(flow["destination"], "10.1.0.3");
    assert_eq!(flow["port"], format!("{PORT}/TCP"));
    assert_eq!(
        flow["decision"]["policies"][0],
        "NetworkPolicy default/door"
    );
    assert_eq!(flow["edition"], 2);
    carries(&mut second);
    first[1].set_nonblocking(true).expect("set");
    let silent = first[1].read(&mut [0]).expect_err("it was cut");
    assert_eq!(silent.kind(), ErrorKind::WouldBlock);
    let page = run(&server, &["drops", "--denied"]);
    let told = "NetworkPolicy default/door: no ingress rule permits it";
    assert!(text(&page).contains(told), "{}", text(&page));

    text(&run(&server, &["policy", "drop"]));
    first[1].set_nonblocking(false).expect("set");
    first[1]
        .read_exact(&mut [0])
        .expect("it is sent again, and arrives");
}

#[test]
fn a_flow_is_explained_alike_by_the_forwarder_and_by_files() {
    weft_testkit::needs_namespaces!();
    let server = Server::start();
    let _pods = three_pods(&server);
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().to_str().expect("a path");
    write(folder.path(), "b");
    text(&run(&server, &["policy", "apply", "-f", path]));
    for (from, to, is_allowed) in [("p1", "p3", false), ("p2", "p3", true), ("p3", "p1", true)] {
        let asked = ["explain", "--from", from, "--to", to, "--json"];
        let live = run(&server, &asked);
        let offline = run(&server, &[&asked[..], &["-f", path]].concat());
        assert_eq!(live.stdout, offline.stdout);
        assert_eq!(live.status.success(), is_allowed);
        assert_eq!(offline.status.success(), is_allowed);
        let told: Value = serde_json::from_slice(&live.stdout).expect("JSON");
        assert_eq!(told["allowed"], is_allowed);
    }
    let by_port = run(&server, &["explain", "--from", "n1p1", "--to", "n1p3"]);
    let said = String::from_utf8_lossy(&by_port.stdout);
    assert!(
        said.contains("NetworkPolicy default/door isolates it"),
        "{said}"
    );
    assert!(said.contains("ingress[0]"), "the nearest rule: {said}");
}

#[test]
fn what_the_node_opens_is_explained_as_it_is_judged() {
    weft_testkit::needs_namespaces!();
    let server = Server::start();
    let _pods = three_pods(&server);
    let node = pod(9);
    let host = request("weft0", 9).replace(
        "\"mtu\":1450",
        "\"mtu\":1450,\"host\":{\"pools\":[\"10.1.0.0/16\"]}",
    );
    let mut client = server.client();
    client.ok(
        r#"{"op":"apply","node":{"name":"n1","underlay":[],"vtep_mac":"02:00:00:00:01:01","tunnel":["10.1.0.9"]},"peers":[]}"#,
    );
    attached(&mut client, &host, &node);
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().to_str().expect("a path");
    write(folder.path(), "b");
    text(&run(&server, &["policy", "apply", "-f", path]));
    let asked = |from| {
        run(
            &server,
            &["explain", "--from", from, "--to", "p3", "--json"],
        )
    };
    let node = json(&asked("10.1.0.9"));
    assert_eq!(node["ingress"]["reason"], "own-node", "{node}");
    for denied in ["p1", "10.1.0.8"] {
        assert!(!asked(denied).status.success(), "{denied}");
    }
}

#[test]
fn bad_files_leave_what_was_in_force() {
    let server = Server::start();
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().to_str().expect("a path");
    write(folder.path(), "b");
    text(&run(&server, &["policy", "apply", "-f", path]));
    let before = json(&run(&server, &["policy", "list", "--json"]));
    assert_eq!(before["policies"][0]["pods"], 1);
    let bad = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: bad}\n\
               spec: {podSelector: {}, ingres: []}\n";
    fs::write(folder.path().join("z.yaml"), bad).expect("write");
    let refused = run(&server, &["policy", "apply", "-f", path]);
    let why = String::from_utf8_lossy(&refused.stderr);
    assert!(!refused.status.success());
    assert!(
        why.contains("z.yaml: NetworkPolicy default/bad: spec.ingres"),
        "{why}"
    );
    assert_eq!(json(&run(&server, &["policy", "list", "--json"])), before);
    let shown = json(&run(&server, &["policy", "show", "default/door", "--json"]));
    assert_eq!(shown["selected"], serde_json::json!(["default/p3"]));
    assert_eq!(shown["object"]["kind"], "NetworkPolicy");
    text(&run(&server, &["policy", "drop"]));
    let page = run(&server, &["policy", "list"]);
    assert!(text(&page).starts_with("no policy is in force"));
}

#[test]
fn a_pod_opens_no_more_connections_than_it_may() {
    weft_testkit::needs_namespaces!();
    let server = Server::start();
    let pods = one_limited(&server, r#"{"connections":1}"#);
    let empty = r#"{"op":"policies","source":"empty","objects":[]}"#;
    server.client().ok(empty);
    let listen = || TcpListener::bind(("10.1.0.3", PORT));
    let listener = pods[1].netns.run(listen).expect("enter").expect("listen");
    let mut only = connection(&pods[0], &listener);
    carries(&mut only);
    let wait = Duration::from_millis(300);
    let more = || TcpStream::connect_timeout(&([10, 1, 0, 3], PORT).into(), wait);
    let refused = pods[0].netns.run(more).expect("enter");
    assert_eq!(refused.expect_err("lost").kind(), ErrorKind::TimedOut);
    let drops = json(&run(&server, &["drops", "--json"]));
    let reasons = drops.as_array().expect("a list").iter();
    let mut limits = reasons.filter(|drop| drop["reason"] == "conntrack_limit");
    assert!(
        limits.any(|drop| drop["packets"].as_u64() > Some(0)),
        "{drops}"
    );
    carries(&mut only);
}

#[test]
fn the_flow_log_tells_what_was_opened_and_what_was_denied() {
    weft_testkit::needs_namespaces!();
    let server = Server::start();
    let mut client = server.client();
    assert_eq!(client.refused(r#"{"op":"flows"}"#), Code::NotFound);
    let pods = three_pods(&server);
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().to_str().expect("a path");
    write(folder.path(), "b");
    text(&run(&server, &["policy", "apply", "-f", path]));
    let listen = || TcpListener::bind(("10.1.0.3", PORT));
    let listener = pods[2].netns.run(listen).expect("enter").expect("listen");
    let _before = connection(&pods[1], &listener);
    let mut log = started(&server, &["flows"]);
    let lines = BufReader::new(log.stdout.take().expect("a pipe")).lines();
    let (told, heard) = mpsc::channel();
    thread::spawn(move || {
        lines
            .map_while(Result::ok)
            .try_for_each(|line| told.send(line))
    });
    let wait = Duration::from_millis(100);
    let refused = || TcpStream::connect_timeout(&([10, 1, 0, 3], PORT).into(), wait);
    let until = Instant::now() + LIMIT;
    let mut of = [None, None];
    // The log may not have begun with the first of them.
    while of.contains(&None) && Instant::now() < until {
        pods[0]
            .netns
            .run(refused)
            .expect("enter")
            .expect_err("lost");
        drop(connection(&pods[1], &listener));
        for line in heard.try_iter() {
            let line: Value = serde_json::from_str(&line).expect("JSON");
            let is_denied = usize::from(line["verdict"] == "denied");
            of[is_denied].get_or_insert(line);
        }
    }
    log.kill().and_then(|()| log.wait()).expect("it ends");
    let [opened, denied] = of.map(|line| line.expect("it is told"));
    for (line, from, pod) in [
        (&opened, "10.1.0.2", "default/p2"),
        (&denied, "10.1.0.1", "default/p1"),
    ] {
        assert_eq!(line["node"], "n1");
        assert_eq!(line["protocol"], "tcp");
        assert_eq!(line["from"]["address"], from);
        assert_eq!(line["from"]["pod"], pod);
        assert_eq!(
            line["to"],
            serde_json::json!({"address": "10.1.0.3", "port": PORT, "pod": "default/p3"})
        );
        assert_eq!(line["egress"]["reason"], "unruled");
        let door = "NetworkPolicy default/door";
        assert_eq!(line["ingress"]["policies"], serde_json::json!([door]));
    }
    assert_eq!(opened["ingress"]["rule"], 0);
    assert_eq!(opened["verdict"], "allowed");
    assert_eq!(denied["ingress"]["reason"], "isolated");
}

#[test]
fn a_dry_run_tells_what_would_change_and_changes_nothing() {
    weft_testkit::needs_namespaces!();
    let server = Server::start();
    let pods = three_pods(&server);
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().to_str().expect("a path");
    let dry = ["policy", "apply", "-f", path, "--dry-run", "--json"];
    write(folder.path(), "a");
    let early = run(&server, &dry);
    let why = String::from_utf8_lossy(&early.stderr);
    assert!(why.contains("no connection is tracked"), "{why}");
    text(&run(&server, &["policy", "apply", "-f", path]));
    let listen = || TcpListener::bind(("10.1.0.3", PORT));
    let listener = pods[2].netns.run(listen).expect("enter").expect("listen");
    let mut live = connection(&pods[0], &listener);
    carries(&mut live);
    let wait = Duration::from_millis(100);
    let lost = || TcpStream::connect_timeout(&([10, 1, 0, 3], PORT).into(), wait);
    pods[1].netns.run(lost).expect("enter").expect_err("denied");
    let same = json(&run(&server, &dry));
    assert_eq!(same["changes"], serde_json::json!([]));
    assert_eq!(same["judged"], 2, "{same}");

    write(folder.path(), "b");
    for more in [&[][..], &["--for", "1"]] {
        let output = run(&server, &[&dry[..], more].concat());
        assert!(!output.status.success());
        let trial: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        let [allowed, denied] = [&trial["changes"][0], &trial["changes"][1]];
        assert_eq!(
            trial["changes"].as_array().map(Vec::len),
            Some(2),
            "{trial}"
        );
        let port = live[0].local_addr().expect("an address").port();
        assert_eq!(allowed["verdict"], "allowed");
        assert_eq!(allowed["from"]["pod"], "default/p2");
        assert_eq!(allowed["decision"]["rule"], 0);
        assert_eq!(denied["verdict"], "denied");
        assert_eq!(denied["from"]["pod"], "default/p1");
        assert_eq!(denied["from"]["port"], port);
        assert_eq!(denied["direction"], "ingress");
        assert_eq!(denied["decision"]["reason"], "isolated");
    }
    let page = run(&server, &dry[..5]);
    let page = String::from_utf8_lossy(&page.stdout);
    assert!(page.starts_with("2 flows of 2 would"), "{page}");
    let told = "NetworkPolicy default/door: no ingress rule permits it";
    assert!(page.contains(told), "{page}");
    carries(&mut live);
    let rules = json(&run(&server, &["policy", "list", "--json"]));
    assert_eq!(rules["edition"], 1, "nothing is in force");
}

#[test]
fn a_pod_sends_no_more_packets_than_it_may() {
    weft_testkit::needs_namespaces!();
    let server = Server::start();
    let pods = one_limited(
        &server,
        r#"{"packets":{"from_pod":{"rate":20,"burst":10}}}"#,
    );
    let bind = |pod: &Pod, at: &str| {
        let bound = pod.netns.run(|| UdpSocket::bind(at));
        bound.expect("enter").expect("the pod's own address")
    };
    let (from, to) = (bind(&pods[0], "10.1.0.1:0"), bind(&pods[1], "10.1.0.3:9"));
    to.set_read_timeout(Some(LIMIT)).expect("set a limit");
    for _ in 0..200 {
        from.send_to(b"x", "10.1.0.3:9").expect("send");
    }
    for _ in 0..10 {
        to.recv(&mut [0; 1]).expect("the burst arrives");
    }
    let until = Instant::now() + LIMIT;
    let lost = || {
        let drops = json(&run(&server, &["drops", "--json", "--all"]));
        let mut reasons = drops.as_array().expect("a list").iter();
        let drop = reasons.find(|drop| drop["reason"] == "packets_from_pod");
        drop.and_then(|drop| drop["packets"].as_u64())
            .expect("a number")
    };
    while lost() == 0 {
        assert!(Instant::now() < until, "nothing was lost");
        thread::sleep(Duration::from_millis(20));
    }
    let listed = server.list();
    let row = listed.iter().find(|port| port.name.as_str() == "n1p1");
    assert!(!row.expect("a port").capabilities.packets.is_unlimited());
}

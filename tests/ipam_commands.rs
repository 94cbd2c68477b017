//! `weft ipam` against a server that answers as the test says: what a command
//! asks, what it prints, how it ends.

use std::{
    io::{BufRead, BufReader, Write},
    net::Shutdown,
    os::unix::net::{UnixListener, UnixStream},
    process::{Command, Output, Stdio},
    thread::{self, JoinHandle},
    time::Duration,
};

use serde_json::{Value, json};
use tempfile::TempDir;

const LIMIT: Duration = Duration::from_secs(20);

/// Takes one client, answers each request with the next answer, and returns
/// what was asked. After the last answer it hangs up.
struct Server {
    folder: TempDir,
    asked: JoinHandle<Vec<Value>>,
}

impl Server {
    fn with(answers: Vec<Value>) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let listener = UnixListener::bind(folder.path().join("ipam.sock")).expect("a free path");
        let asked = thread::spawn(move || {
            let (stream, _) = listener.accept().expect("a client");
            serve(stream, answers)
        });
        Self { folder, asked }
    }

    fn run(self, arguments: &[&str]) -> (Output, Vec<Value>) {
        let output = Command::new(env!("CARGO_BIN_EXE_weft"))
            .arg("ipam")
            .args(arguments)
            .arg("--socket")
            .arg(self.folder.path().join("ipam.sock"))
            .current_dir(self.folder.path())
            .stdin(Stdio::null())
            .output()
            .expect("run weft");
        (output, self.asked.join().expect("the server ends"))
    }
}

fn serve(mut stream: UnixStream, answers: Vec<Value>) -> Vec<Value> {
    stream.set_read_timeout(Some(LIMIT)).expect("set a limit");
    let mut lines = BufReader::new(stream.try_clone().expect("clone")).lines();
    let mut asked = Vec::new();
    for answer in answers {
        let Some(Ok(line)) = lines.next() else { break };
        asked.push(serde_json::from_str(&line).expect("a request is JSON"));
        for line in answer.as_array().unwrap_or(&vec![answer.clone()]) {
            writeln!(stream, "{line}").expect("the client reads");
        }
    }
    let _ = stream.shutdown(Shutdown::Both);
    asked
}

fn out(output: &Output) -> String {
    assert!(output.status.success(), "{}", err(output));
    String::from_utf8(output.stdout.clone()).expect("text")
}

fn err(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).expect("text")
}

fn done() -> Value {
    json!({"ok": "done"})
}

fn pool() -> Value {
    json!({
        "name": "v4", "cidr": "10.244.0.0/16", "block_size": 24, "uses": ["workload", "tunnel"],
        "manual": false, "disabled": false, "nat_outgoing": false, "encapsulation": "vxlan",
        "when": "always", "blocks": 2, "total": 65536, "used": 7, "kept": 1, "resting": 0,
        "reserved": 0, "free": 65528
    })
}

fn address(address: &str, sequence: u64) -> Value {
    json!({"ok": {"address": {
        "address": address, "pool": "v4", "block": null, "reserved": false,
        "allocation": {
            "address": address, "handle": "weft/c1/eth0", "node": "n1", "use": "workload",
            "pod": null, "identity": null, "since": 1, "released": null, "sequence": sequence,
            "borrowed": false
        }
    }}})
}

/// Commands, and what each asks for. 7a:07:b5:58:d4:c0 is the MAC that n1's
/// forwarder makes by itself.
const CHANGES: &[(&str, &str)] = &[
    (
        "pool create v4 10.244.0.0/16 --block-size 24 --node-selector rack=='a' --use workload",
        r#"{ "op": "pool-create", "name": "v4", "cidr": "10.244.0.0/16", "block_size": 24, "node_selector": "rack=='a'", "uses": ["workload"], "manual": false, "disabled": false, "nat_outgoing": false, "encapsulation": "vxlan", "when": "always" }"#,
    ),
    (
        "pool create v6 fd00::/48 --manual --disabled --nat-outgoing --encapsulation none \
             --when cross-subnet --namespace-selector all()",
        r#"{ "op": "pool-create", "name": "v6", "cidr": "fd00::/48", "namespace_selector": "all()", "uses": ["workload", "tunnel"], "manual": true, "disabled": true, "nat_outgoing": true, "encapsulation": "none", "when": "cross-subnet" }"#,
    ),
    (
        "pool disable v4",
        r#"{"op": "pool-disable", "name": "v4", "disabled": true}"#,
    ),
    (
        "pool enable v4",
        r#"{"op": "pool-disable", "name": "v4", "disabled": false}"#,
    ),
    ("pool delete v4", r#"{"op": "pool-delete", "name": "v4"}"#),
    (
        "reserve infra 10.244.0.0/28 fd00::/124",
        r#"{"op": "reserve", "name": "infra", "cidrs": ["10.244.0.0/28", "fd00::/124"]}"#,
    ),
    ("unreserve infra", r#"{"op": "unreserve", "name": "infra"}"#),
    (
        "node put n1 --underlay 192.0.2.1/24 --underlay 2001:db8::1/64 --label rack=a \
             --tunnel 10.244.0.0 --vni 7 --port 8472 --vtep-mac 02:00:00:00:00:01",
        r#"{ "op": "node-put", "name": "n1", "underlay": ["192.0.2.1/24", "2001:db8::1/64"], "vtep_mac": "02:00:00:00:00:01", "vni": 7, "port": 8472, "tunnel": ["10.244.0.0"], "labels": {"rack": "a"} }"#,
    ),
    (
        "node put n1 --underlay 192.0.2.1/24",
        r#"{ "op": "node-put", "name": "n1", "underlay": ["192.0.2.1/24"], "vtep_mac": "7a:07:b5:58:d4:c0", "vni": 4096, "port": 4789 }"#,
    ),
    ("node delete n1", r#"{"op": "node-delete", "name": "n1"}"#),
    (
        "configure --strict-affinity true --blocks-per-node 0 --cooldown 60",
        r#"{ "op": "configure", "strict_affinity": true, "blocks_per_node": 0, "cooldown_seconds": 60 }"#,
    ),
];

#[test]
fn each_change_asks_for_what_it_says() {
    for &(arguments, asked) in CHANGES {
        let asked: Value = serde_json::from_str(asked).expect("JSON");
        let words: Vec<_> = arguments.split_whitespace().collect();
        let (output, requests) = Server::with(vec![done()]).run(&words);
        assert!(out(&output).lines().count() == 1, "{arguments}");
        assert_eq!(requests, [asked], "{arguments}");
    }
    let (output, _) = Server::with(vec![done()]).run(&["pool", "delete", "v4", "--json"]);
    let said: Value = serde_json::from_str(&out(&output)).expect("JSON");
    assert_eq!(said, json!({"done": true}));
}

/// Asks by a command, and expects `part` in its table.
fn question(arguments: &str, asked: Value, kind: &str, value: Value, part: &str) {
    let words: Vec<_> = arguments.split_whitespace().collect();
    let is_list = value.is_array();
    let answer = json!({"ok": {kind: value}});
    let (output, requests) = Server::with(vec![answer.clone()]).run(&words);
    assert_eq!(requests, [asked], "{arguments}");
    let text = out(&output);
    assert!(text.contains(part), "{part:?} is not in:\n{text}");

    let (output, _) = Server::with(vec![answer]).run(&[&words[..], &["--json"]].concat());
    let said: Value = serde_json::from_str(&out(&output)).expect("JSON");
    assert_eq!(said.is_array(), is_list, "{arguments}");
}

#[test]
fn pools_blocks_and_addresses_have_a_table_and_json() {
    let pools = json!({"op": "pools"});
    question("show", pools.clone(), "pools", json!([pool()]), "65 536");
    question(
        "pool list",
        pools,
        "pools",
        json!([pool()]),
        "workload, tunnel",
    );
    question(
        "show --blocks",
        json!({"op": "blocks"}),
        "blocks",
        json!([]),
        "no block",
    );
    let known = address("10.244.0.9", 5)["ok"]["address"].clone();
    let held = json!([known["allocation"]]);
    let asked = |borrowed| json!({"op": "allocations", "node": "n1", "borrowed": borrowed});
    let kind = "allocations";
    question(
        "show --borrowed --node n1",
        asked(true),
        kind,
        held.clone(),
        "weft/c1/eth0",
    );
    question("show --node n1", asked(false), kind, held, "10.244.0.9");
    let asked = json!({"op": "address", "address": "10.244.0.9"});
    question(
        "show --ip 10.244.0.9",
        asked,
        "address",
        known,
        "sequence 5",
    );
}

#[test]
fn nodes_reservations_and_settings_have_a_table_and_json() {
    let node = json!({
        "name": "n1", "underlay": ["192.0.2.1/24"], "vtep_mac": "02:00:00:00:00:01", "vni": 4096,
        "port": 4789
    });
    question(
        "node list",
        json!({"op": "nodes"}),
        "nodes",
        json!([node]),
        "192.0.2.1/24",
    );
    let reservation = json!({"name": "infra", "cidrs": ["10.244.0.0/28"]});
    let kind = "reservations";
    question(
        kind,
        json!({"op": kind}),
        kind,
        json!([reservation]),
        "10.244.0.0/28",
    );
    let config = json!({
        "strict_affinity": true, "claim_blocks": true, "blocks_per_node": 4, "cooldown_seconds": 9
    });
    let asked = json!({"op": "config"});
    question("config", asked, "config", config, "cooldown         9 s");
    let status = json!({
        "version": "0.1.0", "pid": 7, "store": "redb", "revision": 12, "pools": 1, "blocks": 2,
        "allocations": 3, "nodes": 4, "clients": 1
    });
    let asked = json!({"op": "status"});
    question(
        "status",
        asked,
        "status",
        status,
        "store   redb, revision 12",
    );
}

#[test]
fn a_check_ends_with_1_when_there_are_problems() {
    let report = |problems: Value| json!({"ok": {"report": {"pools": 1, "blocks": 1, "allocations": 1, "problems": problems}}});
    let (output, asked) = Server::with(vec![report(json!([]))]).run(&["check"]);
    assert!(out(&output).contains("no problem"));
    assert_eq!(asked, [json!({"op": "check"})]);

    let leak = json!([{"kind": "leak", "object": "10.244.0.9", "message": "runs nowhere", "hint": "release it"}]);
    let server = Server::with(vec![report(leak)]);
    let list = server.folder.path().join("in-use");
    std::fs::write(&list, "10.244.0.8 weft/c0/eth0\n").expect("write");
    let (output, asked) = server.run(&["check", "--in-use", "in-use"]);
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        text.contains("runs nowhere") && text.contains("release it"),
        "{text}"
    );
    let in_use = json!([{"address": "10.244.0.8", "handle": "weft/c0/eth0"}]);
    assert_eq!(asked, [json!({"op": "check", "in_use": in_use})]);
}

#[test]
fn a_release_is_bound_to_what_was_seen() {
    let released =
        json!({"ok": {"released": {"released": ["10.244.0.9"], "kept": [], "unallocated": []}}});
    let server = Server::with(vec![address("10.244.0.9", 5), released.clone()]);
    let (output, asked) = server.run(&["release", "--ip", "10.244.0.9"]);
    assert_eq!(out(&output), "released: 10.244.0.9\n");
    let held = json!([{"address": "10.244.0.9", "sequence": 5}]);
    assert_eq!(
        asked[1],
        json!({"op": "release", "by": "addresses", "addresses": held})
    );

    for (arguments, asked) in [
        (
            ["release", "--handle", "weft/c1/eth0"],
            json!({"op": "release", "by": "handle", "handle": "weft/c1/eth0"}),
        ),
        (
            ["release", "--identity", "web/db-0"],
            json!({"op": "release", "by": "identity", "identity": "web/db-0"}),
        ),
    ] {
        let (output, requests) = Server::with(vec![released.clone()]).run(&arguments);
        assert!(out(&output).contains("10.244.0.9"));
        assert_eq!(requests, [asked]);
    }
}

#[test]
fn a_watch_prints_events_until_the_server_goes() {
    let events = json!([
        {"event": {"snapshot": {"revision": 7, "nodes": [], "routes": [
            {"net": "10.244.1.0/24", "node": "n1", "encapsulation": "vxlan", "when": "always",
             "nat_outgoing": false}
        ]}}},
        {"event": {"route-gone": {"revision": 8, "net": "10.244.1.0/24"}}},
    ]);
    let (output, asked) = Server::with(vec![events.clone()]).run(&["watch", "--from", "6"]);
    assert_eq!(asked, [json!({"op": "watch", "from": 6})]);
    assert_eq!(
        String::from_utf8_lossy(&output.stdout),
        "7 snapshot\n7 route 10.244.1.0/24 is on n1, vxlan\n8 route 10.244.1.0/24 is gone\n"
    );
    assert!(err(&output).contains("hung up"), "{}", err(&output));
    let (output, _) = Server::with(vec![events]).run(&["watch", "--json"]);
    let lines = String::from_utf8_lossy(&output.stdout).into_owned();
    let revisions: Vec<_> = lines
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).expect("JSON"))
        .collect();
    assert_eq!(revisions[1]["route-gone"]["revision"], 8);
}

#[test]
fn a_refusal_is_told_with_its_remedy() {
    let refusal = json!({"error": {
        "code": "in-use", "message": "pool v4 holds 7 live addresses", "hint": "release them"
    }});
    let (output, _) = Server::with(vec![refusal]).run(&["pool", "delete", "v4"]);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(
        err(&output),
        "weft: pool v4 holds 7 live addresses; release them\n"
    );
    let (output, _) = Server::with(vec![json!({"ok": "done"})]).run(&["show"]);
    assert!(err(&output).contains("of another kind"), "{}", err(&output));
}

#[test]
fn a_server_that_is_not_there_is_told() {
    let output = Command::new(env!("CARGO_BIN_EXE_weft"))
        .args(["ipam", "status"])
        .env("WEFT_IPAM", "/nowhere/ipam.sock")
        .output()
        .expect("run weft");
    assert_eq!(output.status.code(), Some(1));
    let text = err(&output);
    assert!(
        text.contains("/nowhere/ipam.sock") && text.contains("is weft-ipam running"),
        "{text}"
    );
}

#[test]
fn what_another_program_keeps_is_checked_without_a_server() {
    let folder = tempfile::tempdir().expect("a folder");
    let check = |arguments: &[&str]| {
        Command::new(env!("CARGO_BIN_EXE_weft"))
            .args(["ipam", "check", "--json"])
            .args(arguments)
            .current_dir(folder.path())
            .output()
            .expect("run weft")
    };
    let network = folder.path().join("net");
    std::fs::create_dir(&network).expect("made");
    std::fs::write(network.join("10.22.0.5"), "c1\neth0").expect("write");
    std::fs::write(network.join("lock"), "").expect("write");
    std::fs::write(folder.path().join("nothing"), "").expect("write");

    let output = check(&["--host-local", "net"]);
    let report: Value = serde_json::from_str(&out(&output)).expect("JSON");
    assert_eq!(
        (&report["allocations"], &report["problems"]),
        (&json!(1), &json!([]))
    );

    let output = check(&["--host-local", "net", "--in-use", "nothing"]);
    assert_eq!(
        output.status.code(),
        Some(1),
        "nothing runs, so it is a leak"
    );
    let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(report["problems"][0]["kind"], "leak", "{report}");

    std::fs::write(folder.path().join("dump"), "{}").expect("write");
    let output = check(&["--calico", "dump"]);
    assert!(
        err(&output).contains("holds no Calico IPAM object"),
        "{}",
        err(&output)
    );
    assert!(err(&check(&["--calico", "absent"])).contains("absent"));
}

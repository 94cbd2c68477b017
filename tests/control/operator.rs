//! The operator's commands against a running forwarder.

use std::{
    io::{BufRead, BufReader},
    net::UdpSocket,
    process::{Child, Command, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;

use crate::{
    attach::{Pod, attached, pod, request},
    server::{LIMIT, Server},
};

fn weft(server: &Server, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_weft"));
    command
        .args(arguments)
        .arg("--control")
        .arg(&server.control)
        .stdin(Stdio::null());
    command
}

pub fn run(server: &Server, arguments: &[&str]) -> Output {
    weft(server, arguments).output().expect("run weft")
}

/// Its standard output is a pipe.
pub fn started(server: &Server, arguments: &[&str]) -> Child {
    let mut command = weft(server, arguments);
    command.stdout(Stdio::piped()).spawn().expect("run weft")
}

pub fn text(output: &Output) -> &str {
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    std::str::from_utf8(&output.stdout).expect("text")
}

pub fn json(output: &Output) -> Value {
    serde_json::from_str(text(output)).expect("JSON")
}

/// Sends packets to an address that nobody holds.
fn send_nowhere(pod: &Pod, packets: usize) {
    let send = || {
        let socket = UdpSocket::bind("10.1.0.1:0").expect("the pod's own address");
        // An unreachable error for an earlier packet may come in between.
        (0..packets)
            .filter(|_| socket.send_to(b"lost", "10.9.9.9:9").is_ok())
            .count()
    };
    assert!(pod.netns.run(send).expect("enter") > 0);
}

#[test]
fn status_shows_ports_and_counts_that_add_up() {
    weft_testkit::needs_namespaces!();
    let server = Server::start();
    let pod = pod(1);
    attached(&mut server.client(), &request("n1p1", 1), &pod);
    send_nowhere(&pod, 5);
    let until = Instant::now() + LIMIT;
    let status = loop {
        let status = json(&run(&server, &["status", "--json"]));
        let (came, went) = (&status["counters"]["came"], &status["counters"]["went"]);
        let dropped = status["counters"]["values"]["dropped_packets"].as_u64();
        if came == went && dropped >= Some(5) {
            break status;
        }
        assert!(Instant::now() < until, "{status:#}");
    };
    assert_eq!(status["status"]["node"], "n1");
    assert_eq!(status["ports"][0]["name"], "n1p1");
    let output = run(&server, &["status"]);
    let page = text(&output);
    for part in [
        "node    n1: weft ",
        "uplink  none",
        "n1p1",
        "10.1.0.1",
        "dropped packets",
        "balance: ",
    ] {
        assert!(page.contains(part), "{part:?} is not in:\n{page}");
    }
}

#[test]
fn drops_are_shown_by_reason() {
    weft_testkit::needs_namespaces!();
    let server = Server::start();
    assert_eq!(text(&run(&server, &["drops"])), "no packet was dropped\n");
    let pod = pod(1);
    attached(&mut server.client(), &request("n1p1", 1), &pod);
    send_nowhere(&pod, 3);
    let until = Instant::now() + LIMIT;
    while !text(&run(&server, &["drops"])).contains("Nobody holds the destination address.") {
        assert!(Instant::now() < until, "the drops never show");
    }
    let all = json(&run(&server, &["drops", "--json"]));
    let reason = |drop: &Value| drop["reason"] == "no_route" && drop["packets"].as_u64() >= Some(1);
    assert!(
        all.as_array().expect("a list").iter().any(reason),
        "{all:#}"
    );
    let count = all.as_array().map(Vec::len);
    assert_eq!(
        text(&run(&server, &["drops", "--all"]))
            .lines()
            .count()
            .checked_sub(1),
        count
    );
}

struct Watch {
    child: Child,
    lines: BufReader<std::process::ChildStdout>,
}

fn watch(server: &Server) -> Watch {
    let mut child = started(server, &["drops", "--watch", "--json"]);
    let lines = BufReader::new(child.stdout.take().expect("a pipe"));
    Watch { child, lines }
}

#[test]
fn watch_tells_what_moves_and_ends_with_its_reader() {
    weft_testkit::needs_namespaces!();
    let server = Server::start();
    let pod = pod(1);
    attached(&mut server.client(), &request("n1p1", 1), &pod);
    let Watch {
        mut child,
        mut lines,
    } = watch(&server);
    let told = thread::scope(|scope| {
        let told = scope.spawn(|| {
            // The pod's own kernel sends multicast that is dropped, too.
            loop {
                let mut line = String::new();
                lines.read_line(&mut line).expect("read");
                let moved: Value = serde_json::from_str(&line).expect("an object a line");
                if moved["reason"] == "no_route" {
                    return moved;
                }
            }
        });
        while !told.is_finished() {
            send_nowhere(&pod, 1);
            thread::sleep(Duration::from_millis(50));
        }
        told.join().expect("told")
    });
    assert!(
        told["packets"].as_u64() >= Some(1) && told["total"].as_u64() >= told["packets"].as_u64()
    );
    assert_eq!(told["sentence"], "Nobody holds the destination address.");
    drop(lines);
    let until = Instant::now() + LIMIT;
    let ended = loop {
        if let Some(status) = child.try_wait().expect("wait") {
            break status;
        }
        assert!(Instant::now() < until, "it goes on without a reader");
        thread::sleep(Duration::from_millis(20));
    };
    assert!(ended.success());
}

#[test]
fn without_a_forwarder_the_socket_is_named() {
    let mut server = Server::start();
    server.end();
    let output = run(&server, &["status"]);
    assert!(!output.status.success());
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        said.contains("control.sock") && said.contains("weft-forwarder"),
        "{said}"
    );
}

#[test]
fn a_labs_forwarders_are_found_by_their_nodes() {
    let name = format!("operator-{}", std::process::id());
    let lab = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_weft"));
        command
            .args(arguments)
            .stdin(Stdio::null())
            .output()
            .expect("run weft")
    };
    text(&lab(&["lab", "up", "--pods", "1", "--name", &name]));
    let found = lab(&["status", "--json", "--lab", &name, "--node", "n2"]);
    let missing = lab(&["status", "--lab", &name, "--node", "n7"]);
    text(&lab(&["lab", "down", "--name", &name]));
    assert_eq!(json(&found)["ports"][0]["name"], "n2p1");
    let said = String::from_utf8_lossy(&missing.stderr);
    assert!(
        said.contains("has no node n7; its nodes are n1, n2"),
        "{said}"
    );
    let gone = lab(&["status", "--lab", &name]);
    assert!(!gone.status.success());
}

#[test]
fn a_pipe_that_closes_early_is_no_fault() {
    let server = Server::start();
    let mut child = started(&server, &["drops", "--all"]);
    drop(child.stdout.take());
    assert!(child.wait().expect("wait").success());
}

#[test]
fn completions_know_the_commands() {
    for shell in ["bash", "zsh", "fish"] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_weft"));
        let output = command
            .args(["completions", shell])
            .output()
            .expect("run weft");
        for word in ["doctor", "status", "drops"] {
            assert!(text(&output).contains(word), "{shell}: {word}");
        }
    }
}

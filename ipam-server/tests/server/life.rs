//! Start, end, who is let in, and what watchers hear.

use std::{
    fs,
    os::unix::{
        fs::{MetadataExt, PermissionsExt},
        net::UnixListener,
    },
    process::Command,
    thread,
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::{Client, PATIENCE, Server, allocate, code, node, pool, spawn};

/// Nobody, as Debian has it.
const STRANGER: u32 = 65534;

/// What a process of another user hears when it asks for the status.
fn asked_by(server: &Server, uid: u32, gid: u32) -> String {
    heard_by(server, uid, gid, |socket| {
        ["-t", "10", "-", socket].map(str::to_owned).to_vec()
    })
}

/// What it hears before it asks: who is turned away may be so before that,
/// and socat would not read what comes once it cannot write.
fn told_unasked(server: &Server, uid: u32, gid: u32) -> String {
    heard_by(server, uid, gid, |socket| {
        ["-u", socket, "-"].map(str::to_owned).to_vec()
    })
}

fn heard_by(server: &Server, uid: u32, gid: u32, socat: impl Fn(&str) -> Vec<String>) -> String {
    // The folder is its owner's alone; only the socket is to judge.
    let open = fs::Permissions::from_mode(0o755);
    fs::set_permissions(server.folder(), open).expect("ours");
    let socket = format!("UNIX-CONNECT:{}", server.socket().display());
    let heard = Command::new("setpriv")
        .args([&format!("--reuid={uid}"), &format!("--regid={gid}")])
        .args(["--clear-groups", "socat"])
        .args(socat(&socket))
        .stdin(fs::File::open(request(server)).expect("a file"))
        .output()
        .expect("setpriv and socat run");
    String::from_utf8(heard.stdout).expect("UTF-8")
}

fn request(server: &Server) -> std::path::PathBuf {
    let path = server.folder().join("request");
    fs::write(&path, "{\"op\":\"status\"}\n").expect("a file");
    path
}

#[test]
fn strangers_are_turned_away() {
    let server = Server::with_config("[socket]\nmode = '0666'\nuids = [1234]\ngids = [4321]\n");
    let mode = fs::metadata(server.socket()).expect("a socket").mode();
    assert_eq!(mode & 0o777, 0o666);
    let told = told_unasked(&server, STRANGER, STRANGER);
    assert!(told.contains("\"code\":\"forbidden\""), "{told}");
    assert!(told.contains("65534"), "{told}");
    for (uid, gid) in [(1234, STRANGER), (STRANGER, 4321)] {
        let told = asked_by(&server, uid, gid);
        assert!(told.contains("\"ok\""), "{uid} {gid}: {told}");
    }
}

#[test]
fn the_socket_has_the_mode_and_owner_of_the_configuration() {
    let server = Server::with_config("[socket]\nmode = '0620'\nowner = '1234'\ngroup = '4321'\n");
    let file = fs::metadata(server.socket()).expect("a socket");
    assert_eq!(
        (file.uid(), file.gid(), file.mode() & 0o777),
        (1234, 4321, 0o620)
    );
    let usual = Server::start();
    let mode = fs::metadata(usual.socket()).expect("a socket").mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn a_stale_socket_is_taken_over_and_a_live_one_is_not() {
    let mut server = Server::start();
    let mut second = spawn(server.folder(), &server.folder().join("second.redb"));
    assert!(!second.wait().expect("a child").success());
    let log = server.log();
    assert!(log.contains("another server listens there"), "{log}");
    assert_eq!(server.client().revision(), 0, "the first one goes on");
    let status = server.end();
    assert!(status.success(), "{status}: {}", server.log());
    assert!(!server.socket().exists(), "the socket is removed");
    drop(UnixListener::bind(server.socket()).expect("nobody is there"));
    assert!(server.socket().exists());
    let server = server.again();
    assert_eq!(server.client().revision(), 0);
}

#[test]
fn the_configurations_pools_are_made_once() {
    let config = "[[pool]]\nname = 'a'\ncidr = '10.1.0.0/24'\n\
                  [[pool]]\nname = 'b'\ncidr = 'fd00::/112'\nblock_size = 120\n";
    let mut server = Server::with_config(config);
    let before = server.client().ask(json!({"op": "pools"}));
    assert_eq!(before["ok"]["pools"][1]["block_size"], 120, "{before}");
    assert!(server.end().success());
    let server = server.again();
    assert_eq!(server.client().ask(json!({"op": "pools"})), before);
}

#[test]
fn a_store_is_one_servers() {
    let server = Server::start();
    let other = tempfile::tempdir().expect("a folder");
    fs::write(other.path().join("ipam.toml"), "").expect("a file");
    let mut second = spawn(other.path(), &server.folder().join("ipam.redb"));
    assert!(!second.wait().expect("a child").success());
    let log = fs::read_to_string(other.path().join("log")).expect("a log");
    assert!(log.contains("stop the other weft-ipam"), "{log}");
    assert!(
        !other.path().join("ipam.sock").exists(),
        "it leaves no socket"
    );
}

#[test]
fn what_was_asked_before_the_end_is_answered() {
    let mut server = Server::start();
    server.client().done(pool("default", "10.1.0.0/16"));
    let mut clients: Vec<Client> = (0..20).map(|_| server.client()).collect();
    // Each is served, so that none waits to be accepted.
    for client in &mut clients {
        client.revision();
    }
    server.signal(Signal::SIGSTOP);
    for (n, client) in clients.iter_mut().enumerate() {
        client.send(format!("{}\n", allocate(&format!("c{n}"), "n1")));
    }
    // The requests lie in the sockets; the end comes with them.
    server.signal(Signal::SIGTERM);
    server.signal(Signal::SIGCONT);
    for client in &mut clients {
        let answer = client.answer();
        assert_eq!(code(&answer), "none", "{answer}");
    }
    assert!(server.wait().success());
    assert!(!server.socket().exists());
    let server = server.again();
    let status = server.client().ask(json!({"op": "status"}));
    assert_eq!(status["ok"]["status"]["allocations"], 20);
}

#[test]
fn too_many_clients_are_told() {
    let server = Server::with_config("[limits]\nclients = 3\n");
    thread::sleep(Duration::from_millis(100));
    let mut clients: Vec<Client> = (0..3).map(|_| server.client()).collect();
    for client in &mut clients {
        client.revision();
    }
    let mut fourth = server.client();
    assert_eq!(code(&fourth.answer()), "busy");
    assert_eq!(fourth.line(), None);
    for client in &mut clients {
        client.revision();
    }
    thread::sleep(Duration::from_millis(1200));
    clients[0].revision();
    server.client().revision();
    assert_eq!(clients[1].line(), None, "the one idle longest gave way");
    clients[0].revision();
}

fn watch(server: &Server, from: Option<u64>) -> Client {
    let mut client = server.client();
    let mut request = json!({"op": "watch"});
    if let Some(from) = from {
        request["from"] = json!(from);
    }
    client.send(format!("{request}\n"));
    client
}

fn event(client: &mut Client) -> (String, Value) {
    let answer = client.answer();
    let event = answer["event"].as_object().expect("an event");
    let (kind, body) = event.iter().next().expect("a kind");
    (kind.clone(), body.clone())
}

fn revision(event: &(String, Value)) -> u64 {
    event.1["revision"].as_u64().expect("a revision")
}

#[test]
fn a_watcher_hears_all_and_resumes() {
    let mut server = Server::start();
    let mut client = server.client();
    client.done(pool("default", "10.1.0.0/24"));
    let mut watcher = watch(&server, None);
    let (kind, body) = event(&mut watcher);
    assert_eq!(kind, "snapshot");
    assert_eq!((&body["nodes"], &body["routes"]), (&json!([]), &json!([])));
    client.done(node("n1", 1));
    let first = event(&mut watcher);
    assert_eq!(
        (first.0.as_str(), &first.1["node"]["name"]),
        ("node", &json!("n1"))
    );
    assert_eq!(code(&client.ask(allocate("c1", "n1"))), "none");
    let route = event(&mut watcher);
    assert_eq!(
        (route.0.as_str(), &route.1["route"]["node"]),
        ("route", &json!("n1"))
    );
    assert!(revision(&route) > revision(&first));
    // Another address of the same block moves no route.
    assert_eq!(code(&client.ask(allocate("c2", "n1"))), "none");
    client.done(node("n2", 2));
    let second = event(&mut watcher);
    assert_eq!(second.1["node"]["name"], "n2");
    client.done(json!({"op": "node-delete", "name": "n2"}));
    let gone = event(&mut watcher);
    assert_eq!(
        (gone.0.as_str(), &gone.1["name"]),
        ("node-gone", &json!("n2"))
    );

    let mut back = watch(&server, Some(revision(&route)));
    let heard: Vec<_> = (0..3).map(|_| event(&mut back)).collect();
    assert_eq!(heard, [route, second, gone.clone()]);
    for unknown in [0, revision(&gone) + 1000] {
        assert_eq!(event(&mut watch(&server, Some(unknown))).0, "snapshot");
    }
    let last = client.revision();
    assert!(server.end().success());
    assert_eq!(watcher.line(), None);
    let server = server.again();
    let again = event(&mut watch(&server, Some(last)));
    assert_eq!(again.0, "snapshot", "what another life told may not be all");
    assert_eq!(revision(&again), last);
    assert_eq!(again.1["routes"].as_array().map(Vec::len), Some(1));
}

#[test]
fn a_quiet_watch_lives() {
    let server = Server::start();
    let mut watcher = watch(&server, None);
    assert_eq!(event(&mut watcher).0, "snapshot");
    watcher.send("what a watcher says is ignored\n");
    let begun = Instant::now();
    assert_eq!(event(&mut watcher).0, "alive");
    assert!(begun.elapsed() < PATIENCE);
}

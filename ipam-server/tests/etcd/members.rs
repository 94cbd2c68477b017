//! Nodes that register with servers of their own on one etcd: they die, leave,
//! are cut off and come back.

use std::{
    fs,
    path::Path,
    process::{Child, Command},
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::{Value, json};
use tempfile::TempDir;
use weft_api::ipam::{Code, Event, Node, ProblemKind, Reply, Request};
use weft_socket::ipam::{Client, ClientError, Watch};

use crate::support::{
    etcd::Member,
    eventually,
    proxy::{Proxy, Way},
};

/// A server of one machine, killed with its guard.
struct Server {
    child: Child,
    folder: TempDir,
}

impl Server {
    /// With the shortest lease that etcd grants.
    fn start(port: u16) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let server = Self {
            child: spawn(folder.path(), port),
            folder,
        };
        server.ready();
        server
    }

    fn ready(&self) {
        eventually("it listens", || Client::connect(&self.socket()).is_ok());
    }

    fn socket(&self) -> std::path::PathBuf {
        self.folder.path().join("ipam.sock")
    }

    fn client(&self) -> Client {
        Client::connect(&self.socket()).expect("it runs")
    }

    fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.child.id()).expect("a pid");
        kill(Pid::from_raw(pid), signal).expect("it runs");
    }

    fn kill(&mut self) {
        // It may have ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    fn again(&mut self, port: u16) {
        self.kill();
        self.child = spawn(self.folder.path(), port);
        self.ready();
    }

    /// A forwarder's connection.
    fn register(&self, number: u8) -> Watch {
        self.try_register(&node(number)).expect("it is registered")
    }

    fn try_register(&self, node: &Node) -> Result<Watch, ClientError> {
        let mut client = self.client();
        client.request(&Request::NodeRegister(Box::new(node.clone())))?;
        Ok(client.watch(None)?.0)
    }

    fn nodes(&self) -> Vec<String> {
        match self.client().request(&Request::Nodes) {
            Ok(Reply::Nodes(nodes)) => nodes.iter().map(|node| node.name.to_string()).collect(),
            other => panic!("{other:?}"),
        }
    }

    /// What the node has of its own in the pod network.
    fn tunnel(&self, number: u8) -> Vec<std::net::IpAddr> {
        let Ok(Reply::Nodes(nodes)) = self.client().request(&Request::Nodes) else {
            panic!("nodes answers with nodes");
        };
        let name = format!("n{number}");
        let node = nodes.into_iter().find(|node| node.name.as_str() == name);
        node.map(|node| node.tunnel).unwrap_or_default()
    }

    /// But that a block's owner is withdrawn.
    fn has_no_problem(&self) {
        match self.ask(json!({"op": "check"})) {
            Reply::Report(mut report) => {
                let unfinished = ProblemKind::Unfinished;
                report.problems.retain(|one| one.kind != unfinished);
                assert_eq!(report.problems, []);
            }
            other => panic!("{other:?}"),
        }
    }

    fn ask(&self, request: Value) -> Reply {
        let request = serde_json::from_value(request).expect("a request");
        self.client().request(&request).expect("it is granted")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

fn spawn(folder: &Path, port: u16) -> Child {
    let config = folder.join("ipam.toml");
    fs::write(&config, "node_grace_seconds = 2\n").expect("a file");
    Command::new(env!("CARGO_BIN_EXE_weft-ipam"))
        .arg("--config")
        .arg(config)
        .arg("--socket")
        .arg(folder.join("ipam.sock"))
        .arg("--store")
        .arg(format!("etcd://127.0.0.1:{port}/weft/members"))
        .env("RUST_LOG", "warn")
        .spawn()
        .expect("start weft-ipam")
}

fn node(number: u8) -> Node {
    serde_json::from_value(json!({
        "name": format!("n{number}"),
        "underlay": [format!("192.0.2.{number}/24")],
        "vtep_mac": format!("02:00:00:00:01:{number:02x}"),
    }))
    .expect("a node")
}

/// Waits for the event that is about a node.
fn hears(watch: &mut Watch, what: &str, found: impl Fn(&Event) -> bool) {
    let until = Instant::now() + Duration::from_secs(30);
    while !found(&watch.next_event().expect("it speaks")) {
        assert!(Instant::now() < until, "it was not told that {what}");
    }
}

fn hears_gone(watch: &mut Watch, number: u8) {
    hears(watch, "a node is gone", |event| match event {
        Event::NodeGone { name, .. } => name.as_str() == format!("n{number}"),
        _ => false,
    });
}

fn hears_come(watch: &mut Watch, number: u8) {
    hears(watch, "a node is there", |event| match event {
        Event::Node { node, .. } => node.name.as_str() == format!("n{number}"),
        _ => false,
    });
}

#[test]
fn a_machine_that_dies_is_withdrawn_and_comes_back_with_its_blocks() {
    let etcd = Member::start(&[]);
    let (mut first, second) = (Server::start(etcd.client), Server::start(etcd.client));
    first.ask(json!({"op": "pool-create", "name": "p", "cidr": "10.7.0.0/22"}));
    let _one = first.register(1);
    let mut two = second.register(2);
    let attachment = json!({"network": "pods", "container": "c", "interface": "eth0"});
    first.ask(
        json!({"op": "allocate", "attachment": attachment, "node": "n1",
        "families": ["v4"]}),
    );
    // Longer than the lease.
    std::thread::sleep(Duration::from_secs(5));
    assert_eq!(second.nodes(), ["n1", "n2"], "both are kept alive");
    first.kill();
    hears_gone(&mut two, 1);
    match second.ask(json!({"op": "blocks"})) {
        Reply::Blocks(blocks) => {
            let owners = blocks.iter().filter_map(|block| block.owner.as_ref());
            let mut owners: Vec<_> = owners.map(ToString::to_string).collect();
            owners.sort_unstable();
            assert_eq!(owners, ["n1", "n2"]);
        }
        other => panic!("{other:?}"),
    }
    first.again(etcd.client);
    let _one = first.register(1);
    hears_come(&mut two, 1);
    assert_eq!(second.nodes(), ["n1", "n2"]);
}

#[test]
fn a_server_that_starts_anew_within_the_lease_withdraws_nobody() {
    let etcd = Member::start(&[]);
    let (mut first, second) = (Server::start(etcd.client), Server::start(etcd.client));
    drop(first.register(1));
    first.signal(Signal::SIGTERM);
    first.child.wait().expect("it ends");
    first.again(etcd.client);
    let _one = first.register(1);
    // The lease of the one before has run out meanwhile.
    std::thread::sleep(Duration::from_secs(6));
    assert_eq!(second.nodes(), ["n1"]);
}

#[test]
fn a_node_that_leaves_is_withdrawn_at_once_on_every_server() {
    let etcd = Member::start(&[]);
    let (first, second) = (Server::start(etcd.client), Server::start(etcd.client));
    let mut two = second.register(2);
    let one = first.register(1);
    hears_come(&mut two, 1);
    // The second server did not take the registration: it takes no leave.
    second.ask(json!({"op": "node-leave", "name": "n1"}));
    assert_eq!(second.nodes(), ["n1", "n2"]);
    first.ask(json!({"op": "node-leave", "name": "n1"}));
    hears_gone(&mut two, 1);
    drop(one);
    // A forwarder that dies alone is withdrawn by its server.
    let one = first.register(1);
    hears_come(&mut two, 1);
    drop(one);
    hears_gone(&mut two, 1);
}

#[test]
fn an_operators_record_has_no_lease() {
    let etcd = Member::start(&[]);
    let (mut first, second) = (Server::start(etcd.client), Server::start(etcd.client));
    let mut two = second.register(2);
    let _one = first.register(1);
    hears_come(&mut two, 1);
    first
        .client()
        .request(&Request::NodePut(Box::new(node(1))))
        .expect("a record of its own");
    first
        .client()
        .request(&Request::NodePut(Box::new(node(3))))
        .expect("another");
    first.kill();
    std::thread::sleep(Duration::from_secs(6));
    assert_eq!(second.nodes(), ["n1", "n2", "n3"]);
}

#[test]
fn who_is_cut_off_keeps_its_state_and_is_there_again_on_return() {
    let etcd = Member::start(&[]);
    let proxy = Proxy::before(etcd.client);
    let (cut_off, other) = (Server::start(proxy.port), Server::start(etcd.client));
    let mut two = other.register(2);
    let mut one = cut_off.register(1);
    hears_come(&mut two, 1);
    proxy.requests(Way::Lose);
    proxy.cut();
    hears_gone(&mut two, 1);
    let third = other.register(3);
    assert_eq!(cut_off.nodes(), ["n1", "n2"], "it knows what it knew");
    proxy.requests(Way::Pass);
    proxy.cut();
    hears_come(&mut one, 3);
    hears_come(&mut two, 1);
    eventually("both know all", || {
        cut_off.nodes() == ["n1", "n2", "n3"] && other.nodes() == ["n1", "n2", "n3"]
    });
    drop(third);
}

#[test]
fn a_server_that_stood_still_writes_its_node_again() {
    let etcd = Member::start(&[]);
    let (frozen, other) = (Server::start(etcd.client), Server::start(etcd.client));
    let mut two = other.register(2);
    let _one = frozen.register(1);
    hears_come(&mut two, 1);
    frozen.signal(Signal::SIGSTOP);
    hears_gone(&mut two, 1);
    // What it missed is compacted away before it looks.
    let status = etcd.must(&["endpoint", "status", "-w", "json"]);
    let status: Value = serde_json::from_str(&status).expect("JSON");
    let revision = status[0]["Status"]["header"]["revision"]
        .as_u64()
        .expect("a revision");
    etcd.must(&["compact", &revision.to_string()]);
    frozen.signal(Signal::SIGCONT);
    hears_come(&mut two, 1);
    assert_eq!(other.nodes(), ["n1", "n2"]);
}

#[test]
fn a_watch_whose_past_is_compacted_reconciles() {
    let etcd = Member::start(&[]);
    let proxy = Proxy::before(etcd.client);
    let (cut_off, other) = (Server::start(proxy.port), Server::start(etcd.client));
    let mut one = cut_off.register(1);
    let mut two = other.register(2);
    hears_come(&mut one, 2);
    proxy.requests(Way::Lose);
    proxy.cut();
    hears_gone(&mut two, 1);
    let third = other.register(3);
    other.ask(json!({"op": "node-leave", "name": "n3"}));
    drop(third);
    let _fourth = other.register(4);
    let status = etcd.must(&["endpoint", "status", "-w", "json"]);
    let status: Value = serde_json::from_str(&status).expect("JSON");
    let revision = status[0]["Status"]["header"]["revision"]
        .as_u64()
        .expect("a revision");
    etcd.must(&["compact", &revision.to_string()]);
    proxy.requests(Way::Pass);
    proxy.cut();
    hears(&mut one, "all is loaded anew", |event| {
        matches!(event, Event::Snapshot { .. })
    });
    hears_come(&mut two, 1);
    eventually("both know all", || {
        cut_off.nodes() == ["n1", "n2", "n4"] && other.nodes() == ["n1", "n2", "n4"]
    });
}

#[test]
fn of_two_machines_with_one_name_or_address_the_second_is_refused() {
    let etcd = Member::start(&[]);
    let (first, second) = (Server::start(etcd.client), Server::start(etcd.client));
    let _one = first.register(1);
    let namesake = Node {
        underlay: node(2).underlay,
        ..node(1)
    };
    let neighbour = Node {
        underlay: node(1).underlay,
        ..node(2)
    };
    for twin in [namesake, neighbour] {
        match second.try_register(&twin) {
            Err(ClientError::Refused(refusal)) => {
                assert_eq!(refusal.code, Code::Taken, "{refusal}");
                let message = &refusal.message;
                assert!(message.contains("192.0.2.1"), "{message}");
                assert!(message.contains("node n1"), "{message}");
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(second.nodes(), ["n1"]);
}

#[test]
fn a_nodes_own_address_outlives_its_server_and_its_lease() {
    let etcd = Member::start(&[]);
    let (mut first, second) = (Server::start(etcd.client), Server::start(etcd.client));
    first.ask(json!({"op": "pool-create", "name": "p", "cidr": "10.7.0.0/24"}));
    let _one = first.register(1);
    let own = first.tunnel(1);
    assert_eq!(own.len(), 1);
    let mut two = second.register(2);
    eventually("both are told", || second.tunnel(1) == own);
    assert_ne!(second.tunnel(2), own);
    first.kill();
    hears_gone(&mut two, 1);
    second.has_no_problem();
    // Nobody else is given it meanwhile.
    let attachment = json!({"network": "pods", "container": "c", "interface": "eth0"});
    let given = second.ask(
        json!({"op": "allocate", "attachment": attachment, "node": "n1",
        "families": ["v4"]}),
    );
    let Reply::Allocated(given) = given else {
        panic!("{given:?}");
    };
    assert_ne!(given.addresses[0].address, own[0]);
    first.again(etcd.client);
    let _one = first.register(1);
    assert_eq!(first.tunnel(1), own);
    hears_come(&mut two, 1);
    assert_eq!(second.tunnel(1), own);
    second.has_no_problem();
}

#[test]
fn who_is_cut_off_and_who_lost_its_lease_have_the_same_address_on_return() {
    let etcd = Member::start(&[]);
    let proxy = Proxy::before(etcd.client);
    let (cut_off, other) = (Server::start(proxy.port), Server::start(etcd.client));
    other.ask(json!({"op": "pool-create", "name": "p", "cidr": "10.7.0.0/24"}));
    let mut two = other.register(2);
    let _one = cut_off.register(1);
    hears_come(&mut two, 1);
    let own = cut_off.tunnel(1);
    assert_eq!(own.len(), 1);
    proxy.requests(Way::Lose);
    proxy.cut();
    hears_gone(&mut two, 1);
    assert_eq!(cut_off.tunnel(1), own, "it knows what it knew");
    other.has_no_problem();
    let _third = other.register(3);
    assert!(other.tunnel(3) != own && other.tunnel(3).len() == 1);
    proxy.requests(Way::Pass);
    proxy.cut();
    hears_come(&mut two, 1);
    assert_eq!(other.tunnel(1), own);
    other.has_no_problem();
    eventually("it is told of the third", || {
        cut_off.tunnel(3) == other.tunnel(3)
    });
}

#[test]
fn a_pool_that_another_server_makes_gives_each_node_an_address() {
    let etcd = Member::start(&[]);
    let (first, second) = (Server::start(etcd.client), Server::start(etcd.client));
    let (_one, _two) = (first.register(1), second.register(2));
    assert!(first.tunnel(1).is_empty());
    second.ask(json!({"op": "pool-create", "name": "p", "cidr": "10.7.0.0/24"}));
    eventually("both have one", || {
        let [one, two] = [1, 2].map(|number| first.tunnel(number));
        one.len() == 1 && two.len() == 1 && one != two
    });
    first.has_no_problem();
}

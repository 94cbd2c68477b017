//! Forwarders that register themselves with a real IPAM server.

use std::{
    fs::{self, File},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use nix::sys::signal::{Signal, kill};
use serde_json::Value;
use weft_api::{
    forwarder,
    ipam::{Node, Reply, Request},
};
use weft_lab::etcd::Etcd;
use weft_socket::ipam::{Client, ClientError};

use crate::server::{LIMIT, Server, command};

struct Ipam {
    child: Child,
    folder: tempfile::TempDir,
}

impl Ipam {
    fn start(grace: u32) -> Self {
        let ipam = Self::launch(grace, None);
        eventually("the IPAM server listens", || {
            Client::connect(&ipam.socket()).is_ok()
        });
        ipam
    }

    /// Not waited for. Without a store it has a file of its own.
    fn launch(grace: u32, store: Option<&str>) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let at = |name: &str| folder.path().join(name);
        fs::write(at("ipam.toml"), format!("node_grace_seconds = {grace}\n")).expect("a file");
        let child = Command::new(env!("CARGO_BIN_EXE_weft"))
            .arg0("weft-ipam")
            .arg("--config")
            .arg(at("ipam.toml"))
            .arg("--socket")
            .arg(at("ipam.sock"))
            .arg("--store")
            .arg(store.map_or_else(|| at("ipam.redb"), PathBuf::from))
            .env("RUST_LOG", "warn")
            .stdin(Stdio::null())
            .spawn()
            .expect("start weft-ipam");
        Self { child, folder }
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("ipam.sock")
    }

    fn nodes(&self) -> Vec<Node> {
        let mut client = Client::connect(&self.socket()).expect("it runs");
        match client.request(&Request::Nodes) {
            Ok(Reply::Nodes(nodes)) => nodes,
            other => panic!("{other:?}"),
        }
    }

    fn names(&self) -> Vec<String> {
        let nodes = self.nodes();
        nodes.iter().map(|node| node.name.to_string()).collect()
    }

    fn weft(&self, arguments: &[&str]) -> String {
        let output = Command::new(env!("CARGO_BIN_EXE_weft"))
            .args(arguments)
            .arg("--socket")
            .arg(self.socket())
            .output()
            .expect("run weft");
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).expect("text")
    }
}

impl Drop for Ipam {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let until = Instant::now() + LIMIT;
    while !holds() {
        assert!(Instant::now() < until, "it did not come: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Each test has a network of its own, 127.85.`net`.0/24.
fn config(name: &str, net: u8, number: u8, socket: &Path) -> String {
    format!(
        "node = '{name}'\nworkers = 1\n[uplink]\naddresses = ['127.85.{net}.{number}']\n\
         port = 4790\nvni = 7\n[ipam]\nsocket = '{}'\nregister = true\n\
         labels = {{ rack = 'a' }}\n",
        socket.display()
    )
}

fn peers(server: &Server) -> Vec<String> {
    let reply = server.client().ok(r#"{"op":"peers"}"#);
    let forwarder::Reply::Peers(peers) = reply else {
        panic!("peers answers with peers");
    };
    peers
        .iter()
        .map(|peer| peer.node.name.to_string())
        .collect()
}

#[test]
fn forwarders_make_themselves_known_to_each_other_and_leave() {
    let ipam = Ipam::start(30);
    let first = Server::with_config(&config("n1", 1, 1, &ipam.socket()));
    let mut second = Server::with_config(&config("n2", 1, 2, &ipam.socket()));
    eventually("n1 knows n2", || peers(&first) == ["n2"]);
    eventually("n2 knows n1", || peers(&second) == ["n1"]);
    let nodes = ipam.nodes();
    let node = serde_json::to_value(&nodes[0]).expect("JSON");
    assert_eq!(node["vni"], 7, "{node}");
    assert_eq!(node["port"], 4790, "{node}");
    assert_eq!(node["labels"]["rack"], "a", "{node}");
    assert!(node["registered"].is_u64(), "{node}");
    let listed: Value =
        serde_json::from_str(&ipam.weft(&["node", "list", "--json"])).expect("JSON");
    assert_eq!(listed[1]["name"], "n2", "{listed}");
    assert_eq!(listed[1]["state"], "alive", "{listed}");
    let page = ipam.weft(&["node", "show", "n2"]);
    assert!(page.contains("127.85.1.2"), "{page}");
    second.end();
    // Much sooner than its grace.
    assert_eq!(ipam.names(), ["n1"]);
    eventually("n1 knows nobody", || peers(&first).is_empty());
}

#[test]
fn a_forwarder_that_dies_is_withdrawn_after_the_grace() {
    let ipam = Ipam::start(1);
    let first = Server::with_config(&config("n1", 2, 1, &ipam.socket()));
    let second = Server::with_config(&config("n2", 2, 2, &ipam.socket()));
    eventually("n1 knows n2", || peers(&first) == ["n2"]);
    let mac = ipam.nodes()[1].vtep_mac;
    kill(second.pid(), Signal::SIGKILL).expect("it runs");
    eventually("n1 knows nobody", || peers(&first).is_empty());
    drop(second);
    let again = Server::with_config(&config("n2", 2, 2, &ipam.socket()));
    eventually("it is known again", || peers(&first) == ["n2"]);
    assert_eq!(ipam.nodes()[1].vtep_mac, mac, "it stays the same");
    drop(again);
}

#[test]
fn a_second_node_of_one_name_is_told_and_takes_nothing_from_the_first() {
    let ipam = Ipam::start(30);
    let first = Server::with_config(&config("n1", 3, 1, &ipam.socket()));
    eventually("n1 is known", || ipam.names() == ["n1"]);
    let known = ipam.nodes();
    let folder = tempfile::tempdir().expect("a folder");
    let (log, file) = (folder.path().join("log"), folder.path().join("f.toml"));
    fs::write(&file, config("n1", 3, 2, &ipam.socket())).expect("a file");
    let mut second = command()
        .arg("--control")
        .arg(folder.path().join("control.sock"))
        .arg("--config")
        .arg(&file)
        .stderr(File::create(&log).expect("a log"))
        .spawn()
        .expect("start the forwarder");
    eventually("the second is told of the first", || {
        let log = fs::read_to_string(&log).unwrap_or_default();
        log.contains("does not register this node") && log.contains("127.85.3.1")
    });
    let pid = i32::try_from(second.id()).expect("a pid");
    kill(nix::unistd::Pid::from_raw(pid), Signal::SIGTERM).expect("it runs");
    second.wait().expect("it ends");
    assert_eq!(ipam.nodes(), known, "its leave is not the first's");
    drop(first);
}

#[test]
fn a_forwarder_that_is_there_before_etcd_follows_once_it_is_up() {
    // It was there, so that its address is known; nobody has spoken with it.
    let mut etcd = Etcd::start().expect("an etcd");
    etcd.kill();
    let ipam = Ipam::launch(30, Some(&etcd.url()));
    let server = Server::with_config(&config("n1", 4, 1, &ipam.socket()));
    let status = || match server.client().ok(r#"{"op":"status"}"#) {
        forwarder::Reply::Status(status) => status.ipam.expect("it follows"),
        other => panic!("{other:?}"),
    };
    eventually("the IPAM server tells that it cannot answer", || {
        let client = Client::connect(&ipam.socket());
        client.is_ok_and(|mut client| {
            let asked = client.request(&Request::Nodes);
            matches!(asked, Err(ClientError::Refused(_)))
        })
    });
    assert!(!status().connected && status().revision.is_none());
    etcd.restart().expect("the etcd");
    let until = Instant::now() + 3 * LIMIT;
    while status().revision.is_none() {
        assert!(Instant::now() < until, "{:?}", status());
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(ipam.names(), ["n1"]);
    let second = Server::with_config(&config("n2", 4, 2, &ipam.socket()));
    eventually("n1 hears of n2", || peers(&server) == ["n2"]);
    drop(second);
}

#[test]
fn who_registers_needs_a_server_and_an_address() {
    for (config, expected) in [
        ("[ipam]\nregister = true\n", "there is no IPAM server"),
        (
            "[ipam]\nregister = true\nsocket = '/nowhere'\n",
            "there is no address to register",
        ),
    ] {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("f.toml");
        fs::write(&file, config).expect("a file");
        let output = command().arg("--config").arg(&file).output();
        let output = output.expect("run the forwarder");
        let told = String::from_utf8_lossy(&output.stderr);
        assert!(
            !output.status.success() && told.contains(expected),
            "{told}"
        );
    }
}

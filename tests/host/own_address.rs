//! Nodes that register with a real IPAM server: what it gives them is what
//! weft0 has, and nobody types an address.

use std::{
    fs,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use weft_api::{
    forwarder::Status,
    ipam::{Code, Node, Reply},
};
use weft_lab::{NodePlan, probe::Probe};
use weft_socket::ipam::{Client, ClientError};
use weft_testkit::needs_namespaces;

use crate::{
    cluster::{Cluster, Place, VXLAN_MTU, plan, said, talk_by},
    life::refused,
};

struct Ipam {
    child: Child,
    folder: tempfile::TempDir,
}

impl Ipam {
    fn start() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let at = |name: &str| folder.path().join(name);
        fs::write(at("ipam.toml"), "").expect("a file");
        let child = Command::new(env!("CARGO_BIN_EXE_weft"))
            .arg0("weft-ipam")
            .arg("--config")
            .arg(at("ipam.toml"))
            .arg("--socket")
            .arg(at("ipam.sock"))
            .arg("--store")
            .arg(at("ipam.redb"))
            .env("RUST_LOG", "warn")
            .stdin(Stdio::null())
            .spawn()
            .expect("start weft-ipam");
        let ipam = Self { child, folder };
        eventually("it listens", || Client::connect(&ipam.socket()).is_ok());
        ipam
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("ipam.sock")
    }

    fn ask(&self, request: Value) -> Reply {
        self.request(request).expect("granted")
    }

    fn request(&self, request: Value) -> Result<Reply, ClientError> {
        let request = serde_json::from_value(request).expect("a request");
        let mut client = Client::connect(&self.socket()).expect("it runs");
        client.request(&request)
    }

    /// As the plugin would for the node's pod.
    fn allocate(&self, plan: &NodePlan) {
        let pod = &plan.pods[0];
        self.ask(json!({"op": "allocate", "node": plan.name,
            "attachment": {"network": "pods", "container": pod.name, "interface": "eth0"},
            "families": ["v4", "v6"], "addresses": [pod.v4, pod.v6]}));
    }

    fn node(&self, name: &str) -> Node {
        let Reply::Nodes(nodes) = self.ask(json!({"op": "nodes"})) else {
            panic!("nodes answers with nodes");
        };
        let node = nodes.into_iter().find(|node| node.name.as_str() == name);
        node.expect("it is registered")
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
    let until = Instant::now() + Duration::from_secs(30);
    while !holds() {
        assert!(Instant::now() < until, "it did not come: {what}");
        thread::sleep(Duration::from_millis(20));
    }
}

fn cluster(socket: &Path) -> Cluster {
    let more = format!("[ipam]\nsocket = '{}'\nregister = true\n", socket.display());
    Cluster::new(plan(), &more, VXLAN_MTU)
}

#[test]
fn a_node_that_registers_is_given_what_weft0_has() {
    needs_namespaces!();
    let ipam = Ipam::start();
    ipam.ask(json!({"op": "pool-create", "name": "four", "cidr": "10.244.0.0/16"}));
    ipam.ask(json!({"op": "pool-create", "name": "six", "cidr": "fd00:10:244::/48"}));
    for plan in plan() {
        ipam.allocate(&plan);
    }
    let mut cluster = cluster(&ipam.socket());
    for place in &mut cluster.nodes {
        let own = ipam.node(&place.plan.name).tunnel;
        assert_eq!(own.len(), 2, "one of each family");
        place.plan.tunnel = [own[0], own[1]];
        eventually("its forwarder is told", || {
            let mut client = place.forwarder.client().expect("a client");
            client.status().expect("a status").tunnel == own
        });
        let page = said(place.weft(&["host", "up"]));
        assert!(
            page.starts_with(&format!("weft0 is up: {}", own[0])),
            "{page}"
        );
        let socket = ipam.socket();
        let socket = socket.to_str().expect("letters");
        let sheet = said(place.weft(&["node", "--socket", socket, "show", &place.plan.name]));
        let line = format!("tunnel     {}, {}", own[0], own[1]);
        assert!(sheet.contains(&line), "{sheet}");
        let list = said(place.weft(&["node", "--socket", socket, "list"]));
        assert!(list.contains(&own[0].to_string()), "{list}");
    }
    let [one, two, _] = &cluster.nodes[..] else {
        panic!("three nodes");
    };
    eventually("each knows the others' blocks", || {
        cluster.nodes.iter().all(|place| {
            let mut client = place.forwarder.client().expect("a client");
            let peers = client.peers().expect("peers");
            peers.len() == 2 && peers.iter().all(|peer| peer.node.blocks.len() == 2)
        })
    });
    let probes = [Probe::Ping, Probe::Tcp];
    talk_by(&probes, &one.itself(), &one.pod, VXLAN_MTU);
    talk_by(&probes, &one.itself(), &two.pod, VXLAN_MTU);
    talk_by(&probes, &one.itself(), &two.itself(), VXLAN_MTU);

    what_is_its_own_outlives_its_record(&ipam, one, two);

    // No pool may lead the tunnel's own datagrams into weft0.
    let late = json!({"op": "pool-create", "name": "late", "cidr": "192.0.2.0/24"});
    let ClientError::Refused(refusal) = ipam.request(late).expect_err("refused") else {
        panic!("no refusal");
    };
    assert_eq!(refusal.code, Code::Taken, "{refusal}");
    let named = ["host", "up", "--pool", "192.0.2.0/24"];
    refused(one, &named, &["holds 192.0.2.1", "addresses of their own"]);
}

/// The record is lost, as with a lease, and comes back.
fn what_is_its_own_outlives_its_record(ipam: &Ipam, one: &Place, two: &Place) {
    let probes = [Probe::Ping, Probe::Tcp];
    let status = || {
        let mut client = one.forwarder.client().expect("a client");
        client.status().expect("a status")
    };
    let before = status();
    ipam.ask(json!({"op": "node-leave", "name": one.plan.name}));
    eventually("its forwarder is told", || {
        let of = |status: &Status| status.ipam.as_ref().and_then(|ipam| ipam.revision);
        let gone = |place: &Place| {
            let mut client = place.forwarder.client().expect("a client");
            client.peers().expect("peers").len() == 1
        };
        of(&status()) > of(&before) && gone(two)
    });
    assert_eq!(status().tunnel, before.tunnel);
    talk_by(&probes, &one.itself(), &one.pod, VXLAN_MTU);
    // By hand it is known again.
    let record = json!({"op": "node-put", "name": one.plan.name,
        "underlay": [format!("{}/24", one.plan.underlay[0])], "vtep_mac": one.plan.vtep_mac,
        "tunnel": before.tunnel});
    ipam.ask(record);
    eventually("it is known again", || {
        let mut client = two.forwarder.client().expect("a client");
        client.peers().expect("peers").len() == 2
    });
    talk_by(&probes, &one.itself(), &one.pod, VXLAN_MTU);
}

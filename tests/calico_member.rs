//! `weft join calico` makes a node one of a Calico network: with a real etcd,
//! and with a node that takes the part of felix.

use std::{
    fs,
    process::{Command, Stdio},
    thread,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::{Value as Json, json};
use tempfile::NamedTempFile;
use weft_api::forwarder::Peer;
use weft_cni::{link::Attach, netns::Netns};
use weft_lab::{
    Forwarder, NodePlan, Outer, Pod, PodPlan, Spec, exchange,
    probe::{Family, Probe},
    use_executable,
    workshop::{self, Workshop},
};
use weft_testkit::needs_namespaces;

#[path = "support/calico_pod.rs"]
mod calico_pod;
#[path = "support/etcd.rs"]
mod etcd;
#[path = "support/felix.rs"]
mod felix;
#[path = "support/kernel_node.rs"]
mod kernel_node;
use calico_pod::add_pod_with_proxy_arp;
use etcd::{Etcd, Running, eventually};
use felix::{BLOCKS, Felix, NODES, put_block, record};
use kernel_node::{all, join, path};

const RESOURCES: &str = "/calico/resources/v3/projectcalico.org/";
const CONFIGURATION: &str = "node = 'n1'\nworkers = 2\n[uplink]\naddresses = ['192.0.2.1', \
             '2001:db8::1']\nport = 4789\nvni = 4096\nmtu = 1500\n";
const POD_MTU: u16 = 1430;
const THEIR_TUNNELS: [&str; 2] = ["10.244.2.0", "fd00:10:244:2::"];
const THEIR_BLOCKS: [&str; 2] = ["10.244.2.0/24", "fd00:10:244:2::/122"];
const OUR_TUNNELS: [&str; 2] = ["10.244.1.0", "fd00:10:244:1::"];
const OUR_V4: &str = "ipv4/block/10.244.1.0-24";

#[test]
fn a_member_and_a_calico_node_carry_each_other() {
    needs_namespaces!();
    let net = Network::new();
    let felix = net.felix();
    // Each has an address of the other's block.
    let ours = json!({"handle_id": "k8s-pod-network.ours", "secondary": {"node": "n1"}});
    let tunnel = json!({"handle_id": "vxlan-tunnel-addr-n2",
        "secondary": {"node": "n2", "type": "vxlanTunnelAddress"}});
    let held = [("10.244.2.0", tunnel), ("10.244.2.98", ours)];
    put_block(&net.etcd, THEIR_BLOCKS[0], Some("n2"), &held);
    let _member = net.member();
    net.wait_for_peers(2);
    net.lend("10.244.1.99", "n2");
    felix.follow();
    let lent = || net.blocks_of("n2").contains(&"10.244.1.99/32".to_owned());
    eventually("the lent address is a route", lent);

    let (ours, theirs) = net.pods();
    let host = net.their_host();
    let our_guest = net.our_pod(net.guest(0, "our-guest", "10.244.2.98"));
    let their_guest = net.their_pod(net.guest(1, "their-guest", "10.244.1.99"));
    for (from, to) in [(&ours, &theirs), (&theirs, &ours), (&host, &ours)] {
        for family in Family::ALL {
            for probe in Probe::ALL {
                probe.run(from, to, family, POD_MTU).expect("an answer");
            }
            exchange::bulk(from, to, family, 1 << 20).expect("every byte");
            let headers = if family == Family::V4 { 28 } else { 48 };
            let full = usize::from(POD_MTU) - headers;
            // What their host may send is larger than the pods' links.
            let larger = if from.name() == "n2" { full } else { full + 1 };
            let sizes = [1, 2, 63, 64, 1000, full - 1, full, larger, 4000];
            exchange::datagrams(from, to, family, sizes).expect("every datagram");
        }
    }
    for (from, to) in [
        (&our_guest, &theirs),
        (&theirs, &our_guest),
        (&ours, &their_guest),
    ] {
        exchange::bulk(from, to, Family::V4, 1 << 20).expect("every byte");
    }
    let tunnel = Pod {
        plan: PodPlan {
            v6: OUR_TUNNELS[1].parse().expect("an address"),
            ..net.guest(0, "n1", OUR_TUNNELS[0])
        },
        node: 0,
        netns: Netns::open(path(&net.ours).as_ref()).expect("the node again"),
    };
    for from in [&host, &theirs, &ours] {
        for family in Family::ALL {
            let answer = Probe::Ping.run(from, &tunnel, family, POD_MTU);
            answer.expect("the tunnel address answers");
        }
    }
}

#[test]
fn a_member_writes_what_calicos_node_would() {
    needs_namespaces!();
    let net = Network::new();
    let member = net.member();
    member.wait_for_its_start();
    let node = net.json(&format!("{NODES}n1"));
    assert_eq!(
        node["spec"],
        json!({
            "bgp": {"ipv4Address": "192.0.2.1/24", "ipv6Address": "2001:db8::1/64"},
            "ipv4VXLANTunnelAddr": OUR_TUNNELS[0],
            "ipv6VXLANTunnelAddr": OUR_TUNNELS[1],
            // That of IPv4, which follows from the name; a node has one.
            "vxlanTunnelMACAddrV6": "66:40:b3:ea:b6:3f",
        })
    );
    for field in ["uid", "creationTimestamp"] {
        assert!(node["metadata"][field].is_string(), "{field}: {node}");
    }
    let block = net.json(&format!("{BLOCKS}{OUR_V4}"));
    assert_eq!(block["affinity"], "host:n1");
    assert_eq!(block["allocations"][0], 0);
    assert_eq!(
        block["attributes"],
        json!([{"handle_id": "vxlan-tunnel-addr-n1",
            "secondary": {"node": "n1", "type": "vxlanTunnelAddress"}}])
    );
    let affinity = net.json("/calico/ipam/v2/host/n1/ipv4/block/10.244.1.0-24");
    assert_eq!(affinity, json!({"state": "confirmed", "deleted": false}));
    let handle = net.json("/calico/ipam/v2/handle/vxlan-v6-tunnel-addr-n1");
    assert_eq!(
        handle,
        json!({"block": {"fd00:10:244:1::/122": 1}, "deleted": false})
    );

    // One that dies leaves all, and has it again.
    drop(member);
    let mut member = net.member();
    member.wait_for_its_start();
    assert_eq!(net.json(&format!("{NODES}n1")), node);
    // A pod's address keeps all that it needs.
    net.lend("10.244.1.7", "n1");
    member.process.stop();
    assert_eq!(net.json(&format!("{NODES}n1")), node);
    let mut member = net.member();
    net.free("10.244.1.7");
    member.wait_for_its_start();
    member.process.stop();
    let left = net.etcd.rows("/calico/ipam/v2/");
    assert_eq!(left, [], "all is given back");
    assert_eq!(net.etcd.rows(NODES), []);
}

/// The record is another's: it stays, and keeps what the other wrote.
#[test]
fn a_record_that_was_there_stays_there() {
    needs_namespaces!();
    let net = Network::new();
    let before = json!({
        "kind": "Node",
        "apiVersion": "projectcalico.org/v3",
        "metadata": {"name": "n1", "uid": "u", "labels": {"rack": "1"}},
        "spec": {"bgp": {"asNumber": 64512}},
    });
    net.etcd.put(&format!("{NODES}n1"), &before.to_string());
    net.pool("elsewhere", "10.9.0.0/24", |spec| {
        spec["nodeSelector"] = "rack == '2'".into();
    });
    let mut member = net.member();
    let published = || net.json(&format!("{NODES}n1"))["spec"]["ipv4VXLANTunnelAddr"].is_string();
    eventually("it is published", published);
    member.process.stop();
    let after = net.json(&format!("{NODES}n1"));
    assert_eq!(after["spec"]["bgp"]["asNumber"], 64512);
    assert_eq!(after["metadata"]["labels"]["rack"], "1");
    assert_eq!(after["spec"]["ipv4VXLANTunnelAddr"], OUR_TUNNELS[0]);
    let held = net.json(&format!("{BLOCKS}{OUR_V4}"));
    assert_eq!(held["affinity"], "host:n1");
}

#[test]
fn nodes_that_come_and_go_are_peers_that_come_and_go() {
    needs_namespaces!();
    let mut net = Network::new();
    let _felix = net.felix();
    let _member = net.member();
    net.wait_for_peers(2);
    let third = || {
        let (address, tunnel) = (
            ["192.0.2.3/24", "2001:db8::3/64"],
            ["10.244.3.0", "fd00::3"],
        );
        net.etcd
            .put(&format!("{NODES}n3"), &record("n3", address, tunnel));
        put_block(&net.etcd, "10.244.3.0/24", Some("n3"), &[]);
    };
    third();
    net.wait_for_peers(4);
    eventually("its block", || net.blocks_of("n3") == ["10.244.3.0/24"]);
    net.etcd.control(&["del", &format!("{NODES}n3")]);
    net.wait_for_peers(2);
    third();
    net.wait_for_peers(4);

    let pid = i32::try_from(net.forwarder.pid()).expect("a pid");
    kill(Pid::from_raw(pid), Signal::SIGKILL).expect("it lives");
    eventually("the forwarder is gone", || net.forwarder.client().is_err());
    let again = net.workshop.forwarder("n1", CONFIGURATION, &net.ours);
    net.forwarder = again.expect("a forwarder");
    net.wait_for_peers(4);
}

#[test]
fn two_members_and_a_calico_node_carry_each_other() {
    needs_namespaces!();
    let net = Network::new();
    let felix = net.felix();
    let _member = net.member();
    net.wait_for_peers(2);
    net.reserve(&["10.244.0.0/24"]);
    let third = net.third_node();
    let mut member = Member::start(&mut net.command_of(&third.forwarder, "203.0.113.3/24"));
    net.wait_for_peers(3);
    eventually("the other member's peers", || {
        peers(&third.forwarder).len() == 4
    });
    felix.follow();
    let (ours, theirs) = net.pods();
    for (from, to) in [
        (&ours, &third.pod),
        (&third.pod, &ours),
        (&theirs, &third.pod),
        (&third.pod, &theirs),
    ] {
        exchange::bulk(from, to, Family::V4, 1 << 20).expect("every byte");
    }
    member.process.stop();
    net.wait_for_peers(2);
    exchange::bulk(&ours, &theirs, Family::V4, 1 << 20).expect("every byte");
}

#[test]
fn garbage_is_left_out_and_takes_nothing_else_away() {
    needs_namespaces!();
    let net = Network::new();
    let _felix = net.felix();
    let key = |name: &str| format!("{NODES}{name}");
    let member = net.member();
    net.wait_for_peers(2);
    net.etcd
        .put(&key("bare"), r#"{"metadata":{"name":"bare"},"spec":{}}"#);
    net.etcd.put(&key("torn"), "{");
    net.etcd.put(
        &key("other"),
        &record("twin", ["192.0.2.9/24", ""], ["10.244.9.9", ""]),
    );
    let twin = record(
        "twin",
        ["192.0.2.2/24", "2001:db8::2/64"],
        ["10.244.9.9", "fd00::9"],
    );
    net.etcd
        .put(&format!("{BLOCKS}ipv4/block/10.244.7.0-24"), "no JSON");
    net.pool("overlap", "10.244.2.0/24", |_| {});
    net.etcd.put(
        &format!("{RESOURCES}felixconfigurations/default"),
        r#"{"spec":{"vxlanVNI":-1}}"#,
    );
    // Its host has another name now, and the same addresses.
    net.etcd.put(&key("twin"), &twin);
    eventually("the newer of the two", || {
        net.names() == ["twin", "twin/v6"]
    });
    net.etcd.control(&["del", &key("twin")]);
    eventually("the older one again", || net.names() == ["n2", "n2/v6"]);
    assert_eq!(net.blocks_of("n2"), [THEIR_BLOCKS[0]]);
    let told = member.log();
    for words in [
        "nodes/torn",
        "nodes/other",
        "block/10.244.7.0-24",
        "ippools/overlap",
        "felixconfigurations/default",
        "nodes/n2: 192.0.2.2",
    ] {
        assert!(told.contains(words), "{words}: {told}");
    }
    assert!(!told.contains("nodes/bare"), "{told}");
}

/// While the member hears nothing, a peer goes and etcd forgets how.
#[test]
fn what_etcd_compacted_unseen_is_read_anew() {
    needs_namespaces!();
    let mut net = Network::new();
    let _ = net.felix();
    let member = net.member();
    net.wait_for_peers(2);
    member.process.signal(Signal::SIGSTOP);
    // Ends the member's stream, so that nothing waits in it.
    net.etcd.restart();
    net.etcd.control(&["del", &format!("{NODES}n2")]);
    net.etcd.put("/other", "x");
    net.etcd.compact();
    member.process.signal(Signal::SIGCONT);
    net.wait_for_peers(0);
    net.wait_for_node("n1");
}

#[test]
fn traffic_goes_on_while_etcd_is_gone() {
    needs_namespaces!();
    let mut net = Network::new();
    net.felix();
    let _member = net.member();
    net.wait_for_peers(2);
    net.felix_again().follow();
    let (ours, theirs) = net.pods();
    net.etcd.0.kill();
    for family in Family::ALL {
        exchange::bulk(&ours, &theirs, family, 1 << 20).expect("every byte");
    }
    net.etcd.restart();
    let third = record("n3", ["192.0.2.3/24", ""], ["10.244.3.0", ""]);
    net.etcd.put(&format!("{NODES}n3"), &third);
    net.wait_for_peers(3);
    exchange::bulk(&theirs, &ours, Family::V4, 1 << 20).expect("every byte");
}

/// What a crash left in the middle of a claim is finished, and what another
/// holds by now is given up.
#[test]
fn a_claim_that_was_begun_is_ended() {
    needs_namespaces!();
    let net = Network::new();
    let affinity = |cidr: &str| format!("/calico/ipam/v2/host/n1/ipv4/block/{cidr}");
    let pending = r#"{"state":"pending","deleted":false}"#;
    put_block(&net.etcd, "10.244.1.0/24", Some("n1"), &[]);
    net.etcd.put(&affinity("10.244.1.0-24"), pending);
    put_block(&net.etcd, THEIR_BLOCKS[0], Some("n2"), &[]);
    net.etcd.put(&affinity("10.244.2.0-24"), pending);
    let _member = net.member();
    net.wait_for_node("n1");
    let affinities = net.etcd.rows("/calico/ipam/v2/host/n1/ipv4/");
    let confirmed = r#"{"state":"confirmed","deleted":false}"#.to_owned();
    assert_eq!(affinities, [(affinity("10.244.1.0-24"), confirmed)]);
}

/// As many as there is room for; the one too many is told so, and takes what
/// another gives up.
#[test]
fn nodes_that_start_together_get_a_block_each() {
    needs_namespaces!();
    let net = Network::new();
    net.reserve(&["10.244.0.0/24"]);
    let nodes: Vec<_> = (1..=4).map(|place| net.lone_node(place)).collect();
    let command =
        |place: usize| net.command_of(&nodes[place].1, &format!("198.51.100.{}/32", place + 1));
    let members: Vec<_> = (0..3)
        .map(|place| Member::start(&mut command(place)))
        .collect();
    eventually("three nodes", || net.etcd.rows(NODES).len() == 3);
    let blocks = net.etcd.rows(&format!("{BLOCKS}ipv4"));
    assert_eq!(blocks.len(), 3, "{blocks:?}");
    for (_, forwarder) in &nodes[..3] {
        eventually("two peers each", || peers(forwarder).len() == 2);
    }
    let output = command(3).output().expect("it runs");
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(
        told.contains("every block of 10.244.0.0/22 is another node's"),
        "{told}"
    );
    drop(members);
    // An old block of nobody's pods.
    let (key, value) = &blocks[0];
    let block: Json = serde_json::from_str(value).expect("JSON");
    let cidr = block["cidr"].as_str().expect("a CIDR");
    put_block(&net.etcd, cidr, Some("lone9"), &[]);
    let _late = Member::start(&mut command(3));
    eventually("the block is the late one's", || {
        net.json(key)["affinity"] == "host:lone4"
    });
}

#[test]
fn a_network_that_does_not_fit_is_refused_with_the_remedy() {
    needs_namespaces!();
    let net = Network::new();
    let felix = format!("{RESOURCES}felixconfigurations/default");
    let refused = |words: &str| {
        let output = net.command().output().expect("it runs");
        let told = String::from_utf8_lossy(&output.stderr);
        assert!(
            !output.status.success() && told.contains(words),
            "{words}: {told}"
        );
    };
    net.etcd.put(&felix, r#"{"spec":{"vxlanPort":8472}}"#);
    refused("uplink.port");
    net.etcd.control(&["del", &felix]);
    net.etcd
        .put("/calico/ipam/v2/config", r#"{"strict_affinity":true}"#);
    refused("auto_allocate_blocks is off");
    net.etcd.control(&["del", "/calico/ipam/v2/config"]);
    for name in ["v4", "v6-1", "v6-2"] {
        net.pool(name, "10.244.0.0/22", |spec| {
            spec["vxlanMode"] = "Never".into();
            spec["ipipMode"] = "Always".into();
        });
    }
    refused("vxlanMode");
    net.etcd.control(&["del", "--prefix", RESOURCES]);
    refused("no pool");
}

/// Our node with a forwarder, the kernel's node, and an etcd.
struct Network {
    etcd: Etcd,
    plan: Vec<NodePlan>,
    ours: Netns,
    theirs: Netns,
    forwarder: Forwarder,
    workshop: Workshop,
}

/// A second member, behind the kernel's node.
struct Third {
    forwarder: Forwarder,
    pod: Pod,
    _node: Netns,
}

/// With what it logs, which is shown when the test fails.
struct Member {
    process: Running,
    log: NamedTempFile,
}

impl Member {
    fn start(command: &mut Command) -> Self {
        let log = NamedTempFile::new().expect("a file");
        let end = log.reopen().expect("the file");
        let process = Running(command.stderr(end).spawn().expect("it runs"));
        Self { process, log }
    }

    fn log(&self) -> String {
        fs::read_to_string(self.log.path()).expect("a log")
    }

    fn wait_for_its_start(&self) {
        eventually("the forwarder is told", || {
            self.log().contains("the forwarder was told")
        });
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("{}", self.log());
        }
    }
}

impl Network {
    fn new() -> Self {
        use_executable(env!("CARGO_BIN_EXE_weft"));
        let spec = Spec {
            outer: Outer::V4,
            ..Spec::default()
        };
        let [ours, theirs] = ["ours", "theirs"].map(|name| workshop::node(name).expect("a node"));
        join(&ours, &theirs);
        let workshop = Workshop::open().expect("a workshop");
        let forwarder = workshop.forwarder("n1", CONFIGURATION, &ours);
        let net = Self {
            etcd: Etcd::start(),
            plan: spec.plan(),
            forwarder: forwarder.expect("a forwarder"),
            ours,
            theirs,
            workshop,
        };
        net.pool("v4", "10.244.0.0/22", |_| {});
        net.pool("v6-1", "fd00:10:244:1::/122", |_| {});
        net.pool("v6-2", THEIR_BLOCKS[1], |_| {});
        net.reserve(&["10.244.0.0/24", "10.244.2.0/23", "fd00:10:244:2::/122"]);
        net
    }

    fn pool(&self, name: &str, cidr: &str, change: impl Fn(&mut Json)) {
        let mut pool = json!({
            "kind": "IPPool",
            "apiVersion": "projectcalico.org/v3",
            "metadata": {"name": name, "uid": "u", "creationTimestamp": "2026-01-31T12:00:00Z"},
            "spec": {
                "cidr": cidr,
                "vxlanMode": "Always",
                "ipipMode": "Never",
                "natOutgoing": true,
                "blockSize": if cidr.contains(':') { 122 } else { 24 },
                "nodeSelector": "all()",
                "allowedUses": ["Workload", "Tunnel"],
            },
        });
        change(&mut pool["spec"]);
        self.etcd
            .put(&format!("{RESOURCES}ippools/{name}"), &pool.to_string());
    }

    fn reserve(&self, cidrs: &[&str]) {
        let reservation = json!({"metadata": {"name": "r"}, "spec": {"reservedCIDRs": cidrs}});
        self.etcd.put(
            &format!("{RESOURCES}ipreservations/r"),
            &reservation.to_string(),
        );
    }

    fn felix(&self) -> Felix<'_> {
        let underlay = ["192.0.2.2/24", "2001:db8::2/64"];
        Felix::start(
            "n2",
            &self.theirs,
            &self.etcd,
            underlay,
            THEIR_TUNNELS,
            THEIR_BLOCKS,
        )
    }

    fn felix_again(&self) -> Felix<'_> {
        Felix::of("n2", &self.theirs, &self.etcd)
    }

    fn command(&self) -> Command {
        let mut command = self.command_of(&self.forwarder, "192.0.2.1/24");
        command.args(["--public-ip", "2001:db8::1/64"]);
        command
    }

    fn command_of(&self, forwarder: &Forwarder, address: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_weft"));
        command
            .args(["join", "calico", "--public-ip", address])
            .arg(format!("--etcd={}", self.etcd.url()))
            .arg("--control")
            .arg(&forwarder.control)
            .stdin(Stdio::null());
        command
    }

    fn member(&self) -> Member {
        Member::start(&mut self.command())
    }

    fn json(&self, key: &str) -> Json {
        let rows = self.etcd.rows(key);
        let row = rows.first();
        row.map_or(Json::Null, |(_, value)| {
            serde_json::from_str(value).expect("JSON")
        })
    }

    fn wait_for_node(&self, name: &str) {
        let key = format!("{NODES}{name}");
        eventually("the node's record", || !self.json(&key).is_null());
    }

    fn wait_for_peers(&self, count: usize) {
        eventually("the forwarder's peers", || {
            peers(&self.forwarder).len() == count
        });
    }

    fn names(&self) -> Vec<String> {
        let peers = peers(&self.forwarder).into_iter();
        let mut names: Vec<_> = peers.map(|peer| peer.node.name.to_string()).collect();
        names.sort();
        names
    }

    fn blocks_of(&self, name: &str) -> Vec<String> {
        let peers = peers(&self.forwarder).into_iter();
        let of_name = peers.filter(|peer| peer.node.name.as_str() == name);
        of_name
            .flat_map(|peer| peer.node.blocks)
            .map(|block| block.to_string())
            .collect()
    }

    /// As Calico's IPAM of another node would take it.
    fn lend(&self, address: &str, node: &str) {
        self.rewrite(|block| {
            let held = json!({"handle_id": format!("k8s-pod-network.{address}"),
                "secondary": {"node": node, "pod": "p", "namespace": "default"}});
            let attributes = block["attributes"].as_array_mut().expect("attributes");
            attributes.push(held);
            let index = attributes.len() - 1;
            let ordinal = ordinal(address);
            block["allocations"][ordinal] = index.into();
            let free = block["unallocated"].as_array_mut().expect("a list");
            free.retain(|free| *free != ordinal);
        });
    }

    fn free(&self, address: &str) {
        self.rewrite(|block| {
            let ordinal = ordinal(address);
            block["allocations"][ordinal] = Json::Null;
            block["attributes"]
                .as_array_mut()
                .expect("attributes")
                .pop();
            let free = block["unallocated"].as_array_mut().expect("a list");
            free.push(ordinal.into());
        });
    }

    fn rewrite(&self, change: impl Fn(&mut Json)) {
        let key = format!("{BLOCKS}{OUR_V4}");
        let mut block = self.json(&key);
        change(&mut block);
        self.etcd.put(&key, &block.to_string());
    }

    fn guest(&self, node: usize, name: &str, v4: &str) -> PodPlan {
        PodPlan {
            name: name.to_owned(),
            v4: v4.parse().expect("an address"),
            ..self.plan[node].pods[1].clone()
        }
    }

    fn pods(&self) -> (Pod, Pod) {
        let [ours, theirs] = [0, 1].map(|node| self.plan[node].pods[0].clone());
        (self.our_pod(ours), self.their_pod(theirs))
    }

    fn our_pod(&self, plan: PodPlan) -> Pod {
        plug(plan, &self.ours, &self.forwarder)
    }

    fn their_pod(&self, plan: PodPlan) -> Pod {
        let netns = workshop::node(&plan.name).expect("a pod");
        let pod = Pod {
            plan,
            node: 1,
            netns,
        };
        add_pod_with_proxy_arp(&self.theirs, &pod, POD_MTU);
        pod
    }

    /// The kernel's node, which speaks with pods from its tunnel addresses.
    fn their_host(&self) -> Pod {
        let [v4, v6] = THEIR_TUNNELS;
        let plan = PodPlan {
            v6: v6.parse().expect("an address"),
            ..self.guest(1, "n2", v4)
        };
        let netns = Netns::open(path(&self.theirs).as_ref()).expect("the node again");
        Pod {
            plan,
            node: 1,
            netns,
        }
    }

    fn third_node(&self) -> Third {
        let node = workshop::node("third").expect("a node");
        let link = format!(
            "ip link add eth1 type veth peer name eth0 netns {}",
            path(&node)
        );
        all(
            &self.theirs,
            &[
                &link,
                "ip link set eth1 up",
                "ip address add 203.0.113.254/24 dev eth1",
            ],
        );
        all(
            &node,
            &[
                "ip link set lo up",
                "ip link set eth0 up",
                "ip address add 203.0.113.3/24 dev eth0",
                "ip route add default via 203.0.113.254",
            ],
        );
        all(&self.ours, &["ip route add 203.0.113.0/24 via 192.0.2.2"]);
        let configuration = "node = 'n3'\nworkers = 1\n[uplink]\naddresses = ['203.0.113.3']\n\
                             port = 4789\nvni = 4096\nmtu = 1500\n";
        let forwarder = self
            .workshop
            .forwarder("n3", configuration, &node)
            .expect("a forwarder");
        let plan = PodPlan {
            mac: "02:00:00:03:00:01".parse().expect("a MAC"),
            ..self.guest(0, "n3p1", "10.244.3.11")
        };
        let pod = plug(plan, &node, &forwarder);
        Third {
            forwarder,
            pod,
            _node: node,
        }
    }

    /// With an address and nobody to speak with.
    fn lone_node(&self, place: u8) -> (Netns, Forwarder) {
        let name = format!("lone{place}");
        let node = workshop::node(&name).expect("a node");
        let address = format!("ip address add 198.51.100.{place}/32 dev lo");
        all(&node, &["ip link set lo up", &address]);
        let configuration = format!(
            "node = '{name}'\nworkers = 1\n[uplink]\naddresses = ['198.51.100.{place}']\nport = \
             4789\nvni = 4096\nmtu = 1500\n"
        );
        let forwarder = self.workshop.forwarder(&name, &configuration, &node);
        (node, forwarder.expect("a forwarder"))
    }
}

fn plug(plan: PodPlan, node: &Netns, forwarder: &Forwarder) -> Pod {
    let netns = workshop::node(&plan.name).expect("a pod");
    let pod = Pod {
        plan,
        node: 0,
        netns,
    };
    let attach = Attach::Tap { queues: 2 };
    pod.plug(attach, POD_MTU, node, forwarder).expect("wired");
    pod
}

fn ordinal(address: &str) -> usize {
    let (_, last) = address.rsplit_once('.').expect("an address");
    last.parse().expect("a number")
}

fn peers(forwarder: &Forwarder) -> Vec<Peer> {
    let mut client = forwarder.client().expect("a client");
    client.peers().expect("the peers")
}

//! `weft join flannel` makes a node one of a flannel network: with a real
//! etcd, and with a node that takes the part of flanneld and programs the
//! kernel's VXLAN by what the keys say and nothing else.

use std::{
    os::fd::AsRawFd,
    path::Path,
    process::{Command, Stdio},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value as Json;
use weft_api::forwarder::Peer;
use weft_cni::{link::Attach, netns::Netns};
use weft_lab::{
    Forwarder, NodePlan, Outer, Pod, PodPlan, Spec, exchange,
    probe::{Family, Probe},
    use_executable,
    workshop::{self, Workshop},
};
use weft_testkit::{
    cni::{Attachment, Runtime},
    needs_namespaces,
};

#[path = "support/bridge_pod.rs"]
mod bridge_pod;
#[path = "support/etcd.rs"]
mod etcd;
#[path = "support/kernel_node.rs"]
mod kernel_node;
use bridge_pod::add_pod_to_bridge;
use etcd::{Etcd, Running, eventually};
use kernel_node::{all, join, route_packets};

const SUBNETS: &str = "/coreos.com/network/subnets/";
/// One subnet of each family is for us, the other is theirs.
const CONFIG: &str = r#"{"EnableIPv6":true,"Network":"10.244.0.0/16","SubnetMin":"10.244.1.0",
    "SubnetMax":"10.244.2.0","IPv6Network":"fd00:10:244::/48","IPv6SubnetMin":"fd00:10:244:1::",
    "IPv6SubnetMax":"fd00:10:244:2::","Backend":{"Type":"vxlan"}}"#;
const THREE: &str = r#"{"Network":"10.244.0.0/16","SubnetMin":"10.244.1.0",
    "SubnetMax":"10.244.3.0","Backend":{"Type":"vxlan"}}"#;
const OURS: &str = "10.244.1.0-24&fd00:10:244:1::-64";
const THEIRS: &str = "10.244.2.0-24&fd00:10:244:2::-64";
const THEIR_LEASE: &str = concat!(
    r#"{"PublicIP":"192.0.2.2","PublicIPv6":"2001:db8::2","BackendType":"vxlan","#,
    r#""BackendData":{"VNI":1,"VtepMAC":"66:00:00:00:02:04"},"#,
    r#""BackendV6Data":{"VNI":1,"VtepMAC":"66:00:00:00:02:06"}}"#
);
const OUR_LEASE: &str = concat!(
    r#"{"PublicIP":"192.0.2.1","PublicIPv6":"2001:db8::1","BackendType":"vxlan","#,
    r#""BackendData":{"VNI":1,"VtepMAC":"02:00:00:00:01:01"},"#,
    r#""BackendV6Data":{"VNI":1,"VtepMAC":"02:00:00:00:01:01"}}"#
);
const CONFIGURATION: &str = "node = 'n1'\nworkers = 2\n[uplink]\naddresses = ['192.0.2.1', \
             '2001:db8::1']\nport = 8472\nvni = 1\nmtu = 1500\n";
const POD_MTU: u16 = 1430;

#[test]
fn a_member_and_a_flannel_node_carry_each_other() {
    needs_namespaces!();
    let net = Network::new();
    let (flanneld, _member) = (net.flanneld(), net.member());
    assert_eq!(awaited(&net.etcd, OURS), OUR_LEASE, "as flannel writes it");
    flanneld.follow();
    net.wait_for_peers(2);
    let (ours, theirs) = net.pods();
    for (from, to) in [(&ours, &theirs), (&theirs, &ours)] {
        for family in Family::ALL {
            for probe in Probe::ALL {
                probe.run(from, to, family, POD_MTU).expect("an answer");
            }
            exchange::bulk(from, to, family, 1 << 20).expect("every byte");
            let headers = if family == Family::V4 { 28 } else { 48 };
            let full = usize::from(POD_MTU) - headers;
            let sizes = [1, 2, 63, 64, 1000, full - 1, full, full + 1, 4000];
            exchange::datagrams(from, to, family, sizes).expect("every datagram");
        }
    }
}

#[test]
fn what_happens_to_leases_happens_to_peers_and_no_more() {
    needs_namespaces!();
    let net = Network::new();
    let their_key = format!("{SUBNETS}{THEIRS}");
    net.etcd.put(&their_key, THEIR_LEASE);
    let mut member = net.member();
    awaited(&net.etcd, OURS);
    net.wait_for_peers(2);
    net.etcd.control(&["del", &their_key]);
    net.wait_for_peers(0);
    net.etcd.put(&their_key, THEIR_LEASE);
    net.wait_for_peers(2);
    // Neither is a lease, and neither takes the good one's peers away.
    net.etcd.put(&format!("{SUBNETS}nonsense"), "{");
    net.etcd
        .put(&format!("{SUBNETS}10.244.3.0-24"), r#"{"PublicIP":null}"#);
    let moved = THEIR_LEASE.replace("66:00:00:00:02:04", "66:00:00:00:02:05");
    net.etcd.put(&their_key, &moved);
    eventually("the moved MAC is seen", || {
        let macs = net
            .peers()
            .into_iter()
            .map(|peer| peer.node.vtep_mac.to_string());
        macs.collect::<Vec<_>>()
            .contains(&"66:00:00:00:02:05".to_owned())
    });
    net.wait_for_peers(2);

    // A deleted lease is taken again, and a stopped member's stays for a day.
    net.etcd.control(&["del", &format!("{SUBNETS}{OURS}")]);
    assert_eq!(awaited(&net.etcd, OURS), OUR_LEASE);
    member.stop();
    let kept = lease_of(&net.etcd, OURS);
    assert!(kept > 0, "it has an end");
    let _again = net.member();
    eventually("the same subnet under another lease", || {
        let now = lease_of(&net.etcd, OURS);
        now > 0 && now != kept
    });
    net.wait_for_peers(2);
}

/// While the member hears nothing, its peer goes and etcd forgets how.
#[test]
fn what_etcd_compacted_unseen_is_read_anew() {
    needs_namespaces!();
    let mut net = Network::new();
    let their_key = format!("{SUBNETS}{THEIRS}");
    net.etcd.put(&their_key, THEIR_LEASE);
    let member = net.member();
    net.wait_for_peers(2);
    member.signal(Signal::SIGSTOP);
    // Ends the member's stream, so that nothing waits in it.
    net.etcd.restart();
    net.etcd.control(&["del", &their_key]);
    net.etcd.put("/other", "x");
    net.etcd.compact();
    member.signal(Signal::SIGCONT);
    net.wait_for_peers(0);
    assert_eq!(awaited(&net.etcd, OURS), OUR_LEASE);
}

#[test]
fn a_forwarder_that_starts_anew_is_told_again() {
    needs_namespaces!();
    let mut net = Network::new();
    net.etcd.put(&format!("{SUBNETS}{THEIRS}"), THEIR_LEASE);
    let _member = net.member();
    net.wait_for_peers(2);
    let pid = i32::try_from(net.forwarder.pid()).expect("a pid");
    kill(Pid::from_raw(pid), Signal::SIGKILL).expect("it lives");
    eventually("the forwarder is gone", || net.forwarder.client().is_err());
    let again = net.workshop.forwarder("n1", CONFIGURATION, &net.ours);
    net.forwarder = again.expect("a forwarder");
    net.wait_for_peers(2);
}

/// As many as there is room for; the one too many is told so.
#[test]
fn nodes_that_start_together_get_a_subnet_each() {
    needs_namespaces!();
    let net = Network::new();
    net.etcd.put("/coreos.com/network/config", THREE);
    let nodes: Vec<_> = (1..=4).map(|place| net.lone_node(place)).collect();
    let command = |place: usize| {
        let mut command = net.join(&nodes[place].1);
        command
            .arg("--public-ip")
            .arg(format!("198.51.100.{}", place + 1));
        command
    };
    let _members: Vec<_> = (0..3)
        .map(|place| Running(command(place).spawn().expect("it runs")))
        .collect();
    eventually("three leases", || leases(&net.etcd).len() == 3);
    for (_, forwarder) in &nodes[..3] {
        eventually("two peers each", || peers(forwarder).len() == 2);
    }
    let output = command(3).output().expect("it runs");
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(told.contains("every /24 of it is taken"), "{told}");
}

/// An administrator's reservation has no end, and stays one.
#[test]
fn a_reservation_is_used_and_stays_one() {
    needs_namespaces!();
    let net = Network::new();
    let reserved = r#"{"PublicIP":"192.0.2.1","PublicIPv6":"2001:db8::1"}"#;
    net.etcd.put(&format!("{SUBNETS}{THEIRS}"), reserved);
    let _member = net.member();
    eventually("the lease", || awaited(&net.etcd, THEIRS) == OUR_LEASE);
    assert_eq!(lease_of(&net.etcd, THEIRS), 0);
}

#[test]
fn a_network_that_does_not_fit_is_refused_with_the_remedy() {
    needs_namespaces!();
    let net = Network::new();
    for (config, words) in [
        ("{", "/coreos.com/network/config"),
        (r#"{"Network":"10.244.0.0/16"}"#, "udp"),
        (
            r#"{"Network":"10.244.0.0/16","Backend":{"Type":"vxlan","Port":4789}}"#,
            "uplink.port",
        ),
        (
            r#"{"Network":"10.244.0.0/16","Backend":{"Type":"vxlan","DirectRouting":true}}"#,
            "run weft host up",
        ),
    ] {
        net.etcd.put("/coreos.com/network/config", config);
        let output = net.command().output().expect("it runs");
        let told = String::from_utf8_lossy(&output.stderr);
        assert!(
            !output.status.success() && told.contains(words),
            "{config}: {told}"
        );
    }
    net.etcd.control(&["del", "/coreos.com/network/config"]);
    let output = net.command().output().expect("it runs");
    assert!(String::from_utf8_lossy(&output.stderr).contains("it is missing"));
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

impl Network {
    fn new() -> Self {
        use_executable(env!("CARGO_BIN_EXE_weft"));
        let etcd = Etcd::start();
        etcd.put("/coreos.com/network/config", CONFIG);
        let spec = Spec {
            outer: Outer::V4,
            ..Spec::default()
        };
        let [ours, theirs] = ["ours", "theirs"].map(|name| workshop::node(name).expect("a node"));
        join(&ours, &theirs);
        let workshop = Workshop::open().expect("a workshop");
        let forwarder = workshop.forwarder("n1", CONFIGURATION, &ours);
        Self {
            etcd,
            plan: spec.plan(),
            forwarder: forwarder.expect("a forwarder"),
            ours,
            theirs,
            workshop,
        }
    }

    fn command(&self) -> Command {
        let mut command = self.join(&self.forwarder);
        command.args(["--vtep-mac", "02:00:00:00:01:01"]).args([
            "--public-ip",
            "192.0.2.1",
            "--public-ip",
            "2001:db8::1",
        ]);
        command
    }

    fn join(&self, forwarder: &Forwarder) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_weft"));
        command
            .args(["join", "flannel"])
            .arg(format!("--etcd={}", self.etcd.url()))
            .arg("--control")
            .arg(&forwarder.control)
            .stdin(Stdio::null());
        command
    }

    /// With an address and nobody to speak with.
    fn lone_node(&self, place: u8) -> (Netns, Forwarder) {
        let name = format!("lone{place}");
        let node = workshop::node(&name).expect("a node");
        all(
            &node,
            &[
                "ip link set lo up",
                &format!("ip address add 198.51.100.{place}/32 dev lo"),
            ],
        );
        let configuration = format!(
            "node = '{name}'\nworkers = 1\n[uplink]\naddresses = ['198.51.100.{place}']\nport = \
             8472\nvni = 1\nmtu = 1500\n"
        );
        let forwarder = self.workshop.forwarder(&name, &configuration, &node);
        (node, forwarder.expect("a forwarder"))
    }

    fn member(&self) -> Running {
        Running(self.command().spawn().expect("it runs"))
    }

    fn flanneld(&self) -> Flanneld<'_> {
        Flanneld::start(&self.theirs, &self.etcd)
    }

    fn peers(&self) -> Vec<Peer> {
        peers(&self.forwarder)
    }

    fn wait_for_peers(&self, count: usize) {
        eventually("the forwarder's peers", || self.peers().len() == count);
    }

    fn pods(&self) -> (Pod, Pod) {
        let pod = |plan: PodPlan, node| {
            let netns = workshop::node(&plan.name).expect("a pod");
            Pod { plan, node, netns }
        };
        let ours = pod(self.plan[0].pods[0].clone(), 0);
        let attach = Attach::Tap { queues: 2 };
        ours.plug(attach, POD_MTU, &self.ours, &self.forwarder)
            .expect("wired");
        let theirs = pod(self.plan[1].pods[0].clone(), 1);
        add_pod_to_bridge(&self.theirs, &theirs, POD_MTU);
        (ours, theirs)
    }
}

/// A pod's addresses come from the lease, by the recipe of docs/flannel.md and
/// the real host-local.
#[test]
fn pods_get_the_leases_addresses_from_host_local() {
    needs_namespaces!();
    let net = Network::new();
    let folder = tempfile::tempdir().expect("a folder");
    let at = |name: &str| folder.path().join(name);
    let env = at("subnet.env");
    // One subnet is left.
    let flanneld = net.flanneld();
    let mut member = net.command();
    let member = member.arg("--subnet-env").arg(&env).spawn();
    let _member = Running(member.expect("it runs"));
    awaited(&net.etcd, OURS);
    flanneld.follow();
    net.wait_for_peers(2);
    eventually("subnet.env", || env.exists());
    let list = recipe(&env, &at("10-weft.conflist"));
    let mut list: Json = serde_json::from_str(&list).expect("JSON");
    let plugin = &mut list["plugins"][0];
    assert_eq!(plugin["ipam"]["ranges"][0][0]["subnet"], "10.244.1.0/24");
    plugin["forwarder"] = net.forwarder.control.to_str().expect("letters").into();
    // The machine's own state stays as it is.
    plugin["ipam"]["dataDir"] = at("host-local").to_str().expect("letters").into();
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_weft"), at("weft-cni")).expect("a link");
    let mut runtime = Runtime::new([folder.path().to_owned(), "/usr/lib/cni".into()]);
    let (_, theirs) = net.pods();
    let netns = workshop::node("by-plugin").expect("a pod");
    let attachment = Attachment {
        container: "c1".to_owned(),
        netns: format!("/proc/{}/fd/{}", std::process::id(), netns.as_raw_fd()),
        interface: "eth0".to_owned(),
        ..Attachment::default()
    };
    // The lease's first pod is wired by hand, and has the same address.
    let mut client = net.forwarder.client().expect("a client");
    for port in client.ports().expect("ports") {
        client.detach(port.name).expect("detached");
    }
    let added = net.ours.run(|| runtime.add(&list, &attachment));
    let result = added.expect("enter").expect("added");
    let ours = given(&result, netns, &net.plan[0].pods[0]);
    let (v4, v6) = (ours.plan.v4, ours.plan.v6);
    assert!(v4.to_string().starts_with("10.244.1."), "{v4}");
    assert!(v6.to_string().starts_with("fd00:10:244:1:"), "{v6}");
    for (from, to) in [(&ours, &theirs), (&theirs, &ours)] {
        for family in Family::ALL {
            Probe::Tcp
                .run(from, to, family, POD_MTU)
                .expect("an answer");
        }
    }
    let removed = net.ours.run(|| runtime.del(&list, &attachment));
    removed.expect("enter").expect("deleted");
}

/// The pod that a plugin has wired.
fn given(result: &Json, netns: Netns, like: &PodPlan) -> Pod {
    let address = |place: usize| {
        let net = result["ips"][place]["address"].as_str().expect("text");
        net.split_once('/').expect("a prefix").0
    };
    let plan = PodPlan {
        name: "by-plugin".to_owned(),
        v4: address(0).parse().expect("IPv4 first"),
        v6: address(1).parse().expect("IPv6 then"),
        ..like.clone()
    };
    Pod {
        plan,
        node: 0,
        netns,
    }
}

/// What the page's commands write, with its two files in other places.
fn recipe(env: &Path, conflist: &Path) -> String {
    let page = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/flannel.md");
    let page = std::fs::read_to_string(page).expect("the page");
    let (_, script) = page.split_once("```sh\n").expect("a script");
    let (script, _) = script.split_once("```").expect("its end");
    let script = script
        .replace("/run/flannel/subnet.env", &env.display().to_string())
        .replace(
            "/etc/cni/net.d/10-weft.conflist",
            &conflist.display().to_string(),
        );
    let status = Command::new("sh").args(["-e", "-c", &script]).status();
    assert!(status.expect("a shell").success());
    std::fs::read_to_string(conflist).expect("written")
}

fn peers(forwarder: &Forwarder) -> Vec<Peer> {
    let mut client = forwarder.client().expect("a client");
    client.peers().expect("the peers")
}

/// Plays flanneld: a device for each family, and for the other node's lease a
/// neighbour, a forwarding entry and a route, in that order.
struct Flanneld<'a> {
    node: &'a Netns,
    etcd: &'a Etcd,
}

impl<'a> Flanneld<'a> {
    fn start(node: &'a Netns, etcd: &'a Etcd) -> Self {
        node.run(route_packets).expect("enter");
        for (device, mac, local, address, mtu) in [
            (
                "flannel.1",
                "66:00:00:00:02:04",
                "192.0.2.2",
                "10.244.2.0/32",
                1450,
            ),
            (
                "flannel-v6.1",
                "66:00:00:00:02:06",
                "2001:db8::2",
                "fd00:10:244:2::/128",
                1430,
            ),
        ] {
            all(
                node,
                &[
                    &format!(
                        "ip link add {device} address {mac} mtu {mtu} type vxlan id 1 local \
                         {local} dev eth0 dstport 8472 nolearning"
                    ),
                    &format!("ip link set {device} addrgenmode none up"),
                    &format!("ip address add {address} dev {device}"),
                ],
            );
        }
        etcd.put(&format!("{SUBNETS}{THEIRS}"), THEIR_LEASE);
        Self { node, etcd }
    }

    /// Programs the kernel by every lease but its own.
    fn follow(&self) {
        for (name, value) in leases(self.etcd).iter().filter(|(name, _)| name != THEIRS) {
            let value: Json = serde_json::from_str(value).expect("JSON");
            assert_eq!(value["BackendType"], "vxlan");
            let subnets = name
                .split('&')
                .map(|subnet| subnet.rsplit_once('-').expect("a subnet"));
            for ((first, len), (device, public, data)) in subnets.zip([
                ("flannel.1", "PublicIP", "BackendData"),
                ("flannel-v6.1", "PublicIPv6", "BackendV6Data"),
            ]) {
                let public = value[public].as_str().expect("an address");
                let mac = value[data]["VtepMAC"].as_str().expect("a MAC");
                all(
                    self.node,
                    &[
                        &format!(
                            "ip neigh replace {first} lladdr {mac} dev {device} nud permanent"
                        ),
                        &format!(
                            "bridge fdb append {mac} dev {device} dst {public} self permanent"
                        ),
                        &format!("ip route add {first}/{len} via {first} dev {device} onlink"),
                    ],
                );
            }
        }
    }
}

/// By the last part of their keys.
fn leases(etcd: &Etcd) -> Vec<(String, String)> {
    let rows = etcd.rows(SUBNETS).into_iter();
    rows.map(|(key, value)| (key.replace(SUBNETS, ""), value))
        .collect()
}

fn awaited(etcd: &Etcd, name: &str) -> String {
    let mut found = None;
    eventually(name, || {
        found = leases(etcd).into_iter().find(|(other, _)| other == name);
        found.is_some()
    });
    found.expect("just seen").1
}

fn lease_of(etcd: &Etcd, name: &str) -> u64 {
    let text = etcd.control(&["get", "-w", "json", &format!("{SUBNETS}{name}")]);
    let json: Json = serde_json::from_str(&text).expect("JSON");
    json["kvs"][0]["lease"].as_u64().unwrap_or(0)
}

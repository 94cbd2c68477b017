//! What the wire shows of each way: plain packets where there is no
//! encapsulation, VXLAN elsewhere.

use std::{
    collections::BTreeSet,
    net::{IpAddr, TcpStream},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use weft_api::{
    forwarder::Way,
    ipam::{Reply, Request},
};
use weft_lab::{
    Pod, exchange,
    probe::{DEADLINE, Family, Probe},
};
use weft_socket::ipam::Client;
use weft_testkit::needs_namespaces;

use crate::{
    cluster::{Cluster, FULL_MTU, Place, VXLAN_MTU, WHOLE, plan, said, talk, talk_by},
    forms::{PLAIN, TUNNELLED, forms},
    wiretap::Wiretap,
};

/// The pods of the two nodes do all that pods do, and their packets are on
/// the wire in that form only.
fn pods_talk(from: &Place, to: &Place, form: &'static str, mtu: u16) {
    for family in Family::ALL {
        let taps = [from, to].map(|place| Wiretap::on(&place.netns));
        for probe in Probe::ALL {
            for (one, other) in [(from, to), (to, from)] {
                let told = |error| panic!("{error:#}");
                probe
                    .run(&one.pod, &other.pod, family, mtu)
                    .unwrap_or_else(told);
            }
        }
        for tap in taps {
            let seen = forms(tap, &from.pod, &to.pod);
            assert_eq!(seen, BTreeSet::from([form]), "{family}");
        }
    }
    exchange::bulk(&from.pod, &to.pod, Family::V4, 4 << 20).expect("every byte");
    exchange::bulk(&to.pod, &from.pod, Family::V6, 4 << 20).expect("every byte");
}

#[test]
fn direct_is_plain_and_as_wide_as_the_wire() {
    needs_namespaces!();
    let cluster = Cluster::up(|_, _| Way::Direct, FULL_MTU);
    all_talk_plainly(&cluster);
}

/// Nodes and pods whose blocks are all reached directly.
pub fn all_talk_plainly(cluster: &Cluster) {
    let [one, two, three] = &cluster.nodes[..] else {
        panic!("three nodes");
    };
    pods_talk(one, two, PLAIN, FULL_MTU);
    pods_talk(two, three, PLAIN, FULL_MTU);
    talk(&one.itself(), &one.pod, FULL_MTU);
    talk(&one.host(one.plan.underlay), &three.pod, FULL_MTU);
    cluster.check_books();
}

#[test]
fn ways_mix_by_peer() {
    needs_namespaces!();
    let near = |from: usize, to: usize| match from.max(to) < 2 {
        true => Way::Direct,
        false => Way::Vxlan,
    };
    let cluster = Cluster::up(near, VXLAN_MTU);
    let [one, two, three] = &cluster.nodes[..] else {
        panic!("three nodes");
    };
    pods_talk(one, two, PLAIN, VXLAN_MTU);
    pods_talk(one, three, TUNNELLED, VXLAN_MTU);
    pods_talk(two, three, TUNNELLED, VXLAN_MTU);
    // weft0 is wider than the tunnel.
    talk_by(&WHOLE, &one.itself(), &three.pod, VXLAN_MTU);
    cluster.check_books();
}

#[test]
fn plain_packets_are_taken_from_where_they_are_sent_to() {
    needs_namespaces!();
    let cluster = Cluster::up(
        |from, to| match (from, to) {
            (0, 1) => Way::Direct,
            _ => Way::Vxlan,
        },
        VXLAN_MTU,
    );
    let [one, two, _] = &cluster.nodes[..] else {
        panic!("three nodes");
    };
    // The second takes plain packets only from whom it sends them to.
    let refused = two.lost("spoofed_address");
    Probe::Udp
        .run(&one.pod, &two.pod, Family::V4, VXLAN_MTU)
        .expect_err("it is no neighbour there");
    assert!(two.lost("spoofed_address") > refused);
    // What comes through the tunnel instead is taken.
    cluster.apply(|from, to| match (from, to) {
        (1, 0) => Way::Direct,
        _ => Way::Vxlan,
    });
    cluster.route(|from, to| match (from, to) {
        (1, 0) => Way::Direct,
        _ => Way::Vxlan,
    });
    let before = one.lost("spoofed_address");
    Probe::Udp
        .run(&one.pod, &two.pod, Family::V4, VXLAN_MTU)
        .expect_err("the answer is refused");
    assert!(one.lost("spoofed_address") > before);
}

/// What a connection attempt that must fail is told.
fn unreachable(from: &Pod, to: &Pod, family: Family) -> Option<i32> {
    let address = (family.of(to), 9).into();
    let connect = || TcpStream::connect_timeout(&address, DEADLINE);
    let connected = from.netns.run(connect).expect("enter");
    connected.expect_err("no way").raw_os_error()
}

#[test]
fn without_a_host_port_direct_is_lost_for_a_reason() {
    needs_namespaces!();
    let cluster = Cluster::new(plan(), "", VXLAN_MTU);
    cluster.apply(|_, _| Way::Direct);
    cluster.route(|_, _| Way::Direct);
    let [one, two, _] = &cluster.nodes[..] else {
        panic!("three nodes");
    };
    assert_eq!(one.lost("no_host_port"), 0);
    let probe = || Probe::Udp.run(&one.pod, &two.pod, Family::V4, VXLAN_MTU);
    probe().expect_err("lost");
    assert_eq!(
        unreachable(&one.pod, &two.pod, Family::V4),
        Some(nix::libc::EHOSTUNREACH)
    );
    assert!(one.lost("no_host_port") > 0);
    let page = said(one.weft(&["drops"]));
    assert!(page.contains("run weft host up"), "{page}");
    one.host_up();
    two.host_up();
    probe().expect("it is there");
}

#[test]
fn what_the_node_cannot_route_does_not_loop() {
    needs_namespaces!();
    let cluster = Cluster::up(|_, _| Way::Direct, VXLAN_MTU);
    let [one, two, _] = &cluster.nodes[..] else {
        panic!("three nodes");
    };
    for block in two.plan.blocks {
        weft_lab::workshop::run(&one.netns, &format!("ip route del {block}")).expect("gone");
    }
    for (family, own) in Family::ALL.into_iter().zip(one.plan.tunnel) {
        let before = one.lost("host_loop");
        let told = unreachable(&one.itself(), &two.pod, family);
        assert_eq!(told, Some(nix::libc::EHOSTUNREACH), "from {own}");
        let lost = one.lost("host_loop") - before;
        assert!(
            (1..5).contains(&lost),
            "{lost} packets: nothing goes around"
        );
        let told = unreachable(&one.pod, &two.pod, family);
        assert_eq!(told, Some(nix::libc::EHOSTUNREACH), "a pod, {family}");
        assert!(one.lost("host_loop") > before + lost);
    }
    assert_eq!(one.lost("spoofed_address"), 0);
}

#[test]
fn cross_subnet_pools_are_plain_inside_and_vxlan_across() {
    needs_namespaces!();
    let ipam = Ipam::start();
    let mut plan = plan();
    for (name, cidr, size) in [
        ("v4", "10.244.0.0/16", 24),
        ("v6", "fd00:10:244::/112", 120),
    ] {
        ipam.ask(
            json!({"op": "pool-create", "name": name, "cidr": cidr, "block_size": size,
            "encapsulation": "vxlan", "when": "cross-subnet"}),
        );
    }
    for node in &mut plan {
        node.tunnel = ipam.allocate(&node.name, "tunnel", "tunnel");
        let [v4, v6] = ipam.allocate(&node.name, "pod", "workload");
        let pod = &mut node.pods[0];
        (pod.v4, pod.v6) = match (v4, v6) {
            (IpAddr::V4(v4), IpAddr::V6(v6)) => (v4, v6),
            other => panic!("{other:?}"),
        };
        let entry = node.entry().expect("an entry");
        ipam.request(&Request::NodePut(Box::new(entry)));
        node.blocks = ipam.blocks(&node.name);
    }
    let follow = format!("[ipam]\nsocket = '{}'\n", ipam.socket().display());
    let mut cluster = Cluster::new(plan, &follow, VXLAN_MTU);
    for place in &cluster.nodes {
        let page = said(place.weft(&["host", "up"]));
        assert!(page.contains("route 10.244.0.0/16 by weft0"), "{page}");
        assert!(page.contains("route fd00:10:244::/112 by weft0"), "{page}");
    }
    cluster.route(|from, to| match from.max(to) < 2 {
        true => Way::Direct,
        false => Way::Vxlan,
    });
    cluster.settle();
    let [one, two, three] = &cluster.nodes[..] else {
        panic!("three nodes");
    };
    let status = said(one.weft(&["status"]));
    assert!(status.contains("(direct)"), "{status}");
    pods_talk(one, two, PLAIN, VXLAN_MTU);
    pods_talk(one, three, TUNNELLED, VXLAN_MTU);
    pods_talk(three, two, TUNNELLED, VXLAN_MTU);
    talk_by(&WHOLE, &one.itself(), &two.pod, VXLAN_MTU);
    talk_by(&WHOLE, &one.itself(), &three.pod, VXLAN_MTU);
    cluster.check_books();
}

/// A real IPAM server.
struct Ipam {
    child: Child,
    folder: tempfile::TempDir,
}

impl Ipam {
    fn start() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let child = Command::new(env!("CARGO_BIN_EXE_weft"))
            .arg0("weft-ipam")
            .arg("--socket")
            .arg(folder.path().join("ipam.sock"))
            .arg("--store")
            .arg(folder.path().join("ipam.redb"))
            .env("RUST_LOG", "warn")
            .stdin(Stdio::null())
            .spawn()
            .expect("start weft-ipam");
        let ipam = Self { child, folder };
        let until = Instant::now() + Duration::from_secs(20);
        while Client::connect(&ipam.socket()).is_err() {
            assert!(Instant::now() < until, "the IPAM server listens");
            thread::sleep(Duration::from_millis(20));
        }
        ipam
    }

    fn socket(&self) -> PathBuf {
        Path::new(self.folder.path()).join("ipam.sock")
    }

    fn request(&self, request: &Request) -> Reply {
        let mut client = Client::connect(&self.socket()).expect("it runs");
        client.request(request).expect("granted")
    }

    fn ask(&self, request: Value) -> Reply {
        self.request(&serde_json::from_value(request).expect("a request"))
    }

    fn allocate(&self, node: &str, container: &str, purpose: &str) -> [IpAddr; 2] {
        let attachment = json!({"network": node, "container": container, "interface": "eth0"});
        let reply = self.ask(
            json!({"op": "allocate", "attachment": attachment, "node": node,
            "families": ["v4", "v6"], "use": purpose}),
        );
        let Reply::Allocated(allocated) = reply else {
            panic!("{reply:?}");
        };
        let addresses: Vec<_> = allocated.addresses.iter().map(|one| one.address).collect();
        addresses.try_into().expect("one of each family")
    }

    /// One of each family, IPv4 first.
    fn blocks(&self, node: &str) -> [ipnet::IpNet; 2] {
        let Reply::Blocks(blocks) = self.request(&Request::Blocks) else {
            panic!("blocks answers with blocks");
        };
        let own = blocks
            .iter()
            .filter(|block| block.owner.as_ref().is_some_and(|o| o.as_str() == node));
        let mut own: Vec<_> = own.map(|block| block.block).collect();
        own.sort_unstable();
        own.try_into().expect("one of each family")
    }
}

impl Drop for Ipam {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

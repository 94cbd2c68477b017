//! weft0 comes and goes: again and again, with its forwarder, and under it.

use std::{
    io::{BufRead, BufReader},
    process::{Child, Command, Stdio},
};

use weft_api::forwarder::{PortState, Way};
use weft_cni::{link, netlink::Netlink};
use weft_lab::{
    probe::{Family, Probe},
    workshop::run,
};
use weft_testkit::needs_namespaces;

use crate::cluster::{Cluster, POOLS, Place, VXLAN_MTU, plan, said, start};

pub fn reaches_its_pod(place: &Place) {
    for family in Family::ALL {
        Probe::Tcp
            .run(&place.itself(), &place.pod, family, VXLAN_MTU)
            .unwrap_or_else(|error| panic!("{error:#}"));
    }
}

pub fn link_index(place: &Place) -> Option<u32> {
    let netlink = Netlink::open_in(&place.netns)
        .expect("enter")
        .expect("netlink");
    netlink.index("weft0").expect("an answer")
}

#[track_caller]
pub fn refused(place: &Place, arguments: &[&str], parts: &[&str]) {
    let output = place.weft(arguments);
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success(), "{output:?}");
    assert!(parts.iter().all(|part| told.contains(part)), "{told}");
}

#[test]
fn up_twice_changes_nothing_and_mends_what_is_missing() {
    needs_namespaces!();
    let cluster = Cluster::up(|_, _| Way::Vxlan, VXLAN_MTU);
    let node = &cluster.nodes[0];
    let (index, routes) = (link_index(node), run(&node.netns, "ip route"));
    let page = node.host_up();
    assert!(
        page.starts_with("weft0 is up already: 10.244.1.0"),
        "{page}"
    );
    assert!(
        page.contains("net.ipv4.conf.weft0.rp_filter = 2 already"),
        "{page}"
    );
    assert_eq!(link_index(node), index);
    assert_eq!(run(&node.netns, "ip route").ok(), routes.ok());
    run(&node.netns, "ip route del 10.244.0.0/16").expect("gone");
    run(&node.netns, "ip address del fd00:10:244:1::/128 dev weft0").expect("gone");
    run(&node.netns, "ip neighbour del 169.254.1.1 dev weft0").expect("gone");
    node.host_up();
    assert_eq!(link_index(node), index);
    reaches_its_pod(node);
    // Other pools make it anew.
    let page = said(node.weft(&["host", "up", "--pool", POOLS[0]]));
    assert!(page.starts_with("weft0 is made anew"), "{page}");
    assert_ne!(link_index(node), index);
    Probe::Tcp
        .run(&node.itself(), &node.pod, Family::V4, VXLAN_MTU)
        .expect("reached");
}

#[test]
fn keep_gives_back_what_the_link_has_lost() {
    needs_namespaces!();
    let cluster = Cluster::up(|_, _| Way::Vxlan, VXLAN_MTU);
    let node = &cluster.nodes[0];
    let mut weft = Command::new(env!("CARGO_BIN_EXE_weft"));
    let pools = POOLS.iter().flat_map(|pool| ["--pool", pool]);
    weft.args(["host", "up", "--keep"])
        .args(pools)
        .env("WEFT_CONTROL", &node.forwarder.control)
        .stdout(Stdio::piped());
    let spawned = node.netns.run(move || weft.spawn()).expect("enter");
    let mut keeper = Running(spawned.expect("run weft"));
    let out = keeper.0.stdout.take().expect("its pages");
    let mut pages = BufReader::new(out).lines().map(|line| line.expect("text"));
    let mut told = |start: &str| {
        pages.find(|line| line.starts_with(start)).expect("told");
    };
    // What another look would give anyway comes with the first.
    told("weft0 is up already");
    let index = link_index(node);
    for loss in [
        "ip link set weft0 down",
        "ip route del 10.244.0.0/16",
        "ip route del fd00:10:244::/48",
        "ip address del 10.244.1.0/32 dev weft0",
        "ip address del fd00:10:244:1::/128 dev weft0",
        "ip link set weft0 mtu 1280",
    ] {
        run(&node.netns, loss).expect("lost");
        told("weft0 is whole again");
        reaches_its_pod(node);
        told("weft0 is up already");
    }
    assert_eq!(link_index(node), index);
}

struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn down_takes_everything_along() {
    needs_namespaces!();
    let cluster = Cluster::new(plan(), "", VXLAN_MTU);
    cluster.apply(|_, _| Way::Vxlan);
    let node = &cluster.nodes[0];
    let state = || {
        ["ip route", "ip -6 route", "ip address show scope global"]
            .map(|c| run(&node.netns, c).expect("told"))
    };
    let before = state();
    let page = node.host_up();
    for part in [
        "weft0 is up: 10.244.1.0, fd00:10:244:1::, MTU 1450",
        "route 10.244.0.0/16 by weft0",
        "set net.ipv4.conf.weft0.forwarding = 1",
        "set net.ipv4.conf.eth0.forwarding = 1",
    ] {
        assert!(page.contains(part), "{part:?} is not in:\n{page}");
    }
    let status = said(node.weft(&["status"]));
    let line = "host    weft0 with 10.244.1.0, fd00:10:244:1::, for the pods of 10.244.0.0/16";
    assert!(status.contains(line), "{status}");
    let doctor = node.weft(&["doctor"]);
    let doctor = String::from_utf8_lossy(&doctor.stdout);
    assert!(doctor.contains("weft0 carries IPv4 and IPv6\n"), "{doctor}");
    assert_ne!(state(), before);
    let page = said(node.weft(&["host", "down"]));
    assert!(page.starts_with("weft0 is gone"), "{page}");
    assert_eq!(state(), before);
    assert_eq!(
        said(node.weft(&["host", "down"])),
        "there is no host port\n"
    );
    let status = said(node.weft(&["status"]));
    assert!(status.contains("host    none"), "{status}");
}

#[test]
fn forwarding_can_be_left_alone() {
    needs_namespaces!();
    let cluster = Cluster::new(plan(), "", VXLAN_MTU);
    let node = &cluster.nodes[0];
    let knob = "cat /proc/sys/net/ipv4/conf/eth0/forwarding";
    let before = run(&node.netns, knob).expect("a knob");
    let up = [
        "host",
        "up",
        "--keep-forwarding",
        "--pool",
        POOLS[0],
        "--pool",
        POOLS[1],
    ];
    said(node.weft(&up));
    assert_eq!(run(&node.netns, knob).expect("a knob"), before);
}

#[test]
fn no_other_right_than_cap_net_admin_is_needed() {
    needs_namespaces!();
    let cluster = Cluster::new(plan(), "", VXLAN_MTU);
    cluster.apply(|_, _| Way::Vxlan);
    let node = &cluster.nodes[0];
    let control = node.forwarder.control.to_str().expect("letters");
    let weft = |rights: &str, verb: &str| {
        let setpriv = Command::new("setpriv")
            .args([
                format!("--bounding-set={rights}"),
                format!("--inh-caps={rights}"),
            ])
            .args([
                env!("CARGO_BIN_EXE_weft"),
                "host",
                verb,
                "--control",
                control,
            ])
            .args(
                POOLS
                    .iter()
                    .filter(|_| verb == "up")
                    .flat_map(|pool| ["--pool", pool]),
            )
            .output();
        setpriv.expect("util-linux")
    };
    let run = |rights, verb| node.netns.run(|| weft(rights, verb)).expect("enter");
    let page = said(run("-all,+net_admin", "up"));
    assert!(!page.contains("warn"), "{page}");
    reaches_its_pod(node);
    said(run("-all,+net_admin", "down"));
    let output = run("-all", "up");
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(
        !output.status.success() && told.contains("CAP_NET_ADMIN"),
        "{output:?}"
    );
}

#[test]
fn a_deleted_link_is_told_and_made_anew() {
    needs_namespaces!();
    let cluster = Cluster::up(|_, _| Way::Vxlan, VXLAN_MTU);
    let node = &cluster.nodes[0];
    link::remove(&node.netns, "weft0").expect("deleted");
    let ports = node.ports();
    let host = ports.iter().find(|port| port.host.is_some());
    assert_eq!(host.map(|port| port.state), Some(PortState::Gone));
    let status = said(node.weft(&["status"]));
    assert!(
        status.contains("weft0 was deleted; weft host up"),
        "{status}"
    );
    // The pod's packets for the node are lost for a reason, and nothing else.
    let lost = node.lost("port_down");
    let asking = node.pod.netns.run(|| {
        let socket = std::net::UdpSocket::bind("0.0.0.0:0")?;
        socket.send_to(&[0], (node.plan.tunnel[0], 9))
    });
    asking.expect("enter").expect("sent");
    assert!(node.lost("port_down") > lost);
    let page = node.host_up();
    assert!(page.starts_with("weft0 is made anew"), "{page}");
    reaches_its_pod(node);
}

#[test]
fn after_its_forwarder_has_started_anew_it_is_put_up_again() {
    needs_namespaces!();
    let mut cluster = Cluster::new(plan(), "", VXLAN_MTU);
    cluster.apply(|_, _| Way::Vxlan);
    cluster.nodes[0].host_up();
    reaches_its_pod(&cluster.nodes[0]);
    let first = cluster.nodes.remove(0);
    let (plan, netns) = (first.plan.clone(), &first.netns);
    drop(first.forwarder);
    let netlink = Netlink::open_in(netns).expect("enter").expect("netlink");
    assert_eq!(
        netlink.index("weft0").expect("an answer"),
        None,
        "it went along"
    );
    let forwarder = start(&cluster.workshop, &plan, "", netns);
    let again = Place { forwarder, ..first };
    let page = again.host_up();
    assert!(page.starts_with("weft0 is up"), "{page}");
    assert!(link_index(&again).is_some());
}

#[test]
fn what_cannot_be_is_refused_with_a_remedy() {
    needs_namespaces!();
    let cluster = Cluster::new(plan(), "", VXLAN_MTU);
    let [one, two, _] = &cluster.nodes[..] else {
        panic!("three nodes");
    };
    refused(one, &["host", "up"], &["follows no IPAM server", "--pool"]);
    let up = ["host", "up", "--pool", "10.244.0.1/16"];
    refused(
        one,
        &up,
        &["bits set behind its length; write 10.244.0.0/16"],
    );
    assert_eq!(link_index(one), None, "nothing is left of it");
    let nowhere = [
        "host",
        "up",
        "--control",
        "/nowhere/f.sock",
        "--pool",
        POOLS[0],
    ];
    refused(one, &nowhere, &["/nowhere/f.sock"]);
    // A link of that name that is nobody's of ours.
    run(&one.netns, "ip link add weft0 type bridge").expect("a link");
    refused(one, &["host", "up", "--pool", POOLS[0]], &["weft0 exists"]);
    run(&one.netns, "ip link del weft0").expect("gone");
    // A route of another's to the pool.
    run(&one.netns, "ip route add 10.244.0.0/16 dev lo").expect("a route");
    refused(
        one,
        &["host", "up", "--pool", POOLS[0]],
        &["10.244.0.0/16 has a route by another link", "ip route del"],
    );
    assert_eq!(link_index(one), None, "nothing is left of it");
    run(&one.netns, "ip route del 10.244.0.0/16").expect("gone");
    one.host_up();
    // Another forwarder's, and another namespace's.
    let control = two.forwarder.control.to_str().expect("letters");
    let up = ["host", "up", "--control", control, "--pool", POOLS[0]];
    refused(one, &up, &["no port of this forwarder"]);
    let control = one.forwarder.control.to_str().expect("letters");
    let up = ["host", "up", "--control", control, "--pool", POOLS[0]];
    refused(two, &up, &["another network namespace"]);
}

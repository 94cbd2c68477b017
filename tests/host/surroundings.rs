//! weft0 beside what else is on the node: its underlay, other forwarders, and
//! a kernel that has other ideas.

use std::{fs, thread};

use weft_api::forwarder::Way;
use weft_lab::workshop::run;
use weft_testkit::needs_namespaces;

use crate::{
    cluster::{Cluster, POOLS, Place, VXLAN_MTU, plan, said, start, talk_by},
    life::{link_index, reaches_its_pod, refused},
};

const UP: [&str; 6] = ["host", "up", "--pool", POOLS[0], "--pool", POOLS[1]];

fn set(place: &Place, knob: &str, value: &str) {
    let write = || fs::write(format!("/proc/sys/net/{knob}"), value);
    place.netns.run(write).expect("enter").expect("sysctl");
}

#[test]
fn without_an_address_of_its_own_the_node_speaks_from_its_underlay() {
    needs_namespaces!();
    let cluster = Cluster::new(plan(), "", VXLAN_MTU);
    let node = &cluster.nodes[0];
    let page = node.host_up();
    assert!(page.contains("no address of its own"), "{page}");
    for (ip, (pool, own)) in ["ip", "ip -6"]
        .into_iter()
        .zip(POOLS.into_iter().zip(node.plan.underlay))
    {
        let route = run(&node.netns, &format!("{ip} route show {pool}")).expect("told");
        assert!(route.contains(&format!("src {own} ")), "{route}");
    }
}

#[test]
fn it_waits_for_a_forwarder_that_starts() {
    needs_namespaces!();
    let mut cluster = Cluster::new(plan(), "", VXLAN_MTU);
    let Place {
        plan,
        netns,
        forwarder,
        pod,
        before,
    } = cluster.nodes.remove(0);
    let control = forwarder.control.clone();
    drop(forwarder);
    let up = || {
        let mut weft = std::process::Command::new(env!("CARGO_BIN_EXE_weft"));
        weft.args(UP).arg("--control").arg(&control).output()
    };
    let forwarder = thread::scope(|scope| {
        let upped = scope.spawn(|| netns.run(up).expect("enter").expect("run weft"));
        // Nobody listens yet.
        thread::sleep(std::time::Duration::from_millis(300));
        let forwarder = start(&cluster.workshop, &plan, "", &netns);
        assert_eq!(forwarder.control, control);
        let page = said(upped.join().expect("no panic"));
        assert!(page.starts_with("weft0 is up"), "{page}");
        forwarder
    });
    let node = Place {
        plan,
        netns,
        forwarder,
        pod,
        before,
    };
    assert!(link_index(&node).is_some());
}

#[test]
fn another_forwarders_link_stays() {
    needs_namespaces!();
    let cluster = Cluster::up(|_, _| Way::Vxlan, VXLAN_MTU);
    let [one, two, _] = &cluster.nodes[..] else {
        panic!("three nodes");
    };
    let index = link_index(one);
    let control = two.forwarder.control.to_str().expect("letters");
    let told = ["has stayed", "another forwarder's", "--control"];
    refused(one, &["host", "down", "--control", control], &told);
    assert_eq!(link_index(one), index);
    reaches_its_pod(one);
    assert_eq!(link_index(two), None, "the port that was named is gone");
}

#[test]
fn a_pool_is_not_around_the_underlay() {
    needs_namespaces!();
    let cluster = Cluster::new(plan(), "", VXLAN_MTU);
    cluster.apply(|_, _| Way::Vxlan);
    let node = &cluster.nodes[0];
    for (pool, held) in [
        ("192.0.2.0/24", node.plan.underlay[0]),
        ("2001:db8::/32", node.plan.underlay[1]),
    ] {
        let told = [pool, "holds", &held.to_string(), "underlay address of node"];
        refused(
            node,
            &["host", "up", "--pool", POOLS[0], "--pool", pool],
            &told,
        );
    }
    assert_eq!(link_index(node), None);
}

#[test]
fn a_failure_says_that_the_former_link_is_gone() {
    needs_namespaces!();
    let cluster = Cluster::up(|_, _| Way::Vxlan, VXLAN_MTU);
    let node = &cluster.nodes[0];
    run(&node.netns, "ip route add 10.245.0.0/16 dev lo").expect("a route");
    let up = ["host", "up", "--pool", POOLS[0], "--pool", "10.245.0.0/16"];
    let told = ["the former weft0 is gone", "10.245.0.0/16 has a route"];
    refused(node, &up, &told);
    assert_eq!(link_index(node), None);
    node.host_up();
    reaches_its_pod(node);
}

#[test]
fn strict_filters_of_the_underlay_are_loosened_and_told() {
    needs_namespaces!();
    let cluster = Cluster::new(plan(), "", VXLAN_MTU);
    let node = &cluster.nodes[0];
    set(node, "ipv4/conf/all/rp_filter", "1");
    let kept = said(node.weft(&[&UP[..], &["--keep-forwarding"]].concat()));
    assert!(
        kept.contains("kept net.ipv4.conf.eth0.rp_filter = 0: packets of pods"),
        "{kept}"
    );
    let doctor = || {
        let output = node.weft(&["doctor"]);
        String::from_utf8(output.stdout).expect("text")
    };
    let page = doctor();
    for part in [
        "net.ipv4.conf.eth0.rp_filter = 0",
        "net.ipv4.conf.eth0.forwarding = 0",
        "none of weft's counters tells",
    ] {
        assert!(page.contains(part), "{part:?} is not in:\n{page}");
    }
    let page = node.host_up();
    let set = "set net.ipv4.conf.eth0.rp_filter = 2, was 0";
    assert!(page.contains(set), "{page}");
    let page = doctor();
    assert!(page.contains("weft0 carries IPv4 and IPv6\n"), "{page}");
    // Only one family counts.
    said(node.weft(&UP[..4]));
    let page = doctor();
    assert!(page.contains("weft0 carries IPv4\n"), "{page}");
}

#[test]
fn the_underlays_links_are_found_by_their_names() {
    needs_namespaces!();
    let cluster = Cluster::new(plan(), "", VXLAN_MTU);
    let node = &cluster.nodes[0];
    let [v4, v6] = node.plan.underlay;
    run(&node.netns, &format!("ip address del {v4}/24 dev eth0")).expect("gone");
    run(&node.netns, &format!("ip address del {v6}/64 dev eth0")).expect("gone");
    let page = node.host_up();
    for address in [v4, v6] {
        let warning = format!("warn: no link here holds {address} of the underlay");
        assert!(page.contains(&warning), "{page}");
    }
    let add = format!("ip address add {v4}/24 dev eth0 label eth0:1");
    run(&node.netns, &add).expect("an address");
    let page = node.host_up();
    let set = "set net.ipv4.conf.eth0.forwarding = 1";
    assert!(page.contains(set), "{page}");
    assert!(!page.contains(&format!("holds {v4}")), "{page}");
}

#[test]
fn weft0_moves_with_the_nodes_own_address() {
    needs_namespaces!();
    let cluster = Cluster::up(|_, _| Way::Vxlan, VXLAN_MTU);
    let node = &cluster.nodes[0];
    let moved = ["10.244.1.77", "fd00:10:244:1::77"].map(|a| a.parse().expect("an address"));
    let mut record = node.plan.record().expect("a record");
    record.tunnel = moved.to_vec();
    let peers = Vec::new();
    let apply = weft_api::forwarder::Request::Apply(weft_api::forwarder::Nodes {
        node: record,
        peers,
    });
    let mut client = node.forwarder.client().expect("a client");
    client.request(&apply).expect("applied");
    // The pod reaches the former address no more, though the link has it.
    let before = weft_lab::Ledger::of(&node.forwarder).expect("balanced");
    let former = node.plan.tunnel[0];
    let asking = node.pod.netns.run(move || {
        let socket = std::net::UdpSocket::bind("0.0.0.0:0")?;
        socket.connect((former, 9))?;
        socket.set_read_timeout(Some(std::time::Duration::from_millis(500)))?;
        socket.send(&[0])?;
        socket.recv(&mut [0])
    });
    let told = asking.expect("enter").expect_err("nobody answers").kind();
    let after = weft_lab::Ledger::of(&node.forwarder).expect("balanced");
    let drops = after.drops_since(&before);
    // The kernel of the link that has it would refuse the port.
    assert_ne!(told, std::io::ErrorKind::ConnectionRefused);
    assert!(drops.contains_key("no_route"), "{drops:?}");
    let page = node.host_up();
    assert!(
        page.starts_with("weft0 is made anew: 10.244.1.77"),
        "{page}"
    );
    let held = run(&node.netns, "ip address show dev weft0").expect("told");
    assert!(
        !held.contains("10.244.1.0/32") && held.contains("10.244.1.77/32"),
        "{held}"
    );
    let moved = node.host(moved);
    for family in weft_lab::probe::Family::ALL {
        weft_lab::probe::Probe::Tcp
            .run(&moved, &node.pod, family, VXLAN_MTU)
            .unwrap_or_else(|error| panic!("{error:#}"));
    }
    let page = node.host_up();
    assert!(page.starts_with("weft0 is up already"), "{page}");
}

#[test]
fn a_weft0_of_another_forwarder_is_not_renewed() {
    needs_namespaces!();
    let cluster = Cluster::up(|_, _| Way::Vxlan, VXLAN_MTU);
    let [one, two, _] = &cluster.nodes[..] else {
        panic!("three nodes");
    };
    let indices = [one, two].map(link_index);
    let held = run(&one.netns, "ip address show dev weft0").expect("told");
    let control = two.forwarder.control.to_str().expect("letters");
    let mut up = UP.to_vec();
    up.extend(["--control", control]);
    let told = [
        "is not this forwarder's",
        "--control",
        "namespace of this one's",
    ];
    refused(one, &up, &told);
    assert_eq!([one, two].map(link_index), indices);
    let after = run(&one.netns, "ip address show dev weft0").expect("told");
    assert_eq!(after, held, "nothing is put on it");
    reaches_its_pod(one);
    reaches_its_pod(two);
}

/// No record of another takes this node's way to all pods.
#[test]
fn a_peers_address_in_a_pool_is_told_and_costs_that_peer_alone() {
    needs_namespaces!();
    let cluster = Cluster::up(|_, _| Way::Vxlan, VXLAN_MTU);
    let node = &cluster.nodes[0];
    let status = said(node.weft(&["status"]));
    assert!(!status.contains("warn"), "{status}");
    // A node comes whose underlay lies in the pods' range.
    let mut late = cluster.nodes[1].plan.record().expect("a record");
    late.underlay = vec!["10.244.9.9".parse().expect("an address")];
    let apply = weft_api::forwarder::Request::Apply(weft_api::forwarder::Nodes {
        node: node.plan.record().expect("a record"),
        peers: vec![late, cluster.nodes[2].plan.record().expect("a record")],
    });
    let mut client = node.forwarder.client().expect("a client");
    client.request(&apply).expect("applied");
    let told = "pool 10.244.0.0/16 holds 10.244.9.9, the underlay address of node n2";
    let so = "the tunnel to n2 leads into weft0";
    for page in [said(node.weft(&["status"])), node.host_up()] {
        assert!(page.contains(told) && page.contains(so), "{page}");
    }
    reaches_its_pod(node);
    let probes = [weft_lab::probe::Probe::Tcp];
    talk_by(&probes, &node.itself(), &cluster.nodes[2].pod, VXLAN_MTU);
}

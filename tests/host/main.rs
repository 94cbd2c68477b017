//! The host port with real binaries: nodes and pods reach each other, blocks
//! without encapsulation go as they are, and weft0 comes and goes with
//! `weft host`.

mod bird;
mod cluster;
mod errors;
#[path = "../support/forms.rs"]
mod forms;
mod life;
mod own_address;
mod surroundings;
mod ways;
#[path = "../support/wiretap.rs"]
mod wiretap;

use weft_api::forwarder::Way;
use weft_lab::{
    exchange,
    probe::{Family, Probe},
};
use weft_testkit::needs_namespaces;

use cluster::{Cluster, VXLAN_MTU, WHOLE, talk};

#[test]
fn the_node_and_its_own_pods_reach_each_other() {
    needs_namespaces!();
    let cluster = Cluster::up(|_, _| Way::Vxlan, VXLAN_MTU);
    let node = &cluster.nodes[0];
    talk(&node.itself(), &node.pod, VXLAN_MTU);
    talk(&node.host(node.plan.underlay), &node.pod, VXLAN_MTU);
    cluster.check_books();
}

#[test]
fn nodes_and_pods_of_other_nodes_reach_each_other_through_the_tunnel() {
    needs_namespaces!();
    let cluster = Cluster::up(|_, _| Way::Vxlan, VXLAN_MTU);
    for (from, to) in [(0, 1), (0, 2)] {
        let (here, there) = (&cluster.nodes[from], &cluster.nodes[to]);
        talk(&here.itself(), &there.pod, VXLAN_MTU);
        // By the fabric there, and back through the tunnel.
        let far = there.host(there.plan.underlay);
        for family in Family::ALL {
            for probe in [Probe::Ping, Probe::Tcp, Probe::Udp] {
                let told = |error| panic!("{error:#}");
                probe
                    .run(&here.pod, &far, family, VXLAN_MTU)
                    .unwrap_or_else(told);
                probe
                    .run(&far, &here.pod, family, VXLAN_MTU)
                    .unwrap_or_else(told);
            }
        }
    }
    cluster.check_books();
}

#[test]
fn pods_leave_by_the_node() {
    needs_namespaces!();
    let cluster = Cluster::up(|_, _| Way::Vxlan, VXLAN_MTU);
    let node = &cluster.nodes[0];
    // The router is nobody's node, and knows the way back to this node's pods.
    for (block, via) in node.plan.blocks.iter().zip(node.plan.underlay) {
        let route = format!("ip route add {block} via {via}");
        weft_lab::workshop::run(&cluster.router, &route).expect("a route");
    }
    let mut outside = node.host(["198.51.100.254", "2001:db8:3::fe"].map(address));
    outside.netns = weft_cni::netns::Netns::open(
        format!(
            "/proc/{}/fd/{}",
            std::process::id(),
            std::os::fd::AsRawFd::as_raw_fd(&cluster.router)
        )
        .as_ref(),
    )
    .expect("it is open");
    for family in Family::ALL {
        for probe in WHOLE {
            let told = |error| panic!("{error:#}");
            probe
                .run(&node.pod, &outside, family, VXLAN_MTU)
                .unwrap_or_else(told);
        }
        exchange::bulk(&node.pod, &outside, family, 4 << 20).expect("every byte");
    }
    cluster.check_books();
}

fn address(text: &str) -> std::net::IpAddr {
    text.parse().expect("an address")
}

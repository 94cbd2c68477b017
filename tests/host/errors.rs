//! ICMP errors reach whom they are for, through the node's kernel too.

use std::{
    net::IpAddr,
    time::{Duration, Instant},
};

use weft_api::forwarder::{GATEWAY_V4, GATEWAY_V6, Way};
use weft_lab::{
    Pod, exchange,
    icmp::{Question, Says},
    probe::{DEADLINE, Family},
};
use weft_testkit::needs_namespaces;

use crate::cluster::{Cluster, FULL_MTU, VXLAN_MTU};

const GATEWAYS: [IpAddr; 2] = [IpAddr::V4(GATEWAY_V4), IpAddr::V6(GATEWAY_V6)];

/// As traceroute does, hop by hop.
fn trace(from: &Pod, to: IpAddr) -> Vec<IpAddr> {
    let mut hops = Vec::new();
    for hop_limit in 1..10 {
        let question = Question {
            hop_limit,
            ..Question::to(to)
        };
        let answer = question.ask(&from.netns).expect("an answer");
        hops.push(answer.from);
        if answer.says == Says::Here {
            break;
        }
        assert_eq!(answer.says, Says::TimeExceeded);
    }
    hops
}

#[test]
fn every_hop_of_a_direct_way_speaks_for_itself() {
    needs_namespaces!();
    let cluster = Cluster::up(|_, _| Way::Direct, FULL_MTU);
    let [one, two, _] = &cluster.nodes[..] else {
        panic!("three nodes");
    };
    for (place, family) in Family::ALL.into_iter().enumerate() {
        let there = family.of(&one.pod);
        let way = [
            GATEWAYS[place],
            // The kernels of both nodes.
            two.plan.tunnel[place],
            one.plan.underlay[place],
            // What the other node's gateway says comes from the node.
            one.plan.tunnel[place],
            there,
        ];
        assert_eq!(trace(&two.pod, there), way);
        let beside = [GATEWAYS[place], there];
        assert_eq!(trace(&one.itself(), there), beside);
        let own = one.plan.tunnel[place];
        assert_eq!(trace(&one.pod, own), [GATEWAYS[place], own]);
    }
}

#[test]
fn the_node_learns_what_the_tunnel_takes() {
    needs_namespaces!();
    let near = |from: usize, to: usize| match from.max(to) < 2 {
        true => Way::Direct,
        false => Way::Vxlan,
    };
    let cluster = Cluster::up(near, VXLAN_MTU);
    let (node, far) = (cluster.nodes[0].itself(), &cluster.nodes[2].pod);
    for (family, headers) in Family::ALL.into_iter().zip([28, 48]) {
        let (asking, answering) = exchange::sockets(&node, far, family).expect("sockets");
        exchange::never_fragment(&asking).expect("set");
        assert_eq!(exchange::path_mtu(&asking).expect("connected"), 1500);
        asking
            .send(&vec![7; 1500 - headers])
            .expect("the kernel knows no better");
        let until = Instant::now() + DEADLINE;
        while exchange::path_mtu(&asking).expect("connected") != 1450 {
            assert!(Instant::now() < until, "the kernel is told");
            std::thread::sleep(Duration::from_millis(5));
        }
        // The news is an error of the socket's too, which it tells once.
        asking.take_error().expect("asked");
        let full = 1450 - headers;
        asking.send(&vec![7; full]).expect("it fits");
        let mut bytes = [0; 2000];
        assert_eq!(answering.recv(&mut bytes).expect("it arrives"), full);
    }
}

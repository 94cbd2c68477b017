//! Pods attached by taps of any number of queues, by veths and by plain taps
//! carry the same traffic, with each other on one node and across nodes.

use std::{
    collections::BTreeMap,
    net::UdpSocket,
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    thread,
    time::Duration,
};

use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, socket};
use weft_api::forwarder::{Driver, Reply, Request};
use weft_cni::link::Attach;
use weft_lab::{
    Lab, Ledger, Pod, Spec, exchange,
    probe::{Family, Probe},
    use_executable,
};
use weft_testkit::needs_namespaces;

/// In the order of the pods' numbers; the lab itself makes the first.
const KINDS: [(Attach, Driver, usize); 5] = [
    (Attach::Tap { queues: 2 }, Driver::Tap, 2),
    (Attach::Tap { queues: 1 }, Driver::Tap, 1),
    (Attach::Tap { queues: 4 }, Driver::Tap, 4),
    (Attach::Veth, Driver::Veth, 1),
    (Attach::Basic, Driver::Basic, 1),
];
const BASIC: usize = 4;

#[test]
fn on_one_node_all_reach_all() {
    needs_namespaces!();
    let lab = lab(1);
    let before = ledgers(&lab);
    for (place, from) in lab.pods.iter().enumerate() {
        for to in &lab.pods[place + 1..] {
            talk(&lab, from, to);
        }
    }
    check_books(&lab, &before);
}

#[test]
fn across_nodes_all_reach_all() {
    needs_namespaces!();
    let lab = lab(2);
    let before = ledgers(&lab);
    for from in lab.pods.iter().filter(|pod| pod.node == 0) {
        for to in lab.pods.iter().filter(|pod| pod.node == 1) {
            talk(&lab, from, to);
        }
    }
    check_books(&lab, &before);
}

/// A link without offloads has to be given every packet finished, however
/// large the frame it came in.
#[test]
fn a_plain_tap_is_given_packets_of_its_mtu_only() {
    needs_namespaces!();
    let lab = lab(2);
    let basic = of_node(&lab, 0).nth(BASIC).expect("a basic pod");
    let neighbour = of_node(&lab, 0).next().expect("a tap pod");
    let remote = of_node(&lab, 1).next().expect("a tap pod");
    for from in [neighbour, remote] {
        for family in Family::ALL {
            let largest = largest_tcp_packet(basic, family, || {
                exchange::bulk(from, basic, family, 512 << 10).expect("every byte");
            });
            let mtu = usize::from(lab.spec.pod_mtu());
            assert!(
                (mtu - 20..=mtu).contains(&largest),
                "{} over {family}: {largest} B",
                from.name()
            );
            exchange::train(from, basic, family, 1000, 40).expect("every datagram");
        }
    }
}

fn lab(nodes: usize) -> Lab {
    use_executable(env!("CARGO_BIN_EXE_weft"));
    let mut lab = Lab::up(&Spec {
        nodes,
        pods: 1,
        workers: Some(2),
        ..Spec::default()
    })
    .expect("a lab");
    for node in 0..nodes {
        for (attach, ..) in &KINDS[1..] {
            lab.add_pod(node, *attach).expect("a pod");
        }
        check_drivers(&lab, node);
    }
    lab
}

/// No kind fell back to another.
fn check_drivers(lab: &Lab, node: usize) {
    let forwarder = lab.nodes[node].forwarder.as_ref().expect("a forwarder");
    let mut client = forwarder.client().expect("a client");
    let Reply::Ports(ports) = client.request(&Request::List).expect("ports") else {
        panic!("list answers with ports");
    };
    let found: Vec<_> = ports
        .iter()
        .map(|port| (port.driver, port.queues))
        .collect();
    assert_eq!(found, KINDS.map(|(_, driver, queues)| (driver, queues)));
}

fn of_node(lab: &Lab, node: usize) -> impl Iterator<Item = &Pod> {
    lab.pods.iter().filter(move |pod| pod.node == node)
}

fn talk(lab: &Lab, from: &Pod, to: &Pod) {
    let kind = |pod: &Pod| {
        KINDS[of_node(lab, pod.node)
            .position(|p| p.name() == pod.name())
            .unwrap_or(0)]
        .0
    };
    let what = || format!("{:?} → {:?}", kind(from), kind(to));
    for family in Family::ALL {
        for probe in Probe::ALL {
            if let Err(error) = probe.run(from, to, family, lab.spec.pod_mtu()) {
                panic!("{}: {error:#}", what());
            }
        }
        for (from, to) in [(from, to), (to, from)] {
            let trains = exchange::train(from, to, family, 1000, 20);
            if let Err(error) = trains.and_then(|()| exchange::bulk(from, to, family, 100_000)) {
                panic!("{}: {error:#}", what());
            }
        }
    }
}

/// Bytes of the largest IP packet of TCP that the pod receives meanwhile.
fn largest_tcp_packet(pod: &Pod, family: Family, meanwhile: impl FnOnce()) -> usize {
    let (v4, header) = (
        family == Family::V4,
        if family == Family::V4 { 0 } else { 40 },
    );
    let raw = pod.netns.run(|| {
        let family = if v4 {
            AddressFamily::Inet
        } else {
            AddressFamily::Inet6
        };
        socket(
            family,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::Tcp,
        )
    });
    let socket = UdpSocket::from(raw.expect("enter").expect("a raw socket"));
    socket
        .set_read_timeout(Some(Duration::from_millis(20)))
        .expect("a timeout");
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let listening = scope.spawn(|| {
            let (mut bytes, mut largest) = (vec![0; 65_536], 0);
            loop {
                // The order matters: what came before the end is still read.
                let last = done.load(Relaxed);
                match socket.recv(&mut bytes) {
                    Ok(len) => largest = largest.max(len + header),
                    Err(_) if last => return largest,
                    Err(_) => {}
                }
            }
        });
        meanwhile();
        done.store(true, Relaxed);
        listening.join().expect("it listened")
    })
}

fn ledgers(lab: &Lab) -> Vec<Ledger> {
    let forwarders = lab.nodes.iter().map(|node| node.forwarder.as_ref());
    forwarders
        .map(|forwarder| Ledger::of(forwarder.expect("a forwarder")).expect("balanced"))
        .collect()
}

/// Nothing was lost.
fn check_books(lab: &Lab, before: &[Ledger]) {
    for (before, after) in before.iter().zip(ledgers(lab)) {
        assert_eq!(after.lost_since(before), BTreeMap::new());
    }
}

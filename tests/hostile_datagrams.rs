//! Each kind of bad datagram moves its own counter and nothing else, and the
//! next good packet passes.

use std::{
    collections::BTreeMap,
    fs,
    net::{IpAddr, UdpSocket},
    time::{Duration, Instant},
};

use nix::sys::socket::{setsockopt, sockopt};
use weft_lab::{
    Forwarder, Lab, Ledger, NodePlan, Spec,
    probe::{Family, Probe},
    use_executable,
    workshop::run,
};
use weft_testkit::{
    frames::{FrameBuilder, between},
    needs_namespaces,
};
use weft_wire::{edit, vxlan};

const VNI: u32 = 4096;

#[test]
fn each_moves_its_own_counter_and_the_next_good_packet_passes() {
    needs_namespaces!();
    use_executable(env!("CARGO_BIN_EXE_weft"));
    let spec = Spec {
        pods: 1,
        workers: Some(2),
        ..Spec::default()
    };
    // The nodes' own questions would be counted too.
    let mute = |_: &NodePlan| "[probes]\nenabled = false\n".to_owned();
    let lab = Lab::up_with(&spec, &mute).expect("a lab");
    let sender = Sender::new(&lab);
    wait_until_pods_are_silent(&lab);
    for bad in bad_datagrams(&lab) {
        let before = ledger(&lab);
        sender.send(&bad);
        let after = ledger_with(&lab, before.value("received_from_peers") + 1);
        let expected = BTreeMap::from([(bad.reason.to_owned(), 1)]);
        assert_eq!(after.drops_since(&before), expected, "{}", bad.what);
        let moved = |name| after.value(name) - before.value(name);
        assert_eq!(moved("received_from_peers"), 1, "{}", bad.what);
        assert_eq!(moved("originated"), u64::from(bad.is_told), "{}", bad.what);
        assert_eq!(
            moved("sent_to_peers"),
            u64::from(bad.is_told),
            "{}",
            bad.what
        );
        assert_eq!(moved("sent_to_ports"), 0, "{}", bad.what);
        let (from, to) = (&lab.pods[1], &lab.pods[0]);
        for family in Family::ALL {
            Probe::Udp
                .run(from, to, family, lab.spec.pod_mtu())
                .expect("good packets pass");
        }
    }
}

struct Bad {
    what: &'static str,
    reason: &'static str,
    bytes: Vec<u8>,
    from: From,
    /// Whether its sender is told by ICMP.
    is_told: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum From {
    Peer,
    /// The peer over IPv6, from a port of its own choice.
    PeerV6,
    /// The peer, with a mark of congestion on the way.
    Congested,
    Stranger,
}

fn bad(what: &'static str, reason: &'static str, bytes: Vec<u8>) -> Bad {
    Bad {
        what,
        reason,
        bytes,
        from: From::Peer,
        is_told: false,
    }
}

impl Bad {
    fn from(self, from: From) -> Self {
        Self { from, ..self }
    }

    fn told(self) -> Self {
        Self {
            is_told: true,
            ..self
        }
    }
}

/// What node 2 may send to node 1 that node 1 must not carry.
#[expect(clippy::too_many_lines, reason = "a table")]
fn bad_datagrams(lab: &Lab) -> Vec<Bad> {
    let [to, from] = [0, 1].map(|node| &lab.nodes[node].plan);
    let good = |family: Family| flow(from, to, family, None, None);
    let header = vxlan::header(VNI);
    let around = |frame: FrameBuilder| around(VNI, &frame.build());
    let edited = |edit: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = around(good(Family::V4));
        edit(&mut bytes);
        bytes
    };
    let (src, dst) = (from.pods[0].addresses(), to.pods[0].addresses());
    let [foreign_v4, foreign_v6] = ["10.99.0.1", "fd99::1"].map(address);
    let mut all = vec![
        bad("nothing", "vxlan_truncated", vec![]),
        bad(
            "half a VXLAN header",
            "vxlan_truncated",
            header[..7].to_vec(),
        ),
        bad("no VNI flag", "vxlan_no_vni", edited(&|b| b[0] = 0)),
        bad(
            "a reserved flag",
            "vxlan_reserved",
            edited(&|b| b[0] |= 0x80),
        ),
        bad("a reserved byte", "vxlan_reserved", edited(&|b| b[7] = 1)),
        bad("another VNI", "wrong_vni", edited(&|b| b[6] ^= 1)),
        bad("no inner frame", "malformed_ethernet", header.to_vec()),
        bad(
            "half an IP header",
            "malformed_ip",
            edited(&|b| b.truncate(8 + 14 + 10)),
        ),
        bad(
            "a wrong IP checksum",
            "malformed_ip",
            edited(&|b| b[8 + 14 + 10] ^= 1),
        ),
        bad(
            "a wrong UDP length",
            "malformed_transport",
            edited(&|b| b[8 + 34 + 4] = 0xff),
        ),
        bad(
            "inner ARP",
            "unsupported_ethertype",
            edited(&|b| b[8 + 13] = 0x06),
        ),
        bad(
            "another VTEP's frame",
            "wrong_vtep",
            edited(&|b| b[8] ^= 0x04),
        ),
    ];
    for (family, foreign, at) in [(Family::V4, foreign_v4, 0), (Family::V6, foreign_v6, 1)] {
        let toward = |dst| around(flow(from, to, family, None, Some(dst)));
        let claiming = |src| around(flow(from, to, family, Some(src), None));
        // The last address of the block, which is given out last.
        let unused = to.blocks[at].broadcast();
        let link_local = [address("169.254.7.7"), address("fe80::7")][at];
        let group = [address("224.0.0.9"), address("ff02::9")][at];
        all.extend([
            bad("a source nobody has", "foreign_source", claiming(foreign)),
            bad("the receiver's source", "foreign_source", claiming(dst[at])),
            bad(
                "the node's source",
                "foreign_source",
                claiming(to.tunnel[at]),
            ),
            bad("back to the peer", "not_here", toward(src[at])).told(),
            bad("to nobody here", "not_here", toward(unused)).told(),
            bad("out of the network", "not_here", toward(foreign)).told(),
            bad("to a link-local address", "link_local", toward(link_local)),
            bad("to a group", "multicast", toward(group)),
            bad(
                "UDP to the node itself",
                "gateway_unserved",
                toward(to.tunnel[at]),
            )
            .told(),
            bad("no hops left", "hop_limit", around(good(family).ttl(1))).told(),
            bad(
                "larger than the link",
                "too_big",
                around(good(family).dont_fragment().filled(1450)),
            )
            .told(),
            bad(
                "congestion unasked for",
                "congestion_unmarked",
                around(good(family)),
            )
            .from(From::Congested),
            bad("from a stranger", "unknown_peer", around(good(family))).from(From::Stranger),
        ]);
    }
    all.push(bad("half a header over IPv6", "vxlan_truncated", vec![8]).from(From::PeerV6));
    all
}

fn flow(
    from: &NodePlan,
    to: &NodePlan,
    family: Family,
    src: Option<IpAddr>,
    dst: Option<IpAddr>,
) -> FrameBuilder {
    let at = family as usize;
    let src = src.unwrap_or(from.pods[0].addresses()[at]);
    let dst = dst.unwrap_or(to.pods[0].addresses()[at]);
    between(src, dst)
        .macs(from.vtep_mac.0, to.vtep_mac.0)
        .udp(4000, 4001)
        .filled(64)
}

fn around(vni: u32, frame: &[u8]) -> Vec<u8> {
    [&vxlan::header(vni)[..], frame].concat()
}

fn address(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

/// Plain UDP sockets on node 2.
struct Sender {
    peer: UdpSocket,
    peer_v6: UdpSocket,
    congested: UdpSocket,
    stranger: UdpSocket,
    to: [(IpAddr, u16); 2],
}

impl Sender {
    fn new(lab: &Lab) -> Self {
        let node = &lab.nodes[1].netns;
        run(node, "ip address add 192.0.2.77/24 dev eth0").expect("an address");
        let bind = |address: IpAddr| {
            let socket = node.run(|| UdpSocket::bind((address, 0)));
            socket.expect("enter").expect("bound")
        };
        let [v4, v6] = lab.nodes[1].plan.underlay;
        let congested = bind(v4);
        setsockopt(&congested, sockopt::Ipv4Tos, &i32::from(edit::ECN_CE)).expect("marked");
        Self {
            peer: bind(v4),
            peer_v6: bind(v6),
            congested,
            stranger: bind(address("192.0.2.77")),
            to: lab.nodes[0].plan.underlay.map(|address| (address, 4789)),
        }
    }

    fn send(&self, bad: &Bad) {
        let [v4, v6] = self.to;
        let (socket, to) = match bad.from {
            From::Peer => (&self.peer, v4),
            From::PeerV6 => (&self.peer_v6, v6),
            From::Congested => (&self.congested, v4),
            From::Stranger => (&self.stranger, v4),
        };
        socket.send_to(&bad.bytes, to).expect("sent");
    }
}

fn ledger(lab: &Lab) -> Ledger {
    let forwarder: &Forwarder = lab.nodes[0].forwarder.as_ref().expect("a forwarder");
    Ledger::of(forwarder).expect("balanced")
}

/// Once so many datagrams have come.
fn ledger_with(lab: &Lab, datagrams: u64) -> Ledger {
    let until = Instant::now() + Duration::from_secs(5);
    loop {
        let ledger = ledger(lab);
        if ledger.value("received_from_peers") >= datagrams {
            return ledger;
        }
        assert!(Instant::now() < until, "a datagram is not counted");
    }
}

/// A young link tries its address for duplicates and asks for routers; what
/// it says is counted too.
fn wait_until_pods_are_silent(lab: &Lab) {
    const TENTATIVE: u8 = 0x40;
    let until = Instant::now() + Duration::from_secs(10);
    let tentative = || {
        lab.pods.iter().any(|pod| {
            let table = pod
                .netns
                .run(|| fs::read_to_string("/proc/thread-self/net/if_inet6"));
            let table = table.expect("enter").expect("procfs");
            let mut flags = table
                .lines()
                .filter_map(|line| line.split_whitespace().nth(4));
            flags.any(|flags| u8::from_str_radix(flags, 16).is_ok_and(|f| f & TENTATIVE != 0))
        })
    };
    while tentative() {
        assert!(Instant::now() < until, "an address stays tentative");
        std::thread::sleep(Duration::from_millis(50));
    }
    // The reports of the groups that come with the address.
    let mut before = ledger(lab);
    loop {
        std::thread::sleep(Duration::from_millis(1200));
        let after = ledger(lab);
        if after == before {
            return;
        }
        assert!(Instant::now() < until, "a pod is never silent");
        before = after;
    }
}

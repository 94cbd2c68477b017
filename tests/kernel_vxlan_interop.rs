//! A node whose VXLAN is the kernel's and one whose VXLAN is weft's carry
//! each other's pods, with the kernel programmed as flannel programs it and
//! as Calico does, over either family.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, UdpSocket},
    path::Path,
    time::Duration,
};

use ipnet::IpNet;
use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, socket};
use weft_api::{
    forwarder::{Node, Nodes, Request},
    names::{Mac, Name, Vni},
};
use weft_cni::{link::Attach, netns::Netns};
use weft_lab::{
    Forwarder, Ledger, NodePlan, Outer, Pod, PodPlan, Spec, exchange,
    icmp::{Question, Says},
    probe::{Family, Probe, patiently},
    use_executable,
    workshop::{self, Workshop, run},
};
use weft_testkit::needs_namespaces;

#[path = "support/bridge_pod.rs"]
mod bridge_pod;
#[path = "support/calico_pod.rs"]
mod calico_pod;
#[path = "support/kernel_node.rs"]
mod kernel_node;
use bridge_pod::add_pod_to_bridge;
use calico_pod::add_pod_with_proxy_arp;
use kernel_node::{all, join, path, route_packets};

#[test]
fn a_flannel_node_and_ours_carry_each_other() {
    needs_namespaces!();
    for layout in Layout::ALL {
        Pair::new(&FLANNEL, layout, "").talk();
    }
}

#[test]
fn a_calico_node_and_ours_carry_each_other() {
    needs_namespaces!();
    for layout in Layout::ALL {
        let pair = Pair::new(&CALICO, layout, "");
        pair.talk_from_borrowed_addresses();
        pair.talk();
    }
}

/// Older kernels leave the outer checksum out over IPv4, and so does a
/// device that is told to.
#[test]
fn an_outer_checksum_of_zero_is_taken() {
    needs_namespaces!();
    let pair = Pair::new(&FLANNEL, Layout::OverV4, "noudpcsum");
    let tap = Wiretap::on(&pair.ours, Family::V4);
    pair.probe(&pair.pods[0], &pair.pods[1]);
    let heard = tap.heard(FLANNEL.port);
    assert!(!heard.is_empty());
    assert!(heard.iter().all(|datagram| datagram.checksum == 0));
    pair.check_books();
}

/// Calico's nodes take VXLAN only from addresses that nodes have published.
#[test]
fn datagrams_leave_from_the_address_that_peers_are_told() {
    needs_namespaces!();
    let pair = Pair::new(&CALICO, Layout::Each, "");
    // Addresses that the kernel would rather use.
    run(
        &pair.ours,
        "ip route add 192.0.2.2 dev eth0 src 192.0.2.101",
    )
    .expect("a route");
    run(
        &pair.ours,
        "ip -6 route add 2001:db8::2 dev eth0 src 2001:db8::101",
    )
    .expect("a route");
    for (family, published) in Family::ALL.into_iter().zip(pair.plan[0].underlay) {
        let tap = Wiretap::on(&pair.theirs, family);
        pair.probe(&pair.pods[0], &pair.pods[1]);
        let sources: BTreeSet<IpAddr> = tap
            .heard(CALICO.port)
            .iter()
            .map(|datagram| datagram.from)
            .collect();
        assert_eq!(sources, BTreeSet::from([published]), "{family}");
    }
}

/// How a network programs the kernel.
struct Dialect {
    vni: u32,
    port: u16,
    /// Those over IPv4 and over IPv6.
    devices: [&'static str; 2],
    /// Each node's addresses in the pod network.
    tunnels: [[&'static str; 2]; 2],
    add_pod: fn(&Netns, &Pod, u16),
}

const FLANNEL: Dialect = Dialect {
    vni: 1,
    port: 8472,
    devices: ["flannel.1", "flannel-v6.1"],
    // The first address of each block.
    tunnels: [
        ["10.244.1.0", "fd00:10:244:1::"],
        ["10.244.2.0", "fd00:10:244:2::"],
    ],
    add_pod: add_pod_to_bridge,
};

const CALICO: Dialect = Dialect {
    vni: 4096,
    port: 4789,
    devices: ["vxlan.calico", "vxlan-v6.calico"],
    // Out of a pool, in no node's block.
    tunnels: [
        ["10.244.200.17", "fd00:10:244:200::17"],
        ["10.244.200.5", "fd00:10:244:200::5"],
    ],
    add_pod: add_pod_with_proxy_arp,
};

/// Which family carries the pods' packets of which.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Layout {
    /// One device for both, over IPv4.
    OverV4,
    OverV6,
    /// A device for each family, over the same family, as both networks do.
    Each,
}

impl Layout {
    const ALL: [Self; 3] = [Self::OverV4, Self::OverV6, Self::Each];

    /// The outer families, and the inner ones that each carries.
    fn carriers(self) -> &'static [(Family, &'static [Family])] {
        match self {
            Self::OverV4 => &[(Family::V4, &Family::ALL)],
            Self::OverV6 => &[(Family::V6, &Family::ALL)],
            Self::Each => &[(Family::V4, &[Family::V4]), (Family::V6, &[Family::V6])],
        }
    }

    /// What fits through the smallest of the devices.
    fn pod_mtu(self) -> u16 {
        match self {
            Self::OverV4 => 1450,
            Self::OverV6 | Self::Each => 1430,
        }
    }
}

/// Our node with a pod, the kernel's with a pod, and the underlay.
struct Pair {
    layout: Layout,
    dialect: &'static Dialect,
    /// Ours, then the kernel's.
    plan: Vec<NodePlan>,
    forwarder: Forwarder,
    /// Ours, then the kernel's, then the kernel's host as a pod that has the
    /// tunnel addresses; then, for Calico, pods with borrowed addresses.
    pods: Vec<Pod>,
    ours: Netns,
    theirs: Netns,
    before: Ledger,
    _workshop: Workshop,
}

const OURS: usize = 0;
const THEIRS: usize = 1;
/// One MAC a device of the kernel's node.
const THEIR_MACS: [Mac; 2] = [Mac([0x66, 0, 0, 0, 2, 4]), Mac([0x66, 0, 0, 0, 2, 6])];
/// Addresses of pods that live on the other node than their block.
const BORROWED: [[&str; 2]; 2] = [
    ["10.244.2.98", "fd00:10:244:2::98"],
    ["10.244.1.99", "fd00:10:244:1::99"],
];

impl Pair {
    fn new(dialect: &'static Dialect, layout: Layout, device_options: &str) -> Self {
        use_executable(env!("CARGO_BIN_EXE_weft"));
        let mut plan = Spec {
            outer: Outer::V4,
            ..Spec::default()
        }
        .plan();
        for (node, tunnel) in plan.iter_mut().zip(dialect.tunnels) {
            node.tunnel = tunnel.map(|address| address.parse().expect("an address"));
        }
        let [ours, theirs] = ["ours", "theirs"].map(|name| workshop::node(name).expect("a node"));
        join(&ours, &theirs);
        let workshop = Workshop::open().expect("a workshop");
        let configuration = format!(
            "node = 'n1'\nworkers = 2\nvtep_mac = '{}'\n[uplink]\naddresses = ['192.0.2.1', \
             '2001:db8::1']\nport = {}\nvni = {}\nmtu = 1500\n",
            plan[OURS].vtep_mac, dialect.port, dialect.vni
        );
        let forwarder = workshop
            .forwarder("n1", &configuration, &ours)
            .expect("a forwarder");
        make_kernel_node(dialect, layout, &plan, &theirs, device_options);
        let pods = pods(dialect, layout, &plan, &ours, &theirs, &forwarder);
        let apply = Request::Apply(nodes(dialect, layout, &plan));
        let mut client = forwarder.client().expect("a client");
        client.request(&apply).expect("applied");
        Self {
            before: Ledger::of(&forwarder).expect("quiet"),
            layout,
            dialect,
            plan,
            forwarder,
            pods,
            ours,
            theirs,
            _workshop: workshop,
        }
    }

    fn talk(&self) {
        let [ours, theirs, their_host] = [0, 1, 2].map(|place| &self.pods[place]);
        for (from, to) in [(ours, theirs), (theirs, ours), (their_host, ours)] {
            self.probe(from, to);
            for family in Family::ALL {
                exchange::bulk(from, to, family, 1 << 20).expect("every byte");
                exchange::train(from, to, family, 1200, 30).expect("every datagram");
                self.sweep(from, to, family);
            }
        }
        // Neither the packets of hosts nor those of pods are answered wrongly.
        self.probe(ours, their_host);
        self.check_books();
        self.check_hops();
    }

    fn talk_from_borrowed_addresses(&self) {
        let [ours, theirs, _, our_guest, their_guest] = [0, 1, 2, 3, 4].map(|at| &self.pods[at]);
        for (from, to) in [
            (our_guest, theirs),
            (theirs, our_guest),
            (our_guest, their_guest),
            (ours, their_guest),
            (their_guest, ours),
        ] {
            self.probe(from, to);
        }
        self.check_books();
    }

    fn probe(&self, from: &Pod, to: &Pod) {
        for family in Family::ALL {
            for probe in Probe::ALL {
                probe
                    .run(from, to, family, self.layout.pod_mtu())
                    .unwrap_or_else(|error| panic!("{:?}: {error:#}", self.layout));
            }
        }
    }

    /// Every size at which something changes: around the inner and the outer
    /// MTU, and in fragments.
    fn sweep(&self, from: &Pod, to: &Pod, family: Family) {
        let headers = if family == Family::V4 { 28 } else { 48 };
        let full = usize::from(self.layout.pod_mtu()) - headers;
        let small = [1, 2, 63, 64];
        let around = (1399..=1410).filter(|size| *size <= full);
        let mut sizes: Vec<_> = small
            .into_iter()
            .chain(around)
            .chain(full - 3..=full)
            .collect();
        // The pods' links are all of one size, the host's may be larger.
        if from.name() != HOST {
            exchange::refused_whole(from, to, family, full + 1).expect("EMSGSIZE");
            sizes.extend([full + 1, full + 2]);
        }
        sizes.push(4000);
        exchange::datagrams(from, to, family, sizes)
            .unwrap_or_else(|error| panic!("{:?}: {error:#}", self.layout));
    }

    /// Each node is one hop, and the one behind the tunnel speaks from its
    /// address in the pod network.
    fn check_hops(&self) {
        let [ours, theirs] = [0, 1].map(|place| &self.pods[place]);
        for (from, to, second) in [(ours, theirs, THEIRS), (theirs, ours, OURS)] {
            for (family, tunnel) in Family::ALL.into_iter().zip(self.plan[second].tunnel) {
                for (hop_limit, expected) in [
                    (2, (tunnel, Says::TimeExceeded)),
                    (3, (family.of(to), Says::Here)),
                ] {
                    let question = Question {
                        hop_limit,
                        ..Question::to(family.of(to))
                    };
                    let answer = question.ask(&from.netns).expect("an answer");
                    assert_eq!((answer.from, answer.says), expected, "{question:?}");
                }
            }
        }
    }

    /// Nothing was lost, on either node.
    fn check_books(&self) {
        let after = Ledger::of(&self.forwarder).expect("balanced");
        let drops = after.lost_since(&self.before);
        assert_eq!(drops, BTreeMap::new(), "{:?}", self.layout);
        assert!(after.value("sent_to_peers") > self.before.value("sent_to_peers"));
        for (outer, _) in self.layout.carriers() {
            let device = self.dialect.devices[*outer as usize];
            let text = run(&self.theirs, &format!("ip -j -s link show {device}")).expect("stats");
            let stats: serde_json::Value = serde_json::from_str(&text).expect("JSON");
            let received = &stats[0]["stats64"]["rx"];
            assert_eq!(
                (&received["errors"], &received["dropped"]),
                (&0.into(), &0.into())
            );
        }
    }
}

/// As flanneld and felix do it: a device, and for the one peer a neighbour, a
/// forwarding entry and routes. They differ in names and numbers, and in that
/// felix has a route for each borrowed address, one for a tunnel address that no
/// block holds, and none for what it does not know of its own block.
fn make_kernel_node(
    dialect: &Dialect,
    layout: Layout,
    plan: &[NodePlan],
    netns: &Netns,
    options: &str,
) {
    netns.run(route_packets).expect("enter");
    let (vni, port) = (dialect.vni, dialect.port);
    let peer = &plan[OURS];
    for (outer, inner) in layout.carriers() {
        let at = *outer as usize;
        let (device, mac) = (dialect.devices[at], THEIR_MACS[at]);
        let (local, remote) = (plan[THEIRS].underlay[at], peer.underlay[at]);
        let mtu = if *outer == Family::V4 { 1450 } else { 1430 };
        all(
            netns,
            &[
                &format!(
                    "ip link add {device} address {mac} mtu {mtu} type vxlan id {vni} local \
                     {local} dev eth0 dstport {port} nolearning {options}"
                ),
                &format!("ip link set {device} addrgenmode none up"),
                &format!(
                    "bridge fdb append {} dev {device} dst {remote} self permanent",
                    peer.vtep_mac
                ),
            ],
        );
        for family in *inner {
            let at = *family as usize;
            let (own, tunnel) = (plan[THEIRS].tunnel[at], peer.tunnel[at]);
            all(
                netns,
                &[
                    &format!("ip address add {} dev {device}", IpNet::from(own)),
                    &format!(
                        "ip neigh replace {tunnel} lladdr {} dev {device} nud permanent",
                        peer.vtep_mac
                    ),
                    &format!(
                        "ip route add {} via {tunnel} dev {device} onlink",
                        peer.blocks[at]
                    ),
                ],
            );
            if dialect.vni == CALICO.vni {
                let (borrowed, own) = (BORROWED[OURS][at], plan[THEIRS].blocks[at]);
                let routes = [
                    format!("ip route add {borrowed} via {tunnel} dev {device} onlink"),
                    format!("ip route add blackhole {own}"),
                    format!("ip route add {tunnel} dev {device}"),
                ];
                all(netns, &routes.each_ref().map(String::as_str));
            }
        }
    }
}

const HOST: &str = "n2";

fn pods(
    dialect: &Dialect,
    layout: Layout,
    plan: &[NodePlan],
    ours: &Netns,
    theirs: &Netns,
    forwarder: &Forwarder,
) -> Vec<Pod> {
    let pod = |plan: PodPlan, node| {
        let netns = workshop::node(&plan.name).expect("a pod");
        Pod { plan, node, netns }
    };
    let mut pods = vec![
        pod(plan[OURS].pods[0].clone(), OURS),
        pod(plan[THEIRS].pods[0].clone(), THEIRS),
        Pod {
            plan: at(plan[THEIRS].pods[1].clone(), HOST, dialect.tunnels[THEIRS]),
            node: THEIRS,
            netns: Netns::open(Path::new(&path(theirs))).expect("the node again"),
        },
    ];
    if dialect.vni == CALICO.vni {
        for (node, name) in [(OURS, "our-guest"), (THEIRS, "their-guest")] {
            pods.push(pod(
                at(plan[node].pods[1].clone(), name, BORROWED[node]),
                node,
            ));
        }
    }
    for pod in &pods {
        let attach = Attach::Tap { queues: 2 };
        match pod.node {
            OURS => pod
                .plug(attach, layout.pod_mtu(), ours, forwarder)
                .expect("wired"),
            _ if pod.name() == HOST => {}
            _ => (dialect.add_pod)(theirs, pod, layout.pod_mtu()),
        }
    }
    pods
}

fn at(plan: PodPlan, name: &str, [v4, v6]: [&str; 2]) -> PodPlan {
    PodPlan {
        name: name.to_owned(),
        v4: v4.parse().expect("an address"),
        v6: v6.parse().expect("an address"),
        ..plan
    }
}

/// What our forwarder is told. A node with a device for each family, and so
/// with two MACs, is two peers.
fn nodes(dialect: &Dialect, layout: Layout, plan: &[NodePlan]) -> Nodes {
    let vni = Vni::new(dialect.vni).expect("24 bits");
    let of = |plan: &NodePlan| Node {
        vni,
        port: dialect.port,
        ..plan.record().expect("a record")
    };
    let peers = layout.carriers().iter().map(|(outer, inner)| {
        let node = of(&plan[THEIRS]);
        let carried = |address: IpAddr| {
            let family = if address.is_ipv4() {
                Family::V4
            } else {
                Family::V6
            };
            inner.contains(&family)
        };
        let borrowed = BORROWED[THEIRS].map(|a| IpNet::from(a.parse::<IpAddr>().expect("valid")));
        let blocks = node.blocks.into_iter().chain(borrowed);
        Node {
            name: Name::new(format!("n2-{outer}")).expect("a name"),
            underlay: vec![plan[THEIRS].underlay[*outer as usize]],
            vtep_mac: THEIR_MACS[*outer as usize],
            blocks: blocks.filter(|block| carried(block.addr())).collect(),
            tunnel: node.tunnel.into_iter().filter(|a| carried(*a)).collect(),
            ..node
        }
    });
    Nodes {
        node: of(&plan[OURS]),
        peers: peers.collect(),
    }
}

/// A raw socket that hears the UDP of a node.
struct Wiretap {
    socket: UdpSocket,
    v4: bool,
}

struct Datagram {
    from: IpAddr,
    checksum: u16,
}

impl Wiretap {
    fn on(node: &Netns, family: Family) -> Self {
        let v4 = family == Family::V4;
        let family = if v4 {
            AddressFamily::Inet
        } else {
            AddressFamily::Inet6
        };
        let flags = SockFlag::SOCK_CLOEXEC;
        let raw = node.run(|| socket(family, SockType::Raw, flags, SockProtocol::Udp));
        let socket = UdpSocket::from(raw.expect("enter").expect("a raw socket"));
        socket
            .set_read_timeout(Some(Duration::from_millis(50)))
            .expect("a timeout");
        Self { socket, v4 }
    }

    /// What has come for `port` by now.
    fn heard(self, port: u16) -> Vec<Datagram> {
        let mut bytes = [0; 65_536];
        let mut heard = Vec::new();
        while let Ok((len, from)) = patiently(|| self.socket.recv_from(&mut bytes)) {
            // A raw IPv4 socket hands out the IP header too.
            let header = if self.v4 {
                usize::from(bytes[0] & 0x0f) * 4
            } else {
                0
            };
            let udp = &bytes[header..len];
            if udp[2..4] == port.to_be_bytes() {
                heard.push(Datagram {
                    from: from.ip(),
                    checksum: u16::from_be_bytes([udp[6], udp[7]]),
                });
            }
        }
        heard
    }
}

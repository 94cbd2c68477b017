//! Three nodes on one wire, one test for each mode and one for a mixture: pods
//! reach each other, and the wire shows what the mode promises, as tshark
//! dissects it.

use std::{
    collections::{BTreeMap, BTreeSet},
    os::fd::AsRawFd,
    process,
    time::Instant,
};

use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, sendto, socket,
};
use weft_api::forwarder::{Node, Nodes, Reply, Request, Way};
use weft_cni::{link::Attach, netns::Netns};
use weft_lab::{
    Forwarder, Ledger, NodePlan, Pod, Spec, exchange,
    probe::{DEADLINE, Family, Probe},
    use_executable,
    workshop::{self, Workshop, run},
};
use weft_testkit::{frames::between, needs_namespaces};
use weft_wire::{Ethernet, parse, protocol, vxlan};

#[path = "support/wiretap.rs"]
mod wiretap;
use wiretap::{Wiretap, dissect};

/// What fits into 1500 bytes: 20 (IP) + 8 (UDP) + 8 (VXLAN) + 14 (Ethernet)
/// less, and 20 (IP) less.
const VXLAN_MTU: u16 = 1450;
const IPIP_MTU: u16 = 1480;

/// How the IPv4 pods of the second node are reached by the first, by node.
type Ways = fn(usize, usize) -> Way;

#[test]
fn vxlan_is_ethernet_in_udp() {
    needs_namespaces!();
    let trio = Trio::new(|_, _| Way::Vxlan, VXLAN_MTU);
    trio.talk();
}

#[test]
fn vxlan_l3_is_ip_in_udp() {
    needs_namespaces!();
    // 14 bytes of Ethernet less than VXLAN takes.
    Trio::new(|_, _| Way::VxlanL3, VXLAN_MTU + 14).talk();
}

#[test]
fn ipip_is_ip_in_ip() {
    needs_namespaces!();
    let trio = Trio::new(|_, _| Way::Ipip, IPIP_MTU);
    trio.talk();
    for (from, to) in [(0, 1), (1, 2), (2, 0)] {
        trio.sweep(from, to);
    }
    trio.check_books();
}

#[test]
fn ways_mix_by_block() {
    needs_namespaces!();
    let with_the_last = |from, to| match from == 2 || to == 2 {
        true => Way::Ipip,
        false => Way::Vxlan,
    };
    Trio::new(with_the_last, VXLAN_MTU).talk();
    // The way there need not be the way back.
    let up = |from, to| match from < to {
        true => Way::Ipip,
        false => Way::Vxlan,
    };
    Trio::new(up, VXLAN_MTU).talk();
}

#[test]
fn strangers_and_liars_are_counted_and_nobody_is_hurt() {
    needs_namespaces!();
    let trio = Trio::new(|_, _| Way::Ipip, IPIP_MTU);
    run(&trio.nodes[1], "ip address add 192.0.2.99/24 dev eth0").expect("an address");
    let pod = |node: usize| trio.pods[node].v4();
    let inner = |src, dst| between(src, dst).udp(1, 2).filled(9).build()[14..].to_vec();
    for (reason, from, packet) in [
        ("unknown_peer", [192, 0, 2, 99], inner(pod(1), pod(0))),
        ("foreign_source", [192, 0, 2, 2], inner(pod(2), pod(0))),
        (
            "not_here",
            [192, 0, 2, 2],
            inner(pod(1), [203, 0, 113, 1].into()),
        ),
        ("malformed_ip", [192, 0, 2, 2], b"no packet".to_vec()),
    ] {
        let before = Ledger::of(&trio.forwarders[0]).expect("quiet");
        trio.nodes[1]
            .run(|| send_ipip(from, [192, 0, 2, 1], &packet))
            .expect("enter")
            .expect("sent");
        let counted = || {
            let after = Ledger::of(&trio.forwarders[0]).expect("balanced");
            after.dropped(reason) - before.dropped(reason)
        };
        let deadline = Instant::now() + DEADLINE;
        while counted() == 0 {
            assert!(Instant::now() < deadline, "{reason} is not counted");
        }
        assert_eq!(counted(), 1, "{reason}");
    }
    trio.probe(1, 0, Family::V4);
}

#[test]
fn a_forwarder_without_a_raw_socket_refuses_ipip() {
    needs_namespaces!();
    use_executable(env!("CARGO_BIN_EXE_weft"));
    let plan = plan();
    let node = workshop::node("n1").expect("a node");
    run(&node, "ip address add 192.0.2.1/24 dev lo").expect("an address");
    let workshop = Workshop::open().expect("a workshop");
    let configuration = "node = 'n1'\n[uplink]\naddresses = ['192.0.2.1']\nipip = false\n";
    let forwarder = workshop
        .forwarder("n1", configuration, &node)
        .expect("a forwarder");
    let mut client = forwarder.client().expect("a client");
    let Ok(Reply::Status(status)) = client.request(&Request::Status) else {
        panic!("no status");
    };
    assert!(!status.ipip);
    let mut own = plan[0].record().expect("a record");
    own.underlay.truncate(1);
    let nodes = |way| Nodes {
        node: own.clone(),
        peers: vec![peer(&plan[1], way)],
    };
    let apply = |way| Request::Apply(nodes(way));
    let refusal = client.request(&apply(Way::Ipip)).expect_err("refused");
    let told = format!("{refusal:#}");
    assert!(told.contains("10.244.2.0/24"), "{told}");
    client.request(&apply(Way::Vxlan)).expect("VXLAN is there");
}

struct Trio {
    ways: Ways,
    plan: Vec<NodePlan>,
    nodes: Vec<Netns>,
    forwarders: Vec<Forwarder>,
    /// One a node.
    pods: Vec<Pod>,
    before: Vec<Ledger>,
    pod_mtu: u16,
    _switch: Netns,
    _workshop: Workshop,
}

fn plan() -> Vec<NodePlan> {
    let spec = Spec {
        nodes: 3,
        pods: 1,
        ..Spec::default()
    };
    spec.plan()
}

/// A node as another is told of it, with the way to its IPv4 pods.
fn peer(plan: &NodePlan, way: Way) -> Node {
    let mut node = plan.record().expect("a record");
    let all = node.blocks.iter();
    let v4 = all.clone().filter(|block| block.addr().is_ipv4());
    node.ways = match way {
        Way::Vxlan => BTreeMap::new(),
        Way::VxlanL3 => all.map(|&block| (block, Way::VxlanL3)).collect(),
        Way::Ipip | Way::Direct => v4.map(|&block| (block, way)).collect(),
    };
    node
}

impl Trio {
    fn new(ways: Ways, pod_mtu: u16) -> Self {
        use_executable(env!("CARGO_BIN_EXE_weft"));
        let plan = plan();
        let switch = workshop::node("switch").expect("a switch");
        run(&switch, "ip link add br0 type bridge mcast_snooping 0").expect("a bridge");
        run(&switch, "ip link set br0 up").expect("up");
        let workshop = Workshop::open().expect("a workshop");
        let nodes: Vec<_> = plan.iter().map(|node| join(node, &switch)).collect();
        let forwarders: Vec<_> = plan
            .iter()
            .zip(&nodes)
            .map(|(plan, netns)| start(&workshop, plan, netns))
            .collect();
        let pods: Vec<_> = (0..plan.len())
            .map(|place| {
                let pod = Pod::make(plan[place].pods[0].clone(), place).expect("a pod");
                let attach = Attach::Tap { queues: 2 };
                pod.plug(attach, pod_mtu, &nodes[place], &forwarders[place])
                    .expect("wired");
                pod
            })
            .collect();
        for (own, forwarder) in forwarders.iter().enumerate() {
            let others = (0..plan.len()).filter(|other| *other != own);
            let apply = Request::Apply(Nodes {
                node: plan[own].record().expect("a record"),
                peers: others.map(|to| peer(&plan[to], ways(own, to))).collect(),
            });
            let mut client = forwarder.client().expect("a client");
            client.request(&apply).expect("applied");
        }
        let before = forwarders.iter().map(|f| Ledger::of(f).expect("quiet"));
        Self {
            before: before.collect(),
            ways,
            plan,
            nodes,
            forwarders,
            pods,
            pod_mtu,
            _switch: switch,
            _workshop: workshop,
        }
    }

    /// Every pod with every other, by everything that a pod does.
    fn talk(&self) {
        for from in 0..3 {
            for to in (0..3).filter(|to| *to != from) {
                for family in self.families() {
                    let tap = Wiretap::on(&self.nodes[from]);
                    self.probe(from, to, family);
                    if (self.ways)(from, to) == Way::VxlanL3 {
                        self.check_l3(&tap.heard(), from, to, family);
                    } else {
                        self.check_wire(tap.heard(), from, to, family);
                    }
                }
                let (from, to) = (&self.pods[from], &self.pods[to]);
                exchange::bulk(from, to, Family::V4, 4 << 20).expect("every byte");
                exchange::train(from, to, Family::V4, 1200, 30).expect("every datagram");
            }
        }
        self.check_books();
    }

    /// Those whose full-sized packets fit: IPv6 goes by VXLAN always.
    fn families(&self) -> impl Iterator<Item = Family> {
        let l3 = (self.ways)(0, 1) == Way::VxlanL3;
        let fits = l3 || self.pod_mtu <= VXLAN_MTU;
        let all = Family::ALL.into_iter();
        all.filter(move |family| *family == Family::V4 || fits)
    }

    fn probe(&self, from: usize, to: usize, family: Family) {
        for probe in Probe::ALL {
            probe
                .run(&self.pods[from], &self.pods[to], family, self.pod_mtu)
                .unwrap_or_else(|error| panic!("{from} to {to}: {error:#}"));
        }
    }

    /// Sizes around the MTU and in fragments.
    fn sweep(&self, from: usize, to: usize) {
        let (from, to) = (&self.pods[from], &self.pods[to]);
        let full = usize::from(self.pod_mtu) - 28;
        exchange::refused_whole(from, to, Family::V4, full + 1).expect("EMSGSIZE");
        let sizes = [1, 63, 64]
            .into_iter()
            .chain(full - 3..=full + 2)
            .chain([4000]);
        exchange::datagrams(from, to, Family::V4, sizes).expect("every size");
    }

    fn check_books(&self) {
        for (forwarder, before) in self.forwarders.iter().zip(&self.before) {
            let after = Ledger::of(forwarder).expect("balanced");
            assert_eq!(after.lost_since(before), BTreeMap::new());
        }
    }

    /// All datagrams hold IP packets, among them those of these pods.
    fn check_l3(&self, frames: &[Vec<u8>], from: usize, to: usize, family: Family) {
        // Outer Ethernet, IPv4 and UDP.
        const VXLAN: usize = 14 + 20 + 8;
        let tunnelled = frames.iter().filter(|frame| {
            frame.get(23) == Some(&protocol::UDP) && frame.get(36..38) == Some(&[0x12, 0xb5])
        });
        let mut seen = BTreeSet::new();
        for frame in tunnelled {
            let (_, packet) = vxlan::decap(&frame[VXLAN..]).expect("VXLAN");
            let kind: [u8; 2] = if packet[0] >> 4 == 4 {
                [8, 0]
            } else {
                [0x86, 0xdd]
            };
            let framed = [&[0; 12][..], &kind, packet].concat();
            let Ok(Ethernet::Ip(packet)) = parse(&framed) else {
                panic!("no IP packet behind the VXLAN header: {framed:02x?}");
            };
            seen.insert((packet.key.src, packet.key.dst));
        }
        let [here, there] = [from, to].map(|node| family.of(&self.pods[node]));
        assert!(
            seen.contains(&(here, there)) && seen.contains(&(there, here)),
            "{seen:?}"
        );
    }

    /// The pods' packets are in the form that their block asks for, and in no
    /// other.
    fn check_wire(&self, frames: Vec<Vec<u8>>, from: usize, to: usize, family: Family) {
        let form = |from: usize, to: usize| {
            let way = match family {
                Family::V4 => (self.ways)(from, to),
                Family::V6 => Way::Vxlan,
            };
            let outer = [from, to].map(|node| self.plan[node].underlay[0].to_string());
            let inner = [from, to].map(|node| family.of(&self.pods[node]).to_string());
            (way_name(way), outer, inner)
        };
        let expected = BTreeSet::from([form(from, to), form(to, from)]);
        let pods = [from, to].map(|node| family.of(&self.pods[node]).to_string());
        // Connections of the pods before may still be closing.
        let theirs = |form: &Form| form.2.iter().all(|address| pods.contains(address));
        let rows = dissect(&frames).into_iter();
        let seen: BTreeSet<_> = rows.filter_map(read_row).filter(theirs).collect();
        assert_eq!(seen, expected, "{from} to {to} over {family}");
    }
}

/// The protocols around a packet, the outer addresses and the inner ones.
type Form = (&'static str, [String; 2], [String; 2]);

fn way_name(way: Way) -> &'static str {
    match way {
        Way::Vxlan => "eth:ip:udp:vxlan:eth",
        // tshark takes what follows for Ethernet.
        Way::VxlanL3 => "eth:ip:udp:vxlan",
        Way::Ipip | Way::Direct => "eth:ip",
    }
}

/// What a frame shows of a pod's packet; none if it carries none.
fn read_row(row: Vec<String>) -> Option<Form> {
    let [
        protocols,
        sources,
        destinations,
        v6_source,
        v6_destination,
        rest @ ..,
    ] = &row[..]
    else {
        panic!("not enough columns: {row:?}");
    };
    let stripped = protocols.replace(":ethertype", "");
    let way = [Way::Vxlan, Way::Ipip].map(way_name);
    let inside = |way: &str| {
        let inner = stripped.strip_prefix(way)?;
        (inner.starts_with(":ip:") || inner.starts_with(":ipv6:")).then_some(())
    };
    let way = way.into_iter().find(|way| inside(way).is_some())?;
    let [checksums, df, ttl] = rest else {
        panic!("not enough columns: {row:?}");
    };
    assert!(checksums.split(',').all(|status| status == "1"), "{row:?}");
    if way == way_name(Way::Ipip) {
        let first = |list: &str| list.split(',').next().map(str::to_owned);
        let df = first(df).expect("one");
        assert!(df == "1" || df == "True", "the outer DF: {row:?}");
        assert_eq!(first(ttl).as_deref(), Some("64"), "the outer TTL: {row:?}");
    }
    let pair = |v4: &str, v6: &str| {
        let mut all = v4.split(',').chain(v6.split(',')).filter(|a| !a.is_empty());
        let mut next = || all.next().expect("an address").to_owned();
        [next(), next()]
    };
    let [outer_src, inner_src] = pair(sources, v6_source);
    let [outer_dst, inner_dst] = pair(destinations, v6_destination);
    Some((way, [outer_src, outer_dst], [inner_src, inner_dst]))
}

fn join(plan: &NodePlan, switch: &Netns) -> Netns {
    let node = workshop::node(&plan.name).expect("a node");
    let (name, path) = (
        &plan.name,
        format!("/proc/{}/fd/{}", process::id(), switch.as_raw_fd()),
    );
    run(
        &node,
        &format!("ip link add eth0 type veth peer name {name} netns {path}"),
    )
    .expect("a wire");
    run(switch, &format!("ip link set {name} master br0 up")).expect("plugged in");
    run(&node, "ip link set eth0 up").expect("up");
    for net in plan.underlay_nets() {
        let nodad = if net.addr().is_ipv6() { "nodad" } else { "" };
        run(&node, &format!("ip address add {net} dev eth0 {nodad}")).expect("an address");
    }
    node
}

fn start(workshop: &Workshop, plan: &NodePlan, netns: &Netns) -> Forwarder {
    let [first, second] = plan.underlay;
    let configuration = format!(
        "node = '{}'\nworkers = 2\nvtep_mac = '{}'\n[uplink]\naddresses = ['{first}', \
         '{second}']\nmtu = 1500\n",
        plan.name, plan.vtep_mac
    );
    workshop
        .forwarder(&plan.name, &configuration, netns)
        .expect("a forwarder")
}

/// Sends an IP-in-IP packet, outer header and all.
fn send_ipip(from: [u8; 4], to: [u8; 4], inner: &[u8]) -> nix::Result<()> {
    let packet = between(from, to).protocol(4).payload(inner).build();
    let (family, flags) = (AddressFamily::Inet, SockFlag::SOCK_CLOEXEC);
    let fd = socket(family, SockType::Raw, flags, SockProtocol::Raw)?;
    let [a, b, c, d] = to;
    let to = SockaddrIn::new(a, b, c, d, 0);
    sendto(fd.as_raw_fd(), &packet[14..], &to, MsgFlags::empty())?;
    Ok(())
}

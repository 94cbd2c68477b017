//! What the underlay carries to a peer changes under live connections, is
//! found out, told to pods and shown: with routers that complain, with a middle
//! box that says nothing, with nodes of other kinds.

use std::{
    fs,
    io::{Read, Write},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    process::Command,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use weft_api::{
    forwarder::{Node, Nodes, Path, PathState, Request, Way},
    names::{Mac, Name},
};
use weft_cni::{ethtool, link::Attach, netns::Netns};
use weft_lab::{
    Forwarder, Ledger, NodePlan, Outer, Pod, Spec,
    icmp::{Question, Says},
    probe::{Family, Probe},
    use_executable,
    workshop::{self, Workshop, run},
};
use weft_testkit::needs_namespaces;

#[path = "support/kernel_node.rs"]
mod kernel_node;
use kernel_node::{all, join, path, route_packets};

/// For whatever has to be found out.
const PATIENCE: Duration = Duration::from_secs(60);

/// Asks often, and soon again for more.
const EAGER: &str = "[probes]\ninterval_ms = 300\nraise_seconds = 2\n";

#[test]
fn a_router_that_complains_is_heard() {
    needs_namespaces!();
    for outer in [Outer::V4, Outer::V6] {
        let pair = Pair::behind_router(outer);
        pair.await_path(0, PathState::Good, 1500);
        pair.await_path(1, PathState::Good, 1500);
        let live = Live::new(&pair.pods[0], &pair.pods[1]);
        live.carry();
        all(&pair.middle, &["ip link set r2 mtu 1400"]);
        pair.await_path(0, PathState::Good, 1400);
        live.carry();
        pair.check_told(0, 1400);
        all(&pair.middle, &["ip link set r2 mtu 1500"]);
        // What routers have said of a route, the kernel forgets with it.
        for verb in ["del", "add"] {
            all(
                &pair.nodes[0],
                &route(verb, 1).each_ref().map(String::as_str),
            );
        }
        pair.await_path(0, PathState::Good, 1500);
        live.carry();
    }
}

#[test]
fn a_black_hole_is_found_and_left_again() {
    needs_namespaces!();
    let pair = Pair::behind_switch();
    pair.await_path(0, PathState::Good, 1500);
    let live = Live::new(&pair.pods[0], &pair.pods[1]);
    live.carry();
    // A switch drops what is too big for its next wire, and tells nobody.
    all(&pair.middle, &["ip link set r2 mtu 1400"]);
    live.carry();
    pair.await_path(0, PathState::BlackHole, 1400);
    live.carry();
    pair.check_told(0, 1400);
    let page = pair.page();
    for part in ["BLACK HOLE", "packets of more than 1400 bytes to n2 vanish"] {
        assert!(page.contains(part), "{part} is not in:\n{page}");
    }
    all(&pair.middle, &["ip link set r2 mtu 1500"]);
    pair.await_path(0, PathState::Good, 1500);
    live.carry();
    assert!(!pair.page().contains("BLACK HOLE"));
}

#[test]
fn every_way_is_asked() {
    needs_namespaces!();
    let l3 = |peer: &mut Node| {
        let all = peer.blocks.iter().map(|&block| (block, Way::VxlanL3));
        peer.ways = all.collect();
    };
    let ipip = |peer: &mut Node| {
        let v4 = peer.blocks.iter().filter(|block| block.addr().is_ipv4());
        peer.ways = v4.map(|&block| (block, Way::Ipip)).collect();
    };
    for by in [l3, ipip] {
        let pair = Pair::behind_switch_by(by);
        pair.await_path(0, PathState::Good, 1500);
        let live = Live::new(&pair.pods[0], &pair.pods[1]);
        all(&pair.middle, &["ip link set r2 mtu 1350"]);
        pair.await_path(0, PathState::BlackHole, 1350);
        live.carry();
    }
}

/// However many peers there are, few packets leave.
#[test]
fn peers_share_a_budget() {
    needs_namespaces!();
    let (_ours, _theirs, forwarder, _workshop) = kernel_peer("[probes]\ninterval_ms = 200\n");
    let plan = Spec::default().plan();
    let record = |plan: &NodePlan| {
        let mut record = plan.record().expect("a record");
        record.underlay.truncate(1);
        record
    };
    let peer = |number: u32| {
        let [.., high, low] = number.to_be_bytes();
        let mut peer = record(&plan[1]);
        peer.name = Name::new(format!("peer{number}")).expect("a name");
        peer.underlay = vec![Ipv4Addr::new(192, 0, 2 + high, low).into()];
        peer.tunnel = vec![Ipv4Addr::new(10, 245, high, low).into()];
        peer.vtep_mac = Mac([2, 0, 0, 1, high, low]);
        peer.blocks.clear();
        peer
    };
    let nodes = Nodes {
        node: record(&plan[0]),
        peers: (3..1003)
            .filter(|number| number % 256 != 101)
            .map(peer)
            .collect(),
    };
    let mut client = forwarder.client().expect("a client");
    let before = Ledger::now(&forwarder).expect("told").value("originated");
    let since = Instant::now();
    client.request(&Request::Apply(nodes)).expect("applied");
    thread::sleep(Duration::from_secs(3));
    let sent = Ledger::now(&forwarder).expect("told").value("originated") - before;
    let most = (since.elapsed().as_secs() + 2) * 200;
    assert!((1..=most).contains(&sent), "{sent} of at most {most}");
}

#[test]
fn the_nodes_own_link_is_followed() {
    needs_namespaces!();
    let pair = Pair::behind_switch();
    pair.await_path(0, PathState::Good, 1500);
    let live = Live::new(&pair.pods[0], &pair.pods[1]);
    for mtu in [1300, 1500] {
        all(&pair.nodes[0], &[&format!("ip link set eth0 mtu {mtu}")]);
        pair.await_path(0, PathState::Good, mtu);
        // The uplink's own is put in force with the tables, a moment later.
        let mut client = pair.forwarders[0].client().expect("a client");
        let until = Instant::now() + PATIENCE;
        while client.status().expect("a status").mtu != mtu {
            assert!(Instant::now() < until, "the uplink's MTU is not {mtu}");
            thread::sleep(Duration::from_millis(20));
        }
        live.carry();
    }
    all(
        &pair.nodes[0],
        &["ip route change 192.0.2.0/24 dev eth0 src 192.0.2.1 mtu 1350"],
    );
    pair.await_path(0, PathState::Good, 1350);
    live.carry();
}

#[test]
fn latency_and_loss_are_told() {
    needs_namespaces!();
    let pair = Pair::behind_switch();
    pair.await_path(0, PathState::Good, 1500);
    // The other node is spoken to by way of one that is slow and loses.
    let _relay = relay(&pair);
    let told = pair.await_that(0, |path| {
        path.lost > 0 && path.asked > 8 && path.round_trip.is_some_and(|t| t.least_us >= 2 * DELAY)
    });
    assert!(told.lost < told.asked, "{told:?}");
    let page = pair.page();
    assert!(page.contains(" of "), "{page}");
}

#[test]
fn the_kernels_vxlan_answers() {
    needs_namespaces!();
    let (ours, theirs, forwarder, _workshop) = kernel_peer(EAGER);
    await_path(&forwarder, PathState::Good, 1500);
    let before = Ledger::now(&forwarder).expect("told");
    assert_eq!(before.dropped("forged_answer"), 0);
    // The wire behind which its packets have no room any more.
    all(&theirs, &["ip link set eth0 mtu 1300"]);
    await_path(&forwarder, PathState::BlackHole, 1300);
    drop(ours);
}

#[test]
fn a_peer_that_never_answers_is_unknown_and_its_traffic_untouched() {
    needs_namespaces!();
    let (ours, theirs, forwarder, _workshop) = kernel_peer(EAGER);
    let mute = || fs::write("/proc/sys/net/ipv4/icmp_echo_ignore_all", "1");
    // It has answered already: another forwarder has not heard of it.
    drop(forwarder);
    theirs.run(mute).expect("enter").expect("sysctl");
    let workshop = Workshop::open().expect("a workshop");
    let forwarder = kernel_peers_forwarder(&workshop, &ours, EAGER);
    let path = await_that(&forwarder, |path| path.asked >= 4);
    assert_eq!((path.state, path.mtu), (PathState::Unknown, 1500));
    assert_eq!(path.lost, path.asked);
    let [us, them] = kernel_pods(&ours, &theirs, &forwarder);
    for probe in [Probe::Tcp, Probe::FullSize, Probe::OverSize] {
        probe.run(&us, &them, Family::V4, 1450).expect("untouched");
    }
}

#[test]
fn nobody_is_asked_where_that_is_off() {
    needs_namespaces!();
    let (_ours, _theirs, forwarder, _workshop) =
        kernel_peer("[probes]\nenabled = false\ninterval_ms = 200\n");
    thread::sleep(Duration::from_millis(500));
    let path = path_of(&forwarder);
    assert_eq!((path.state, path.asked), (PathState::Unasked, 0));
    assert_eq!(
        Ledger::of(&forwarder).expect("quiet").value("originated"),
        0
    );
}

/// Two of our nodes with a pod each, and what is between them.
struct Pair {
    nodes: Vec<Netns>,
    forwarders: Vec<Forwarder>,
    pods: Vec<Pod>,
    plan: Vec<NodePlan>,
    middle: Netns,
    _workshop: Workshop,
}

impl Pair {
    fn behind_router(outer: Outer) -> Self {
        let middle = workshop::node("router").expect("a router");
        middle.run(route_packets).expect("enter");
        let plan = plan(outer);
        let nodes: Vec<_> = plan.iter().map(|node| wired(node, &middle)).collect();
        for (number, node) in (1..=2).zip(&nodes) {
            all(
                &middle,
                &[
                    &format!("ip address add 192.0.{number}0.254/24 dev r{number}"),
                    &format!("ip address add 2001:db8:{number}::fe/64 dev r{number} nodad"),
                ],
            );
            all(
                node,
                &[
                    &format!("ip address add 192.0.{number}0.1/24 dev eth0"),
                    &format!("ip address add 2001:db8:{number}::1/64 dev eth0 nodad"),
                    &route("add", number)[0],
                    &route("add", number)[1],
                ],
            );
        }
        Self::of(plan, nodes, middle, |_| {})
    }

    fn behind_switch() -> Self {
        Self::behind_switch_by(|_| {})
    }

    /// `edit` changes what each node is told of the other.
    fn behind_switch_by(edit: fn(&mut Node)) -> Self {
        let middle = workshop::node("switch").expect("a switch");
        all(
            &middle,
            &[
                "ip link add br0 type bridge mcast_snooping 0",
                "ip link set br0 up",
            ],
        );
        let mut plan = plan(Outer::V4);
        for (number, node) in (1..).zip(&mut plan) {
            node.underlay[0] = Ipv4Addr::new(192, 0, 2, number).into();
        }
        let nodes: Vec<_> = plan.iter().map(|node| wired(node, &middle)).collect();
        for (number, node) in (1..=2).zip(&nodes) {
            all(&middle, &[&format!("ip link set r{number} master br0")]);
            all(
                node,
                &[&format!("ip address add 192.0.2.{number}/24 dev eth0")],
            );
        }
        Self::of(plan, nodes, middle, edit)
    }

    fn of(plan: Vec<NodePlan>, nodes: Vec<Netns>, middle: Netns, edit: fn(&mut Node)) -> Self {
        use_executable(env!("CARGO_BIN_EXE_weft"));
        let workshop = Workshop::open().expect("a workshop");
        let start = |(plan, netns): (&NodePlan, &Netns)| {
            let configuration = format!(
                "node = '{}'\nworkers = 1\nvtep_mac = '{}'\n[uplink]\naddresses = ['{}']\n{EAGER}",
                plan.name, plan.vtep_mac, plan.underlay[0]
            );
            let forwarder = workshop.forwarder(&plan.name, &configuration, netns);
            forwarder.expect("a forwarder")
        };
        let forwarders: Vec<_> = plan.iter().zip(&nodes).map(start).collect();
        let pods = (0..2).map(|place| {
            let pod = Pod::make(plan[place].pods[0].clone(), place).expect("a pod");
            let attach = Attach::Tap { queues: 1 };
            pod.plug(attach, 1450, &nodes[place], &forwarders[place])
                .expect("wired");
            pod
        });
        let pair = Self {
            pods: pods.collect(),
            nodes,
            forwarders,
            plan,
            middle,
            _workshop: workshop,
        };
        pair.apply(edit);
        pair
    }

    /// Tells each node of the other, whose record `edit` changes.
    fn apply(&self, edit: impl Fn(&mut Node)) {
        for (place, forwarder) in self.forwarders.iter().enumerate() {
            let record = |place: usize| {
                let mut record = self.plan[place].record().expect("a record");
                record.underlay.truncate(1);
                record
            };
            let mut peer = record(1 - place);
            edit(&mut peer);
            let apply = Request::Apply(Nodes {
                node: record(place),
                peers: vec![peer],
            });
            let mut client = forwarder.client().expect("a client");
            client.request(&apply).expect("applied");
        }
    }

    fn await_path(&self, node: usize, state: PathState, mtu: u16) {
        await_path(&self.forwarders[node], state, mtu);
    }

    fn await_that(&self, node: usize, is: impl Fn(&Path) -> bool) -> Path {
        await_that(&self.forwarders[node], is)
    }

    /// A pod that sends more than the path carries is told what it does.
    fn check_told(&self, node: usize, outer: u16) {
        let (pod, other) = (&self.pods[node], &self.pods[1 - node]);
        let overhead = if self.plan[node].underlay[0].is_ipv4() {
            50
        } else {
            70
        };
        let mtu = u32::from(outer - overhead);
        for family in Family::ALL {
            // What the pod's kernel has been told already, it would not ask.
            for flush in ["ip route flush cache", "ip -6 route flush cache"] {
                run(&pod.netns, flush).expect("flushed");
            }
            let headers = if family == Family::V4 { 28 } else { 48 };
            let says = |len: u32| {
                let question = Question {
                    size: usize::try_from(len).expect("small") - headers,
                    ..Question::to(family.of(other))
                };
                question.ask(&pod.netns).expect("an answer").says
            };
            assert_eq!(says(mtu), Says::Here, "{family}");
            assert_eq!(says(mtu + 2), Says::TooBig { mtu }, "{family}");
        }
    }

    /// What `weft status` shows.
    fn page(&self) -> String {
        let output = Command::new(env!("CARGO_BIN_EXE_weft"))
            .arg("status")
            .arg("--control")
            .arg(&self.forwarders[0].control)
            .output()
            .expect("weft runs");
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).expect("text")
    }
}

fn plan(outer: Outer) -> Vec<NodePlan> {
    let spec = Spec {
        outer,
        pods: 1,
        ..Spec::default()
    };
    let mut plan = spec.plan();
    for (number, node) in (1..).zip(&mut plan) {
        node.underlay[0] = match outer {
            Outer::V4 => Ipv4Addr::new(192, 0, 10 * number, 1).into(),
            Outer::V6 => format!("2001:db8:{number}::1").parse().expect("an address"),
        };
    }
    plan
}

/// To the other node, of one behind a router.
fn route(verb: &str, number: u8) -> [String; 2] {
    let other = 3 - number;
    [
        format!("ip route {verb} 192.0.{other}0.0/24 via 192.0.{number}0.254"),
        format!("ip route {verb} 2001:db8:{other}::/64 via 2001:db8:{number}::fe"),
    ]
}

/// A node with a wire to the middle. Its super-frames are cut before they
/// leave, as on any real wire.
fn wired(plan: &NodePlan, middle: &Netns) -> Netns {
    let (node, far) = (
        workshop::node(&plan.name).expect("a node"),
        format!("r{}", plan.number),
    );
    let wire = format!(
        "ip link add eth0 type veth peer name {far} netns {}",
        path(middle)
    );
    all(&node, &[&wire, "ip link set lo up", "ip link set eth0 up"]);
    all(middle, &[&format!("ip link set {far} up")]);
    for feature in ["tx-udp-segmentation", "tx-generic-segmentation"] {
        let off = || ethtool::set_feature("eth0", feature, false);
        node.run(off).expect("enter").expect("switched off");
    }
    node
}

fn path_of(forwarder: &Forwarder) -> Path {
    let mut client = forwarder.client().expect("a client");
    client.peers().expect("peers")[0].path
}

fn await_that(forwarder: &Forwarder, is: impl Fn(&Path) -> bool) -> Path {
    let until = Instant::now() + PATIENCE;
    loop {
        let path = path_of(forwarder);
        if is(&path) {
            return path;
        }
        assert!(Instant::now() < until, "still {path:?}");
        thread::sleep(Duration::from_millis(20));
    }
}

fn await_path(forwarder: &Forwarder, state: PathState, mtu: u16) {
    let until = Instant::now() + PATIENCE;
    loop {
        let path = path_of(forwarder);
        if (path.state, path.mtu) == (state, mtu) {
            return;
        }
        assert!(Instant::now() < until, "{path:?}, not {state:?} {mtu}");
        thread::sleep(Duration::from_millis(20));
    }
}

/// A TCP connection that lasts.
struct Live {
    asking: TcpStream,
    answering: TcpStream,
}

impl Live {
    fn new(from: &Pod, to: &Pod) -> Self {
        let address = SocketAddr::new(to.v4().into(), 0);
        let listener = to.netns.run(|| TcpListener::bind(address)).expect("enter");
        let listener = listener.expect("listens");
        let server = listener.local_addr().expect("an address");
        let asking = from
            .netns
            .run(|| TcpStream::connect(server))
            .expect("enter");
        let (answering, _) = listener.accept().expect("accepted");
        let asking = asking.expect("connected");
        for stream in [&asking, &answering] {
            stream.set_read_timeout(Some(PATIENCE)).expect("set");
            stream.set_write_timeout(Some(PATIENCE)).expect("set");
        }
        Self { asking, answering }
    }

    /// Carries many full packets each way.
    fn carry(&self) {
        let bytes: Vec<u8> = (0..1 << 20).map(|at: u32| at.to_le_bytes()[1]).collect();
        for (mut from, mut to) in [
            (&self.asking, &self.answering),
            (&self.answering, &self.asking),
        ] {
            let mut arrived = vec![0; bytes.len()];
            thread::scope(|scope| {
                let sending = scope.spawn(|| from.write_all(&bytes));
                to.read_exact(&mut arrived).expect("every byte arrives");
                sending.join().expect("ends").expect("every byte is sent");
            });
            assert!(arrived == bytes, "bytes have changed");
        }
    }
}

/// Microseconds that a datagram takes longer by the relay, one way.
const DELAY: u64 = 20_000;

/// Stands in for each node before the other: what comes for it is passed on
/// late, and every fifth datagram never.
fn relay(pair: &Pair) -> Arc<()> {
    let stand_in: [IpAddr; 2] = ["192.0.2.101", "192.0.2.102"].map(|a| a.parse().expect("valid"));
    for address in stand_in {
        all(
            &pair.middle,
            &[&format!("ip address add {address}/24 dev br0")],
        );
    }
    let alive = Arc::new(());
    // What a node sends to the other's stand-in leaves from its own.
    for to in [0, 1] {
        let open = || UdpSocket::bind((stand_in[to], 4789));
        let into = pair.middle.run(open).expect("enter").expect("a socket");
        let open = || UdpSocket::bind((stand_in[1 - to], 0));
        let out = pair.middle.run(open).expect("enter").expect("a socket");
        let (node, watch) = (pair.plan[to].underlay[0], Arc::downgrade(&alive));
        let timeout = Some(Duration::from_millis(100));
        into.set_read_timeout(timeout).expect("set");
        thread::spawn(move || {
            let (mut bytes, mut count) = (vec![0; 1 << 16], 0u32);
            while watch.strong_count() > 0 {
                let Ok((len, _)) = into.recv_from(&mut bytes) else {
                    continue;
                };
                count += 1;
                if count.is_multiple_of(5) {
                    continue;
                }
                thread::sleep(Duration::from_micros(DELAY));
                let _ = out.send_to(&bytes[..len], (node, 4789));
            }
        });
    }
    let stand_in = |number: &str| stand_in[usize::from(number == "n2")];
    pair.apply(|peer| peer.underlay = vec![stand_in(peer.name.as_str())]);
    alive
}

/// Our node, and one with the kernel's VXLAN programmed as flannel does it.
fn kernel_peer(more: &str) -> (Netns, Netns, Forwarder, Workshop) {
    use_executable(env!("CARGO_BIN_EXE_weft"));
    let [ours, theirs] = ["ours", "theirs"].map(|name| workshop::node(name).expect("a node"));
    join(&ours, &theirs);
    theirs.run(route_packets).expect("enter");
    let plan = Spec::default().plan();
    all(
        &theirs,
        &[
            &format!(
                "ip link add flannel.1 address {KERNEL_MAC} mtu 1450 type vxlan id 4096 local \
                 192.0.2.2 dev eth0 dstport 4789 nolearning"
            ),
            "ip link set flannel.1 addrgenmode none up",
            &format!(
                "bridge fdb append {} dev flannel.1 dst 192.0.2.1 self permanent",
                plan[0].vtep_mac
            ),
            "ip address add 10.244.2.0/32 dev flannel.1",
            &format!(
                "ip neigh replace 10.244.1.0 lladdr {} dev flannel.1 nud permanent",
                plan[0].vtep_mac
            ),
            "ip route add 10.244.1.0/24 via 10.244.1.0 dev flannel.1 onlink",
        ],
    );
    let workshop = Workshop::open().expect("a workshop");
    let forwarder = kernel_peers_forwarder(&workshop, &ours, more);
    (ours, theirs, forwarder, workshop)
}

const KERNEL_MAC: &str = "66:00:00:00:02:04";

fn kernel_peers_forwarder(workshop: &Workshop, ours: &Netns, more: &str) -> Forwarder {
    let plan = Spec::default().plan();
    let configuration = format!(
        "node = 'n1'\nworkers = 1\nvtep_mac = '{}'\n[uplink]\naddresses = ['192.0.2.1']\n{more}",
        plan[0].vtep_mac
    );
    let forwarder = workshop
        .forwarder("n1", &configuration, ours)
        .expect("a forwarder");
    let record = |plan: &NodePlan| {
        let mut record = plan.record().expect("a record");
        record.underlay.truncate(1);
        record
    };
    let mut peer = record(&plan[1]);
    peer.vtep_mac = KERNEL_MAC.parse().expect("a MAC");
    let nodes = Nodes {
        node: record(&plan[0]),
        peers: vec![peer],
    };
    let mut client = forwarder.client().expect("a client");
    client.request(&Request::Apply(nodes)).expect("applied");
    forwarder
}

/// A pod of ours, and the kernel's host as one.
fn kernel_pods(ours: &Netns, theirs: &Netns, forwarder: &Forwarder) -> [Pod; 2] {
    let plan = Spec::default().plan();
    let us = Pod::make(plan[0].pods[0].clone(), 0).expect("a pod");
    us.plug(Attach::Tap { queues: 1 }, 1450, ours, forwarder)
        .expect("wired");
    let mut host = plan[1].pods[0].clone();
    host.v4 = Ipv4Addr::new(10, 244, 2, 0);
    let netns = Netns::open(std::path::Path::new(&path(theirs))).expect("the node again");
    let them = Pod {
        plan: host,
        node: 1,
        netns,
    };
    [us, them]
}

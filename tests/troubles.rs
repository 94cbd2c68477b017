//! What goes wrong on a node costs the packets it must cost, is counted by
//! its reason, and is over when the cause is.

use std::{
    collections::BTreeMap,
    env, fs,
    io::{self, Write},
    net::{TcpStream, UdpSocket},
    path::PathBuf,
    sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    thread,
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;
use weft_api::{
    forwarder::{PortState, Reply, Request, Status},
    names::Name,
};
use weft_cni::link::{self, Attach};
use weft_lab::{
    Forwarder, Lab, Ledger, Outer, Pod, Process, Spec,
    exchange::{self, Content},
    icmp::{Question, Says},
    numbered::Numbered,
    probe::{DEADLINE, Family, Probe, patiently},
    use_executable,
    workshop::{self, Workshop, run},
};
use weft_testkit::needs_namespaces;

#[test]
fn a_deleted_link_is_a_port_gone_and_others_go_on() {
    needs_namespaces!();
    for (attach, again) in [
        (weft_lab::Attach::Tap, Attach::Tap { queues: 2 }),
        (weft_lab::Attach::Veth, Attach::Veth),
    ] {
        let lab = lab(Spec {
            attach,
            ..Spec::default()
        });
        let (deleted, neighbour, remote) =
            (pod(&lab, "n1p1"), pod(&lab, "n1p2"), pod(&lab, "n2p1"));
        let before = ledger(&lab, 0);
        let traffic = Traffic::default();
        thread::scope(|scope| {
            scope.spawn(|| traffic.keep(neighbour, remote));
            let _stop = traffic.until_dropped();
            traffic.moves("before the link is deleted");
            link::remove(&deleted.netns, "eth0").expect("deleted");
            eventually(&format!("the port is gone {attach:?}"), || {
                state_of(forwarder(&lab, 0), "n1p1") == PortState::Gone
            });
            // To the pod that is no more, from both sides.
            for from in [neighbour, remote] {
                let (asking, _) = sockets_to(from, deleted);
                asking.send(b"are you there?").expect("sent");
            }
            traffic.moves("after the link is deleted");
        });
        let drops = unexpected_drops(&lab, 0, &before);
        assert_eq!(drops, BTreeMap::from([("port_down".to_owned(), 2)]));
        assert_eq!(state_of(forwarder(&lab, 0), "n1p2"), PortState::Up);

        let name = Name::new("n1p1").expect("a name");
        let mut client = forwarder(&lab, 0).client().expect("a client");
        client.request(&Request::Detach { name }).expect("detached");
        let node = &lab.nodes[0].netns;
        deleted
            .plug(again, lab.spec.pod_mtu(), node, forwarder(&lab, 0))
            .expect("wired again");
        talk(&lab, deleted, neighbour);
        talk(&lab, deleted, remote);
    }
}

#[test]
fn a_pod_that_takes_its_link_down_gets_nothing_until_it_is_up() {
    needs_namespaces!();
    for attach in [weft_lab::Attach::Tap, weft_lab::Attach::Veth] {
        let lab = lab(Spec {
            nodes: 1,
            attach,
            ..Spec::default()
        });
        let (down, neighbour) = (pod(&lab, "n1p1"), pod(&lab, "n1p2"));
        let before = ledger(&lab, 0);
        let (asking, answering) = exchange::sockets(neighbour, down, Family::V4).expect("sockets");
        run(&down.netns, "ip link set eth0 down").expect("down");
        asking.send(b"lost").expect("sent");
        let drops = unexpected_drops(&lab, 0, &before);
        assert_eq!(
            drops,
            BTreeMap::from([("port_down".to_owned(), 1)]),
            "{attach:?}"
        );
        assert_eq!(state_of(forwarder(&lab, 0), "n1p1"), PortState::Up);

        run(&down.netns, "ip link set eth0 up").expect("up");
        asking.send(b"found").expect("sent");
        let mut text = [0; 16];
        let len = patiently(|| answering.recv(&mut text)).expect("it arrives");
        assert_eq!(&text[..len], b"found");
    }
}

#[test]
fn an_underlay_that_was_down_carries_again() {
    needs_namespaces!();
    for outer in [Outer::V4, Outer::V6] {
        let lab = lab(Spec {
            outer,
            ..Spec::default()
        });
        let (one, neighbour, remote) = (pod(&lab, "n1p1"), pod(&lab, "n1p2"), pod(&lab, "n2p1"));
        let node = &lab.nodes[0].netns;
        talk(&lab, one, remote);
        let before = ledger(&lab, 0);
        run(node, "ip link set eth0 down").expect("down");
        let (asking, _) = sockets_to(one, remote);
        for _ in 0..10 {
            asking
                .send(b"into the void")
                .expect("the pod does not notice");
        }
        let drops = unexpected_drops(&lab, 0, &before);
        assert_eq!(drops, BTreeMap::from([("uplink_down".to_owned(), 10)]));
        talk(&lab, one, neighbour);

        run(node, "ip link set eth0 up").expect("up");
        // The kernel takes IPv6 addresses away with the link.
        run(node, "ip address replace 2001:db8::1/64 dev eth0 nodad").expect("an address");
        eventually("the remote pod answers", || {
            Question::to(remote.v4()).ask(&one.netns).is_ok()
        });
        talk(&lab, one, remote);

        // The other end loses its link: ours is up, and the kernel's own
        // rules say what becomes of datagrams.
        run(&lab.nodes[1].netns, "ip link set eth0 down").expect("down");
        asking.send(b"into the void").expect("sent");
        talk(&lab, one, neighbour);
        run(&lab.nodes[1].netns, "ip link set eth0 up").expect("up");
        run(
            &lab.nodes[1].netns,
            "ip address replace 2001:db8::2/64 dev eth0 nodad",
        )
        .expect("an address");
        eventually("the remote pod answers", || {
            Question::to(remote.v4()).ask(&one.netns).is_ok()
        });
        talk(&lab, one, remote);
        ledger(&lab, 0);
    }
}

#[test]
fn a_flapping_underlay_costs_what_was_under_way_and_no_flow_ends() {
    needs_namespaces!();
    const FLAPS: usize = 25;
    let lab = lab(Spec::default());
    let (one, neighbour, remote) = (pod(&lab, "n1p1"), pod(&lab, "n1p2"), pod(&lab, "n2p1"));
    let before = [0, 1].map(|node| ledger(&lab, node));
    let (across, done) = (Traffic::default(), AtomicBool::new(false));
    let numbered = Numbered::between(neighbour, one, Family::V4).expect("sockets");
    let tally = thread::scope(|scope| {
        let _stop = [across.until_dropped(), Stop(&done)];
        scope.spawn(|| across.keep(one, remote));
        let local = scope.spawn(|| numbered.run(Duration::from_millis(1), &done));
        across.moves("before");
        let (lossy, _answering) = sockets_to(neighbour, remote);
        for flap in 0..FLAPS {
            // In turn the own link and that of the other end.
            let node = &lab.nodes[flap % 2].netns;
            run(node, "ip link set eth0 down").expect("down");
            for _ in 0..4 {
                lossy.send(b"perhaps").expect("the pod does not notice");
            }
            thread::sleep(Duration::from_millis(5 + 7 * (flap as u64 % 4)));
            run(node, "ip link set eth0 up").expect("up");
            thread::sleep(Duration::from_millis(3 + 40 * (flap as u64 % 3)));
        }
        across.moves("once the underlay stays up");
        done.store(true, Relaxed);
        local.join().expect("no panic").expect("every one is sent")
    });
    assert_eq!((tally.lost, tally.out_of_turn), (0, 0), "on the same node");
    talk(&lab, one, remote);
    for (node, before) in before.iter().enumerate() {
        let drops = unexpected_drops(&lab, node, before);
        assert!(
            drops.keys().all(|reason| reason == "uplink_down"),
            "{drops:?}"
        );
        if node == 0 {
            // Those that were sent while its own link was down, at least.
            assert!(drops["uplink_down"] >= 4 * FLAPS.div_ceil(2) as u64);
        }
        let status = status(forwarder(&lab, node));
        assert!(status.ipam.expect("it follows").connected);
    }
}

#[test]
fn a_peer_taken_away_is_unreachable_and_other_flows_do_not_notice() {
    needs_namespaces!();
    let lab = lab(Spec {
        nodes: 3,
        pods: 1,
        ..Spec::default()
    });
    let (one, away, other) = (pod(&lab, "n1p1"), pod(&lab, "n2p1"), pod(&lab, "n3p1"));
    talk(&lab, one, away);
    let traffic = Traffic::default();
    thread::scope(|scope| {
        scope.spawn(|| traffic.keep(one, other));
        let _stop = traffic.until_dropped();
        traffic.moves("with both peers");
        lab.forget_node(1).expect("forgotten");
        let before = ledgers_while_busy(&lab, 0);
        for (family, code) in [(Family::V4, 1), (Family::V6, 3)] {
            let answer = Question::to(family.of(away))
                .ask(&one.netns)
                .expect("an error");
            assert_eq!(answer.says, Says::Unreachable { code }, "{family}");
            let to = (family.of(away), 80);
            let connect = one.netns.run(|| TcpStream::connect(to));
            let refused = connect.expect("enter").expect_err("nobody there");
            let errno = refused.raw_os_error();
            assert_eq!(errno, Some(nix::libc::EHOSTUNREACH), "{family}: {refused}");
        }
        let (asking, _) = sockets_to(away, one);
        asking.send(b"you do not know me").expect("sent");
        eventually("a datagram of nobody's peer is counted", || {
            ledgers_while_busy(&lab, 0).dropped("unknown_peer") == 1
        });
        assert!(ledgers_while_busy(&lab, 0).dropped("no_route") >= before.dropped("no_route") + 4);
        traffic.moves("without one peer");
        lab.restore_node(1).expect("known again");
        talk(&lab, one, away);
        traffic.moves("with both again");
    });
    ledger(&lab, 0);
}

#[test]
fn a_killed_ipam_server_disturbs_no_flow() {
    needs_namespaces!();
    let lab = lab(Spec::default());
    let (one, neighbour, remote) = (pod(&lab, "n1p1"), pod(&lab, "n1p2"), pod(&lab, "n2p1"));
    let ipam = lab.ipam.as_ref().expect("an IPAM server");
    let is_followed = |node: usize| {
        let status = status(forwarder(&lab, node));
        status.ipam.expect("a forwarder that follows").connected
    };
    assert!(is_followed(0) && is_followed(1));
    let before = ledger(&lab, 0);
    let traffic = Traffic::default();
    thread::scope(|scope| {
        scope.spawn(|| traffic.keep(one, remote));
        let _stop = traffic.until_dropped();
        traffic.moves("with the server");
        let server = Process::of(ipam.pid()).expect("it runs");
        server.signal(Signal::SIGKILL).expect("killed");
        eventually("the forwarders notice", || {
            !is_followed(0) && !is_followed(1)
        });
        traffic.moves("without it");
        talk(&lab, neighbour, remote);
    });
    assert_eq!(unexpected_drops(&lab, 0, &before), BTreeMap::new());
}

#[test]
fn a_pod_that_does_not_read_stops_nobody() {
    needs_namespaces!();
    let lab = lab(Spec::default());
    let (deaf, neighbour, remote) = (pod(&lab, "n1p1"), pod(&lab, "n1p2"), pod(&lab, "n2p1"));
    let (to_deaf, _unread) = sockets_to(remote, deaf);
    let (writer, reader) = exchange::connection(remote, deaf, Family::V6).expect("connected");
    writer.set_nonblocking(true).expect("non-blocking");
    let traffic = Traffic::default();
    let mut writing = Writer::new(7);
    thread::scope(|scope| {
        scope.spawn(|| traffic.keep(neighbour, remote));
        let _stop = traffic.until_dropped();
        traffic.moves("before");
        // More than any buffer on the way holds, of both kinds.
        let until = Instant::now() + Duration::from_secs(1);
        while Instant::now() < until {
            for _ in 0..50 {
                let _ = to_deaf.send(&[0; 1400]);
            }
            writing.write(&writer);
            thread::sleep(Duration::from_millis(1));
        }
        traffic.moves("while one pod does not read");
        talk(&lab, neighbour, remote);
    });
    // Nothing of the stream is lost, however late it is read.
    exchange::receive(&reader, Content::new(7), writing.written).expect("every byte");
    ledger(&lab, 0);
}

#[test]
fn a_full_send_buffer_costs_only_what_does_not_fit() {
    needs_namespaces!();
    let lab = lab(Spec::default());
    let (one, neighbour, remote) = (pod(&lab, "n1p1"), pod(&lab, "n1p2"), pod(&lab, "n2p1"));
    let node = &lab.nodes[0].netns;
    let before = ledger(&lab, 0);
    // A queue that takes all and gives little: what is in it is charged to
    // the socket that it came from.
    let queue = "tc qdisc add dev eth0 root tbf rate 4mbit burst 32kb limit 16mb";
    if let Err(error) = run(node, queue) {
        return skip("a full send buffer", &format!("{error:#}"));
    }
    let (asking, _) = sockets_to(one, remote);
    eventually("the send buffer is full", || {
        for _ in 0..200 {
            let _ = asking.send(&[0; 1400]);
        }
        ledgers_while_busy(&lab, 0).dropped("uplink_full") > 0
    });
    // What the pod's own queue still holds must not be in the way.
    ledger(&lab, 0);
    talk(&lab, one, neighbour);
    run(node, "tc qdisc del dev eth0 root").expect("deleted");
    talk(&lab, one, remote);
    let drops = unexpected_drops(&lab, 0, &before);
    assert_eq!(drops.keys().collect::<Vec<_>>(), ["uplink_full"]);
}

#[test]
fn without_segmentation_offload_everything_still_passes() {
    needs_namespaces!();
    for (setting, outer) in [
        ("gso = false\n", Outer::V4),
        ("gro = false\n", Outer::V6),
        ("gso = false\ngro = false\n", Outer::V4),
    ] {
        use_executable(env!("CARGO_BIN_EXE_weft"));
        let spec = Spec {
            outer,
            ..Spec::default()
        };
        let lab = Lab::up_with(&spec, &|_| setting.to_owned()).expect("a lab");
        let status = status(forwarder(&lab, 0));
        assert_eq!(
            (status.gso, status.gro),
            (!setting.contains("gso"), !setting.contains("gro"))
        );
        let before = ledger(&lab, 0);
        talk(&lab, pod(&lab, "n1p1"), pod(&lab, "n2p1"));
        talk(&lab, pod(&lab, "n1p1"), pod(&lab, "n1p2"));
        assert_eq!(unexpected_drops(&lab, 0, &before), BTreeMap::new());
    }
}

/// The outer packets are then fragmented, as those of a kernel VXLAN are, until
/// the pods have been told.
#[test]
fn an_underlay_narrower_than_told_still_carries_everything() {
    needs_namespaces!();
    for outer in [Outer::V4, Outer::V6] {
        let lab = lab(Spec {
            outer,
            ..Spec::default()
        });
        for node in &lab.nodes {
            run(&node.netns, "ip link set eth0 mtu 1400").expect("narrowed");
        }
        let before = ledger(&lab, 0);
        talk(&lab, pod(&lab, "n1p1"), pod(&lab, "n2p1"));
        let mut drops = unexpected_drops(&lab, 0, &before);
        drops.remove("too_big");
        assert_eq!(drops, BTreeMap::new());
        assert!(
            status(forwarder(&lab, 0)).gso,
            "only those sends are refused"
        );
    }
}

#[test]
fn a_port_that_the_kernels_vxlan_holds_is_named() {
    needs_namespaces!();
    use_executable(env!("CARGO_BIN_EXE_weft"));
    let node = workshop::node("n1").expect("a node");
    for command in [
        "ip link set lo up",
        "ip address add 192.0.2.1/32 dev lo",
        "ip link add vxlan.calico type vxlan id 4096 local 192.0.2.1 dstport 4789 nolearning",
        "ip link set vxlan.calico up",
    ] {
        run(&node, command).expect("a device");
    }
    let workshop = Workshop::open().expect("a workshop");
    let configuration = "node = 'n1'\n[uplink]\naddresses = ['192.0.2.1']\n";
    let error = workshop
        .forwarder("n1", configuration, &node)
        .expect_err("the port is taken");
    let text = format!("{error:#}");
    assert!(
        text.contains("UDP port 4789 on 192.0.2.1 is taken"),
        "{text}"
    );
    assert!(text.contains("stop that or choose another port"), "{text}");
}

#[test]
fn nothing_is_left_of_a_lab_whose_forwarder_was_killed() {
    needs_namespaces!();
    let lab = lab(Spec::default());
    let namespaces: Vec<PathBuf> = lab
        .nodes
        .iter()
        .map(|node| &node.netns)
        .chain(lab.pods.iter().map(|pod| &pod.netns))
        .map(|netns| {
            let file = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(netns));
            fs::read_link(file).expect("a namespace")
        })
        .collect();
    let processes: Vec<_> = [0, 1]
        .map(|node| Process::of(forwarder(&lab, node).pid()).expect("it runs"))
        .into();
    processes[0].signal(Signal::SIGKILL).expect("killed");
    drop(lab);
    assert!(processes.iter().all(|process| !process.runs()));
    // A namespace of another test may have got the number of one of these.
    eventually("nobody uses the lab's namespaces", || {
        users_of(&namespaces).is_empty()
    });
}

/// A stream that goes on, both ways, and stops when told.
#[derive(Default)]
struct Traffic {
    rounds: AtomicU64,
    done: AtomicBool,
}

impl Traffic {
    /// One connection for all rounds, so that a lost one is an error.
    fn keep(&self, from: &Pod, to: &Pod) {
        let ends = exchange::connection(from, to, Family::V4).expect("connected");
        for end in [&ends.0, &ends.1] {
            // TCP waits twice as long each time that it hears nothing.
            end.set_read_timeout(Some(4 * DEADLINE)).expect("set");
            end.set_write_timeout(Some(4 * DEADLINE)).expect("set");
        }
        let mut seed = 0;
        while !self.done.load(Relaxed) {
            seed += 1;
            thread::scope(|scope| {
                let (out, into) = (&ends.0, &ends.1);
                scope.spawn(|| exchange::send(out, Content::new(seed), 64 << 10).expect("sent"));
                exchange::receive(into, Content::new(seed), 64 << 10).expect("every byte");
            });
            self.rounds.fetch_add(1, Relaxed);
            thread::sleep(Duration::from_millis(2));
        }
    }

    fn moves(&self, when: &str) {
        let before = self.rounds.load(Relaxed);
        eventually(when, || self.rounds.load(Relaxed) > before + 3);
    }

    /// Stops it when the value is dropped, also by a failure.
    fn until_dropped(&self) -> Stop<'_> {
        Stop(&self.done)
    }
}

struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Relaxed);
    }
}

fn lab(spec: Spec) -> Lab {
    use_executable(env!("CARGO_BIN_EXE_weft"));
    let spec = Spec {
        workers: Some(2),
        ..spec
    };
    Lab::up(&spec).expect("a lab")
}

fn pod<'a>(lab: &'a Lab, name: &str) -> &'a Pod {
    lab.pod(name).expect("a pod of the lab")
}

fn forwarder(lab: &Lab, node: usize) -> &Forwarder {
    lab.nodes[node].forwarder.as_ref().expect("a forwarder")
}

/// Everything that two pods may say to each other.
fn talk(lab: &Lab, from: &Pod, to: &Pod) {
    for family in Family::ALL {
        for probe in Probe::ALL {
            if let Err(error) = probe.run(from, to, family, lab.spec.pod_mtu()) {
                panic!("{error:#}");
            }
        }
        exchange::bulk(from, to, family, 256 << 10).expect("every byte");
    }
}

fn sockets_to(from: &Pod, to: &Pod) -> (UdpSocket, UdpSocket) {
    // The pod's link may be gone, its loopback is not.
    let answering = to
        .netns
        .run(|| UdpSocket::bind(("0.0.0.0", 0)))
        .expect("enter")
        .expect("bound");
    let port = answering.local_addr().expect("bound").port();
    let asking = from
        .netns
        .run(|| UdpSocket::bind(("0.0.0.0", 0)))
        .expect("enter")
        .expect("bound");
    asking.connect((to.v4(), port)).expect("connected");
    (asking, answering)
}

/// Writes content as far as the stream takes it.
struct Writer {
    content: Content,
    bytes: Vec<u8>,
    written: usize,
}

impl Writer {
    fn new(seed: u64) -> Self {
        Self {
            content: Content::new(seed),
            bytes: Vec::new(),
            written: 0,
        }
    }

    fn write(&mut self, mut stream: &TcpStream) {
        if self.bytes.is_empty() {
            self.bytes.resize(64 << 10, 0);
            self.content.fill(&mut self.bytes);
        }
        match stream.write(&self.bytes) {
            Ok(len) => {
                self.bytes.drain(..len);
                self.written += len;
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => panic!("{error}"),
        }
    }
}

fn ledger(lab: &Lab, node: usize) -> Ledger {
    Ledger::of(forwarder(lab, node)).expect("balanced")
}

fn ledgers_while_busy(lab: &Lab, node: usize) -> Ledger {
    Ledger::now(forwarder(lab, node)).expect("counters")
}

/// By reason.
fn unexpected_drops(lab: &Lab, node: usize, before: &Ledger) -> BTreeMap<String, u64> {
    ledger(lab, node).lost_since(before)
}

fn state_of(forwarder: &Forwarder, port: &str) -> PortState {
    let mut client = forwarder.client().expect("a client");
    let Reply::Ports(ports) = client.request(&Request::List).expect("ports") else {
        panic!("list answers with ports");
    };
    let found = ports.iter().find(|found| found.name.as_str() == port);
    found.expect("the port is listed").state
}

fn status(forwarder: &Forwarder) -> Box<Status> {
    let mut client = forwarder.client().expect("a client");
    match client.request(&Request::Status).expect("status") {
        Reply::Status(status) => status,
        other => panic!("{other:?} is no status"),
    }
}

fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let until = Instant::now() + Duration::from_secs(10);
    while !is_so() {
        assert!(Instant::now() < until, "not in 10 s: {what}");
        thread::sleep(Duration::from_millis(10));
    }
}

/// The processes that are in one of the namespaces or hold it open.
fn users_of(namespaces: &[PathBuf]) -> Vec<PathBuf> {
    let uses = |path: PathBuf| fs::read_link(path).is_ok_and(|link| namespaces.contains(&link));
    let processes = fs::read_dir("/proc").expect("procfs").flatten();
    let held = |process: &PathBuf| {
        let fds = fs::read_dir(process.join("fd"))
            .into_iter()
            .flatten()
            .flatten();
        uses(process.join("ns/net")) || fds.into_iter().any(|fd| uses(fd.path()))
    };
    processes.map(|entry| entry.path()).filter(held).collect()
}

/// Says what was not tried, past the capture of the output, and fails where
/// nothing may be left out.
fn skip(what: &str, why: &str) {
    let _ = writeln!(io::stderr(), "SKIPPED {what}: {why}");
    assert!(env::var_os("CI").is_none(), "skipped on CI: {what}: {why}");
}

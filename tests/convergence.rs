//! Tables change under live flows, thousands of times: the forwarders
//! converge, and flows that did not change lose nothing and keep their order.

use std::{
    collections::BTreeMap,
    net::Ipv4Addr,
    sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    thread,
    time::{Duration, Instant},
};

use ipnet::{IpNet, Ipv4Net};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use weft_api::{
    forwarder::{Node, Nodes, Peer, Reply, Request},
    ipam,
    names::{Mac, Name},
};
use weft_cni::link::Attach;
use weft_lab::{
    Forwarder, Lab, Ledger, NodePlan, Pod, Process, Spec,
    etcd::Etcd,
    exchange::{self, Content},
    numbered::{Numbered, Tally},
    probe::Family,
    use_executable,
    workshop::{self, Workshop},
};
use weft_testkit::needs_namespaces;

#[path = "support/kernel_node.rs"]
#[allow(dead_code, reason = "other tests need the rest")]
mod kernel_node;
#[path = "support/pin.rs"]
mod pin;
use pin::pin_workers;

/// How often tables are applied to each of two forwarders.
const APPLIED: usize = 2000;
/// How often a node joins, gets a block, changes and leaves by the watch.
const JOINED: usize = 250;

/// Other nodes come, leave and change their blocks, and stand in another order
/// each time.
#[test]
fn flows_outlive_thousands_of_tables_that_are_applied() {
    needs_namespaces!();
    use_executable(env!("CARGO_BIN_EXE_weft"));
    let plan = Spec::default().plan();
    let nodes = ["n1", "n2"].map(|name| workshop::node(name).expect("a node"));
    kernel_node::join(&nodes[0], &nodes[1]);
    let workshop = Workshop::open().expect("a workshop");
    let forwarders = [0, 1].map(|place| {
        let started = workshop.forwarder(
            &plan[place].name,
            &configuration(&plan[place]),
            &nodes[place],
        );
        started.expect("a forwarder")
    });
    let pods = [0, 1].map(|place| {
        let pod = Pod::make(plan[place].pods[0].clone(), place).expect("a pod");
        let attach = Attach::Tap { queues: 1 };
        pod.plug(attach, 1450, &nodes[place], &forwarders[place])
            .expect("wired");
        pod
    });
    let mut others = Others::new(&plan);
    let apply = |others: &Others| {
        for (place, forwarder) in forwarders.iter().enumerate() {
            let mut client = forwarder.client().expect("a client");
            let request = Request::Apply(others.seen_from(place));
            client.request(&request).expect("in force");
        }
    };
    apply(&others);
    let [one, two] = &forwarders;
    undisturbed([one, two], [&pods[0], &pods[1]], || {
        for _ in 0..APPLIED {
            others.change();
            apply(&others);
        }
    });
    let known = others.nodes.len() + 1;
    assert_eq!([one, two].map(|one| peers(one).len()), [known; 2]);
    assert!(epoch(one) >= 2000, "every one was in force");
}

/// Nodes that registered with another server on the same etcd, or that an
/// operator put there.
#[test]
fn flows_outlive_what_a_cluster_on_etcd_tells() {
    needs_namespaces!();
    let (etcd, lab) = lab_on_etcd();
    let workshop = Workshop::open().expect("a workshop");
    let other = workshop.ipam("other", &etcd.url(), "").expect("a server");
    let [one, two] = [0, 1].map(|node| forwarder(&lab, node));
    let before = epoch(one);
    undisturbed([one, two], [&lab.pods[0], &lab.pods[1]], || {
        let mut client = other.client().expect("a client");
        let mut ask = |request: Value| {
            let request: ipam::Request = serde_json::from_value(request).expect("a request");
            client.request(&request).expect("granted");
        };
        for number in 0..JOINED {
            let name = format!("x{}", number % 20);
            let attachment = json!({"network": "x", "container": name, "interface": "eth0"});
            ask(entry("node-put", &name, 1));
            ask(
                json!({"op": "allocate", "attachment": attachment, "node": name,
                "families": ["v4"]}),
            );
            ask(entry("node-put", &name, 2));
            ask(
                json!({"op": "release", "by": "attachment", "network": "x", "container": name,
                "interface": "eth0"}),
            );
            ask(json!({"op": "node-delete", "name": name}));
            if number % 10 == 0 {
                let mut joining = other.client().expect("a client");
                let joins = serde_json::from_value(entry("node-register", "joined", 3));
                joining
                    .request(&joins.expect("a request"))
                    .expect("registered");
                ask(json!({"op": "node-leave", "name": "joined"}));
            }
        }
        ask(entry("node-put", "last", 1));
        for forwarder in [one, two] {
            eventually("the last node is known, and no other", || {
                names(forwarder)
                    == [
                        "last",
                        if forwarder.pid() == one.pid() {
                            "n2"
                        } else {
                            "n1"
                        },
                    ]
            });
        }
    });
    assert!(epoch(one) > before + 500, "news came in many pieces");
}

/// The server stands still while etcd forgets what happened meanwhile.
#[test]
fn flows_outlive_a_compaction_under_the_watch() {
    needs_namespaces!();
    let (mut etcd, lab) = lab_on_etcd();
    let workshop = Workshop::open().expect("a workshop");
    let other = workshop.ipam("other", &etcd.url(), "").expect("a server");
    let [one, two] = [0, 1].map(|node| forwarder(&lab, node));
    let ask = |request: Value| {
        let request: ipam::Request = serde_json::from_value(request).expect("a request");
        let mut client = other.client().expect("a client");
        client.request(&request).expect("granted");
    };
    ask(entry("node-put", "x1", 1));
    eventually("x1 is known", || names(one) == ["n2", "x1"]);
    undisturbed([one, two], [&lab.pods[0], &lab.pods[1]], || {
        let server = lab.ipam.as_ref().expect("an IPAM server");
        let server = Process::of(server.pid()).expect("it runs");
        server.signal(Signal::SIGSTOP).expect("stopped");
        // Ends the server's stream, so that nothing waits in it.
        etcd.restart().expect("it starts again");
        ask(json!({"op": "node-delete", "name": "x1"}));
        ask(entry("node-put", "x2", 1));
        etcd.compact().expect("compacted");
        server.signal(Signal::SIGCONT).expect("it goes on");
        eventually("n1 knows x2 and not x1", || names(one) == ["n2", "x2"]);
        eventually("n2 too", || names(two) == ["n1", "x2"]);
    });
}

/// Lets numbered datagrams and a TCP stream pass between the pods, each way,
/// while it does `what`; none of them may notice.
fn undisturbed(forwarders: [&Forwarder; 2], pods: [&Pod; 2], what: impl FnOnce()) {
    assert_eq!(forwarders.map(pin_workers), [1, 1]);
    let before = forwarders.map(|one| Ledger::of(one).expect("balanced"));
    let [one, two] = pods;
    let (done, rounds) = (AtomicBool::new(false), AtomicU64::new(0));
    let ways = [(one, two, Family::V4), (two, one, Family::V6)];
    let ways = ways.map(|(from, to, family)| Numbered::between(from, to, family));
    let pause = Duration::from_micros(500);
    thread::scope(|scope| {
        let _stop = Stop(&done);
        let ways = ways
            .each_ref()
            .map(|way| scope.spawn(|| way.as_ref().expect("sockets").run(pause, &done)));
        let stream = scope.spawn(|| keep_streaming(one, two, &done, &rounds));
        what();
        let seen = rounds.load(Relaxed);
        eventually("the stream goes on", || rounds.load(Relaxed) > seen + 3);
        done.store(true, Relaxed);
        for way in ways {
            let tally = way.join().expect("no panic").expect("every one is sent");
            let all = Tally {
                sent: tally.sent,
                ..Tally::default()
            };
            assert_eq!(tally, all);
            assert!(tally.sent > 100, "a stream of {}", tally.sent);
        }
        stream.join().expect("every byte");
    });
    for (forwarder, before) in forwarders.iter().zip(before) {
        let after = Ledger::of(forwarder).expect("balanced");
        assert_eq!(after.lost_since(&before), BTreeMap::new());
    }
}

/// One connection for all rounds, so that a lost one is an error.
fn keep_streaming(from: &Pod, to: &Pod, done: &AtomicBool, rounds: &AtomicU64) {
    let ends = exchange::connection(from, to, Family::V4).expect("connected");
    while !done.load(Relaxed) {
        let content = Content::new(rounds.fetch_add(1, Relaxed));
        thread::scope(|scope| {
            let (out, into, expected) = (&ends.0, &ends.1, content.clone());
            scope.spawn(|| exchange::send(out, content, 256 << 10).expect("sent"));
            exchange::receive(into, expected, 256 << 10).expect("every byte");
        });
    }
}

/// Also by a failure.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Relaxed);
    }
}

/// The nodes that nobody speaks to.
struct Others {
    lasting: [Node; 2],
    nodes: Vec<Node>,
    made: u32,
    random: u64,
}

impl Others {
    const MOST: u64 = 60;

    fn new(plan: &[NodePlan]) -> Self {
        Self {
            lasting: [0, 1].map(|place| plan[place].record().expect("a record")),
            nodes: Vec::new(),
            made: 0,
            random: 0x9e37_79b9_7f4a_7c15,
        }
    }

    fn change(&mut self) {
        let place = usize::try_from(self.below(Self::MOST)).expect("small");
        if place >= self.nodes.len() {
            let joined = self.join();
            self.nodes.push(joined);
        } else if self.below(3) == 0 {
            self.nodes.swap_remove(place);
        } else {
            self.made += 1;
            self.nodes[place].blocks = vec![block(self.made)];
        }
        let len = u64::try_from(self.nodes.len().max(1)).expect("small");
        let turn = usize::try_from(self.below(len)).expect("small");
        self.nodes.rotate_left(turn);
    }

    fn join(&mut self) -> Node {
        self.made += 1;
        let underlay = Ipv4Addr::from(u32::from(Ipv4Addr::new(198, 18, 0, 0)) + self.made);
        let [a, b, c, d] = underlay.octets();
        Node {
            name: Name::new(format!("x{}", self.made)).expect("a name"),
            underlay: vec![underlay.into()],
            vtep_mac: Mac([2, 0, a, b, c, d]),
            blocks: vec![block(self.made)],
            tunnel: Vec::new(),
            ..self.lasting[0].clone()
        }
    }

    /// The lasting peer stands in the middle: others come and go before it.
    fn seen_from(&self, place: usize) -> Nodes {
        let mut peers = self.nodes.clone();
        peers.insert(peers.len() / 2, self.lasting[1 - place].clone());
        Nodes {
            node: self.lasting[place].clone(),
            peers,
        }
    }

    /// By xorshift: the same each time.
    fn below(&mut self, end: u64) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random % end
    }
}

fn block(number: u32) -> IpNet {
    let first = u32::from(Ipv4Addr::new(10, 64, 0, 0)) + number * 64;
    Ipv4Net::new_assert(first.into(), 26).into()
}

/// A node of the IPAM server's; `variant` tells its MAC and address.
fn entry(op: &str, name: &str, variant: u8) -> Value {
    let number: u8 = name
        .trim_start_matches(char::is_alphabetic)
        .parse()
        .unwrap_or(99);
    json!({"op": op, "name": name, "underlay": [format!("198.18.{variant}.{number}/16")],
        "vtep_mac": format!("02:00:00:09:{variant:02x}:{number:02x}")})
}

fn lab_on_etcd() -> (Etcd, Lab) {
    use_executable(env!("CARGO_BIN_EXE_weft"));
    let etcd = Etcd::start().expect("an etcd");
    let lab = Lab::up(&Spec {
        pods: 1,
        workers: Some(1),
        store: Some(etcd.url()),
        ..Spec::default()
    });
    (etcd, lab.expect("a lab"))
}

fn configuration(plan: &NodePlan) -> String {
    format!(
        "node = '{}'\nworkers = 1\nvtep_mac = '{}'\n[uplink]\naddresses = ['{}', '{}']\n",
        plan.name, plan.vtep_mac, plan.underlay[0], plan.underlay[1]
    )
}

fn forwarder(lab: &Lab, node: usize) -> &Forwarder {
    lab.nodes[node].forwarder.as_ref().expect("a forwarder")
}

fn peers(forwarder: &Forwarder) -> Vec<Peer> {
    let mut client = forwarder.client().expect("a client");
    client.peers().expect("the peers")
}

fn names(forwarder: &Forwarder) -> Vec<String> {
    let peers = peers(forwarder).into_iter();
    let mut names: Vec<_> = peers.map(|peer| peer.node.name.to_string()).collect();
    names.sort();
    names
}

fn epoch(forwarder: &Forwarder) -> u64 {
    let mut client = forwarder.client().expect("a client");
    match client.request(&Request::Status).expect("an answer") {
        Reply::Status(status) => status.epoch,
        other => panic!("{other:?} is no status"),
    }
}

fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let until = Instant::now() + Duration::from_secs(30);
    while !is_so() {
        assert!(Instant::now() < until, "not in 30 s: {what}");
        thread::sleep(Duration::from_millis(10));
    }
}

//! Our node, a neighbour of it, a router and a node behind that.

use std::{
    collections::BTreeSet,
    fs,
    process::{Command, Output, Stdio},
    thread,
};

use tempfile::NamedTempFile;
use weft_api::forwarder::Peer;
use weft_cni::{link::Attach, netns::Netns};
use weft_lab::{
    Forwarder, NodePlan, Pod, Spec, exchange,
    probe::{Family, Probe},
    use_executable,
    workshop::{self, Workshop, run},
};

use crate::{
    etcd::{Etcd, Running, eventually},
    forms::forms,
    kernel_node::{all, path, route_packets},
    wiretap::Wiretap,
};

pub const POD_MTU: u16 = 1430;
pub const UNDERLAY: [[&str; 2]; 3] = [
    ["192.0.2.1/24", "2001:db8::1/64"],
    ["192.0.2.2/24", "2001:db8::2/64"],
    ["198.51.100.3/24", "2001:db8:3::3/64"],
];
const ROUTER: [[&str; 2]; 2] = [
    ["192.0.2.254", "2001:db8::fe"],
    ["198.51.100.254", "2001:db8:3::fe"],
];

pub struct World {
    pub etcd: Etcd,
    pub forwarder: Forwarder,
    /// Ours, the near one, the far one.
    pub nodes: [Netns; 3],
    pub router: Netns,
    pub plan: Vec<NodePlan>,
    _workshop: Workshop,
}

/// With what it logs, which is shown when the test fails.
pub struct Member {
    pub process: Running,
    log: NamedTempFile,
}

impl World {
    pub fn new(port: u16, vni: u32) -> Self {
        use_executable(env!("CARGO_BIN_EXE_weft"));
        let router = workshop::node("router").expect("a router");
        router.run(route_packets).expect("enter");
        for (bridge, [v4, v6]) in ["near", "far"].into_iter().zip(ROUTER) {
            let bridge_up = [
                &format!("ip link add {bridge} type bridge mcast_snooping 0")[..],
                &format!("ip link set {bridge} up"),
                &format!("ip address add {v4}/24 dev {bridge}"),
                &format!("ip address add {v6}/64 dev {bridge} nodad"),
            ];
            all(&router, &bridge_up);
        }
        let places = [("ours", 0), ("near", 0), ("far", 1)];
        let nodes = [0, 1, 2].map(|at| {
            let (name, side) = places[at];
            plugged_in(name, side, UNDERLAY[at], &router)
        });
        let workshop = Workshop::open().expect("a workshop");
        let configuration = format!(
            "node = 'n1'\nworkers = 2\n[uplink]\naddresses = ['192.0.2.1', '2001:db8::1']\nport = \
             {port}\nvni = {vni}\nmtu = 1500\n"
        );
        let forwarder = workshop.forwarder("n1", &configuration, &nodes[0]);
        let spec = Spec {
            nodes: 3,
            pods: 1,
            ..Spec::default()
        };
        Self {
            etcd: nodes[0].run(Etcd::start).expect("enter"),
            forwarder: forwarder.expect("a forwarder"),
            nodes,
            router,
            plan: spec.plan(),
            _workshop: workshop,
        }
    }

    /// Where etcd is.
    pub fn at_home<T: Send>(&self, call: impl FnOnce() -> T + Send) -> T {
        self.nodes[0].run(call).expect("enter")
    }

    pub fn put(&self, key: &str, value: &str) {
        self.at_home(|| self.etcd.put(key, value));
    }

    pub fn delete(&self, key: &str) {
        self.at_home(|| self.etcd.control(&["del", key]));
    }

    pub fn weft(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_weft"));
        command
            .args(arguments)
            .env("WEFT_CONTROL", &self.forwarder.control)
            .stdin(Stdio::null());
        command
    }

    pub fn output(&self, mut command: Command) -> Output {
        self.at_home(move || command.output()).expect("it runs")
    }

    pub fn host_up(&self) {
        let pools = ["10.244.0.0/16", "10.245.0.0/16", "fd00:10:244::/48"];
        let pools = pools.iter().flat_map(|pool| ["--pool", pool]);
        let arguments: Vec<_> = ["host", "up"].into_iter().chain(pools).collect();
        let output = self.output(self.weft(&arguments));
        assert!(output.status.success(), "{output:?}");
    }

    pub fn member(&self, mut command: Command) -> Member {
        let log = NamedTempFile::new().expect("a file");
        command.stderr(log.reopen().expect("the file"));
        let process = self.at_home(move || command.spawn()).expect("it runs");
        let member = Member {
            process: Running(process),
            log,
        };
        eventually("the forwarder is told", || {
            member.log().contains("the forwarder was told")
        });
        member
    }

    pub fn peers(&self) -> Vec<Peer> {
        let mut client = self.forwarder.client().expect("a client");
        client.peers().expect("the peers")
    }

    /// What the kernel of our node reaches by routes that weft made.
    pub fn routes(&self) -> BTreeSet<String> {
        let of = |family: &str| {
            run(&self.nodes[0], &format!("ip {family} route show proto 87")).expect("routes")
        };
        let text = of("-4") + &of("-6");
        let route = |line: &str| {
            let words: Vec<_> = line.split_whitespace().take(3).collect();
            words.join(" ")
        };
        text.lines().map(route).collect()
    }

    pub fn our_pod(&self) -> Pod {
        let pod = Pod::make(self.plan[0].pods[0].clone(), 0).expect("a pod");
        let attach = Attach::Tap { queues: 2 };
        pod.plug(attach, POD_MTU, &self.nodes[0], &self.forwarder)
            .expect("wired");
        pod
    }

    pub fn bare_pod(&self, at: usize) -> Pod {
        Pod::make(self.plan[at].pods[0].clone(), at).expect("a pod")
    }

    /// Pods of our node and of another do all that pods do, and both wires have
    /// their packets in that form only.
    pub fn talk(&self, ours: &Pod, theirs: &Pod, at: usize, form: &'static str) {
        for family in Family::ALL {
            let taps = [0, at].map(|at| Wiretap::on(&self.nodes[at]));
            for (from, to) in [(ours, theirs), (theirs, ours)] {
                for probe in Probe::ALL {
                    let told = |error| panic!("{} to {}: {error:#}", from.name(), to.name());
                    probe.run(from, to, family, POD_MTU).unwrap_or_else(told);
                }
                let headers = if family == Family::V4 { 28 } else { 48 };
                let full = usize::from(POD_MTU) - headers;
                let sizes = [1, 63, 1000, full - 1, full, full + 1, 4000];
                exchange::datagrams(from, to, family, sizes).expect("every datagram");
            }
            for tap in taps {
                let seen = forms(tap, ours, theirs);
                assert_eq!(seen, BTreeSet::from([form]), "{}, {family}", theirs.name());
            }
            for (from, to) in [(ours, theirs), (theirs, ours)] {
                exchange::bulk(from, to, family, 1 << 20).expect("every byte");
            }
        }
    }
}

impl Member {
    pub fn log(&self) -> String {
        fs::read_to_string(self.log.path()).expect("a log")
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("{}", self.log());
        }
    }
}

fn plugged_in(name: &str, side: usize, [v4, v6]: [&str; 2], router: &Netns) -> Netns {
    let node = workshop::node(name).expect("a node");
    let [router_v4, router_v6] = ROUTER[side];
    let bridge = ["near", "far"][side];
    let wire = format!(
        "ip link add eth0 type veth peer name to-{name} netns {}",
        path(router)
    );
    run(&node, &wire).expect("a wire");
    run(router, &format!("ip link set to-{name} master {bridge} up")).expect("plugged in");
    all(
        &node,
        &[
            "ip link set lo up",
            "ip link set eth0 mtu 1500 up",
            &format!("ip address add {v4} dev eth0"),
            &format!("ip address add {v6} dev eth0 nodad"),
            &format!("ip route add default via {router_v4}"),
            &format!("ip route add default via {router_v6}"),
        ],
    );
    node
}

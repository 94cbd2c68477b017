//! A node with pods and an egress, and a host outside that knows no way to
//! pods.

use std::{
    fs,
    net::{IpAddr, SocketAddr},
    num::NonZeroU16,
    os::fd::AsRawFd,
    process::{self, Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use tempfile::NamedTempFile;
use weft_api::forwarder::{Capabilities, Nodes, PortMapping, PortState, Protocol, Request};
use weft_cni::{link::Attach, netns::Netns};
use weft_lab::{
    Forwarder, Lab, Ledger, NodePlan, Pod, PodPlan, Spec, use_executable,
    workshop::{self, Workshop, run},
};

pub const MTU: u16 = 1500;
pub const OUTSIDE: [&str; 2] = ["192.0.2.254", "2001:db8::fe"];
/// Where outside has nobody who answers.
pub const BLACK_HOLES: [&str; 2] = ["198.51.100.1:80", "[2001:db8:7::1]:80"];
pub const PATIENCE: Duration = Duration::from_secs(10);

const POOLS: [&str; 2] = ["10.244.0.0/16", "fd00:10:244::/48"];

pub struct World {
    pub egress: Option<Egress>,
    pub pods: Vec<Pod>,
    pub outside: Pod,
    pub forwarder: Forwarder,
    pub node: Netns,
    /// The node's own addresses.
    pub own: [IpAddr; 2],
    log: NamedTempFile,
    _workshop: Workshop,
}

pub struct Egress(Child);

impl World {
    pub fn new(arguments: &str) -> Self {
        Self::published(&[], arguments)
    }

    /// The same, with ports of the node that stand for ports of the first pod.
    pub fn published(mappings: &[PortMapping], arguments: &str) -> Self {
        let mut world = Self::without_egress(mappings);
        world.egress = Some(world.start(arguments));
        world
    }

    pub fn without_egress(mappings: &[PortMapping]) -> Self {
        use_executable(env!("CARGO_BIN_EXE_weft"));
        let plan = Spec {
            nodes: 1,
            pods: 2,
            ..Spec::default()
        };
        let plan = plan.plan().remove(0);
        let node = workshop::node("node").expect("a node");
        let outside = outside(&plan, &node);
        let workshop = Workshop::open().expect("a workshop");
        let [first, second] = plan.underlay;
        let configuration = format!(
            "node = 'n1'\nworkers = 2\nvtep_mac = '{}'\n[uplink]\naddresses = ['{first}', \
             '{second}']\nmtu = 1500\n",
            plan.vtep_mac
        );
        let forwarder = workshop
            .forwarder("n1", &configuration, &node)
            .expect("a forwarder");
        let nodes = Request::Apply(Nodes {
            node: plan.record().expect("a record"),
            peers: Vec::new(),
        });
        let mut client = forwarder.client().expect("a client");
        client.request(&nodes).expect("applied");
        let pods = plan.pods.iter().enumerate().map(|(place, pod)| {
            let pod = Pod::make(pod.clone(), 0).expect("a pod");
            let capabilities = Capabilities {
                port_mappings: mappings[..if place == 0 { mappings.len() } else { 0 }].into(),
                ..Capabilities::default()
            };
            let attach = Attach::Tap { queues: 2 };
            pod.plug_with(capabilities, attach, MTU, &node, &forwarder)
                .expect("wired");
            pod
        });
        Self {
            egress: None,
            pods: pods.collect(),
            outside,
            forwarder,
            node,
            own: plan.underlay,
            log: NamedTempFile::new().expect("a file"),
            _workshop: workshop,
        }
    }

    /// Starts an egress, which is ready when this returns.
    pub fn start(&self, arguments: &str) -> Egress {
        let [v4, v6] = POOLS;
        let open = |limit: &str| format!("ulimit -n {limit} && exec -a weft-egress \"$@\"");
        let (limit, arguments) = match arguments.strip_prefix("ulimit ") {
            Some(rest) => rest.split_once(' ').unwrap_or((rest, "")),
            None => ("hard", arguments),
        };
        let start = || {
            Command::new("bash")
                .args(["-c", &open(limit), "bash", env!("CARGO_BIN_EXE_weft")])
                .args(["--pool", v4, "--pool", v6, "--metrics", "127.0.0.1:9101"])
                .args(arguments.split_whitespace())
                .env("WEFT_CONTROL", &self.forwarder.control)
                .stdin(Stdio::null())
                .stderr(self.log.reopen().expect("a file"))
                .spawn()
        };
        let child = self.node.run(start).expect("enter").expect("start");
        let egress = Egress(child);
        self.await_port(PortState::Up);
        egress
    }

    pub fn await_port(&self, state: PortState) {
        let until = Instant::now() + PATIENCE;
        let is_so = || {
            let ports = self.forwarder.client().expect("a client").ports();
            let ports = ports.expect("the ports");
            ports
                .iter()
                .any(|port| port.host.is_some() && port.state == state)
        };
        while !is_so() {
            assert!(Instant::now() < until, "no host port is {state:?}");
            thread::sleep(Duration::from_millis(10));
        }
    }

    pub fn pod(&self) -> &Pod {
        &self.pods[0]
    }

    /// One of the egress's numbers.
    pub fn count(&self, name: &str) -> u64 {
        use std::io::{Read, Write};
        let page = self.node.run(|| {
            let mut stream = std::net::TcpStream::connect("127.0.0.1:9101").expect("metrics");
            stream
                .write_all(b"GET /metrics HTTP/1.1\r\n\r\n")
                .expect("ask");
            let mut page = String::new();
            stream.read_to_string(&mut page).expect("a page");
            page
        });
        let page = page.expect("enter");
        let name = format!("weft_egress_{name} ");
        let line = page.lines().find(|line| line.starts_with(&name));
        let line = line.unwrap_or_else(|| panic!("no {name}in {page}"));
        line[name.len()..].parse().expect("a number")
    }

    /// What the egress has said so far.
    pub fn log(&self) -> String {
        fs::read_to_string(self.log.path()).expect("a file")
    }

    pub fn await_count(&self, name: &str, number: u64) {
        let until = Instant::now() + PATIENCE;
        while self.count(name) != number {
            assert!(
                Instant::now() < until,
                "{name} is {}, not {number}",
                self.count(name)
            );
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// The forwarder lost nothing.
    pub fn check_books(&self, before: &Ledger) {
        let after = Ledger::of(&self.forwarder).expect("balanced");
        let drops = after.lost_since(before);
        assert!(drops.is_empty(), "{drops:?}");
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("the egress said:\n{}", self.log());
        }
    }
}

pub fn mapping(protocol: Protocol, host: u16, container: u16, ip: Option<&str>) -> PortMapping {
    let port = |number| NonZeroU16::new(number).expect("a port");
    PortMapping {
        host_port: port(host),
        container_port: port(container),
        protocol,
        host_ip: ip.map(|text| text.parse().expect("an address")),
    }
}

impl Egress {
    /// One of a lab's node, which follows its IPAM server.
    pub fn of_lab(lab: &Lab, node: usize) -> Self {
        let node = &lab.nodes[node];
        let forwarder = node.forwarder.as_ref().expect("a forwarder");
        let start = || {
            Command::new(env!("CARGO_BIN_EXE_weft"))
                .arg("egress")
                .env("WEFT_CONTROL", &forwarder.control)
                .stdin(Stdio::null())
                .spawn()
        };
        Self(node.netns.run(start).expect("enter").expect("start"))
    }

    pub fn pid(&self) -> u32 {
        self.0.id()
    }

    pub fn kill(mut self) {
        self.0.kill().expect("it runs");
        self.0.wait().expect("it ends");
    }
}

impl Drop for Egress {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn outside(plan: &NodePlan, node: &Netns) -> Pod {
    let netns = Netns::make("outside").expect("a namespace");
    let path = format!("/proc/{}/fd/{}", process::id(), netns.as_raw_fd());
    let link = format!("ip link add eth0 type veth peer name eth0 netns {path}");
    run(node, &link).expect("a wire");
    let [v4, v6] = OUTSIDE;
    let nets = [format!("{v4}/24"), format!("{v6}/64")];
    for (place, nets) in [
        (node, plan.underlay_nets().map(|net| net.to_string())),
        (&netns, nets),
    ] {
        for command in ["ip link set lo up", "ip link set eth0 up"] {
            run(place, command).expect("up");
        }
        run(place, &format!("ip address add {} dev eth0", nets[0])).expect("an address");
        run(place, &format!("ip address add {} dev eth0 nodad", nets[1])).expect("an address");
    }
    for via in OUTSIDE {
        run(node, &format!("ip route add default via {via}")).expect("a route");
    }
    let anybody = || fs::write("/proc/sys/net/ipv4/ping_group_range", "0 0");
    node.run(anybody).expect("enter").expect("allowed");
    let [IpAddr::V4(v4), IpAddr::V6(v6)] = OUTSIDE.map(|text| text.parse().expect("an address"))
    else {
        panic!("one of each family");
    };
    let plan = PodPlan {
        name: "outside".to_owned(),
        v4,
        v6,
        ..plan.pods[0].clone()
    };
    Pod {
        plan,
        node: 0,
        netns,
    }
}

pub fn address(text: &str) -> SocketAddr {
    text.parse().expect("an address")
}

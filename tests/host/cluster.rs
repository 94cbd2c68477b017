//! Three nodes, two of them in one subnet and the third behind a router, each
//! with one pod. The underlay routes what the tests tell it to.

use std::{
    collections::BTreeMap,
    fs,
    net::IpAddr,
    os::fd::AsRawFd,
    process::{self, Command, Output},
};

use weft_api::forwarder::{Node, Nodes, Port, Request, Way};
use weft_cni::{link::Attach, netns::Netns};
use weft_lab::{
    Forwarder, Ledger, NodePlan, Pod, PodPlan, Spec, exchange,
    probe::{Family, Probe},
    use_executable,
    workshop::{self, Workshop, run},
};

pub const POOLS: [&str; 2] = ["10.244.0.0/16", "fd00:10:244::/48"];
pub const VXLAN_MTU: u16 = 1450;
pub const FULL_MTU: u16 = 1500;

/// The router's addresses in the two subnets.
const NEAR: [&str; 2] = ["192.0.2.254/24", "2001:db8::fe/64"];
const FAR: [&str; 2] = ["198.51.100.254/24", "2001:db8:3::fe/64"];

pub struct Cluster {
    pub nodes: Vec<Place>,
    pub router: Netns,
    pub workshop: Workshop,
}

/// A node and what is on it.
pub struct Place {
    pub plan: NodePlan,
    pub netns: Netns,
    pub forwarder: Forwarder,
    pub pod: Pod,
    pub before: Option<Ledger>,
}

impl Cluster {
    /// Nodes that know nothing of each other, and no host port.
    pub fn new(plan: Vec<NodePlan>, more: &str, pod_mtu: u16) -> Self {
        use_executable(env!("CARGO_BIN_EXE_weft"));
        let router = workshop::node("router").expect("a router");
        for (bridge, addresses) in [("near", NEAR), ("far", FAR)] {
            run(
                &router,
                &format!("ip link add {bridge} type bridge mcast_snooping 0"),
            )
            .expect("a bridge");
            run(&router, &format!("ip link set {bridge} up")).expect("up");
            give(&router, bridge, addresses);
        }
        router.run(forward).expect("enter");
        let workshop = Workshop::open().expect("a workshop");
        let nodes = plan.into_iter().map(|plan| {
            let netns = join(&plan, &router);
            let forwarder = start(&workshop, &plan, more, &netns);
            let pod = Pod::make(plan.pods[0].clone(), 0).expect("a pod");
            pod.plug(Attach::Tap { queues: 2 }, pod_mtu, &netns, &forwarder)
                .expect("wired");
            Place {
                plan,
                netns,
                forwarder,
                pod,
                before: None,
            }
        });
        Self {
            nodes: nodes.collect(),
            router,
            workshop,
        }
    }

    /// Nodes that know each other, `way` from one to another, with host ports.
    pub fn up(way: fn(usize, usize) -> Way, pod_mtu: u16) -> Self {
        let mut cluster = Self::new(plan(), "", pod_mtu);
        cluster.apply(way);
        for place in &mut cluster.nodes {
            place.host_up();
        }
        cluster.route(way);
        cluster.settle();
        cluster
    }

    pub fn apply(&self, way: fn(usize, usize) -> Way) {
        for (own, place) in self.nodes.iter().enumerate() {
            let others = (0..self.nodes.len()).filter(|other| *other != own);
            let peers = others.map(|to| peer(&self.nodes[to].plan, way(own, to)));
            let apply = Request::Apply(Nodes {
                node: place.plan.record().expect("a record"),
                peers: peers.collect(),
            });
            let mut client = place.forwarder.client().expect("a client");
            client.request(&apply).expect("applied");
        }
    }

    /// Tells the fabric what goes by it: to a neighbour straight, to others by
    /// the router.
    pub fn route(&self, way: fn(usize, usize) -> Way) {
        let count = self.nodes.len();
        let pairs = (0..count).flat_map(|from| (0..count).map(move |to| (from, to)));
        for (from, to) in pairs.filter(|(from, to)| from != to && way(*from, *to) == Way::Direct) {
            let (here, there) = (&self.nodes[from], &self.nodes[to].plan);
            for (place, block) in there.blocks.iter().enumerate() {
                let near = from.max(to) < 2;
                let router = if from < 2 { NEAR } else { FAR }[place];
                let router = router.split('/').next().expect("an address").to_owned();
                let via = if near {
                    there.underlay[place].to_string()
                } else {
                    router
                };
                run(&here.netns, &format!("ip route replace {block} via {via}")).expect("a route");
                let via = there.underlay[place];
                run(&self.router, &format!("ip route replace {block} via {via}")).expect("a route");
            }
        }
    }

    /// Takes the books' state from which [`Cluster::check_books`] counts.
    pub fn settle(&mut self) {
        for place in &mut self.nodes {
            place.before = Some(Ledger::of(&place.forwarder).expect("quiet"));
        }
    }

    /// Nothing was lost.
    pub fn check_books(&self) {
        for place in &self.nodes {
            let after = Ledger::of(&place.forwarder).expect("balanced");
            let drops = after.lost_since(place.before.as_ref().expect("settled"));
            assert_eq!(drops, BTreeMap::new(), "{}", place.plan.name);
        }
    }
}

impl Place {
    pub fn weft(&self, arguments: &[&str]) -> Output {
        let run = || {
            Command::new(env!("CARGO_BIN_EXE_weft"))
                .args(arguments)
                .env("WEFT_CONTROL", &self.forwarder.control)
                .output()
        };
        self.netns.run(run).expect("enter").expect("run weft")
    }

    #[track_caller]
    pub fn host_up(&self) -> String {
        let [v4, v6] = POOLS;
        said(self.weft(&["host", "up", "--pool", v4, "--pool", v6]))
    }

    pub fn ports(&self) -> Vec<Port> {
        let mut client = self.forwarder.client().expect("a client");
        client.ports().expect("the ports")
    }

    pub fn lost(&self, reason: &str) -> u64 {
        let ledger = Ledger::of(&self.forwarder).expect("balanced");
        ledger.dropped(reason)
    }

    /// The node itself, which speaks from these addresses.
    pub fn host(&self, [v4, v6]: [IpAddr; 2]) -> Pod {
        let (IpAddr::V4(v4), IpAddr::V6(v6)) = (v4, v6) else {
            panic!("one of each family, IPv4 first");
        };
        let path = format!("/proc/{}/fd/{}", process::id(), self.netns.as_raw_fd());
        Pod {
            plan: PodPlan {
                name: self.plan.name.clone(),
                v4,
                v6,
                ..self.pod.plan.clone()
            },
            node: 0,
            netns: Netns::open(path.as_ref()).expect("it is open"),
        }
    }

    /// The same, with its addresses in the pod network.
    pub fn itself(&self) -> Pod {
        self.host(self.plan.tunnel)
    }
}

/// All but what takes a sender of IPv6 that it knows the path's MTU.
pub const WHOLE: [Probe; 4] = [Probe::Ping, Probe::Tcp, Probe::Udp, Probe::FullSize];

/// Everything that two talkers do, both ways and over both families.
pub fn talk(one: &Pod, other: &Pod, mtu: u16) {
    talk_by(&Probe::ALL, one, other, mtu);
}

pub fn talk_by(probes: &[Probe], one: &Pod, other: &Pod, mtu: u16) {
    for (from, to) in [(one, other), (other, one)] {
        for family in Family::ALL {
            for probe in probes {
                let told = |error| panic!("{} to {}: {error:#}", from.name(), to.name());
                probe.run(from, to, family, mtu).unwrap_or_else(told);
            }
            exchange::bulk(from, to, family, 4 << 20).expect("every byte");
        }
    }
    exchange::train(one, other, Family::V4, 1200, 30).expect("every datagram");
}

/// Three nodes, of which the third is in another subnet.
pub fn plan() -> Vec<NodePlan> {
    let spec = Spec {
        nodes: 3,
        pods: 1,
        ..Spec::default()
    };
    let mut plan = spec.plan();
    plan[2].underlay = ["198.51.100.3", "2001:db8:3::3"].map(|a| a.parse().expect("an address"));
    plan
}

fn peer(plan: &NodePlan, way: Way) -> Node {
    let mut node = plan.record().expect("a record");
    if way != Way::Vxlan {
        node.ways = node.blocks.iter().map(|&block| (block, way)).collect();
    }
    node
}

fn join(plan: &NodePlan, router: &Netns) -> Netns {
    let node = workshop::node(&plan.name).expect("a node");
    let path = format!("/proc/{}/fd/{}", process::id(), router.as_raw_fd());
    let name = &plan.name;
    run(
        &node,
        &format!("ip link add eth0 type veth peer name {name} netns {path}"),
    )
    .expect("a wire");
    let (bridge, routers) = if plan.number < 3 {
        ("near", NEAR)
    } else {
        ("far", FAR)
    };
    run(router, &format!("ip link set {name} master {bridge} up")).expect("plugged in");
    run(&node, "ip link set eth0 up").expect("up");
    run(&node, "ip link set lo up").expect("up");
    give(&node, "eth0", plan.underlay_nets());
    for router in routers {
        let via = router.split('/').next().expect("an address");
        run(&node, &format!("ip route add default via {via}")).expect("a route");
    }
    node
}

fn give(netns: &Netns, link: &str, addresses: [impl std::fmt::Display; 2]) {
    for (address, nodad) in addresses.iter().zip(["", "nodad"]) {
        run(
            netns,
            &format!("ip address add {address} dev {link} {nodad}"),
        )
        .expect("an address");
    }
}

fn forward() {
    for knob in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
        fs::write(format!("/proc/sys/net/{knob}"), "1").expect("sysctl");
    }
}

pub fn start(workshop: &Workshop, plan: &NodePlan, more: &str, netns: &Netns) -> Forwarder {
    let [first, second] = plan.underlay;
    let configuration = format!(
        "node = '{}'\nworkers = 2\nvtep_mac = '{}'\n[uplink]\naddresses = ['{first}', \
         '{second}']\nmtu = 1500\n{more}",
        plan.name, plan.vtep_mac
    );
    workshop
        .forwarder(&plan.name, &configuration, netns)
        .expect("a forwarder")
}

#[track_caller]
pub fn said(output: Output) -> String {
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).expect("text")
}

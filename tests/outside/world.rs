//! Two nodes whose pods come by the plugin, a router, and behind it a host
//! that knows no way to pods.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::{fd::AsRawFd, unix::fs::symlink},
    path::PathBuf,
    process::{self, Command, Output},
};

use serde_json::{Value, json};
use tempfile::TempDir;
use weft_api::{
    forwarder::{Port, PortState},
    ipam::{Reply, Request},
};
use weft_cni::netns::Netns;
use weft_lab::{
    Forwarder, Ipam, Ledger, NodePlan, Pod, PodPlan, Spec,
    probe::Family,
    use_executable,
    workshop::{self, Workshop, run},
};
use weft_testkit::cni::{Attachment, Runtime};

pub const MTU: u16 = 1450;
pub const POOLS: [&str; 2] = ["10.244.0.0/16", "fd00:10:244::/112"];

const WEFT: &str = env!("CARGO_BIN_EXE_weft");

/// Where Debian keeps its plugins.
const DEBIAN: &str = "/usr/lib/cni";

const ROUTER: [[&str; 2]; 2] = [
    ["192.0.2.254", "2001:db8::fe"],
    ["198.51.100.254", "2001:db8:3::fe"],
];
const OUTSIDE: [&str; 2] = ["198.51.100.9", "2001:db8:3::9"];

pub struct World {
    pub nodes: Vec<Node>,
    pub outside: Pod,
    pub router: Netns,
    pub ipam: Ipam,
    _workshop: Workshop,
    bin: TempDir,
}

pub struct Node {
    pub plan: NodePlan,
    pub netns: Netns,
    pub forwarder: Forwarder,
    before: Option<Ledger>,
}

impl World {
    /// Nodes with weft0, whose pools ask for the nodes' addresses outside.
    pub fn up() -> Self {
        let mut world = Self::new(true);
        for node in &world.nodes {
            node.host_up();
        }
        world.settle();
        world
    }

    /// Without host ports.
    pub fn new(nat_outgoing: bool) -> Self {
        use_executable(WEFT);
        let workshop = Workshop::open().expect("a workshop");
        let bin = TempDir::new().expect("a folder");
        let store = bin.path().join("ipam.redb").display().to_string();
        let ipam = workshop.ipam("ipam", &store, "gc_grace_seconds = 1\n");
        let ipam = ipam.expect("an IPAM server");
        for (name, cidr, size) in [("v4", POOLS[0], 24), ("v6", POOLS[1], 120)] {
            ask(
                &ipam,
                json!({"op": "pool-create", "name": name, "cidr": cidr, "block_size": size,
                "nat_outgoing": nat_outgoing}),
            );
        }
        let router = router();
        let spec = Spec {
            nodes: 2,
            pods: 1,
            ..Spec::default()
        };
        let nodes = spec.plan().into_iter().map(|mut plan| {
            plan.tunnel = allocate(&ipam, &plan.name);
            let entry = plan.entry().expect("an entry");
            let put = Request::NodePut(Box::new(entry));
            let mut client = ipam.client().expect("a client");
            client.request(&put).expect("put");
            let netns = join(&router, &plan);
            let forwarder = start(&workshop, &plan, &ipam, &netns);
            Node {
                plan,
                netns,
                forwarder,
                before: None,
            }
        });
        for name in ["weft-cni", "weft-ipam-cni"] {
            symlink(WEFT, bin.path().join(name)).expect("a link");
        }
        Self {
            nodes: nodes.collect(),
            outside: outside(&router),
            router,
            ipam,
            _workshop: workshop,
            bin,
        }
    }

    pub fn settle(&mut self) {
        for node in &mut self.nodes {
            node.before = Some(Ledger::of(&node.forwarder).expect("quiet"));
        }
    }

    /// Nothing was lost.
    pub fn check_books(&self) {
        for node in &self.nodes {
            let after = Ledger::of(&node.forwarder).expect("balanced");
            let drops = after.lost_since(node.before.as_ref().expect("settled"));
            assert!(drops.is_empty(), "{}: {drops:?}", node.plan.name);
        }
    }

    pub fn runtime(&self) -> Runtime {
        Runtime::new([self.bin.path().to_owned(), PathBuf::from(DEBIAN)])
    }

    /// Our plugin's configuration on a node.
    pub fn plugin(&self, node: usize) -> Value {
        let node = &self.nodes[node];
        json!({
            "type": "weft-cni",
            "forwarder": node.forwarder.control,
            "node": node.plan.name,
            "mtu": MTU,
            "ipam": {"socket": self.ipam.socket, "families": ["v4", "v6"]},
            "capabilities": {"portMappings": true},
        })
    }

    pub fn list(&self, node: usize) -> Value {
        list(&[self.plugin(node)])
    }

    /// A pod that publishes these ports, as portMappings has them.
    pub fn add(&self, runtime: &mut Runtime, node: usize, name: &str, ports: &Value) -> Container {
        let container = Container::new(name, ports);
        let added = self.try_add(runtime, node, container);
        added.unwrap_or_else(|failure| panic!("ADD {name}: {failure}"))
    }

    pub fn try_add(
        &self,
        runtime: &mut Runtime,
        node: usize,
        mut container: Container,
    ) -> Result<Container, Value> {
        let list = self.list(node);
        let netns = &self.nodes[node].netns;
        let result = netns
            .run(|| runtime.add(&list, &container.attachment))
            .expect("enter")?;
        container.told(&result);
        Ok(container)
    }

    pub fn del(&self, runtime: &mut Runtime, node: usize, container: &Container) {
        let list = self.list(node);
        let netns = &self.nodes[node].netns;
        let deleted = netns.run(|| runtime.del(&list, &container.attachment));
        deleted.expect("enter").expect("deleted");
    }
}

/// A pod, as its runtime knows it.
pub struct Container {
    pub pod: Pod,
    pub attachment: Attachment,
}

impl Container {
    pub fn new(name: &str, ports: &Value) -> Self {
        let netns = Netns::make(name).expect("a namespace");
        let capabilities = json!({"portMappings": ports});
        let attachment = Attachment {
            container: name.to_owned(),
            netns: path(&netns),
            interface: "eth0".to_owned(),
            capabilities: capabilities.as_object().expect("an object").clone(),
            ..Attachment::default()
        };
        Self {
            pod: talker(
                name,
                netns,
                [Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()],
            ),
            attachment,
        }
    }

    fn told(&mut self, result: &Value) {
        for ip in result["ips"].as_array().expect("addresses") {
            let text = ip["address"].as_str().expect("an address");
            match text.split('/').next().expect("an address").parse() {
                Ok(IpAddr::V4(v4)) => self.pod.plan.v4 = v4,
                Ok(IpAddr::V6(v6)) => self.pod.plan.v6 = v6,
                Err(error) => panic!("{text}: {error}"),
            }
        }
    }
}

impl Node {
    pub fn weft(&self, arguments: &[&str]) -> Output {
        let run = || {
            Command::new(WEFT)
                .args(arguments)
                .env("WEFT_CONTROL", &self.forwarder.control)
                .output()
        };
        self.netns.run(run).expect("enter").expect("run weft")
    }

    #[track_caller]
    pub fn host_up(&self) -> String {
        let page = said(self.weft(&["host", "up"]));
        assert!(!page.contains("warn"), "{page}");
        page
    }

    /// What `nft` says, which has to succeed.
    #[track_caller]
    pub fn nft(&self, arguments: &str) -> String {
        let run = || Command::new("nft").args(arguments.split(' ')).output();
        said(self.netns.run(run).expect("enter").expect("nftables"))
    }

    pub fn has_table(&self) -> bool {
        self.nft("list tables").contains("table inet weft\n")
    }

    /// The pods' addresses that ports of this node lead to.
    pub fn led_to(&self) -> usize {
        let page = self.nft("-j list table inet weft");
        let page: Value = serde_json::from_str(&page).expect("JSON");
        let maps = page["nftables"].as_array().expect("a list").iter();
        let count = |one: &Value| one["map"]["elem"].as_array().map_or(0, Vec::len);
        maps.map(count).sum()
    }

    pub fn ports(&self) -> Vec<Port> {
        let mut client = self.forwarder.client().expect("a client");
        client.ports().expect("the ports")
    }

    pub fn pods_up(&self) -> usize {
        let up = |port: &&Port| port.host.is_none() && port.state == PortState::Up;
        self.ports().iter().filter(up).count()
    }

    /// The node itself, from its underlay's addresses.
    pub fn itself(&self) -> Pod {
        let netns = Netns::open(path(&self.netns).as_ref()).expect("it is open");
        talker(&self.plan.name, netns, self.plan.underlay)
    }

    pub fn underlay(&self, family: Family) -> IpAddr {
        let [v4, v6] = self.plan.underlay;
        match family {
            Family::V4 => v4,
            Family::V6 => v6,
        }
    }
}

#[track_caller]
pub fn said(output: Output) -> String {
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).expect("text")
}

pub fn list(plugins: &[Value]) -> Value {
    json!({"cniVersion": "1.1.0", "name": "pods", "plugins": plugins})
}

fn path(netns: &Netns) -> String {
    format!("/proc/{}/fd/{}", process::id(), netns.as_raw_fd())
}

/// Whoever has two addresses and a namespace.
fn talker(name: &str, netns: Netns, addresses: [IpAddr; 2]) -> Pod {
    let [IpAddr::V4(v4), IpAddr::V6(v6)] = addresses else {
        panic!("one of each family, IPv4 first");
    };
    let somebody = Spec::default().plan().remove(0).pods.remove(0);
    let plan = PodPlan {
        name: name.to_owned(),
        v4,
        v6,
        ..somebody
    };
    Pod {
        plan,
        node: 0,
        netns,
    }
}

fn ask(ipam: &Ipam, request: Value) -> Reply {
    let request = serde_json::from_value(request).expect("a request");
    let mut client = ipam.client().expect("a client");
    client.request(&request).expect("granted")
}

fn allocate(ipam: &Ipam, node: &str) -> [IpAddr; 2] {
    let attachment = json!({"network": "nodes", "container": node, "interface": "weft0"});
    let reply = ask(
        ipam,
        json!({"op": "allocate", "attachment": attachment, "node": node,
        "families": ["v4", "v6"], "use": "tunnel"}),
    );
    let Reply::Allocated(allocated) = reply else {
        panic!("{reply:?}");
    };
    let addresses: Vec<_> = allocated.addresses.iter().map(|one| one.address).collect();
    addresses.try_into().expect("one of each family")
}

/// It knows the way to nobody's pods.
fn router() -> Netns {
    let router = workshop::node("router").expect("a router");
    run(&router, "ip link set lo up").expect("up");
    for (bridge, addresses) in [("near", ROUTER[0]), ("far", ROUTER[1])] {
        let bridge_up = format!("ip link add {bridge} up type bridge mcast_snooping 0");
        run(&router, &bridge_up).expect("a bridge");
        give(&router, bridge, addresses);
    }
    let forward = || {
        for knob in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
            fs::write(format!("/proc/sys/net/{knob}"), "1").expect("sysctl");
        }
    };
    router.run(forward).expect("enter");
    router
}

fn join(router: &Netns, plan: &NodePlan) -> Netns {
    let [v4, v6] = plan.underlay;
    let addresses = [v4, v6].map(|address| address.to_string());
    let addresses = addresses.each_ref().map(String::as_str);
    plug(router, "near", &plan.name, addresses, ROUTER[0])
}

fn outside(router: &Netns) -> Pod {
    let netns = plug(router, "far", "outside", OUTSIDE, ROUTER[1]);
    talker(
        "outside",
        netns,
        OUTSIDE.map(|text| text.parse().expect("valid")),
    )
}

fn plug(router: &Netns, bridge: &str, name: &str, own: [&str; 2], via: [&str; 2]) -> Netns {
    let netns = workshop::node(name).expect("a namespace");
    let there = path(router);
    let wire = format!("ip link add eth0 type veth peer name {name} netns {there}");
    run(&netns, &wire).expect("a wire");
    run(router, &format!("ip link set {name} master {bridge} up")).expect("plugged in");
    for command in ["ip link set lo up", "ip link set eth0 up"] {
        run(&netns, command).expect("up");
    }
    give(&netns, "eth0", own);
    for via in via {
        run(&netns, &format!("ip route add default via {via}")).expect("a route");
    }
    netns
}

fn give(netns: &Netns, link: &str, [v4, v6]: [&str; 2]) {
    for address in [format!("{v4}/24"), format!("{v6}/64 nodad")] {
        run(netns, &format!("ip address add dev {link} {address}")).expect("an address");
    }
}

fn start(workshop: &Workshop, plan: &NodePlan, ipam: &Ipam, netns: &Netns) -> Forwarder {
    let [first, second] = plan.underlay;
    let configuration = format!(
        "node = '{}'\nworkers = 2\nvtep_mac = '{}'\n[uplink]\naddresses = ['{first}', \
         '{second}']\nmtu = 1500\n[ipam]\nsocket = '{}'\n",
        plan.name,
        plan.vtep_mac,
        ipam.socket.display()
    );
    workshop
        .forwarder(&plan.name, &configuration, netns)
        .expect("a forwarder")
}

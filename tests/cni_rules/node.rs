//! A node of two daemons in a network namespace of its own, its pods, and
//! what they leave behind.

use std::{
    collections::BTreeMap,
    net::{IpAddr, UdpSocket},
    os::{fd::AsRawFd, unix::fs::symlink, unix::process::CommandExt},
    path::{Path, PathBuf},
    process::{Child, Command},
    thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use tempfile::TempDir;
use weft_api::{
    forwarder::Port,
    ipam::{Allocation, Reply, Request, is_young},
};
use weft_cni::{forwarder::Client, netlink::Netlink, netns::Netns};
use weft_testkit::cni::{Attachment, Runtime, answer, finish};

/// Where Debian keeps its plugins.
pub const DEBIAN: &str = "/usr/lib/cni";

/// A pool of four addresses.
pub const SMALL: &str = "10.77.0.0/30";

const POOLS: [&str; 2] = ["10.77.0.0/24", "fd77::/112"];

const WEFT: &str = env!("CARGO_BIN_EXE_weft");

pub struct Node {
    pub dir: TempDir,
    pub netns: Netns,
    daemons: BTreeMap<&'static str, Child>,
}

impl Node {
    pub fn start() -> Self {
        Self::with_pools(&POOLS)
    }

    /// Whose GC leaves alone what is younger than so many seconds.
    pub fn with_grace(seconds: u32) -> Self {
        Self::with(&POOLS, seconds)
    }

    pub fn with_pools(cidrs: &[&str]) -> Self {
        Self::with(cidrs, 1)
    }

    fn with(cidrs: &[&str], grace: u32) -> Self {
        let netns = Netns::make("node").expect("a namespace");
        netns.run(|| ip("link set lo up")).expect("enter");
        let dir = TempDir::new().expect("a directory");
        let mut node = Self {
            dir,
            netns,
            daemons: BTreeMap::new(),
        };
        let forwarder = "node = 'n1'\n[uplink]\naddresses = ['127.0.0.1']\n";
        std::fs::write(node.at("forwarder.toml"), forwarder).expect("write");
        let ipam = format!("gc_grace_seconds = {grace}\n");
        std::fs::write(node.at("ipam.toml"), ipam).expect("write");
        node.start_ipam();
        node.start_forwarder();
        let mut ipam = node.ipam();
        for cidr in cidrs {
            let name = if cidr.contains(':') { "pods6" } else { "pods" };
            let mut pool = json!({"op": "pool-create", "name": name, "cidr": cidr});
            if *cidr == SMALL {
                pool["block_size"] = 30.into();
            }
            let request = serde_json::from_value(pool).expect("a request");
            ipam.request(&request).expect("a pool");
        }
        let plugins = node.at("bin");
        std::fs::create_dir(&plugins).expect("a directory");
        for name in ["weft-cni", "weft-ipam-cni"] {
            symlink(WEFT, plugins.join(name)).expect("a link");
        }
        node
    }

    pub fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn start_ipam(&mut self) {
        let options = [
            ("--socket", "ipam.sock"),
            ("--store", "ipam.redb"),
            ("--config", "ipam.toml"),
        ];
        self.daemon("weft-ipam", "ipam.sock", &options);
    }

    pub fn start_forwarder(&mut self) {
        let options = [
            ("--control", "forwarder.sock"),
            ("--config", "forwarder.toml"),
        ];
        self.daemon("weft-forwarder", "forwarder.sock", &options);
    }

    fn daemon(&mut self, name: &'static str, socket: &str, options: &[(&str, &str)]) {
        let mut command = Command::new(WEFT);
        command.arg0(name);
        for (option, file) in options {
            command.arg(option).arg(self.at(file));
        }
        let child = self.netns.run(|| command.spawn()).expect("enter");
        self.daemons.insert(name, child.expect("a daemon"));
        let until = Instant::now() + Duration::from_secs(20);
        while !self.at(socket).exists() {
            assert!(Instant::now() < until, "{name} listens");
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// Ends the daemon as a crash would: its socket's file stays.
    pub fn kill_daemon(&mut self, name: &str) {
        let mut daemon = self.daemons.remove(name).expect("it was started");
        daemon.kill().expect("it runs");
        daemon.wait().expect("it has ended");
    }

    pub fn ipam(&self) -> weft_socket::ipam::Client {
        weft_socket::ipam::Client::connect(&self.at("ipam.sock")).expect("connect")
    }

    /// Runs plugins in the node's namespace, ours first.
    pub fn runtime(&self) -> Runtime {
        Runtime::new([self.at("bin"), DEBIAN.into()])
    }

    pub fn run<T: Send>(&self, visit: impl FnOnce() -> T + Send) -> T {
        self.netns.run(visit).expect("enter the node")
    }

    /// Our plugin's entry in a list of plugins.
    pub fn plugin(&self) -> Value {
        json!({
            "type": "weft-cni",
            "forwarder": self.at("forwarder.sock"),
            "ipam": {"socket": self.at("ipam.sock"), "families": ["v4", "v6"]},
        })
    }

    /// A list of our plugin alone.
    pub fn list(&self) -> Value {
        list("1.1.0", &[self.plugin()])
    }

    /// One call of our plugin, its configuration changed in these fields.
    pub fn call(&self, verb: &str, pod: &Pod, change: &Value) -> Result<Value, Value> {
        let mut config = self.plugin();
        config["cniVersion"] = "1.1.0".into();
        config["name"] = "pods".into();
        for (key, value) in change.as_object().expect("an object") {
            config[key] = value.clone();
        }
        let (plugin, pod) = (self.at("bin/weft-cni"), pod.attachment());
        self.run(|| {
            let child = self.runtime().start(&plugin, verb, Some(&pod));
            answer(&finish(child, config.to_string().as_bytes()))
        })
    }

    pub fn add(&self, pod: &Pod) -> Value {
        let added = self.call("ADD", pod, &json!({}));
        added.unwrap_or_else(|failure| panic!("ADD {}: {failure}", pod.container))
    }

    pub fn ports(&self) -> Vec<Port> {
        let mut client = Client::connect(&self.at("forwarder.sock")).expect("connect");
        client.ports().expect("a list")
    }

    pub fn allocations(&self) -> Vec<Allocation> {
        let request = Request::Allocations {
            node: None,
            borrowed: false,
        };
        match self.ipam().request(&request) {
            Ok(Reply::Allocations(all)) => {
                all.into_iter().filter(|one| one.handle.is_some()).collect()
            }
            other => panic!("{other:?}"),
        }
    }

    /// Until GC may free what is allocated.
    pub fn wait_until_old(&self) {
        let until = Instant::now() + Duration::from_secs(60);
        loop {
            let Ok(Reply::Status(status)) = self.ipam().request(&Request::Status) else {
                panic!("no status");
            };
            let young = |one: &Allocation| is_young(one.mark, status.mark);
            if !self.allocations().iter().any(young) {
                return;
            }
            assert!(Instant::now() < until, "the mark is raised");
            thread::sleep(Duration::from_millis(100));
        }
    }

    /// Has weft0 made or taken away: what pods publish takes it.
    pub fn host(&self, verb: &str) {
        let mut command = Command::new(WEFT);
        command.args(["host", verb, "--control"]);
        command.arg(self.at("forwarder.sock"));
        if verb == "up" {
            command.args(POOLS.map(|pool| format!("--pool={pool}")));
        }
        let output = self.run(|| command.output()).expect("run weft");
        assert!(output.status.success(), "{output:?}");
    }

    /// The links of the node, without loopback.
    pub fn links(&self) -> Vec<String> {
        self.run(links)
    }

    /// Nothing of any pod is left on the node.
    pub fn assert_clean(&self, when: &str) {
        assert_eq!(self.ports(), [], "ports, {when}");
        assert_eq!(self.allocations(), [], "addresses, {when}");
        assert_eq!(self.links(), [""; 0], "links, {when}");
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        for daemon in self.daemons.values_mut() {
            // It may have ended by itself; the wait tells nothing more.
            let _ = daemon.kill();
            let _ = daemon.wait();
        }
    }
}

pub fn list(version: &str, plugins: &[Value]) -> Value {
    json!({"cniVersion": version, "name": "pods", "plugins": plugins})
}

pub struct Pod {
    pub container: String,
    pub netns: Netns,
    /// What Kubernetes says of it (CNI_ARGS).
    args: String,
}

impl Pod {
    pub fn new(container: &str) -> Self {
        Self {
            container: container.to_owned(),
            netns: Netns::make(container).expect("a namespace"),
            args: String::new(),
        }
    }

    /// A pod that Kubernetes calls by that name.
    pub fn named(name: &str, container: &str) -> Self {
        Self {
            args: format!("K8S_POD_NAMESPACE=db;K8S_POD_NAME={name}"),
            ..Self::new(container)
        }
    }

    pub fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.netns.as_raw_fd())
    }

    pub fn attachment(&self) -> Attachment {
        Attachment {
            container: self.container.clone(),
            netns: self.path(),
            interface: "eth0".to_owned(),
            args: self.args.clone(),
            ..Attachment::default()
        }
    }

    pub fn has(&self, interface: &str) -> bool {
        let netlink = Netlink::open_in(&self.netns)
            .expect("enter")
            .expect("netlink");
        netlink.index(interface).expect("an answer").is_some()
    }

    pub fn ip(&self, arguments: &str) -> String {
        self.netns.run(|| ip(arguments)).expect("enter")
    }
}

fn links() -> Vec<String> {
    let entries = ip("-o link");
    let name = |line: &str| Some(line.split(": ").nth(1)?.split('@').next()?.to_owned());
    entries
        .lines()
        .filter_map(name)
        .filter(|name| name != "lo")
        .collect()
}

/// What iproute2 says, in the caller's namespace.
pub fn ip(arguments: &str) -> String {
    let output = Command::new("ip").args(arguments.split(' ')).output();
    let output = output.expect("iproute2 runs");
    assert!(output.status.success(), "ip {arguments}: {output:?}");
    String::from_utf8(output.stdout).expect("text")
}

pub fn address(result: &Value, place: usize) -> IpAddr {
    let text = result["ips"][place]["address"].as_str();
    let text = text.unwrap_or_else(|| panic!("no address {place} in {result}"));
    let address = text.split('/').next().and_then(|text| text.parse().ok());
    address.expect("an address")
}

/// A datagram from one pod arrives at the other.
pub fn reaches(from: &Pod, to: &Pod, at: IpAddr) {
    let bind = |pod: &Pod, address: IpAddr| {
        let socket = pod.netns.run(|| UdpSocket::bind((address, 0)));
        socket.expect("enter").expect("bind")
    };
    let receiver = bind(to, at);
    let timeout = receiver.set_read_timeout(Some(Duration::from_millis(200)));
    timeout.expect("a timeout");
    let any = if at.is_ipv4() { "0.0.0.0" } else { "::" };
    let sender = bind(from, any.parse().expect("valid"));
    let target = receiver.local_addr().expect("bound");
    // The first ones may come before a neighbour is known.
    for _ in 0..50 {
        sender.send_to(b"hello", target).expect("sent");
        if receiver.recv(&mut [0; 16]).is_ok() {
            return;
        }
    }
    panic!("{} does not reach {at}", from.container);
}

/// A plugin that is a shell script.
pub fn script(path: &Path, text: &str) {
    use std::os::unix::fs::PermissionsExt;
    std::fs::write(path, format!("#!/bin/sh\n{text}\n")).expect("write");
    let mode = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(path, mode).expect("its mode");
}

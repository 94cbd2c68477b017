//! The CNI plugin as a runtime calls it, with a real forwarder, a real IPAM
//! server and real namespaces.

use std::{
    io::Write,
    net::{IpAddr, UdpSocket},
    os::{fd::AsRawFd, unix::process::CommandExt},
    path::PathBuf,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use tempfile::TempDir;
use weft_api::ipam::{Allocation, Reply, Request, is_young};
use weft_cni::{forwarder::Client, netlink::Netlink, netns::Netns};

/// A node of two daemons.
struct Node {
    dir: TempDir,
    daemons: Vec<Child>,
}

impl Node {
    fn start(port: u16) -> Self {
        Self::start_with(port, "")
    }

    fn start_with(port: u16, ipam: &str) -> Self {
        let dir = TempDir::new().expect("a directory");
        let at = |name: &str| dir.path().join(name);
        std::fs::write(at("ipam.toml"), ipam).expect("write");
        let forwarder =
            format!("node = 'n1'\n[uplink]\naddresses = ['127.0.0.1']\nport = {port}\n");
        std::fs::write(at("forwarder.toml"), forwarder).expect("write");
        let start = |name: &str, options: [(&str, PathBuf); 3]| {
            let mut command = Command::new(env!("CARGO_BIN_EXE_weft"));
            command.arg0(name);
            for (option, value) in options.iter().filter(|(option, _)| !option.is_empty()) {
                command.arg(option).arg(value);
            }
            command.spawn().expect("a daemon")
        };
        let daemons = vec![
            start(
                "weft-ipam",
                [
                    ("--socket", at("ipam.sock")),
                    ("--store", at("ipam.redb")),
                    ("--config", at("ipam.toml")),
                ],
            ),
            start(
                "weft-forwarder",
                [
                    ("--control", at("forwarder.sock")),
                    ("--config", at("forwarder.toml")),
                    ("", PathBuf::new()),
                ],
            ),
        ];
        let until = Instant::now() + Duration::from_secs(20);
        while !(at("ipam.sock").exists() && at("forwarder.sock").exists()) {
            assert!(Instant::now() < until, "the daemons listen");
            thread::sleep(Duration::from_millis(20));
        }
        let mut ipam = weft_socket::ipam::Client::connect(&at("ipam.sock")).expect("connect");
        for (name, cidr) in [("pods", "10.77.0.0/24"), ("pods6", "fd77::/112")] {
            let pool = json!({"op": "pool-create", "name": name, "cidr": cidr});
            let request = serde_json::from_value(pool).expect("a request");
            ipam.request(&request).expect("a pool");
        }
        Self { dir, daemons }
    }

    fn config(&self) -> Value {
        json!({
            "cniVersion": "1.1.0", "name": "pods", "type": "weft-cni",
            "forwarder": self.dir.path().join("forwarder.sock"),
            "ipam": {"type": "weft", "socket": self.dir.path().join("ipam.sock"),
                     "families": ["v4", "v6"]},
        })
    }

    fn call(&self, verb: &str, pod: &Pod, change: &Value) -> Result<Value, Value> {
        let mut config = self.config();
        for (key, value) in change.as_object().expect("an object") {
            config[key] = value.clone();
        }
        let mut child = Command::new(env!("CARGO_BIN_EXE_weft"))
            .arg0("weft-cni")
            .env("CNI_COMMAND", verb)
            .env("CNI_CONTAINERID", &pod.container)
            .env("CNI_NETNS", pod.path())
            .env("CNI_IFNAME", "eth0")
            .env("CNI_PATH", "/nonexistent")
            .env(
                "CNI_ARGS",
                format!("K8S_POD_NAMESPACE=db;K8S_POD_NAME={}", pod.name),
            )
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the plugin");
        let mut stdin = child.stdin.take().expect("piped");
        stdin
            .write_all(config.to_string().as_bytes())
            .expect("write");
        drop(stdin);
        let output = child.wait_with_output().expect("it ends");
        let json = match &*output.stdout {
            [] => Value::Null,
            stdout => serde_json::from_slice(stdout).expect("one JSON value on stdout"),
        };
        if output.status.success() {
            Ok(json)
        } else {
            Err(json)
        }
    }

    fn add(&self, pod: &Pod) -> Value {
        let added = self.call("ADD", pod, &json!({}));
        added.unwrap_or_else(|failure| panic!("ADD {}: {failure}", pod.container))
    }

    fn ports(&self) -> usize {
        let mut client = Client::connect(&self.dir.path().join("forwarder.sock")).expect("connect");
        match client.request(&weft_api::forwarder::Request::List) {
            Ok(weft_api::forwarder::Reply::Ports(ports)) => ports.len(),
            other => panic!("{other:?}"),
        }
    }

    fn ipam(&self, request: &Request) -> Reply {
        let path = self.dir.path().join("ipam.sock");
        let mut client = weft_socket::ipam::Client::connect(&path).expect("connect");
        client.request(request).expect("an answer")
    }

    fn allocations(&self) -> Vec<Allocation> {
        let request = Request::Allocations {
            node: None,
            borrowed: false,
        };
        match self.ipam(&request) {
            Reply::Allocations(all) => all,
            other => panic!("{other:?}"),
        }
    }

    fn addresses(&self) -> usize {
        let all = self.allocations();
        all.iter().filter(|one| one.handle.is_some()).count()
    }

    /// Until `gc` may free what is allocated.
    fn wait_until_old(&self) {
        let until = Instant::now() + Duration::from_secs(60);
        loop {
            let Reply::Status(status) = self.ipam(&Request::Status) else {
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
}

impl Drop for Node {
    fn drop(&mut self) {
        for daemon in &mut self.daemons {
            // It may have ended by itself; the wait tells nothing more.
            let _ = daemon.kill();
            let _ = daemon.wait();
        }
    }
}

struct Pod {
    name: String,
    container: String,
    netns: Netns,
}

impl Pod {
    fn new(container: &str) -> Self {
        Self::named(container, container)
    }

    fn named(name: &str, container: &str) -> Self {
        Self {
            name: name.to_owned(),
            container: container.to_owned(),
            netns: Netns::make(container).expect("a namespace"),
        }
    }

    fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.netns.as_raw_fd())
    }

    fn has_eth0(&self) -> bool {
        let netlink = Netlink::open_in(&self.netns)
            .expect("enter")
            .expect("netlink");
        netlink.index("eth0").expect("an answer").is_some()
    }
}

fn address(result: &Value, index: usize) -> IpAddr {
    let text = result["ips"][index]["address"]
        .as_str()
        .expect("an address");
    text.split('/')
        .next()
        .expect("an address")
        .parse()
        .expect("an address")
}

/// A datagram from one pod arrives at the other.
fn reaches(from: &Pod, to: &Pod, at: IpAddr) {
    let receiver = to
        .netns
        .run(|| UdpSocket::bind((at, 0)))
        .expect("enter")
        .expect("bind");
    receiver
        .set_read_timeout(Some(Duration::from_secs(5)))
        .expect("a timeout");
    let target = receiver.local_addr().expect("bound");
    let any: IpAddr = if at.is_ipv4() { "0.0.0.0" } else { "::" }
        .parse()
        .expect("valid");
    let sender = from
        .netns
        .run(|| UdpSocket::bind((any, 0)))
        .expect("enter")
        .expect("bind");
    sender.send_to(b"hello", target).expect("sent");
    let mut buffer = [0; 16];
    assert_eq!(receiver.recv(&mut buffer).expect("it arrives"), 5);
}

#[test]
fn two_pods_are_added_reach_each_other_and_are_deleted_twice() {
    weft_testkit::needs_namespaces!();
    let node = Node::start(48_311);
    let (one, two) = (Pod::new("c1"), Pod::new("c2"));
    let (first, second) = (node.add(&one), node.add(&two));
    for index in 0..2 {
        reaches(&one, &two, address(&second, index));
        reaches(&two, &one, address(&first, index));
    }
    node.call("CHECK", &one, &json!({"prevResult": first}))
        .expect("nothing differs");
    let no_previous = node
        .call("CHECK", &one, &json!({}))
        .expect_err("no prevResult");
    assert_eq!(no_previous["code"], 7);
    for _ in 0..2 {
        assert_eq!(node.call("DEL", &one, &json!({})), Ok(Value::Null));
    }
    assert!(!one.has_eth0());
    let failure = node
        .call("CHECK", &one, &json!({"prevResult": first}))
        .expect_err("gone");
    assert_eq!(failure["code"], 101, "{failure}");
    assert_eq!((node.ports(), node.addresses()), (1, 2));
}

#[test]
fn a_second_add_is_refused_and_leaves_the_first_as_it_was() {
    weft_testkit::needs_namespaces!();
    let node = Node::start(48_312);
    let (one, two) = (Pod::new("c1"), Pod::new("c2"));
    let (first, second) = (node.add(&one), node.add(&two));
    let twice = node
        .call("ADD", &one, &json!({}))
        .expect_err("eth0 is there");
    assert_eq!(twice["code"], 100, "{twice}");
    let elsewhere = Pod::new("c1");
    let twice = node
        .call("ADD", &elsewhere, &json!({}))
        .expect_err("c1 is attached");
    assert_eq!(twice["code"], 100, "{twice}");
    assert!(!elsewhere.has_eth0());
    reaches(&one, &two, address(&second, 0));
    node.call("CHECK", &one, &json!({"prevResult": first}))
        .expect("nothing differs");
}

#[test]
fn gc_frees_what_is_not_listed() {
    weft_testkit::needs_namespaces!();
    let node = Node::start_with(48_313, "gc_grace_seconds = 1\n");
    let (kept, stale) = (Pod::new("kept"), Pod::new("stale"));
    let result = node.add(&kept);
    node.add(&stale);
    assert_eq!((node.ports(), node.addresses()), (2, 4));
    let unlisted = node.call("GC", &kept, &json!({})).expect_err("no list");
    assert_eq!(unlisted["code"], 7, "{unlisted}");
    let list = json!({"cni.dev/valid-attachments": [{"containerID": "kept", "ifname": "eth0"}]});
    node.wait_until_old();
    assert_eq!(node.call("GC", &kept, &list), Ok(Value::Null));
    assert_eq!((node.ports(), node.addresses()), (1, 2));
    node.call("CHECK", &kept, &json!({"prevResult": result}))
        .expect("nothing differs");
}

#[test]
fn gc_leaves_what_its_list_is_too_old_to_know() {
    weft_testkit::needs_namespaces!();
    let node = Node::start(48_317);
    let young = Pod::new("young");
    let result = node.add(&young);
    let list = json!({"cni.dev/valid-attachments": []});
    assert_eq!(node.call("GC", &young, &list), Ok(Value::Null));
    assert_eq!((node.ports(), node.addresses()), (1, 2));
    node.call("CHECK", &young, &json!({"prevResult": result}))
        .expect("nothing differs");
}

#[test]
fn a_sticky_pod_has_its_address_again() {
    weft_testkit::needs_namespaces!();
    let node = Node::start(48_318);
    let mut ipam = node.config()["ipam"].clone();
    ipam["sticky"] = true.into();
    let sticky = json!({ "ipam": ipam });
    let first = Pod::named("pg-0", "c1");
    let had = node.call("ADD", &first, &sticky).expect("added");
    node.call("DEL", &first, &sticky).expect("deleted");
    let other = node.add(&Pod::named("web", "c2"));
    let again = Pod::named("pg-0", "c3");
    let again = node.call("ADD", &again, &sticky).expect("added");
    for index in 0..2 {
        assert_eq!(address(&again, index), address(&had, index));
        assert_ne!(address(&other, index), address(&had, index));
    }
}

#[test]
fn what_fails_half_way_leaves_nothing() {
    weft_testkit::needs_namespaces!();
    let node = Node::start(48_314);
    let pod = Pod::new("c1");
    // IPv6 needs a larger MTU, which shows once the addresses are known.
    let failure = node
        .call("ADD", &pod, &json!({"mtu": 600}))
        .expect_err("too small");
    assert_eq!(failure["code"], 7, "{failure}");
    let taken = node.add(&Pod::new("c2"));
    let asked = json!({"runtimeConfig": {"ips": [address(&taken, 0)]}});
    node.call("ADD", &pod, &asked)
        .expect_err("the address is taken");
    assert!(!pod.has_eth0());
    assert_eq!((node.ports(), node.addresses()), (1, 2));
    node.call("STATUS", &pod, &json!({})).expect("it serves");
    let nowhere = json!({"ipam": {"socket": "/nonexistent/ipam.sock"}});
    let failure = node
        .call("STATUS", &pod, &nowhere)
        .expect_err("no addresses");
    assert_eq!(failure["code"], 50, "{failure}");
    let nowhere = json!({"forwarder": "/nonexistent/forwarder.sock"});
    let failure = node
        .call("STATUS", &pod, &nowhere)
        .expect_err("no forwarder");
    assert_eq!(failure["code"], 51, "{failure}");
    assert_eq!(node.call("DEL", &pod, &nowhere), Ok(Value::Null));
}

#[test]
fn a_link_of_somebody_else_is_neither_taken_nor_deleted() {
    weft_testkit::needs_namespaces!();
    let node = Node::start(48_315);
    let pod = Pod::new("c1");
    let made = pod.netns.run(|| {
        Command::new("ip")
            .args(["link", "add", "eth0", "type", "bridge"])
            .status()
    });
    assert!(made.expect("enter").expect("iproute2").success());
    let refused = node
        .call("ADD", &pod, &json!({}))
        .expect_err("eth0 is there");
    assert_eq!(refused["code"], 100, "{refused}");
    assert_eq!((node.ports(), node.addresses()), (0, 0));
    // As a runtime does after an ADD that failed.
    assert_eq!(node.call("DEL", &pod, &json!({})), Ok(Value::Null));
    assert!(pod.has_eth0());
}

//! The ways out that are compared, each with a node of its own.

use std::{
    fs,
    os::fd::AsRawFd,
    process::{self, Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::ensure;
use tempfile::TempDir;
use weft_api::forwarder::{Nodes, PortState, Request};
use weft_cni::{link::Attach, netns::Netns};
use weft_lab::{
    Forwarder, NodePlan, Pod, PodPlan, Spec,
    workshop::{self, Workshop, run},
};

const MTU: u16 = 1500;
/// Packets: 15 MB.
const QUEUE: usize = 10_000;
pub const OUTSIDE: &str = "192.0.2.254";

/// One way out, from pod to outside.
pub struct Side {
    pub name: &'static str,
    pub pod: Pod,
    pub outside: Pod,
    /// Whose memory the connections take, and what ends with the side.
    pub daemon: Child,
    _node: Netns,
    _weft: Option<(Forwarder, Workshop)>,
    _named: Option<Named>,
}

/// A namespace by a path of its own: pasta looks when it may no longer look at
/// other processes.
struct Named(TempDir);

impl Named {
    fn new(netns: &Netns) -> anyhow::Result<Self> {
        let dir = tempfile::tempdir()?;
        let path = dir.path().join("netns");
        fs::write(&path, "")?;
        let from = format!("/proc/{}/fd/{}", process::id(), netns.as_raw_fd());
        let mounted = Command::new("mount")
            .args(["--bind", &from])
            .arg(&path)
            .status()?;
        ensure!(mounted.success(), "mount {from} at {path:?}");
        Ok(Self(dir))
    }
}

impl Drop for Named {
    fn drop(&mut self) {
        let _ = Command::new("umount")
            .arg(self.0.path().join("netns"))
            .status();
    }
}

/// Weft, and the peers that this machine has.
pub fn each() -> anyhow::Result<Vec<Side>> {
    let mut sides = vec![weft()?];
    for (name, start) in [("slirp4netns", slirp as Start), ("pasta", pasta as Start)] {
        match peer(name, start) {
            Ok(side) => sides.push(side),
            Err(error) => eprintln!("{name} is left out: {error:#}"),
        }
    }
    Ok(sides)
}

impl Drop for Side {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
    }
}

fn plan() -> NodePlan {
    let spec = Spec {
        nodes: 1,
        pods: 1,
        ..Spec::default()
    };
    spec.plan().remove(0)
}

fn weft() -> anyhow::Result<Side> {
    let plan = plan();
    let (node, outside) = ground(&plan)?;
    let workshop = Workshop::open()?;
    let configuration = format!(
        "node = 'n1'\nworkers = 2\nvtep_mac = '{}'\n[uplink]\naddresses = ['{}']\nmtu = 1500\n",
        plan.vtep_mac, plan.underlay[0]
    );
    let forwarder = workshop.forwarder("n1", &configuration, &node)?;
    let mut record = plan.record()?;
    record.underlay.truncate(1);
    let nodes = Nodes {
        node: record,
        peers: Vec::new(),
    };
    forwarder.client()?.request(&Request::Apply(nodes))?;
    let pod = Pod::make(plan.pods[0].clone(), 0)?;
    pod.plug(Attach::Tap { queues: 2 }, MTU, &node, &forwarder)?;
    let start = || {
        Command::new(env!("CARGO_BIN_EXE_weft"))
            .args(["egress", "--pool", "10.244.0.0/16"])
            .env("WEFT_CONTROL", &forwarder.control)
            .env("RUST_LOG", "warn")
            .stdin(Stdio::null())
            .spawn()
    };
    let daemon = node.run(start)??;
    let until = Instant::now() + Duration::from_secs(10);
    while !forwarder
        .client()?
        .ports()?
        .iter()
        .any(|port| port.host.is_some() && port.state == PortState::Up)
    {
        ensure!(Instant::now() < until, "the egress does not attach");
        thread::sleep(Duration::from_millis(10));
    }
    Ok(Side {
        name: "weft",
        pod,
        outside,
        daemon,
        _node: node,
        _weft: Some((forwarder, workshop)),
        _named: None,
    })
}

type Start = fn(&str) -> Command;

fn slirp(pod: &str) -> Command {
    let mut command = Command::new("slirp4netns");
    command.args([
        "--configure",
        "--mtu=1500",
        "--netns-type=path",
        pod,
        "tap0",
    ]);
    command
}

fn pasta(pod: &str) -> Command {
    let mut command = Command::new("pasta");
    command.args([
        "--config-net",
        "--foreground",
        "--quiet",
        "--mtu",
        "1500",
        "--ipv4-only",
        "--ns-ifname",
        "tap0",
    ]);
    command.args([
        "--no-map-gw",
        "--runas",
        "0:0",
        "--no-netns-quit",
        "--netns",
        pod,
    ]);
    command
}

fn peer(name: &'static str, start: Start) -> anyhow::Result<Side> {
    let plan = plan();
    let (node, outside) = ground(&plan)?;
    let pod = Pod::make(plan.pods[0].clone(), 0)?;
    run(&pod.netns, "ip link set lo up")?;
    let named = Named::new(&pod.netns)?;
    let mut command = start(&named.0.path().join("netns").to_string_lossy());
    command.stdin(Stdio::null()).stdout(Stdio::null());
    let daemon = node.run(move || command.spawn())??;
    let side = Side {
        name,
        pod,
        outside,
        daemon,
        _node: node,
        _weft: None,
        _named: Some(named),
    };
    let until = Instant::now() + Duration::from_secs(10);
    while !run(&side.pod.netns, "ip -4 route show default")?.contains("dev tap0") {
        ensure!(Instant::now() < until, "it gives the pod no way out");
        thread::sleep(Duration::from_millis(20));
    }
    // A tap's ring holds less than a window of the pod's, and what it drops has
    // pasta's sender wait for its timer, again and again: pasta keeps nothing
    // that comes after a gap.
    run(
        &side.pod.netns,
        &format!("ip link set tap0 txqueuelen {QUEUE}"),
    )?;
    Ok(side)
}

/// A node, and outside behind a wire.
fn ground(plan: &NodePlan) -> anyhow::Result<(Netns, Pod)> {
    let node = workshop::node("node")?;
    let netns = Netns::make("outside")?;
    let path = format!("/proc/{}/fd/{}", process::id(), netns.as_raw_fd());
    run(
        &node,
        &format!("ip link add eth0 type veth peer name eth0 netns {path}"),
    )?;
    let near = plan.underlay_nets()[0].to_string();
    for (place, net) in [(&node, near), (&netns, format!("{OUTSIDE}/24"))] {
        run(place, "ip link set lo up")?;
        run(place, "ip link set eth0 up")?;
        run(place, &format!("ip address add {net} dev eth0"))?;
    }
    run(&node, &format!("ip route add default via {OUTSIDE}"))?;
    let outside = PodPlan {
        name: "outside".to_owned(),
        v4: OUTSIDE.parse()?,
        ..plan.pods[0].clone()
    };
    let outside = Pod {
        plan: outside,
        node: 0,
        netns,
    };
    Ok((node, outside))
}

//! A route of a full forwarder moves from one peer to another, again and
//! again: how long until packets follow it, and what becomes of another flow.
//!
//! Two nodes on one wire. The second has, beside its forwarder, two sockets
//! that play the peers between which the route moves. Another peer of the
//! first node's, or many, hold the other routes and are nowhere.

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, Write},
    net::{Ipv4Addr, UdpSocket},
    os::{
        fd::AsRawFd,
        unix::net::{UnixListener, UnixStream},
    },
    process,
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};
use ipnet::{IpNet, Ipv4Net};
use serde_json::{Value, json};
use weft_api::{
    forwarder::{DEFAULT_PORT, Node, Nodes, Request},
    ipam,
    names::{Mac, Name, Vni},
};
use weft_cni::{forwarder::Client, link::Attach, netns::Netns};
use weft_lab::{
    Forwarder, NodePlan, Pod, Spec,
    numbered::{Numbered, Tally},
    probe::Family,
    workshop::{self, Workshop, run},
};

use crate::{Arguments, percentile, resident};

/// Routes of each of the peers that are nowhere.
const ROUTES_EACH: u32 = 10;
/// The peers between which the route moves.
const ENDS: [Ipv4Addr; 2] = [Ipv4Addr::new(192, 0, 2, 101), Ipv4Addr::new(192, 0, 2, 102)];
/// The route that moves, and whom the pod speaks to in it.
const MOVING: &str = "10.63.0.0/24";
const THERE: &str = "10.63.0.1:9";
/// Between two packets by the route: the times are as fine as that.
const PROBE: Duration = Duration::from_micros(200);
/// Between two datagrams of the other flow.
const PAUSE: Duration = Duration::from_micros(200);
/// Between two changes.
const REST: Duration = Duration::from_millis(20);
/// For a packet to take the new way.
const PATIENCE: Duration = Duration::from_secs(10);

pub fn measure(arguments: &Arguments) -> anyhow::Result<()> {
    println!("| a route changes | p50 | p99 | most | unit | lost of the other flow | forwarder |");
    println!("|---|--:|--:|--:|---|--:|--:|");
    for by in [By::Apply, By::Watch] {
        let bench = Bench::open(arguments.routes, by)?;
        let (mut times, tally, memory) = bench.run(arguments.changes)?;
        println!(
            "| by {}, {} routes, {} changes | {:.1} | {:.1} | {:.1} | ms | {} of {} | {:.1} MiB |",
            by.name(),
            arguments.routes,
            times.len(),
            percentile(&mut times, 50),
            percentile(&mut times, 99),
            percentile(&mut times, 100),
            tally.lost,
            tally.sent,
            memory
        );
    }
    Ok(())
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum By {
    Apply,
    Watch,
}

impl By {
    fn name(self) -> &'static str {
        match self {
            Self::Apply => "apply",
            Self::Watch => "watch",
        }
    }
}

// Fields are dropped in order: processes before the namespaces they are in.
struct Bench {
    /// Of both nodes.
    forwarders: [Forwarder; 2],
    pods: [Pod; 2],
    ends: [UdpSocket; 2],
    told: Told,
    _nodes: [Netns; 2],
    _workshop: Workshop,
    _folder: tempfile::TempDir,
}

impl Bench {
    fn open(routes: u32, by: By) -> anyhow::Result<Self> {
        let spec = Spec::default();
        let plan = spec.plan();
        let folder = tempfile::tempdir()?;
        let socket = folder.path().join("ipam.sock");
        let nodes = [workshop::node("n1")?, workshop::node("n2")?];
        lay(&nodes)?;
        let workshop = Workshop::open()?;
        let ipam = UnixListener::bind(&socket)?;
        let follow = match by {
            By::Apply => String::new(),
            By::Watch => format!("[ipam]\nsocket = '{}'\n", socket.display()),
        };
        let one = workshop.forwarder("n1", &configuration(&plan[0], &follow), &nodes[0])?;
        let two = workshop.forwarder("n2", &configuration(&plan[1], ""), &nodes[1])?;
        let cluster = Cluster::of(&plan, routes)?;
        two.client()?.request(&Request::Apply(Nodes {
            node: record(&plan[1])?,
            peers: vec![record(&plan[0])?],
        }))?;
        let mut told = match by {
            By::Apply => Told::Apply(Box::new(one.client()?), cluster),
            By::Watch => Told::Watch(watcher(&ipam)?, 0, cluster),
        };
        told.everything()?;
        let pods = [
            Pod::make(plan[0].pods[0].clone(), 0)?,
            Pod::make(plan[1].pods[0].clone(), 1)?,
        ];
        let attach = Attach::Tap { queues: 1 };
        pods[0].plug(attach, spec.pod_mtu(), &nodes[0], &one)?;
        pods[1].plug(attach, spec.pod_mtu(), &nodes[1], &two)?;
        let bind = |end: Ipv4Addr| nodes[1].run(|| UdpSocket::bind((end, DEFAULT_PORT)));
        let ends = [bind(ENDS[0])??, bind(ENDS[1])??];
        Ok(Self {
            forwarders: [one, two],
            pods,
            ends,
            told,
            _nodes: nodes,
            _workshop: workshop,
            _folder: folder,
        })
    }
}

impl Bench {
    /// How long each change took, and what became of the other flow.
    fn run(mut self, changes: usize) -> anyhow::Result<(Vec<Duration>, Tally, f64)> {
        let flow = Numbered::between(&self.pods[0], &self.pods[1], Family::V4)?;
        let probe = self.pods[0]
            .netns
            .run(|| UdpSocket::bind(("0.0.0.0", 0)))??;
        probe.connect(THERE)?;
        let (started, done) = (Instant::now(), AtomicBool::new(false));
        thread::scope(|scope| {
            let flow = scope.spawn(|| flow.run(PAUSE, &done));
            let probing = scope.spawn(|| keep_probing(&probe, started, &done));
            let times: anyhow::Result<Vec<_>> = (0..changes)
                .map(|change| {
                    thread::sleep(REST);
                    move_to(&mut self.told, (change + 1) % 2, &self.ends, started)
                })
                .collect();
            done.store(true, Relaxed);
            probing.join().expect("it does not panic")?;
            let tally = flow.join().expect("it does not panic")?;
            Ok((times?, tally, resident(self.forwarders[0].pid())?))
        })
    }
}

/// Each packet says when it was sent, in nanoseconds since `started`.
fn keep_probing(probe: &UdpSocket, started: Instant, done: &AtomicBool) -> anyhow::Result<()> {
    while !done.load(Relaxed) {
        let now = u64::try_from(started.elapsed().as_nanos())?;
        probe.send(&now.to_le_bytes())?;
        thread::sleep(PROBE);
    }
    Ok(())
}

/// How long until the first packet came there that was sent since.
fn move_to(
    told: &mut Told,
    to: usize,
    ends: &[UdpSocket; 2],
    started: Instant,
) -> anyhow::Result<Duration> {
    /// Of a datagram before the probe's bytes: VXLAN, Ethernet, IPv4, UDP.
    const HEADERS: usize = 8 + 14 + 20 + 8;

    thread::scope(|scope| {
        let start = started.elapsed();
        let change = scope.spawn(|| told.moved(to));
        let mut datagram = [0; 256];
        ends[to].set_read_timeout(Some(PATIENCE))?;
        let time = loop {
            let len = ends[to].recv(&mut datagram).context("no packet came")?;
            ensure!(len == HEADERS + 8, "a datagram of {len} bytes came");
            let sent = u64::from_le_bytes(datagram[HEADERS..HEADERS + 8].try_into()?);
            if Duration::from_nanos(sent) >= start {
                break started.elapsed() - start;
            }
        };
        change.join().expect("it does not panic")?;
        Ok(time)
    })
}

/// How the first node's forwarder is told what nodes there are.
enum Told {
    Apply(Box<Client>, Cluster),
    /// With the last revision.
    Watch(UnixStream, u64, Cluster),
}

impl Told {
    fn everything(&mut self) -> anyhow::Result<()> {
        match self {
            Self::Apply(..) => self.moved(0),
            Self::Watch(stream, revision, cluster) => {
                *revision += 1;
                let event = json!({"snapshot": {
                    "revision": *revision,
                    "nodes": cluster.nodes(),
                    "routes": cluster.routes(),
                }});
                Ok(writeln!(stream, "{}", json!({ "event": event }))?)
            }
        }
    }

    /// The route is that end's now.
    fn moved(&mut self, to: usize) -> anyhow::Result<()> {
        match self {
            Self::Apply(client, cluster) => {
                let nodes = cluster.with_route_at(to)?;
                client.request(&Request::Apply(nodes))?;
            }
            Self::Watch(stream, revision, cluster) => {
                *revision += 1;
                let route = route(MOVING, &cluster.ends[to].name);
                let event = json!({"route": {"revision": *revision, "route": route}});
                writeln!(stream, "{}", json!({ "event": event }))?;
            }
        }
        Ok(())
    }
}

/// The forwarder's connection, once it has asked for events.
fn watcher(ipam: &UnixListener) -> anyhow::Result<UnixStream> {
    let (stream, _) = ipam.accept()?;
    let mut line = String::new();
    BufReader::new(&stream).read_line(&mut line)?;
    match serde_json::from_str(&line)? {
        ipam::Request::Watch { .. } => Ok(stream),
        other => bail!("a watch was due: {other:?}"),
    }
}

/// All nodes as the first one is told of them.
struct Cluster {
    own: Node,
    ends: [Node; 2],
    others: Vec<Node>,
}

impl Cluster {
    fn of(plan: &[NodePlan], routes: u32) -> anyhow::Result<Self> {
        let mut others = vec![record(&plan[1])?];
        for number in 0..routes.div_ceil(ROUTES_EACH) {
            let first = number * ROUTES_EACH;
            let blocks = (first..routes.min(first + ROUTES_EACH)).map(block);
            let underlay = Ipv4Addr::from(u32::from(Ipv4Addr::new(198, 18, 0, 1)) + number);
            let node = node(&format!("far-{number}"), underlay, blocks.collect())?;
            others.push(node);
        }
        Ok(Self {
            own: record(&plan[0])?,
            ends: [
                node("end-0", ENDS[0], Vec::new())?,
                node("end-1", ENDS[1], Vec::new())?,
            ],
            others,
        })
    }

    fn all(&self) -> impl Iterator<Item = &Node> {
        let others = self.others.iter().chain(&self.ends);
        std::iter::once(&self.own).chain(others)
    }

    fn with_route_at(&self, end: usize) -> anyhow::Result<Nodes> {
        let mut peers: Vec<Node> = self.all().skip(1).cloned().collect();
        let peer = peers
            .iter_mut()
            .find(|peer| peer.name == self.ends[end].name);
        let peer = peer.context("both ends are peers")?;
        peer.blocks.push(MOVING.parse()?);
        Ok(Nodes {
            node: self.own.clone(),
            peers,
        })
    }

    fn nodes(&self) -> Vec<Value> {
        let entry = |node: &Node| {
            let underlay: Vec<_> = node.underlay.iter().map(|a| IpNet::from(*a)).collect();
            json!({"name": node.name, "underlay": underlay, "vtep_mac": node.vtep_mac,
                "vni": node.vni, "port": node.port, "tunnel": node.tunnel})
        };
        self.all().map(entry).collect()
    }

    /// The one that moves is the first end's.
    fn routes(&self) -> Vec<Value> {
        let of = |node: &'_ Node| {
            let nets = node.blocks.iter().map(ToString::to_string);
            nets.map(|net| route(&net, &node.name)).collect::<Vec<_>>()
        };
        let moving = route(MOVING, &self.ends[0].name);
        self.all().flat_map(of).chain([moving]).collect()
    }
}

/// The wire speaks IPv4 alone.
fn record(plan: &NodePlan) -> anyhow::Result<Node> {
    let mut record = plan.record()?;
    record.underlay.truncate(1);
    Ok(record)
}

fn route(net: &str, node: &Name) -> Value {
    json!({"net": net, "node": node, "encapsulation": "vxlan", "when": "always",
        "nat_outgoing": false})
}

fn node(name: &str, underlay: Ipv4Addr, blocks: Vec<IpNet>) -> anyhow::Result<Node> {
    let [a, b, c, d] = underlay.octets();
    Ok(Node {
        name: Name::new(name)?,
        underlay: vec![underlay.into()],
        vtep_mac: Mac([2, 0, a, b, c, d]),
        vni: Vni::DEFAULT,
        port: DEFAULT_PORT,
        blocks,
        ways: BTreeMap::new(),
        tunnel: Vec::new(),
    })
}

/// Of 64 addresses each, from 10.64.0.0 on.
fn block(number: u32) -> IpNet {
    let first = u32::from(Ipv4Addr::new(10, 64, 0, 0)) + number * 64;
    Ipv4Net::new_assert(first.into(), 26).into()
}

fn configuration(plan: &NodePlan, follow: &str) -> String {
    format!(
        "node = '{}'\nworkers = 1\nvtep_mac = '{}'\n[uplink]\naddresses = ['{}']\n{follow}",
        plan.name, plan.vtep_mac, plan.underlay[0]
    )
}

/// One wire, with the ends' addresses on the second node.
fn lay(nodes: &[Netns; 2]) -> anyhow::Result<()> {
    let second = format!("/proc/{}/fd/{}", process::id(), nodes[1].as_raw_fd());
    run(
        &nodes[0],
        &format!("ip link add eth0 type veth peer name eth0 netns {second}"),
    )?;
    for (node, addresses) in nodes.iter().zip([&[1_u8][..], &[2, 101, 102]]) {
        run(node, "ip link set lo up")?;
        run(node, "ip link set eth0 mtu 1500 up")?;
        for address in addresses {
            run(
                node,
                &format!("ip address add 192.0.2.{address}/24 dev eth0"),
            )?;
        }
    }
    Ok(())
}

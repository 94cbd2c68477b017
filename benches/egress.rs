//! The way out in user space beside its peers, interleaved in one run:
//!
//! ```console
//! $ cargo bench --bench egress -- --rounds 5 --seconds 2
//! ```
//!
//! Each side has a pod with an MTU of 1500 bytes and a node of its own; outside
//! is one host behind a wire. Peers are slirp4netns and pasta (Debian:
//! `slirp4netns`, `passt`). The table is Markdown, ready for `docs/numbers.md`.

use std::{
    fs,
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    os::fd::AsRawFd,
    process::{self, Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};
use clap::Parser;
use tempfile::TempDir;
use weft_api::forwarder::{Nodes, PortState, Request};
use weft_cni::{link::Attach, netns::Netns};
use weft_lab::{
    Forwarder, NodePlan, Pod, PodPlan, Spec,
    probe::Family,
    traffic, use_executable,
    workshop::{self, Workshop, run},
};

const MTU: u16 = 1500;
const OUTSIDE: &str = "192.0.2.254";

#[derive(Debug, Parser)]
struct Arguments {
    /// How often each figure is taken on each side.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// How long one figure takes.
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    /// Idle connections whose memory is told.
    #[arg(long, default_value_t = 1000)]
    idle: usize,
    /// Given by cargo; says nothing.
    #[arg(long, hide = true)]
    bench: bool,
}

/// One way out, from pod to outside.
struct Side {
    name: &'static str,
    pod: Pod,
    outside: Pod,
    /// Whose memory the connections take, and what ends with the side.
    daemon: Child,
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

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    use_executable(env!("CARGO_BIN_EXE_weft"));
    let mut sides = vec![weft()?];
    for (name, start) in [("slirp4netns", slirp as Start), ("pasta", pasta as Start)] {
        match peer(name, start) {
            Ok(side) => sides.push(side),
            Err(error) => eprintln!("{name} is left out: {error:#}"),
        }
    }
    type Measure = fn(&Side, Duration) -> anyhow::Result<f64>;
    let figures: [(&str, Measure); 3] = [
        ("TCP up, Gbit/s", up),
        ("TCP down, Gbit/s", down),
        ("connections per second", connections),
    ];
    let names: Vec<_> = sides.iter().map(|side| side.name).collect();
    println!("| figure | {} |", names.join(" | "));
    println!("|---|{}", "--:|".repeat(sides.len()));
    let time = Duration::from_secs_f64(arguments.seconds);
    for (name, measure) in figures {
        let mut results = vec![Vec::new(); sides.len()];
        for _ in 0..arguments.rounds {
            for (side, results) in sides.iter().zip(&mut results) {
                match measure(side, time) {
                    Ok(figure) => results.push(figure),
                    Err(error) => eprintln!("{name} of {}: {error:#}", side.name),
                }
            }
        }
        let medians: Vec<_> = results
            .iter_mut()
            .map(|all| median(all).map_or("—".to_owned(), |median| format!("{median:.2}")))
            .collect();
        println!("| {name} | {} |", medians.join(" | "));
    }
    let memory: Vec<_> = sides
        .iter()
        .map(|side| match memory(side, arguments.idle) {
            Ok(bytes) => format!("{:.1}", bytes / 1024.0),
            Err(error) => {
                eprintln!("memory of {}: {error:#}", side.name);
                "—".to_owned()
            }
        })
        .collect();
    println!(
        "| memory per idle connection, KiB | {} |",
        memory.join(" | ")
    );
    Ok(())
}

fn median(figures: &mut [f64]) -> Option<f64> {
    figures.sort_by(f64::total_cmp);
    figures.get(figures.len() / 2).copied()
}

fn up(side: &Side, time: Duration) -> anyhow::Result<f64> {
    Ok(traffic::stream(&side.pod, &side.outside, Family::V4, None, time)?.gbit_per_second())
}

/// The same, by a connection that the pod opened.
fn down(side: &Side, time: Duration) -> anyhow::Result<f64> {
    let listener = side
        .outside
        .netns
        .run(|| TcpListener::bind((OUTSIDE, 0)))??;
    let server = listener.local_addr()?;
    let mut asking = side.pod.netns.run(|| TcpStream::connect(server))??;
    let (mut answering, _) = listener.accept()?;
    let sending = thread::spawn(move || -> anyhow::Result<()> {
        let bytes = vec![7; 128 << 10];
        let until = Instant::now() + time;
        while Instant::now() < until {
            answering.write_all(&bytes)?;
        }
        Ok(())
    });
    let mut buffer = vec![0; 256 << 10];
    let mut received = asking.read(&mut buffer)?;
    let started = Instant::now();
    loop {
        match asking.read(&mut buffer)? {
            0 => break,
            bytes => received += bytes,
        }
    }
    let seconds = started.elapsed().as_secs_f64();
    match sending.join() {
        Ok(sent) => sent?,
        Err(_) => bail!("the sender panicked"),
    }
    Ok(received as f64 * 8.0 / seconds / 1e9)
}

/// Connections with a question and an answer, one after another.
fn connections(side: &Side, time: Duration) -> anyhow::Result<f64> {
    let listener = side
        .outside
        .netns
        .run(|| TcpListener::bind((OUTSIDE, 0)))??;
    let server = listener.local_addr()?;
    let answering = thread::spawn(move || {
        // The last one asks nothing.
        while let Ok((mut stream, _)) = listener.accept() {
            let mut question = [0; 4];
            if stream.read_exact(&mut question).is_err() {
                break;
            }
            let _ = stream.write_all(&question);
        }
    });
    let ask = move || -> anyhow::Result<f64> {
        let started = Instant::now();
        let mut count = 0.0;
        while started.elapsed() < time {
            let mut stream = TcpStream::connect(server)?;
            stream.write_all(b"ping")?;
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer)?;
            ensure!(answer == b"ping", "another answer");
            count += 1.0;
        }
        let rate = count / started.elapsed().as_secs_f64();
        drop(TcpStream::connect(server)?);
        Ok(rate)
    };
    let rate = side.pod.netns.run(ask)??;
    answering
        .join()
        .map_err(|_| anyhow::anyhow!("the server panicked"))?;
    Ok(rate)
}

/// Bytes that the daemon grows by for each connection that has said a word.
fn memory(side: &Side, count: usize) -> anyhow::Result<f64> {
    let listener = side
        .outside
        .netns
        .run(|| TcpListener::bind((OUTSIDE, 0)))??;
    let server = listener.local_addr()?;
    let before = resident(side.daemon.id())?;
    let connect = move || -> anyhow::Result<Vec<_>> {
        (0..count)
            .map(|_| {
                let mut asking = TcpStream::connect(server)?;
                let (mut answering, _) = listener.accept()?;
                asking.write_all(b"ping")?;
                answering.read_exact(&mut [0; 4])?;
                Ok((asking, answering))
            })
            .collect()
    };
    let open = side.pod.netns.run(connect)??;
    let after = resident(side.daemon.id())?;
    drop(open);
    Ok(after.saturating_sub(before) as f64 / count as f64)
}

fn resident(pid: u32) -> anyhow::Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.split_whitespace().next());
    Ok(kib.context("no VmRSS")?.parse::<u64>()? << 10)
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

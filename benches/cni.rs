//! The plugin beside its peers, from the start of the process to its end,
//! interleaved in one run, and one node full of pods:
//!
//! ```console
//! $ cargo static
//! $ cargo bench --bench cni -- --rounds 300 --pods 1000 \
//!       --plugin target/x86_64-unknown-linux-musl/dist/weft-cni
//! ```
//!
//! Everything happens in a network namespace of the run's own. The peers are
//! the plugins of containernetworking (Debian: `containernetworking-plugins`
//! in /usr/lib/cni). The tables are Markdown, ready for `docs/numbers.md`.

use std::{
    fs,
    io::Write,
    net::{IpAddr, Ipv4Addr, UdpSocket},
    os::{fd::AsRawFd, unix::process::CommandExt},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};
use clap::Parser;
use nix::sched::{CloneFlags, unshare};
use serde_json::{Value, json};
use tempfile::TempDir;
use weft_cni::netns::Netns;

#[derive(Debug, Parser)]
struct Arguments {
    /// How often each verb is called of each plugin.
    #[arg(long, default_value_t = 200)]
    rounds: usize,
    /// Milliseconds between two calls: the kernel goes on taking a link apart
    /// after the plugin has ended, and keeps the next one waiting.
    #[arg(long, default_value_t = 50)]
    pause: u64,
    /// How many pods then fill one node; 0 leaves this out.
    #[arg(long, default_value_t = 1000)]
    pods: usize,
    /// The plugin's file; else this build's `weft`, which is the plugin too
    /// but takes longer to start.
    #[arg(long, default_value = env!("CARGO_BIN_EXE_weft"))]
    plugin: PathBuf,
    /// Where the peers' plugins are.
    #[arg(long, default_value = "/usr/lib/cni")]
    peers: PathBuf,
    /// Given by cargo; says nothing.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    unshare(CloneFlags::CLONE_NEWNET)
        .context("make a network namespace; run this as root or under unshare -Ur")?;
    let up = Command::new("ip")
        .args(["link", "set", "lo", "up"])
        .status()?;
    ensure!(up.success(), "set lo up");
    let node = Node::start(&arguments.plugin)?;
    let dir = node.dir.path();
    let mut plugins = vec![
        Plugin::weft("weft, tap", dir, "tap"),
        Plugin::weft("weft, veth", dir, "veth"),
    ];
    for name in ["ptp", "bridge"] {
        match arguments.peers.join(name).exists() {
            true => plugins.push(Plugin::peer(name, &arguments.peers, dir)),
            false => eprintln!("{name} is left out: it is not in {:?}", arguments.peers),
        }
    }
    // A namespace that ends holds the kernel's locks: none does before the end.
    let _spent = beside(&plugins, &arguments)?;
    if arguments.pods > 0 {
        full(&node, &plugins[0], arguments.pods)?;
    }
    Ok(())
}

/// Every plugin's ADD and DEL in turn.
fn beside(plugins: &[Plugin], arguments: &Arguments) -> anyhow::Result<Vec<Netns>> {
    /// Before the figures count: pages of programs, the store's first block.
    const WARM_UP: usize = 10;

    let mut spent = Vec::new();
    let mut times = vec![(Vec::new(), Vec::new()); plugins.len()];
    let pause = Duration::from_millis(arguments.pause);
    for round in 0..WARM_UP + arguments.rounds {
        for (plugin, (adds, dels)) in plugins.iter().zip(&mut times) {
            let netns = Netns::make("pod")?;
            let container = format!("beside-{round}");
            thread::sleep(pause);
            let (_, add) = plugin.call("ADD", &container, &netns)?;
            thread::sleep(pause);
            let (_, del) = plugin.call("DEL", &container, &netns)?;
            spent.push(netns);
            if round >= WARM_UP {
                adds.push(add);
                dels.push(del);
            }
        }
    }
    println!("| plugin | ADD p50 | ADD p99 | DEL p50 | DEL p99 | unit |");
    println!("|---|--:|--:|--:|--:|---|");
    for (plugin, (adds, dels)) in plugins.iter().zip(&mut times) {
        println!(
            "| {} | {:.2} | {:.2} | {:.2} | {:.2} | ms |",
            plugin.name,
            percentile(adds, 50),
            percentile(adds, 99),
            percentile(dels, 50),
            percentile(dels, 99),
        );
    }
    Ok(spent)
}

/// `count` pods at once on one node; each hears of another.
fn full(node: &Node, plugin: &Plugin, count: usize) -> anyhow::Result<()> {
    let before = node.forwarder_memory()?;
    let started = Instant::now();
    let mut adds = Vec::new();
    let mut pods = Vec::new();
    for index in 0..count {
        let netns = Netns::make("pod")?;
        let (result, time) = plugin.call("ADD", &format!("full-{index}"), &netns)?;
        adds.push(time);
        pods.push((netns, address(&result)?));
    }
    let attached = started.elapsed();
    let memory = node.forwarder_memory()?;
    let reached = (0..count)
        .filter(|&index| reaches(&pods[index].0, &pods[(index + 1) % count]))
        .count();
    let started = Instant::now();
    let mut dels = Vec::new();
    for (index, (netns, _)) in pods.iter().enumerate() {
        dels.push(plugin.call("DEL", &format!("full-{index}"), netns)?.1);
    }
    println!("\n| one node, {count} pods | |");
    println!("|---|--:|");
    println!("| attached in | {:.1} s |", attached.as_secs_f64());
    println!("| ADD p50 / p99 | {} ms |", pair(&mut adds));
    println!("| reached from another pod | {reached} |");
    println!("| forwarder's memory before / full | {before} / {memory} MiB |");
    println!("| detached in | {:.1} s |", started.elapsed().as_secs_f64());
    println!("| DEL p50 / p99 | {} ms |", pair(&mut dels));
    ensure!(reached == count, "{} pods are not reached", count - reached);
    Ok(())
}

fn reaches(from: &Netns, (to, at): &(Netns, IpAddr)) -> bool {
    let arrives = || -> anyhow::Result<bool> {
        let receiver = to.run(|| UdpSocket::bind((*at, 0)))??;
        receiver.set_read_timeout(Some(Duration::from_secs(2)))?;
        let sender = from.run(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)))??;
        sender.send_to(b"hello", receiver.local_addr()?)?;
        Ok(receiver.recv(&mut [0; 16])? == 5)
    };
    arrives().unwrap_or(false)
}

fn address(result: &Value) -> anyhow::Result<IpAddr> {
    let text = result["ips"][0]["address"].as_str().context("an address")?;
    Ok(text.split('/').next().unwrap_or(text).parse()?)
}

fn percentile(times: &mut [Duration], percent: usize) -> f64 {
    times.sort_unstable();
    let index = (times.len() * percent / 100).min(times.len().saturating_sub(1));
    times
        .get(index)
        .map_or(f64::NAN, |time| time.as_secs_f64() * 1e3)
}

fn pair(times: &mut [Duration]) -> String {
    let p50 = percentile(times, 50);
    format!("{p50:.2} / {:.2}", percentile(times, 99))
}

/// A plugin and the configuration it is called with.
struct Plugin {
    name: String,
    program: PathBuf,
    path: PathBuf,
    config: Value,
}

impl Plugin {
    fn weft(name: &str, dir: &Path, attach: &str) -> Self {
        Self {
            name: name.to_owned(),
            program: dir.join("weft-cni"),
            path: dir.to_owned(),
            config: json!({
                "cniVersion": "1.0.0", "name": "pods", "type": "weft-cni", "attach": attach,
                "forwarder": dir.join("forwarder.sock"),
                "ipam": {"type": "weft", "socket": dir.join("ipam.sock")},
            }),
        }
    }

    fn peer(name: &str, at: &Path, dir: &Path) -> Self {
        Self {
            name: format!("{name} + host-local"),
            program: at.join(name),
            path: at.to_owned(),
            config: json!({
                "cniVersion": "1.0.0", "name": name, "type": name, "isGateway": true,
                "bridge": "cni0",
                "ipam": {
                    "type": "host-local", "dataDir": dir.join(name),
                    "subnet": if name == "ptp" { "10.88.0.0/16" } else { "10.89.0.0/16" },
                    "routes": [{"dst": "0.0.0.0/0"}],
                },
            }),
        }
    }

    fn call(
        &self,
        verb: &str,
        container: &str,
        netns: &Netns,
    ) -> anyhow::Result<(Value, Duration)> {
        let path = format!("/proc/{}/fd/{}", std::process::id(), netns.as_raw_fd());
        let mut command = Command::new(&self.program);
        command
            .env("CNI_COMMAND", verb)
            .env("CNI_CONTAINERID", container)
            .env("CNI_NETNS", path)
            .env("CNI_IFNAME", "eth0")
            .env("CNI_PATH", &self.path)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let started = Instant::now();
        let mut child = command
            .spawn()
            .with_context(|| format!("start {:?}", self.program))?;
        let mut stdin = child.stdin.take().context("it is piped")?;
        stdin.write_all(self.config.to_string().as_bytes())?;
        drop(stdin);
        let output = child.wait_with_output()?;
        let time = started.elapsed();
        let said = String::from_utf8_lossy(&output.stdout);
        if !output.status.success() {
            bail!("{verb} of {}: {said}", self.name);
        }
        Ok((serde_json::from_str(&said).unwrap_or(Value::Null), time))
    }
}

/// A forwarder and an IPAM server.
struct Node {
    dir: TempDir,
    daemons: [Child; 2],
}

impl Node {
    fn start(plugin: &Path) -> anyhow::Result<Self> {
        let dir = TempDir::new()?;
        let at = |name: &str| dir.path().join(name);
        let weft = env!("CARGO_BIN_EXE_weft");
        let plugin = fs::canonicalize(plugin).with_context(|| format!("find {plugin:?}"))?;
        std::os::unix::fs::symlink(plugin, at("weft-cni"))?;
        fs::write(
            at("forwarder.toml"),
            "node = 'n1'\n[uplink]\naddresses = ['127.0.0.1']\n",
        )?;
        let start = |name: &str, options: [(&str, PathBuf); 2]| {
            let mut command = Command::new(weft);
            command.arg0(name).stderr(Stdio::null());
            for (option, value) in options {
                command.arg(option).arg(value);
            }
            command.spawn()
        };
        let ipam = [("--socket", at("ipam.sock")), ("--store", at("ipam.redb"))];
        let forwarder = [
            ("--control", at("forwarder.sock")),
            ("--config", at("forwarder.toml")),
        ];
        let daemons = [
            start("weft-ipam", ipam)?,
            start("weft-forwarder", forwarder)?,
        ];
        let node = Self { dir, daemons };
        node.make_pool()?;
        Ok(node)
    }

    fn make_pool(&self) -> anyhow::Result<()> {
        let at = |name: &str| self.dir.path().join(name);
        let until = Instant::now() + Duration::from_secs(20);
        while !(at("ipam.sock").exists() && at("forwarder.sock").exists()) {
            ensure!(Instant::now() < until, "the daemons do not listen");
            thread::sleep(Duration::from_millis(20));
        }
        let pool = json!({"op": "pool-create", "name": "pods", "cidr": "10.77.0.0/16"});
        let mut ipam = weft_socket::ipam::Client::connect(&at("ipam.sock"))?;
        ipam.request(&serde_json::from_value(pool)?)?;
        Ok(())
    }

    /// Resident set in MiB.
    fn forwarder_memory(&self) -> anyhow::Result<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.daemons[1].id()))?;
        let line = status.lines().find(|line| line.starts_with("VmRSS:"));
        let kib = line.and_then(|line| line.split_whitespace().nth(1));
        Ok(kib.context("VmRSS")?.parse::<u64>()? / 1024)
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

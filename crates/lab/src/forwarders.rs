//! One forwarder process a node, started inside the node's namespace and
//! gone with the lab, however the lab ends.
//!
//! The kernel kills a forwarder with the *thread* that started it
//! (PR_SET_PDEATHSIG), so one thread starts them all and lives as long as
//! the lab.

use std::{
    fs::{self, File},
    io,
    net::IpAddr,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::mpsc,
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use weft_api::{
    forwarder::{DEFAULT_PORT, Node, Nodes, Reply, Request},
    names::{Name, Vni},
};
use weft_cni::{
    forwarder::Client,
    gso::Gso,
    link::{Attach as PodAttach, Wiring},
    netns::Netns,
    wire_pod,
};

use crate::{
    role,
    spec::{Attach, NodePlan, Spec},
};

const START_DEADLINE: Duration = Duration::from_secs(10);
const STOP_DEADLINE: Duration = Duration::from_secs(2);

/// Lines that a node's `[uplink]` has besides those that the spec asks for.
pub type Settings<'a> = &'a dyn Fn(&NodePlan) -> String;

/// A running forwarder.
#[derive(Debug)]
pub struct Forwarder {
    child: Child,
    pub control: PathBuf,
    log: PathBuf,
}

impl Forwarder {
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn client(&self) -> anyhow::Result<Client> {
        Ok(Client::connect(&self.control)?)
    }

    /// Starts node `name`'s in `netns`. Its files are in `dir`.
    pub(crate) fn start(
        starter: &Starter,
        name: &str,
        configuration: &str,
        netns: &Netns,
        dir: &Path,
    ) -> anyhow::Result<Self> {
        let [control, config, log] =
            ["sock", "toml", "log"].map(|end| dir.join(format!("{name}.{end}")));
        fs::write(&config, configuration).with_context(|| format!("write {config:?}"))?;
        let output = File::create(&log).with_context(|| format!("create {log:?}"))?;
        let mut command = role::forwarder(netns)?;
        command
            .arg("--control")
            .arg(&control)
            .arg("--config")
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            // A terminal's Ctrl-C is for the lab, which then ends its parts.
            .process_group(0);
        let child = starter.start(command).context("start weft-forwarder")?;
        let mut forwarder = Self {
            child,
            control,
            log,
        };
        forwarder.wait_until_ready()?;
        Ok(forwarder)
    }

    fn wait_until_ready(&mut self) -> anyhow::Result<()> {
        let until = Instant::now() + START_DEADLINE;
        while !self.answers() {
            if let Some(status) = self.child.try_wait()? {
                bail!(
                    "weft-forwarder ended at once ({status}): {}",
                    self.last_words()
                );
            }
            if Instant::now() > until {
                bail!(
                    "weft-forwarder does not listen on {:?} after {} s: {}",
                    self.control,
                    START_DEADLINE.as_secs(),
                    self.last_words()
                );
            }
            thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    /// A connection alone says little: the socket is there before the uplink,
    /// on which the forwarder may yet fail.
    fn answers(&self) -> bool {
        let client = self.client();
        client.is_ok_and(|mut client| client.request(&Request::Status).is_ok())
    }

    fn last_words(&self) -> String {
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        match lines.len() {
            0 => "it said nothing".to_owned(),
            len => lines[len.saturating_sub(5)..].join("\n"),
        }
    }
}

impl Drop for Forwarder {
    fn drop(&mut self) {
        if let Ok(pid) = i32::try_from(self.child.id()) {
            // Reaped below, so the pid is still its own.
            let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
        }
        let until = Instant::now() + STOP_DEADLINE;
        while Instant::now() < until {
            match self.child.try_wait() {
                Ok(None) => thread::sleep(Duration::from_millis(2)),
                Ok(Some(_)) | Err(_) => return,
            }
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Starts a forwarder on every node, tells each of the others, and wires the
/// pods. `pods` holds each node's namespaces.
pub(crate) fn start_all(
    starter: &Starter,
    spec: &Spec,
    settings: Settings<'_>,
    plan: &[NodePlan],
    nodes: &[Netns],
    pods: &[Vec<Netns>],
    dir: &Path,
) -> anyhow::Result<Vec<Forwarder>> {
    let mut forwarders = Vec::new();
    for ((node, netns), pods) in plan.iter().zip(nodes).zip(pods) {
        let started = || format!("node {}", node.name);
        let configuration = configuration(spec, node) + &settings(node);
        let forwarder = Forwarder::start(starter, &node.name, &configuration, netns, dir)
            .with_context(started)?;
        let mut client = forwarder.client().with_context(started)?;
        forwarders.push(forwarder);
        client
            .request(&Request::Apply(nodes_as_seen_by(node, plan)?))
            .with_context(started)?;
        wire(spec, node, netns, pods, &mut client)?;
    }
    Ok(forwarders)
}

fn wire(
    spec: &Spec,
    node: &NodePlan,
    netns: &Netns,
    pods: &[Netns],
    client: &mut Client,
) -> anyhow::Result<()> {
    let Reply::Status(status) = client.request(&Request::Status)? else {
        bail!(
            "the forwarder of {} answered something else than its status",
            node.name
        );
    };
    for (pod, pod_netns) in node.pods.iter().zip(pods) {
        let wiring = Wiring {
            interface: "eth0".to_owned(),
            mac: pod.mac,
            addresses: pod.addresses().to_vec(),
            mtu: spec.pod_mtu(),
            attach: match spec.attach {
                Attach::Tap => PodAttach::Tap {
                    queues: status.workers,
                },
                Attach::Veth => PodAttach::Veth,
            },
            gso: Some(Gso::one_send(spec.pod_mtu())),
        };
        let port = Name::new(&pod.name)?;
        netns.run(|| wire_pod::attach_pod(pod_netns, &port, &wiring, client))??;
    }
    Ok(())
}

fn nodes_as_seen_by(node: &NodePlan, plan: &[NodePlan]) -> anyhow::Result<Nodes> {
    let peers = plan.iter().filter(|peer| peer.number != node.number);
    Ok(Nodes {
        node: record(node)?,
        peers: peers.map(record).collect::<Result<_, _>>()?,
    })
}

/// What other nodes are told of this one.
pub(crate) fn record(node: &NodePlan) -> anyhow::Result<Node> {
    Ok(Node {
        name: Name::new(&node.name)?,
        underlay: node.underlay.to_vec(),
        vtep_mac: node.vtep_mac,
        vni: Vni::DEFAULT,
        port: DEFAULT_PORT,
        blocks: node.blocks.to_vec(),
        tunnel: node.tunnel.to_vec(),
    })
}

/// The forwarder's file. Every value is of an alphabet that TOML takes as it
/// is between quotes.
fn configuration(spec: &Spec, node: &NodePlan) -> String {
    let quoted = |address: &IpAddr| format!("\"{address}\"");
    let addresses: Vec<String> = node.underlay.iter().map(quoted).collect();
    format!(
        "node = \"{}\"\nworkers = {}\nvtep_mac = \"{}\"\n\n[uplink]\naddresses = [{}]\nport = \
         {DEFAULT_PORT}\nvni = {}\nmtu = {}\n",
        node.name,
        spec.workers(),
        node.vtep_mac,
        addresses.join(", "),
        Vni::DEFAULT.value(),
        spec.mtu,
    )
}

/// The thread whose end is the forwarders' end.
#[derive(Debug)]
pub(crate) struct Starter {
    orders: Option<mpsc::Sender<Order>>,
    thread: Option<JoinHandle<()>>,
}

type Order = (Command, mpsc::Sender<io::Result<Child>>);

impl Starter {
    pub(crate) fn new() -> io::Result<Self> {
        let (orders, taken) = mpsc::channel::<Order>();
        let thread = thread::Builder::new()
            .name("starter".to_owned())
            .spawn(move || {
                for (mut command, answer) in taken {
                    // Whoever asked waits for it.
                    let _ = answer.send(command.spawn());
                }
            })?;
        Ok(Self {
            orders: Some(orders),
            thread: Some(thread),
        })
    }

    fn start(&self, command: Command) -> anyhow::Result<Child> {
        let (answer, answered) = mpsc::channel();
        let orders = self.orders.as_ref().context("the lab is going down")?;
        orders
            .send((command, answer))
            .ok()
            .context("the starter thread ended")?;
        Ok(answered.recv().context("the starter thread ended")??)
    }
}

impl Drop for Starter {
    fn drop(&mut self) {
        drop(self.orders.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_configuration_says_what_the_spec_does() {
        let spec = Spec {
            workers: Some(3),
            mtu: 9000,
            ..Spec::default()
        };
        let text = configuration(&spec, &spec.plan()[1]);
        assert_eq!(
            text,
            "node = \"n2\"\nworkers = 3\nvtep_mac = \"02:77:65:66:00:02\"\n\n[uplink]\naddresses = \
             [\"192.0.2.2\", \"2001:db8::2\"]\nport = 4789\nvni = 4096\nmtu = 9000\n"
        );
    }
}

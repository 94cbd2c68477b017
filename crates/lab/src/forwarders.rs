//! One forwarder process a node, started inside the node's namespace. It
//! learns the nodes from the lab's IPAM server.

use std::{
    collections::BTreeMap,
    fs,
    net::IpAddr,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};
use weft_api::{
    forwarder::{Capabilities, DEFAULT_PORT, Node, Reply, Request, Status},
    names::{Name, Vni},
};
use weft_cni::{
    forwarder::Client,
    gso::Gso,
    link::{Attach as PodAttach, Role, Wiring},
    netns::Netns,
    wire_pod,
};

use crate::{
    daemon::{Daemon, Starter},
    role,
    spec::{Attach, NodePlan, Spec},
};

/// For a forwarder to hear what the IPAM server says.
const NEWS_DEADLINE: Duration = Duration::from_secs(10);

/// Lines that a node's `[uplink]` has besides those that the spec asks for.
pub type Settings<'a> = &'a dyn Fn(&NodePlan) -> String;

/// A running forwarder.
#[derive(Debug)]
pub struct Forwarder {
    daemon: Daemon,
    pub control: PathBuf,
}

impl Forwarder {
    pub fn pid(&self) -> u32 {
        self.daemon.pid()
    }

    pub fn client(&self) -> anyhow::Result<Client> {
        Ok(Client::connect(&self.control)?)
    }

    /// Starts node `name`'s in `netns`. Its files are in `dir`. It follows
    /// the IPAM server at socket `ipam`, where one is given.
    pub(crate) fn start(
        starter: &Starter,
        name: &str,
        configuration: &str,
        netns: &Netns,
        dir: &Path,
        ipam: Option<&Path>,
    ) -> anyhow::Result<Self> {
        let [control, config, log] =
            ["sock", "toml", "log"].map(|end| dir.join(format!("{name}.{end}")));
        fs::write(&config, configuration).with_context(|| format!("write {config:?}"))?;
        let mut command = role::forwarder(netns)?;
        command
            .arg("--control")
            .arg(&control)
            .arg("--config")
            .arg(&config);
        if let Some(ipam) = ipam {
            command.arg("--ipam").arg(ipam);
        }
        // A connection alone says little: the socket is there before the
        // uplink, on which the forwarder may yet fail.
        let answers = || {
            let client = Client::connect(&control);
            client.is_ok_and(|mut client| client.request(&Request::Status).is_ok())
        };
        let daemon = Daemon::start(starter, "weft-forwarder", command, log, answers)?;
        Ok(Self { daemon, control })
    }

    /// Waits until its tables are those of the IPAM server's `revision`, or
    /// newer. Returns its status then.
    pub fn follows(&self, revision: u64) -> anyhow::Result<Status> {
        let mut client = self.client()?;
        let until = Instant::now() + NEWS_DEADLINE;
        loop {
            let Reply::Status(status) = client.request(&Request::Status)? else {
                bail!("the forwarder answered something else than its status");
            };
            let followed = status.ipam.as_ref().and_then(|ipam| ipam.revision);
            if followed.is_some_and(|followed| followed >= revision) {
                return Ok(*status);
            }
            ensure!(
                Instant::now() < until,
                "the forwarder does not hear of the IPAM server's revision {revision} in {} s: {:?}",
                NEWS_DEADLINE.as_secs(),
                status.ipam
            );
            thread::sleep(Duration::from_millis(2));
        }
    }
}

/// What all forwarders of a lab have in common.
pub(crate) struct Ground<'a> {
    pub starter: &'a Starter,
    pub spec: &'a Spec,
    pub settings: Settings<'a>,
    pub dir: &'a Path,
    /// The IPAM server's socket, and what it knows all of the plan by.
    pub ipam: &'a Path,
    pub revision: u64,
}

impl Ground<'_> {
    /// Starts a forwarder on every node and wires the pods. `pods` holds each
    /// node's namespaces.
    pub(crate) fn start_all(
        &self,
        plan: &[NodePlan],
        nodes: &[Netns],
        pods: &[Vec<Netns>],
    ) -> anyhow::Result<Vec<Forwarder>> {
        let places = plan.iter().zip(nodes).zip(pods);
        places
            .map(|((node, netns), pods)| {
                self.start(node, netns, pods)
                    .with_context(|| format!("node {}", node.name))
            })
            .collect()
    }

    fn start(&self, node: &NodePlan, netns: &Netns, pods: &[Netns]) -> anyhow::Result<Forwarder> {
        let configuration = configuration(self.spec, node) + &(self.settings)(node);
        let forwarder = Forwarder::start(
            self.starter,
            &node.name,
            &configuration,
            netns,
            self.dir,
            Some(self.ipam),
        )?;
        let workers = forwarder.follows(self.revision)?.workers;
        wire(
            self.spec,
            node,
            netns,
            pods,
            workers,
            &mut forwarder.client()?,
        )?;
        Ok(forwarder)
    }
}

fn wire(
    spec: &Spec,
    node: &NodePlan,
    netns: &Netns,
    pods: &[Netns],
    workers: usize,
    client: &mut Client,
) -> anyhow::Result<()> {
    let plain = Capabilities::default();
    for (pod, pod_netns) in node.pods.iter().zip(pods) {
        let wiring = Wiring {
            interface: "eth0".to_owned(),
            mac: pod.mac,
            addresses: pod.addresses().to_vec(),
            mtu: spec.pod_mtu(),
            attach: match spec.attach {
                Attach::Tap => PodAttach::Tap { queues: workers },
                Attach::Veth => PodAttach::Veth,
            },
            gso: Some(Gso::one_send(spec.pod_mtu())),
            role: Role::Pod,
        };
        let port = Name::new(&pod.name)?;
        netns.run(|| wire_pod::attach_pod(pod_netns, &port, &wiring, plain.clone(), client))??;
    }
    Ok(())
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
        ways: BTreeMap::new(),
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

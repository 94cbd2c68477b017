//! The parts of a lab one by one, for a network that no [`Spec`] describes:
//! a node of another kind, a pod with a link of its own, an IPAM server more.
//!
//! [`Spec`]: crate::Spec

use std::process::Command;

use anyhow::{Context, ensure};
use weft_api::{
    forwarder::{Capabilities, Node},
    ipam::{Node as Entry, Request},
    names::Name,
};
use weft_cni::{
    gso::Gso,
    link::{Attach, Role, Wiring},
    netns::Netns,
    wire_pod,
};

use crate::{
    daemon::Starter,
    forwarders::{self, Forwarder},
    ipam::Ipam,
    lab::{Lab, Pod},
    spec::{NodePlan, PodPlan},
    throwaway::ThrowAwayDir,
    underlay,
};

/// Where daemons are started one by one. They end with it, at the latest.
#[derive(Debug)]
pub struct Workshop {
    starter: Starter,
    dir: ThrowAwayDir,
}

impl Workshop {
    pub fn open() -> anyhow::Result<Self> {
        Ok(Self {
            starter: Starter::new().context("start a thread")?,
            dir: ThrowAwayDir::make()?,
        })
    }

    /// Starts node `name`'s forwarder in `netns`, with a configuration file
    /// that holds `configuration`.
    pub fn forwarder(
        &self,
        name: &str,
        configuration: &str,
        netns: &Netns,
    ) -> anyhow::Result<Forwarder> {
        let dir = self.dir.path();
        Forwarder::start(&self.starter, name, configuration, netns, dir, None)
            .with_context(|| format!("node {name}"))
    }

    /// Starts an IPAM server on `store`, with a configuration file that holds
    /// `configuration`.
    pub fn ipam(&self, name: &str, store: &str, configuration: &str) -> anyhow::Result<Ipam> {
        let dir = self.dir.path();
        Ipam::start(&self.starter, name, dir, Some(store), configuration)
            .with_context(|| format!("IPAM server {name}"))
    }
}

/// A namespace for a node, with nothing in it.
pub fn node(name: &str) -> anyhow::Result<Netns> {
    Ok(underlay::make_node(name)?)
}

impl NodePlan {
    /// What other nodes are told of this one.
    pub fn record(&self) -> anyhow::Result<Node> {
        forwarders::record(self)
    }
}

impl Pod {
    /// A namespace for a pod, with nothing in it. `node` is its place among
    /// the nodes.
    pub fn make(plan: PodPlan, node: usize) -> anyhow::Result<Self> {
        let netns = Netns::make(&plan.name)?;
        Ok(Self { plan, node, netns })
    }

    /// Wires the pod as a container runtime would have it wired, with
    /// super-frames as large as one send takes.
    pub fn plug(
        &self,
        attach: Attach,
        mtu: u16,
        node: &Netns,
        forwarder: &Forwarder,
    ) -> anyhow::Result<()> {
        let capabilities = Capabilities::default();
        self.plug_with(capabilities, attach, mtu, node, forwarder)
    }

    /// Wires the pod, and has its port do more than carry frames.
    pub fn plug_with(
        &self,
        capabilities: Capabilities,
        attach: Attach,
        mtu: u16,
        node: &Netns,
        forwarder: &Forwarder,
    ) -> anyhow::Result<()> {
        let wiring = Wiring {
            interface: "eth0".to_owned(),
            mac: self.plan.mac,
            addresses: self.plan.addresses().to_vec(),
            mtu,
            attach,
            gso: Some(Gso::one_send(mtu)),
            role: Role::Pod,
        };
        let port = Name::new(self.name())?;
        let mut client = forwarder.client()?;
        node.run(|| wire_pod::attach_pod(&self.netns, &port, &wiring, capabilities, &mut client))??;
        Ok(())
    }
}

impl Lab {
    /// Adds a pod to a node. Its number is the next of that node.
    pub fn add_pod(&mut self, node: usize, attach: Attach) -> anyhow::Result<&Pod> {
        self.add_pod_with(Capabilities::default(), node, attach)
    }

    /// The same, with a port that does more than carry frames.
    pub fn add_pod_with(
        &mut self,
        capabilities: Capabilities,
        node: usize,
        attach: Attach,
    ) -> anyhow::Result<&Pod> {
        let place = &self.nodes[node];
        let number = self.pods.iter().filter(|pod| pod.node == node).count() + 1;
        let mut plan = PodPlan::new(place.plan.number, number);
        let ipam = self.ipam.as_ref().context("no IPAM server")?;
        ipam.fill_pod(&place.plan, &mut plan)?;
        let pod = Pod::make(plan, node)?;
        let forwarder = place.forwarder.as_ref().context("no forwarder")?;
        let mtu = self.spec.pod_mtu();
        pod.plug_with(capabilities, attach, mtu, &place.netns, forwarder)?;
        self.pods.push(pod);
        self.pods.last().context("just pushed")
    }

    /// Makes the IPAM server forget a node, and waits until all forwarders
    /// have heard of it.
    pub fn forget_node(&self, node: usize) -> anyhow::Result<()> {
        self.tell(&self.nodes[node].plan.leaves()?)
    }

    /// Makes a forgotten node known again, with all that it had.
    pub fn restore_node(&self, node: usize) -> anyhow::Result<()> {
        self.tell(&self.nodes[node].plan.returns()?)
    }

    /// Changes what the IPAM server says of a node, and waits until all
    /// forwarders have heard of it.
    pub fn change_node(&self, entry: Entry) -> anyhow::Result<()> {
        self.tell(&[Request::NodePut(Box::new(entry))])
    }

    /// The last request must change a node or a route: of nothing else the
    /// forwarders hear.
    fn tell(&self, requests: &[Request]) -> anyhow::Result<()> {
        let ipam = self.ipam.as_ref().context("no IPAM server")?;
        let revision = ipam.tell(requests)?;
        for forwarder in self.nodes.iter().filter_map(|node| node.forwarder.as_ref()) {
            forwarder.follows(revision)?;
        }
        Ok(())
    }
}

/// Runs a command inside `netns` and returns what it says. Its words are
/// separated by spaces.
pub fn run(netns: &Netns, command: &str) -> anyhow::Result<String> {
    let mut words = command.split_whitespace();
    let program = words.next().context("an empty command")?;
    let output = netns
        .run(|| Command::new(program).args(words).output())?
        .with_context(|| format!("run {program}; is it installed?"))?;
    ensure!(
        output.status.success(),
        "{command}: {}",
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

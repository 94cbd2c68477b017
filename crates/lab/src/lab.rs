//! A lab that is up: nodes, pods, and who carries their packets. Dropped, it
//! leaves nothing behind.

use std::{
    net::{Ipv4Addr, Ipv6Addr},
    path::Path,
};

use anyhow::Context;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use weft_cni::netns::Netns;

use crate::{
    daemon::Starter,
    forwarders::{Forwarder, Ground, Settings},
    ipam::Ipam,
    kernel,
    spec::{Kind, NodePlan, PodPlan, Spec},
    throwaway::ThrowAwayDir,
    underlay::{self, Underlay},
};

// Fields are dropped in order: processes before the namespaces they are in.
#[derive(Debug)]
pub struct Lab {
    pub spec: Spec,
    /// `n1` first.
    pub nodes: Vec<Node>,
    /// `n1p1`, `n1p2`, … `n2p1`, …
    pub pods: Vec<Pod>,
    /// None in a lab of kind [`Kind::Kernel`].
    pub ipam: Option<Ipam>,
    _fabric: Option<Netns>,
    _starter: Starter,
    _dir: Option<ThrowAwayDir>,
}

#[derive(Debug)]
pub struct Node {
    /// None in a lab of kind [`Kind::Kernel`].
    pub forwarder: Option<Forwarder>,
    pub plan: NodePlan,
    pub netns: Netns,
}

#[derive(Debug)]
pub struct Pod {
    pub plan: PodPlan,
    /// Where the pod lives: an index into [`Lab::nodes`].
    pub node: usize,
    pub netns: Netns,
}

impl Pod {
    pub fn name(&self) -> &str {
        &self.plan.name
    }

    pub fn v4(&self) -> Ipv4Addr {
        self.plan.v4
    }

    pub fn v6(&self) -> Ipv6Addr {
        self.plan.v6
    }
}

impl Lab {
    /// A lab whose files go with it.
    pub fn up(spec: &Spec) -> anyhow::Result<Self> {
        Self::up_with(spec, &|_| String::new())
    }

    /// The same, with some settings of its forwarders.
    pub fn up_with(spec: &Spec, settings: Settings<'_>) -> anyhow::Result<Self> {
        let dir = ThrowAwayDir::make()?;
        let lab = Self::make(spec, settings, dir.path())?;
        Ok(Self {
            _dir: Some(dir),
            ..lab
        })
    }

    /// A lab whose files are in `dir`, which stays.
    pub fn up_in(spec: &Spec, dir: &Path) -> anyhow::Result<Self> {
        Self::make(spec, &|_| String::new(), dir)
    }

    fn make(spec: &Spec, settings: Settings<'_>, dir: &Path) -> anyhow::Result<Self> {
        spec.check()?;
        // Each namespace is an fd here; a limit that stays low tells itself.
        let _ = raise_open_files();
        let mut plan = spec.plan();
        let starter = Starter::new().context("start a thread")?;
        let Underlay { nodes, fabric } = underlay::lay(spec, &plan)?;
        let mut pods = Vec::new();
        for node in &plan {
            let made: Result<Vec<_>, _> =
                node.pods.iter().map(|pod| Netns::make(&pod.name)).collect();
            pods.push(made?);
        }
        let (ipam, forwarders) = match spec.kind {
            Kind::Weft => {
                let grace = |seconds| format!("gc_grace_seconds = {seconds}\n");
                let configuration = spec.gc_grace_seconds.map(grace).unwrap_or_default();
                let store = spec.store.as_deref();
                let ipam = Ipam::start(&starter, "ipam", dir, store, &configuration)?;
                let ground = Ground {
                    starter: &starter,
                    spec,
                    settings,
                    dir,
                    ipam: &ipam.socket,
                    revision: ipam.fill(&mut plan).context("ask the IPAM server")?,
                };
                let forwarders = ground.start_all(&plan, &nodes, &pods)?;
                (Some(ipam), forwarders)
            }
            Kind::Kernel => {
                for ((node, netns), pods) in plan.iter().zip(&nodes).zip(&pods) {
                    kernel::set_up(spec, &plan, node, netns, pods)
                        .with_context(|| format!("node {}", node.name))?;
                }
                (None, Vec::new())
            }
        };
        let mut forwarders = forwarders.into_iter();
        let mut lab = Self {
            spec: spec.clone(),
            nodes: Vec::new(),
            pods: Vec::new(),
            ipam,
            _fabric: fabric,
            _starter: starter,
            _dir: None,
        };
        for (at, ((plan, netns), pods)) in plan.into_iter().zip(nodes).zip(pods).enumerate() {
            let inside = plan.pods.iter().cloned().zip(pods);
            lab.pods.extend(inside.map(|(plan, netns)| Pod {
                plan,
                node: at,
                netns,
            }));
            lab.nodes.push(Node {
                forwarder: forwarders.next(),
                plan,
                netns,
            });
        }
        Ok(lab)
    }

    pub fn node(&self, name: &str) -> Option<&Node> {
        self.nodes.iter().find(|node| node.plan.name == name)
    }

    pub fn pod(&self, name: &str) -> Option<&Pod> {
        self.pods.iter().find(|pod| pod.plan.name == name)
    }
}

fn raise_open_files() -> nix::Result<()> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard)
}

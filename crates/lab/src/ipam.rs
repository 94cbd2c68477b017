//! The lab's IPAM server, and what it is asked for: the nodes' blocks and
//! tunnel addresses, the pods' addresses.

use std::{
    fs,
    net::IpAddr,
    path::{Path, PathBuf},
};

use anyhow::{Context, bail, ensure};
use ipnet::IpNet;
use weft_api::{
    forwarder::DEFAULT_PORT,
    ipam::{
        Allocate, Assigned, Attachment, Encapsulation, Family, Node, Pool, Release, Reply, Request,
        Use, When,
    },
    names::{Name, Vni},
};
use weft_socket::ipam::Client;

use crate::{
    daemon::{Daemon, Starter},
    role,
    spec::{NodePlan, PodPlan},
};

/// Name, range and block size. A block is as large as a node may need, its
/// tunnel address included, so that a node is one route a family; both pools
/// have a block for every node that a lab may have.
const POOLS: [(&str, &str, u8); 2] = [
    ("pods-v4", "10.244.0.0/16", 24),
    ("pods-v6", "fd00:10:244::/112", 120),
];

const NETWORK: &str = "lab";

/// A running IPAM server.
#[derive(Debug)]
pub struct Ipam {
    daemon: Daemon,
    pub socket: PathBuf,
}

impl Ipam {
    /// Starts one whose files are in `dir` and bear its name. Without a
    /// `store`, its rows are in one of them.
    pub(crate) fn start(
        starter: &Starter,
        name: &str,
        dir: &Path,
        store: Option<&str>,
        configuration: &str,
    ) -> anyhow::Result<Self> {
        let [socket, file, config, log] =
            ["sock", "redb", "toml", "log"].map(|end| dir.join(format!("{name}.{end}")));
        let mut command = role::ipam()?;
        command.arg("--socket").arg(&socket).arg("--store");
        match store {
            Some(store) => command.arg(store),
            None => command.arg(&file),
        };
        if !configuration.is_empty() {
            fs::write(&config, configuration).with_context(|| format!("write {config:?}"))?;
            command.arg("--config").arg(&config);
        }
        let answers = || {
            let client = Client::connect(&socket);
            client.is_ok_and(|mut client| client.request(&Request::Status).is_ok())
        };
        let daemon = Daemon::start(starter, "weft-ipam", command, log, answers)?;
        Ok(Self { daemon, socket })
    }

    pub fn pid(&self) -> u32 {
        self.daemon.pid()
    }

    pub fn client(&self) -> anyhow::Result<Client> {
        Ok(Client::connect(&self.socket)?)
    }

    /// Makes the pools and the nodes known, and fills in the addresses that
    /// nodes and pods get. Returns the revision that knows them all.
    pub(crate) fn fill(&self, plan: &mut [NodePlan]) -> anyhow::Result<u64> {
        let mut client = self.client()?;
        for (name, cidr, block_size) in POOLS {
            let pool = pool(name, cidr, block_size)?;
            client.request(&Request::PoolCreate(Box::new(pool)))?;
        }
        for node in plan {
            fill_node(&mut client, node).with_context(|| format!("node {}", node.name))?;
        }
        revision(&mut client)
    }

    /// The addresses of one more pod.
    pub(crate) fn fill_pod(&self, node: &NodePlan, pod: &mut PodPlan) -> anyhow::Result<()> {
        fill_pod(&mut self.client()?, node, pod)
    }

    /// Carries out what is asked. Returns the revision that it led to.
    pub(crate) fn tell(&self, requests: &[Request]) -> anyhow::Result<u64> {
        let mut client = self.client()?;
        for request in requests {
            client.request(request)?;
        }
        revision(&mut client)
    }
}

fn fill_node(client: &mut Client, node: &mut NodePlan) -> anyhow::Result<()> {
    let [v4, v6] = allocate(client, tunnel(node)?)?;
    node.blocks = [v4.block, v6.block];
    node.tunnel = [v4.address, v6.address];
    client.request(&Request::NodePut(Box::new(node.entry()?)))?;
    let mut pods = std::mem::take(&mut node.pods);
    for pod in &mut pods {
        fill_pod(client, node, pod).with_context(|| format!("pod {}", pod.name))?;
    }
    node.pods = pods;
    Ok(())
}

fn fill_pod(client: &mut Client, node: &NodePlan, pod: &mut PodPlan) -> anyhow::Result<()> {
    let assigned = allocate(client, workload(node, pod)?)?;
    ensure!(
        assigned.each_ref().map(|one| one.block) == node.blocks,
        "{} got an address outside the blocks of {}, which are full",
        pod.name,
        node.name
    );
    let [IpAddr::V4(v4), IpAddr::V6(v6)] = assigned.map(|one| one.address) else {
        bail!("the IPAM server gave an address of the other family");
    };
    (pod.v4, pod.v6) = (v4, v6);
    Ok(())
}

fn allocate(client: &mut Client, ask: Allocate) -> anyhow::Result<[Assigned; 2]> {
    let reply = client.request(&Request::Allocate(Box::new(ask)))?;
    let Reply::Allocated(allocated) = reply else {
        bail!("the IPAM server answered something else than addresses");
    };
    let both = <[Assigned; 2]>::try_from(allocated.addresses).ok();
    both.context("the IPAM server did not give one address of each family")
}

fn revision(client: &mut Client) -> anyhow::Result<u64> {
    match client.request(&Request::Status)? {
        Reply::Status(status) => Ok(status.revision),
        _ => bail!("the IPAM server answered something else than its status"),
    }
}

fn pool(name: &str, cidr: &str, block_size: u8) -> anyhow::Result<Pool> {
    Ok(Pool {
        name: Name::new(name)?,
        cidr: cidr.parse::<IpNet>()?,
        block_size: Some(block_size),
        node_selector: String::new(),
        namespace_selector: String::new(),
        uses: vec![Use::Workload, Use::Tunnel],
        manual: false,
        disabled: false,
        nat_outgoing: false,
        encapsulation: Encapsulation::Vxlan,
        when: When::Always,
    })
}

/// The request for a node's own addresses.
fn tunnel(node: &NodePlan) -> anyhow::Result<Allocate> {
    Ok(Allocate {
        attachment: attachment(&node.name, "tunnel")?,
        node: Name::new(&node.name)?,
        families: vec![Family::V4, Family::V6],
        purpose: Use::Tunnel,
        addresses: Vec::new(),
        pools: Vec::new(),
        identity: None,
        pod: None,
        namespace_labels: Default::default(),
    })
}

fn workload(node: &NodePlan, pod: &PodPlan) -> anyhow::Result<Allocate> {
    Ok(Allocate {
        attachment: attachment(&pod.name, "eth0")?,
        purpose: Use::Workload,
        ..tunnel(node)?
    })
}

fn attachment(container: &str, interface: &str) -> anyhow::Result<Attachment> {
    Ok(Attachment {
        network: Name::new(NETWORK)?,
        container: Name::new(container)?,
        interface: Name::new(interface)?,
    })
}

impl NodePlan {
    /// What the IPAM server is told of the node.
    pub fn entry(&self) -> anyhow::Result<Node> {
        Ok(Node {
            name: Name::new(&self.name)?,
            underlay: self.underlay_nets().to_vec(),
            vtep_mac: self.vtep_mac,
            vni: Vni::DEFAULT,
            port: DEFAULT_PORT,
            tunnel: self.tunnel.to_vec(),
            labels: Default::default(),
            registered: None,
        })
    }

    /// What makes the IPAM server forget the node and its pods.
    pub(crate) fn leaves(&self) -> anyhow::Result<Vec<Request>> {
        let release = |pod: &PodPlan| {
            let attachment = attachment(&pod.name, "eth0")?;
            anyhow::Ok(Request::Release(Release::Attachment(attachment)))
        };
        let mut requests: Vec<_> = self.pods.iter().map(release).collect::<Result<_, _>>()?;
        requests.push(Request::NodeDelete {
            name: Name::new(&self.name)?,
        });
        Ok(requests)
    }

    /// What gives node and pods, once forgotten, the addresses that they had.
    pub(crate) fn returns(&self) -> anyhow::Result<Vec<Request>> {
        let ask = |ask: Allocate, addresses: [IpAddr; 2]| {
            Request::Allocate(Box::new(Allocate {
                addresses: addresses.to_vec(),
                ..ask
            }))
        };
        let mut requests = vec![ask(tunnel(self)?, self.tunnel)];
        for pod in &self.pods {
            requests.push(ask(workload(self, pod)?, pod.addresses()));
        }
        requests.push(Request::NodePut(Box::new(self.entry()?)));
        Ok(requests)
    }
}

//! The forwarder as a member keeps it: told of all nodes whenever they change,
//! and again when another process took its place. With it go the kernel's
//! routes to blocks that have no tunnel.

use std::{
    net::IpAddr,
    path::{Path, PathBuf},
};

use anyhow::ensure;
use weft_api::forwarder::{Nodes, Request, Status};
use weft_cni::forwarder::Client;

use super::fabric::{self, Fabric, Gateways};

/// What the records of a network come to.
#[derive(Debug)]
pub struct View {
    pub nodes: Nodes,
    /// What is wrong with the records that are not in it, or not wholly.
    pub complaints: Vec<String>,
}

#[derive(Debug)]
pub struct Forwarder {
    control: PathBuf,
    fabric: Fabric,
    /// What it was told last, if it took that, and which process it was.
    told: Option<(u32, Nodes)>,
    of_records: Complaints,
    of_routes: Complaints,
    of_stale_routes: Complaints,
}

impl Forwarder {
    pub fn at(control: PathBuf) -> anyhow::Result<Self> {
        Ok(Self {
            control,
            fabric: Fabric::open()?,
            told: None,
            of_records: Complaints(Vec::new()),
            of_routes: Complaints(Vec::new()),
            of_stale_routes: Complaints(Vec::new()),
        })
    }

    /// A route is there before the forwarder sends by it, and goes after.
    pub fn apply(&mut self, view: View) {
        let View { nodes, complaints } = view;
        let (peers, count) = (nodes.peers.len(), complaints.len());
        let records = "not all of the network's records are used";
        self.of_records.tell(complaints, records);
        let gateways = fabric::gateways(&nodes);
        self.lay(&gateways);
        match tell(&self.control, &nodes) {
            Ok(pid) => {
                tracing::info!(peers, complaints = count, "the forwarder was told");
                self.told = Some((pid, nodes));
                self.lift(&gateways);
            }
            Err(error) => {
                tracing::error!("the forwarder does not take the nodes: {error:#}; trying again");
                self.told = None;
            }
        }
    }

    /// Makes the routes again that are missing, and removes those that could
    /// not be removed before.
    pub fn keep_routes(&mut self) {
        if let Some((_, nodes)) = &self.told {
            let gateways = fabric::gateways(nodes);
            self.lay(&gateways);
            self.lift(&gateways);
        }
    }

    fn lay(&mut self, gateways: &Gateways) {
        let wrong = self.fabric.lay(gateways);
        let routes = "not all blocks are reached that have no tunnel";
        self.of_routes.tell(wrong, routes);
    }

    fn lift(&mut self, gateways: &Gateways) {
        let wrong = self.fabric.lift(gateways);
        let routes = "a route that is no more used stays";
        self.of_stale_routes.tell(wrong, routes);
    }

    /// False of one that started anew: it knows nothing.
    pub fn is_told(&self) -> bool {
        let status = Client::connect(&self.control).and_then(|mut client| client.status());
        let pid = status.ok().map(|status| status.pid);
        self.told.is_some() && pid == self.told.as_ref().map(|(pid, _)| *pid)
    }

    pub fn knows(&self, view: &View) -> bool {
        let told = self.told.as_ref();
        told.is_some_and(|(_, nodes)| *nodes == view.nodes)
    }
}

/// What is wrong by now, each said once.
#[derive(Debug)]
struct Complaints(Vec<String>);

impl Complaints {
    fn tell(&mut self, now: Vec<String>, what: &str) {
        for error in now.iter().filter(|error| !self.0.contains(*error)) {
            tracing::warn!(error, "{what}");
        }
        self.0 = now;
    }
}

/// Returns which process was told.
fn tell(control: &Path, nodes: &Nodes) -> anyhow::Result<u32> {
    let mut client = Client::connect(control)?;
    let pid = client.status()?.pid;
    client.request(&Request::Apply(nodes.clone()))?;
    Ok(pid)
}

/// That its uplink has the network's port.
pub fn check_port(status: &Status, port: u16) -> anyhow::Result<()> {
    ensure!(
        status.port == port,
        "the network's VXLAN port is {port}, the forwarder's uplink.port is {}; set it so",
        status.port
    );
    Ok(())
}

/// That its uplink has the address by which others are to reach this node.
pub fn check_address(status: &Status, address: IpAddr) -> anyhow::Result<()> {
    ensure!(
        status.underlay.contains(&address),
        "the forwarder does not listen on {address}; add it to its uplink.addresses"
    );
    Ok(())
}

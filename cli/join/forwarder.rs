//! The forwarder as a member keeps it: told of all nodes whenever they change,
//! and again when another process took its place.

use std::{
    net::IpAddr,
    path::{Path, PathBuf},
};

use anyhow::ensure;
use weft_api::forwarder::{Nodes, Request, Status};
use weft_cni::forwarder::Client;

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
    /// Which process has the nodes as they are.
    told: Option<u32>,
    complaints: Vec<String>,
}

impl Forwarder {
    pub fn at(control: PathBuf) -> Self {
        Self {
            control,
            told: None,
            complaints: Vec::new(),
        }
    }

    pub fn apply(&mut self, view: View) {
        let View { nodes, complaints } = view;
        for error in complaints.iter().filter(|c| !self.complaints.contains(*c)) {
            tracing::warn!(error, "not all of the network's records are used");
        }
        self.complaints = complaints;
        let (peers, complaints) = (nodes.peers.len(), self.complaints.len());
        match tell(&self.control, nodes) {
            Ok(pid) => {
                tracing::info!(peers, complaints, "the forwarder was told");
                self.told = Some(pid);
            }
            Err(error) => {
                tracing::error!("the forwarder does not take the nodes: {error:#}; trying again");
                self.told = None;
            }
        }
    }

    /// False of one that started anew: it knows nothing.
    pub fn is_told(&self) -> bool {
        let status = Client::connect(&self.control).and_then(|mut client| client.status());
        let pid = status.ok().map(|status| status.pid);
        self.told.is_some() && pid == self.told
    }
}

/// Returns which process was told.
fn tell(control: &Path, nodes: Nodes) -> anyhow::Result<u32> {
    let mut client = Client::connect(control)?;
    let pid = client.status()?.pid;
    client.request(&Request::Apply(nodes))?;
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

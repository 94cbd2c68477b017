//! Who answers, and where its nodes come from.

use std::{net::IpAddr, path::PathBuf};

use serde::{Deserialize, Serialize};

use crate::names::{Name, Vni};

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Status {
    pub version: String,
    pub pid: u32,
    pub node: Name,
    pub workers: usize,
    pub epoch: u64,
    pub underlay: Vec<IpAddr>,
    /// Of the underlay, in bytes of IP packet.
    #[serde(default = "default_mtu")]
    pub mtu: u16,
    /// The node's own addresses in the pod network, by the tables in force.
    #[serde(default)]
    pub tunnel: Vec<IpAddr>,
    pub vni: Vni,
    pub port: u16,
    /// UDP_SEGMENT in use; false after the kernel refused it.
    pub gso: bool,
    /// UDP_GRO in use.
    pub gro: bool,
    /// IP-in-IP can be sent and received.
    #[serde(default)]
    pub ipip: bool,
    pub ports: usize,
    pub peers: usize,
    /// None where nodes do not come from an IPAM server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ipam: Option<Ipam>,
    /// None where nodes do not come from a file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nodes_file: Option<NodesFile>,
}

/// The file that a forwarder takes the nodes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodesFile {
    pub path: PathBuf,
    /// Why the newest version is not in force; none where it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fault: Option<String>,
}

/// The IPAM server that a forwarder follows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ipam {
    pub socket: PathBuf,
    pub connected: bool,
    /// Of the tables in force; none before the first.
    pub revision: Option<u64>,
}

/// Ethernet's.
fn default_mtu() -> u16 {
    1500
}

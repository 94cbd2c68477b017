//! Calico's VXLAN: the Node resource or annotations that say how a node is
//! reached, and the blocks that say which addresses live there.

mod block;
mod mac;
mod node;
mod peers;

pub use self::{
    block::{Attribute, Block},
    mac::derived_mac,
    node::{Record, Tunnel},
    peers::{DEFAULT_PORT, DEFAULT_VNI, Peers, Wire, peers, record},
};

use std::net::IpAddr;

use ipnet::IpNet;

/// In errors.
const CALICO: &str = "Calico";

/// Where etcd holds the nodes.
pub const NODES: &str = "/calico/resources/v3/projectcalico.org/nodes/";

/// Where etcd holds the blocks of both families, each at
/// `ipv4/block/10.0.0.0-26`.
pub const BLOCKS: &str = "/calico/ipam/v2/assignment/";

pub fn node_key(name: &str) -> String {
    format!("{NODES}{name}")
}

pub fn block_key(cidr: IpNet) -> String {
    let (version, net) = (version(cidr), hyphenated(cidr));
    format!("{BLOCKS}{version}/block/{net}")
}

pub fn affinity_key(node: &str, cidr: IpNet) -> String {
    let (version, net) = (version(cidr), hyphenated(cidr));
    format!("/calico/ipam/v2/host/{node}/{version}/block/{net}")
}

/// The value of an affinity that is in force.
pub const CONFIRMED: &str = r#"{"state":"confirmed"}"#;

fn version(cidr: IpNet) -> &'static str {
    match cidr.addr() {
        IpAddr::V4(_) => "ipv4",
        IpAddr::V6(_) => "ipv6",
    }
}

/// The reverse of a CIDR's name in a key is a `/` for the last `-`.
fn hyphenated(cidr: IpNet) -> String {
    format!("{}-{}", cidr.addr(), cidr.prefix_len())
}

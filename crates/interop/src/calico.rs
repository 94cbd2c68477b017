//! Calico's VXLAN: the Node resource or annotations that say how a node is
//! reached, and the blocks that say which addresses live there.

mod allocation;
mod block;
mod mac;
mod node;
mod peers;
mod pool;
mod settings;
mod time;

pub use self::{
    allocation::{Affinity, Handle, Holder, State, WINDOWS},
    block::{Attribute, Block},
    mac::derived_mac,
    node::{Record, Tunnel, labels},
    peers::{Peers, peers, record},
    pool::{Encapsulation, Pool, Pools},
    settings::{DEFAULT_PORT, DEFAULT_VNI, Ipam, Reservation, Wire},
    time::{parse_rfc3339, rfc3339},
};

use std::net::IpAddr;

use ipnet::IpNet;

/// In errors.
const CALICO: &str = "Calico";

/// Where etcd has all that is Calico's.
pub const PREFIX: &str = "/calico";

/// Where etcd holds the nodes.
pub const NODES: &str = "/calico/resources/v3/projectcalico.org/nodes/";
pub const POOLS: &str = "/calico/resources/v3/projectcalico.org/ippools/";
/// `default`, and `node.NAME` for what one node has otherwise.
pub const FELIX: &str = "/calico/resources/v3/projectcalico.org/felixconfigurations/";
pub const RESERVATIONS: &str = "/calico/resources/v3/projectcalico.org/ipreservations/";

/// Where etcd holds the blocks of both families, each at
/// `ipv4/block/10.0.0.0-26`.
pub const BLOCKS: &str = "/calico/ipam/v2/assignment/";

/// How addresses are given.
pub const IPAM: &str = "/calico/ipam/v2/config";

pub fn node_key(name: &str) -> String {
    format!("{NODES}{name}")
}

pub fn handle_key(id: &str) -> String {
    format!("/calico/ipam/v2/handle/{id}")
}

pub fn block_key(cidr: IpNet) -> String {
    let (version, net) = (version(cidr), hyphenated(cidr));
    format!("{BLOCKS}{version}/block/{net}")
}

pub fn affinity_key(node: &str, cidr: IpNet) -> String {
    format!("{}/{}", affinities(node, cidr), hyphenated(cidr))
}

/// Where a node's affinities to blocks of this one's family are.
pub fn affinities(node: &str, cidr: IpNet) -> String {
    format!("/calico/ipam/v2/host/{node}/{}/block", version(cidr))
}

/// Which block a key is of, by its last part.
pub fn block_of(key: &str) -> Option<IpNet> {
    let (_, last) = key.rsplit_once('/')?;
    let (address, len) = last.rsplit_once('-')?;
    IpNet::new(address.parse().ok()?, len.parse().ok()?).ok()
}

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

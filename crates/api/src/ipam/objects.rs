//! What operators make: pools, reservations, nodes and settings.

use std::{collections::BTreeMap, net::IpAddr};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::{Time, Use};
use crate::{
    forwarder::DEFAULT_PORT,
    names::{Mac, Name, Vni},
};

/// A range that addresses come from, cut into blocks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pool {
    pub name: Name,
    pub cidr: IpNet,
    /// Prefix length of the blocks: 20 to 32, by default 26, of IPv4; 116 to
    /// 128, by default 122, of IPv6.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub block_size: Option<u8>,
    /// Calico's selector language, over node labels; empty selects all.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub node_selector: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub namespace_selector: String,
    /// Load balancers exclude the others.
    #[serde(default = "default_uses")]
    pub uses: Vec<Use>,
    /// Only for requests that name the pool.
    #[serde(default)]
    pub manual: bool,
    #[serde(default)]
    pub disabled: bool,
    #[serde(default)]
    pub nat_outgoing: bool,
    #[serde(default)]
    pub encapsulation: Encapsulation,
    #[serde(default)]
    pub when: When,
}

fn default_uses() -> Vec<Use> {
    vec![Use::Workload, Use::Tunnel]
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Encapsulation {
    #[default]
    Vxlan,
    /// IPv4 pools only.
    Ipip,
    None,
}

impl Encapsulation {
    /// Whether packets go as they are between some nodes at least.
    pub fn leaves_some_plain(self, when: When) -> bool {
        self == Self::None || when == When::CrossSubnet
    }
}

/// Which way takes the encapsulation.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum When {
    #[default]
    Always,
    /// Only between nodes that share no subnet.
    CrossSubnet,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reservation {
    pub name: Name,
    pub cidrs: Vec<IpNet>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Node {
    pub name: Name,
    /// With the prefix of the subnet they lie in; at most one of each family.
    pub underlay: Vec<IpNet>,
    pub vtep_mac: Mac,
    #[serde(default = "default_vni")]
    pub vni: Vni,
    #[serde(default = "default_port")]
    pub port: u16,
    /// The node's own addresses in the pod network.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tunnel: Vec<IpAddr>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Since when the node itself says so; none of an operator's record. The
    /// server alone sets it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub registered: Option<Time>,
}

fn default_vni() -> Vni {
    Vni::DEFAULT
}

fn default_port() -> u16 {
    DEFAULT_PORT
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Addresses come from the node's own blocks only: nothing is borrowed.
    pub strict_affinity: bool,
    /// Nodes may claim blocks. False needs `strict_affinity` false.
    pub claim_blocks: bool,
    /// Most blocks of one family a node may own; none is no limit. At the
    /// limit addresses are borrowed, unless `strict_affinity` forbids it.
    pub blocks_per_node: Option<u32>,
    /// How long a released address rests before it is given out again.
    pub cooldown_seconds: u32,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            strict_affinity: false,
            claim_blocks: true,
            blocks_per_node: None,
            cooldown_seconds: 0,
        }
    }
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ConfigChange {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub strict_affinity: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub claim_blocks: Option<bool>,
    /// 0 takes the limit away.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub blocks_per_node: Option<u32>,
    /// At most [`COOLDOWN_MAX`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cooldown_seconds: Option<u32>,
}

/// As Calico's limit, in seconds.
pub const COOLDOWN_MAX: u32 = 1200;

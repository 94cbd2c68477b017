//! A block of addresses as Calico holds it.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

use super::CALICO;
use crate::{Error, json};

/// As etcd has it. Go writes an empty list as null.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Block {
    pub cidr: IpNet,
    /// Whose it is: `host:NAME`.
    pub affinity: Option<String>,
    /// The alias is Kubernetes'.
    #[serde(
        rename = "affinity_claim_time",
        alias = "affinityClaimTime",
        skip_serializing_if = "Option::is_none"
    )]
    pub affinity_claim_time: Option<String>,
    /// By ordinal: the place of its attribute.
    pub allocations: Option<Vec<Option<i64>>>,
    pub unallocated: Option<Vec<i64>>,
    pub attributes: Option<Vec<Attribute>>,
    #[serde(rename = "sequenceNumber", default)]
    pub sequence: u64,
    /// By ordinal: the block's number when it was taken.
    #[serde(rename = "sequenceNumberForAllocation")]
    pub sequences: Option<BTreeMap<String, u64>>,
    #[serde(default)]
    pub deleted: bool,
    /// Of versions before affinities had a kind.
    #[serde(rename = "hostAffinity", skip_serializing_if = "Option::is_none")]
    pub host_affinity: Option<String>,
    /// What later versions write; it stays.
    #[serde(flatten)]
    pub other: BTreeMap<String, Json>,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Attribute {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub handle_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub secondary: Option<BTreeMap<String, String>>,
    #[serde(rename = "releasedAt", skip_serializing_if = "Option::is_none")]
    pub released_at: Option<String>,
    #[serde(flatten)]
    pub other: BTreeMap<String, Json>,
}

impl Block {
    /// Of the value at `key`.
    pub fn parse(key: &str, value: &[u8]) -> Result<Self, Error> {
        let block: Self = json(key, CALICO, value)?;
        if block.cidr != block.cidr.trunc() {
            let problem = format!("{} has bits set behind its length", block.cidr);
            return Err(Error::field(key, "cidr", problem));
        }
        Ok(block)
    }

    /// The kind of owner and its name.
    pub fn owner(&self) -> Option<(&str, &str)> {
        let affinity = self.affinity.as_deref();
        affinity
            .map(|text| text.split_once(':').unwrap_or(("?", text)))
            .or(self.host_affinity.as_deref().map(|host| ("host", host)))
    }

    /// The node that the block's addresses are on, but for those it lent.
    pub fn node(&self) -> Option<&str> {
        self.owner()
            .and_then(|(kind, node)| (kind == "host").then_some(node))
    }

    /// Addresses that live on another node than the block.
    pub fn lent(&self) -> impl Iterator<Item = (&str, IpNet)> {
        let ordinals = self.allocations.iter().flatten();
        (0u128..).zip(ordinals).filter_map(|(ordinal, index)| {
            let attributes = self.attributes.as_deref()?;
            let attribute = attributes.get(usize::try_from((*index)?).ok()?)?;
            let node = attribute.secondary.as_ref()?.get("node")?;
            let released = attribute.released_at.is_some();
            let elsewhere = !released && self.node() != Some(node);
            elsewhere.then_some((node.as_str(), nth(self.cidr, ordinal)?))
        })
    }
}

/// The address of an ordinal.
pub(super) fn nth(cidr: IpNet, ordinal: u128) -> Option<IpNet> {
    let address: IpAddr = match cidr {
        IpNet::V4(net) => {
            let first = u32::from(net.addr());
            let ordinal = u32::try_from(ordinal).ok()?;
            Ipv4Addr::from(first.checked_add(ordinal)?).into()
        }
        IpNet::V6(net) => Ipv6Addr::from(u128::from(net.addr()).checked_add(ordinal)?).into(),
    };
    cidr.contains(&address).then(|| IpNet::from(address))
}

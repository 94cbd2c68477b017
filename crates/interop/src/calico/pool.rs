//! The ranges that addresses come from, and how packets for them get to their
//! nodes.

use ipnet::IpNet;
use serde::Deserialize;
use serde_json::Value as Json;
use weft_api::forwarder::Way;

use super::CALICO;
use crate::Error;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pool {
    pub key: String,
    pub cidr: IpNet,
    /// Prefix length of its blocks.
    pub block_size: u8,
    pub encapsulation: Encapsulation,
    /// Encapsulated only between nodes that share no subnet.
    pub cross_subnet: bool,
    /// Empty: all nodes.
    pub node_selector: String,
    /// Whether nodes may take blocks and tunnel addresses of it.
    pub for_tunnels: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Encapsulation {
    Vxlan,
    Ipip,
    None,
}

#[derive(Deserialize)]
struct Raw {
    #[serde(default)]
    metadata: Metadata,
    spec: Spec,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Metadata {
    deletion_timestamp: Option<Json>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Spec {
    cidr: String,
    vxlan_mode: Option<String>,
    ipip_mode: Option<String>,
    disabled: bool,
    block_size: u8,
    node_selector: String,
    allowed_uses: Option<Vec<String>>,
    assignment_mode: Option<String>,
}

impl Pool {
    /// Of the value at `key`.
    pub fn parse(key: &str, value: &[u8]) -> Result<Self, Error> {
        let Raw { metadata, spec } = crate::json(key, CALICO, value)?;
        let cidr = spec.cidr.parse::<IpNet>();
        let Some(cidr) = cidr.ok().filter(|cidr| *cidr == cidr.trunc()) else {
            let problem = format!("{:?} is no CIDR; correct it", spec.cidr);
            return Err(Error::field(key, "spec.cidr", problem));
        };
        let v4 = cidr.addr().is_ipv4();
        let (least, usual, most) = if v4 { (20, 26, 32) } else { (116, 122, 128) };
        let block_size = match spec.block_size {
            0 => usual,
            size => size,
        };
        if !(least.max(cidr.prefix_len())..=most).contains(&block_size) {
            let problem = format!("{block_size} is no length of blocks in {cidr}; correct it");
            return Err(Error::field(key, "spec.blockSize", problem));
        }
        let (encapsulation, cross_subnet) = encapsulation(key, &spec, v4)?;
        let uses = spec.allowed_uses.unwrap_or_default();
        let automatic = spec.assignment_mode.as_deref().unwrap_or("Automatic") == "Automatic";
        let live = !spec.disabled && metadata.deletion_timestamp.is_none();
        Ok(Self {
            key: key.to_owned(),
            cidr,
            block_size,
            encapsulation,
            cross_subnet,
            node_selector: spec.node_selector,
            for_tunnels: live
                && automatic
                && (uses.is_empty() || uses.iter().any(|one| one == "Tunnel")),
        })
    }

    /// How packets for its addresses get to a node.
    pub fn way(&self, same_subnet: bool) -> Way {
        match self.encapsulation {
            Encapsulation::None => Way::Direct,
            _ if self.cross_subnet && same_subnet => Way::Direct,
            Encapsulation::Vxlan => Way::Vxlan,
            Encapsulation::Ipip => Way::Ipip,
        }
    }

    /// Whether nodes have a plain way to some of its addresses.
    pub fn leaves_some_plain(&self) -> bool {
        self.way(true) == Way::Direct
    }
}

fn encapsulation(key: &str, spec: &Spec, v4: bool) -> Result<(Encapsulation, bool), Error> {
    let mode = |field, mode: &Option<String>| match mode.as_deref().unwrap_or_default() {
        "" | "Never" => Ok(None),
        "Always" => Ok(Some(false)),
        "CrossSubnet" => Ok(Some(true)),
        other => {
            let problem = format!("{other:?} is none of Always, CrossSubnet and Never; correct it");
            Err(Error::field(key, field, problem))
        }
    };
    let vxlan = mode("spec.vxlanMode", &spec.vxlan_mode)?;
    let ipip = mode("spec.ipipMode", &spec.ipip_mode)?;
    match (vxlan, ipip) {
        (Some(_), Some(_)) => {
            let problem = "vxlanMode is set too; set one of the two to Never";
            Err(Error::field(key, "spec.ipipMode", problem))
        }
        (None, Some(_)) if !v4 => {
            let problem = "IP-in-IP carries IPv4 only; set it to Never";
            Err(Error::field(key, "spec.ipipMode", problem))
        }
        (Some(cross), None) => Ok((Encapsulation::Vxlan, cross)),
        (None, Some(cross)) => Ok((Encapsulation::Ipip, cross)),
        (None, None) => Ok((Encapsulation::None, false)),
    }
}

/// All pools, the smaller before the larger that holds it.
#[derive(Debug, Clone, Default)]
pub struct Pools(Vec<Pool>);

impl Pools {
    /// With what is wrong with them together.
    pub fn new(pools: impl IntoIterator<Item = Pool>) -> (Self, Vec<Error>) {
        let mut pools: Vec<_> = pools.into_iter().collect();
        pools.sort_by(|a, b| {
            let order = b.cidr.prefix_len().cmp(&a.cidr.prefix_len());
            order.then_with(|| a.key.cmp(&b.key))
        });
        let mut errors = Vec::new();
        for (place, pool) in pools.iter().enumerate() {
            let larger = pools[place + 1..]
                .iter()
                .find(|other| other.cidr.contains(&pool.cidr));
            errors.extend(larger.map(|other| Error::Taken {
                key: other.key.clone(),
                what: format!("{} of {}", pool.cidr, other.cidr),
                other: pool.key.clone(),
            }));
        }
        (Self(pools), errors)
    }

    pub fn iter(&self) -> impl Iterator<Item = &Pool> {
        self.0.iter()
    }

    /// The smallest that holds these addresses.
    pub fn of(&self, net: &IpNet) -> Option<&Pool> {
        self.0.iter().find(|pool| pool.cidr.contains(net))
    }
}

//! The network's configuration, with flannel's defaults.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::Deserialize;
use weft_api::names::Vni;

use super::{FLANNEL, VXLAN};
use crate::{Error, json};

/// The kernel's VXLAN port where none is named (`vxlan_port` in
/// drivers/net/vxlan), older than IANA's.
const KERNEL_PORT: u16 = 8472;

/// The backend of a configuration that names none.
const NO_BACKEND: &str = "udp";

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    pub v4: Option<Range>,
    pub v6: Option<Range>,
    pub backend: Backend,
}

/// Where the nodes' subnets of one family are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Range {
    pub network: IpNet,
    /// Prefix length of each subnet.
    pub len: u8,
    /// The first and the last subnet.
    pub min: IpAddr,
    pub max: IpAddr,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Backend {
    Vxlan(Vxlan),
    Other(String),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Vxlan {
    pub vni: Vni,
    pub port: u16,
    /// Of the nodes' outer interface; none: whatever it has.
    pub mtu: Option<u16>,
    pub gbp: bool,
    pub learning: bool,
    /// Nodes on one link leave the tunnel out.
    pub direct_routing: bool,
}

impl Config {
    /// Of the text at `key`.
    pub fn parse(key: &str, text: &[u8]) -> Result<Self, Error> {
        let raw: RawConfig = json(key, FLANNEL, text)?;
        let wrong = |field, problem: String| Error::field(key, field, problem);
        let v4 = raw.enable_v4.unwrap_or(true).then(|| {
            let network = raw.network.map(IpNet::V4);
            let bounds = [raw.subnet_min, raw.subnet_max].map(|a| a.map(IpAddr::V4));
            Range::new(network, raw.subnet_len, bounds)
        });
        let v6 = raw.enable_v6.then(|| {
            let network = raw.v6_network.map(IpNet::V6);
            let bounds = [raw.v6_subnet_min, raw.v6_subnet_max].map(|a| a.map(IpAddr::V6));
            Range::new(network, raw.v6_subnet_len, bounds)
        });
        if v4.is_none() && v6.is_none() {
            let problem = "neither family is enabled; enable one".to_owned();
            return Err(wrong("EnableIPv4", problem));
        }
        Ok(Self {
            v4: v4.transpose().map_err(|p| wrong("Network", p))?,
            v6: v6.transpose().map_err(|p| wrong("IPv6Network", p))?,
            backend: raw.backend.unwrap_or_default().read(key)?,
        })
    }

    pub fn ranges(&self) -> impl Iterator<Item = &Range> {
        self.v4.iter().chain(&self.v6)
    }
}

impl Range {
    fn new(
        network: Option<IpNet>,
        len: Option<u8>,
        [min, max]: [Option<IpAddr>; 2],
    ) -> Result<Self, String> {
        let network = network
            .ok_or("it is missing; write the pods' network")?
            .trunc();
        let usual = if network.addr().is_ipv4() { 24 } else { 64 };
        let least = network.prefix_len().saturating_add(2);
        let longest = network.max_prefix_len() - 2;
        let len = match len.filter(|len| *len > 0) {
            Some(len) => len,
            None => least.max(usual),
        };
        if !(least..=longest).contains(&len) {
            return Err(format!(
                "a subnet length of {len} does not fit {network}; it is from {least} to {longest}"
            ));
        }
        let mut range = Self {
            network,
            len,
            min: network.addr(),
            max: network.addr(),
        };
        // The first subnet holds the network's own address, and is left out.
        let given = |bound: Option<IpAddr>| bound.filter(|a| !a.is_unspecified());
        range.min = given(min).unwrap_or_else(|| range.nth(1));
        range.max =
            given(max).unwrap_or_else(|| range.nth((1 << (len - network.prefix_len())) - 1));
        for bound in [range.min, range.max] {
            if !network.contains(&bound) || range.subnet(bound).addr() != bound {
                return Err(format!(
                    "{bound} as its first or last subnet starts no /{len} of {network}; \
                     correct SubnetMin and SubnetMax"
                ));
            }
        }
        if range.min > range.max {
            return Err(format!("its first subnet {} is above its last", range.min));
        }
        Ok(range)
    }

    /// Whether a node may have it.
    pub fn allows(&self, subnet: &IpNet) -> bool {
        subnet.prefix_len() == self.len
            && subnet.trunc() == *subnet
            && subnet.addr().is_ipv4() == self.min.is_ipv4()
            && (self.min..=self.max).contains(&subnet.addr())
    }

    /// Every subnet that a node may have, in order.
    pub fn subnets(self) -> impl Iterator<Item = IpNet> {
        let step = 1 << (u32::from(self.network.max_prefix_len()) - u32::from(self.len));
        let (first, last) = (number(self.min), number(self.max));
        (0..=(last - first) / step).map(move |nth| self.subnet(self.address(first + nth * step)))
    }

    fn nth(&self, nth: u128) -> IpAddr {
        let bits = self.network.max_prefix_len() - self.len;
        self.address(number(self.network.addr()) + (nth << bits))
    }

    fn subnet(&self, address: IpAddr) -> IpNet {
        IpNet::new_assert(address, self.len).trunc()
    }

    fn address(&self, number: u128) -> IpAddr {
        match self.network {
            // No sum leaves the network.
            IpNet::V4(_) => Ipv4Addr::from(u32::try_from(number).unwrap_or(u32::MAX)).into(),
            IpNet::V6(_) => Ipv6Addr::from(number).into(),
        }
    }
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => u32::from(v4).into(),
        IpAddr::V6(v6) => v6.into(),
    }
}

#[derive(Deserialize)]
struct RawConfig {
    #[serde(rename = "EnableIPv4")]
    enable_v4: Option<bool>,
    #[serde(rename = "EnableIPv6", default)]
    enable_v6: bool,
    #[serde(rename = "Network")]
    network: Option<Ipv4Net>,
    #[serde(rename = "SubnetLen")]
    subnet_len: Option<u8>,
    #[serde(rename = "SubnetMin")]
    subnet_min: Option<Ipv4Addr>,
    #[serde(rename = "SubnetMax")]
    subnet_max: Option<Ipv4Addr>,
    #[serde(rename = "IPv6Network")]
    v6_network: Option<Ipv6Net>,
    #[serde(rename = "IPv6SubnetLen")]
    v6_subnet_len: Option<u8>,
    #[serde(rename = "IPv6SubnetMin")]
    v6_subnet_min: Option<Ipv6Addr>,
    #[serde(rename = "IPv6SubnetMax")]
    v6_subnet_max: Option<Ipv6Addr>,
    #[serde(rename = "Backend")]
    backend: Option<RawBackend>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct RawBackend {
    #[serde(rename = "Type")]
    kind: Option<String>,
    #[serde(rename = "VNI")]
    vni: Option<u32>,
    port: u16,
    #[serde(rename = "MTU")]
    mtu: u16,
    #[serde(rename = "GBP")]
    gbp: bool,
    learning: bool,
    direct_routing: bool,
}

impl RawBackend {
    fn read(self, key: &str) -> Result<Backend, Error> {
        let kind = self.kind.unwrap_or_else(|| NO_BACKEND.to_owned());
        if kind != VXLAN {
            return Ok(Backend::Other(kind));
        }
        let vni = Vni::new(self.vni.unwrap_or(1));
        Ok(Backend::Vxlan(Vxlan {
            vni: vni.map_err(|error| Error::field(key, "Backend.VNI", error))?,
            port: if self.port == 0 {
                KERNEL_PORT
            } else {
                self.port
            },
            mtu: (self.mtu > 0).then_some(self.mtu),
            gbp: self.gbp,
            learning: self.learning,
            direct_routing: self.direct_routing,
        }))
    }
}

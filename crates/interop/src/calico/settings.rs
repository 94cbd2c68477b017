//! What the whole network has in common: its VXLAN, and how it gives
//! addresses.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::Deserialize;
use weft_api::names::Vni;

use super::CALICO;
use crate::Error;

/// FelixConfiguration's `vxlanVNI` and `vxlanPort`, where it sets none.
pub const DEFAULT_VNI: Vni = Vni::DEFAULT;
pub const DEFAULT_PORT: u16 = weft_api::forwarder::DEFAULT_PORT;

/// What all tunnels of the network have in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wire {
    pub vni: Vni,
    pub port: u16,
    /// Of what the tunnel over IPv4 carries, and over IPv6; none: what the
    /// underlay leaves.
    pub mtu: [Option<u16>; 2],
}

impl Default for Wire {
    fn default() -> Self {
        Self {
            vni: DEFAULT_VNI,
            port: DEFAULT_PORT,
            mtu: [None; 2],
        }
    }
}

impl Wire {
    /// With what the FelixConfiguration at `key` sets.
    pub fn with(self, key: &str, value: &[u8]) -> Result<Self, Error> {
        #[derive(Deserialize)]
        struct Raw {
            #[serde(default)]
            spec: Spec,
        }
        #[derive(Default, Deserialize)]
        #[serde(default)]
        struct Spec {
            #[serde(rename = "vxlanVNI")]
            vni: Option<i64>,
            #[serde(rename = "vxlanPort")]
            port: Option<i64>,
            #[serde(rename = "vxlanMTU")]
            mtu: Option<i64>,
            #[serde(rename = "vxlanMTUV6")]
            mtu_v6: Option<i64>,
        }
        let Raw { spec } = crate::json(key, CALICO, value)?;
        let wrong = |field, number: i64, what: &str| {
            Error::field(key, field, format!("{number} is no {what}; correct it"))
        };
        let vni = spec.vni.map(|number| {
            let vni = u32::try_from(number).ok().and_then(|n| Vni::new(n).ok());
            vni.ok_or_else(|| wrong("spec.vxlanVNI", number, "VNI"))
        });
        let port = spec.port.map(|number| {
            let port = u16::try_from(number).ok().filter(|port| *port > 0);
            port.ok_or_else(|| wrong("spec.vxlanPort", number, "UDP port"))
        });
        // 0: none is set.
        let mtu = |field, number: Option<i64>| {
            let number = number.filter(|number| *number != 0);
            number
                .map(|n| u16::try_from(n).map_err(|_| wrong(field, n, "MTU")))
                .transpose()
        };
        let mtu = [
            mtu("spec.vxlanMTU", spec.mtu)?,
            mtu("spec.vxlanMTUV6", spec.mtu_v6)?,
        ];
        Ok(Self {
            vni: vni.transpose()?.unwrap_or(self.vni),
            port: port.transpose()?.unwrap_or(self.port),
            mtu: [mtu[0].or(self.mtu[0]), mtu[1].or(self.mtu[1])],
        })
    }
}

/// How addresses are given; what a row leaves out is false or 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub struct Ipam {
    /// Whether nodes may claim blocks.
    #[serde(rename = "auto_allocate_blocks", default)]
    pub claim_blocks: bool,
    /// Most blocks of a node; 0: [`Ipam::USUAL_BLOCKS`].
    #[serde(rename = "maxBlocksPerHost", default)]
    most_blocks: usize,
    #[serde(rename = "ipCooldownSeconds", default)]
    pub cooldown: u32,
}

/// Where there is no row.
impl Default for Ipam {
    fn default() -> Self {
        Self {
            claim_blocks: true,
            most_blocks: 0,
            cooldown: 0,
        }
    }
}

impl Ipam {
    const USUAL_BLOCKS: usize = 20;

    pub fn parse(key: &str, value: &[u8]) -> Result<Self, Error> {
        crate::json(key, CALICO, value)
    }

    pub fn most_blocks(&self) -> usize {
        match self.most_blocks {
            0 => Self::USUAL_BLOCKS,
            most => most,
        }
    }
}

/// Addresses that nobody is to be given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reservation(Vec<IpNet>);

impl Reservation {
    pub fn parse(key: &str, value: &[u8]) -> Result<Self, Error> {
        #[derive(Deserialize)]
        struct Raw {
            spec: Spec,
        }
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Spec {
            #[serde(rename = "reservedCIDRs", default)]
            reserved: Vec<String>,
        }
        let Raw { spec } = crate::json(key, CALICO, value)?;
        let nets = spec.reserved.iter().map(|text| {
            super::node::net(text).ok_or_else(|| {
                let problem = format!("{text:?} is no CIDR; correct it");
                Error::field(key, "spec.reservedCIDRs", problem)
            })
        });
        Ok(Self(nets.collect::<Result<_, _>>()?))
    }

    pub fn covers(&self, address: IpAddr) -> bool {
        self.0.iter().any(|net| net.contains(&address))
    }
}

//! The `uplink` table: where the node's datagrams leave and arrive.

use std::net::IpAddr;

use serde::Deserialize;
use weft_api::{
    forwarder::{DEFAULT_PORT, Node, sound},
    names::Vni,
};

use super::{ConfigError, value, within};
use crate::{links, uplink::UplinkConfig};

const ENTROPY_PORTS_DEFAULT: u16 = 16;
const ENTROPY_PORTS_MAX: u16 = 1024;
/// Ethernet's MTU (IEEE 802.3), where no interface says otherwise.
const MTU_DEFAULT: u16 = 1500;
/// Every IPv4 link carries so much (RFC 791).
const MTU_MIN: u16 = 576;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Uplink {
    pub(super) addresses: Vec<IpAddr>,
    port: Option<u16>,
    pub(super) vni: Vni,
    mtu: Option<u16>,
    entropy_ports: u16,
    gso: bool,
    gro: bool,
    ipip: bool,
}

impl Default for Uplink {
    fn default() -> Self {
        Self {
            addresses: Vec::new(),
            port: None,
            vni: Vni::DEFAULT,
            mtu: None,
            entropy_ports: ENTROPY_PORTS_DEFAULT,
            gso: true,
            gro: true,
            ipip: true,
        }
    }
}

impl Uplink {
    /// Fills in what is not given from what others are told of the node.
    pub(super) fn adopt(&mut self, own: &Node) {
        if self.addresses.is_empty() {
            self.addresses.clone_from(&own.underlay);
        }
        self.port = self.port.or(Some(own.port));
    }

    pub(super) fn complete(self) -> Result<UplinkConfig, ConfigError> {
        let key = "uplink.addresses";
        sound::underlay(&self.addresses)
            .map_err(|problem| value(key, problem, "list the node's addresses that peers reach"))?;
        let port = self.port.unwrap_or(DEFAULT_PORT);
        if port == 0 {
            return Err(value("uplink.port", "port 0 is none", "give 1 to 65535"));
        }
        let entropy_ports = within(
            "uplink.entropy_ports",
            self.entropy_ports,
            1,
            ENTROPY_PORTS_MAX,
        )?;
        let (mtu, mtu_of_links) = self.mtu()?;
        Ok(UplinkConfig {
            addresses: self.addresses,
            port,
            mtu,
            mtu_of_links,
            entropy_ports,
            gso: self.gso,
            gro: self.gro,
            ipip: self.ipip,
        })
    }

    /// What the file says, else the least MTU among the interfaces that hold
    /// the addresses, and whether it is that.
    fn mtu(&self) -> Result<(u16, bool), ConfigError> {
        let key = "uplink.mtu";
        if let Some(mtu) = self.mtu {
            return Ok((within(key, mtu, MTU_MIN, u16::MAX)?, false));
        }
        let least = links::mtu_of(&self.addresses)
            .map_err(|problem| value(key, problem, "set it by hand"))?;
        let mtu = least.unwrap_or(MTU_DEFAULT);
        Ok((within(key, mtu, MTU_MIN, u16::MAX)?, least.is_some()))
    }
}

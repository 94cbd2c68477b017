//! A lease as etcd holds it: the subnets are the key, how the node is
//! reached is the value.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};
use serde_json::Value as Json;
use weft_api::names::{Mac, Vni};

use super::FLANNEL;
use crate::{Error, json};

/// The only backend whose nodes weft can speak with.
pub const VXLAN: &str = "vxlan";

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    pub key: SubnetKey,
    pub record: Record,
}

/// The name of a lease: `10.5.52.0-24`, `10.5.52.0-24&fc00:0:0:1::-64`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SubnetKey {
    pub v4: Option<Ipv4Net>,
    pub v6: Option<Ipv6Net>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    pub public_v4: Option<Ipv4Addr>,
    pub public_v6: Option<Ipv6Addr>,
    pub backend: String,
    /// Of the tunnel over IPv4 and over IPv6; none where the backend is not
    /// [`VXLAN`].
    pub v4: Option<Endpoint>,
    pub v6: Option<Endpoint>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoint {
    #[serde(rename = "VNI")]
    pub vni: Vni,
    #[serde(rename = "VtepMAC")]
    pub mac: Mac,
}

impl SubnetKey {
    /// Of the last part of `key`, which may have a path before it.
    pub fn parse(key: &str) -> Result<Self, Error> {
        let wrong = || Error::Key {
            key: key.to_owned(),
            network: FLANNEL,
        };
        let name = key.rsplit('/').next().unwrap_or(key);
        let (v4, v6) = match name.split_once('&') {
            Some((v4, v6)) => (v4, Some(v6)),
            None => (name, None),
        };
        let net = |text: &str| -> Option<IpNet> {
            let (address, len) = text.rsplit_once('-')?;
            let digits = len.bytes().all(|byte| byte.is_ascii_digit());
            let address = address.parse().ok()?;
            let net = IpNet::new(address, len.parse().ok().filter(|_| digits)?).ok()?;
            (net == net.trunc()).then_some(net)
        };
        let v4 = match net(v4).ok_or_else(wrong)? {
            IpNet::V4(v4) => v4,
            IpNet::V6(_) => return Err(wrong()),
        };
        let v6 = match v6.map(|text| net(text).ok_or_else(wrong)).transpose()? {
            Some(IpNet::V6(v6)) => Some(v6),
            None => None,
            Some(IpNet::V4(_)) => return Err(wrong()),
        };
        // How a node of IPv6 alone is written.
        let v4 = Some(v4).filter(|v4| *v4 != Ipv4Net::default());
        if v4.is_none() && v6.is_none() {
            return Err(wrong());
        }
        Ok(Self { v4, v6 })
    }

    pub fn subnets(&self) -> impl Iterator<Item = IpNet> {
        let v4 = self.v4.map(IpNet::V4).into_iter();
        v4.chain(self.v6.map(IpNet::V6))
    }
}

impl fmt::Display for SubnetKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let v4 = self.v4.unwrap_or_default();
        write!(f, "{}-{}", v4.addr(), v4.prefix_len())?;
        match self.v6 {
            Some(v6) => write!(f, "&{}-{}", v6.addr(), v6.prefix_len()),
            None => Ok(()),
        }
    }
}

impl Record {
    /// Of the value at `key`.
    pub fn parse(key: &str, value: &[u8]) -> Result<Self, Error> {
        let raw: RawRecord = json(key, FLANNEL, value)?;
        let public_v4 = raw
            .public_v4
            .map(|public| Ipv4Addr::deserialize(&public).map_err(|_| public))
            .transpose()
            .map_err(|public| {
                let problem = format!("{public} is no IPv4 address; the node is to write its own");
                Error::field(key, "PublicIP", problem)
            })?;
        let vxlan = raw.backend == VXLAN;
        let data = |field, data: Option<Json>| match data {
            Some(data) if vxlan => Endpoint::parse(key, field, &data.to_string()).map(Some),
            _ => Ok(None),
        };
        Ok(Self {
            public_v4: public_v4.filter(|address| !address.is_unspecified()),
            public_v6: raw.public_v6.filter(|address| !address.is_unspecified()),
            v4: data("BackendData", raw.v4)?,
            v6: data("BackendV6Data", raw.v6)?,
            backend: raw.backend,
        })
    }

    /// As flannel writes it, to the byte.
    pub fn to_json(&self) -> String {
        let unspecified = Ipv4Addr::UNSPECIFIED;
        // The kinds of value that cannot be written are none of these.
        serde_json::to_string(&Written {
            public_v4: self.public_v4.unwrap_or(unspecified),
            public_v6: self.public_v6,
            backend: &self.backend,
            v4: self.v4,
            v6: self.v6,
        })
        .unwrap_or_default()
    }

    /// Whether both are of one node, by the addresses of the first.
    pub fn is_of(&self, public: &[IpAddr]) -> bool {
        let own = self.public_v4.map(IpAddr::V4);
        own.or(self.public_v6.map(IpAddr::V6))
            .is_some_and(|own| public.contains(&own))
    }
}

impl Endpoint {
    pub(super) fn parse(key: &str, field: &'static str, text: &str) -> Result<Self, Error> {
        serde_json::from_str(text).map_err(|error| {
            let problem = format!("{error}; the node is to write {{\"VNI\":…,\"VtepMAC\":…}}");
            Error::field(key, field, problem)
        })
    }

    pub(super) fn to_json(self) -> String {
        format!(r#"{{"VNI":{},"VtepMAC":"{}"}}"#, self.vni.value(), self.mac)
    }
}

#[derive(Deserialize)]
struct RawRecord {
    /// Null is no address to flannel, absence is `0.0.0.0`.
    #[serde(rename = "PublicIP", default, deserialize_with = "even_null")]
    public_v4: Option<Json>,
    #[serde(rename = "PublicIPv6")]
    public_v6: Option<Ipv6Addr>,
    #[serde(rename = "BackendType", default)]
    backend: String,
    #[serde(rename = "BackendData")]
    v4: Option<Json>,
    #[serde(rename = "BackendV6Data")]
    v6: Option<Json>,
}

fn even_null<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<Json>, D::Error> {
    Json::deserialize(deserializer).map(Some)
}

#[derive(Serialize)]
struct Written<'a> {
    #[serde(rename = "PublicIP")]
    public_v4: Ipv4Addr,
    #[serde(rename = "PublicIPv6")]
    public_v6: Option<Ipv6Addr>,
    #[serde(rename = "BackendType", skip_serializing_if = "str::is_empty")]
    backend: &'a str,
    #[serde(rename = "BackendData", skip_serializing_if = "Option::is_none")]
    v4: Option<Endpoint>,
    #[serde(rename = "BackendV6Data", skip_serializing_if = "Option::is_none")]
    v6: Option<Endpoint>,
}

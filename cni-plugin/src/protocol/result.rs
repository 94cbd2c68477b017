//! A plugin's result, in every version's shape. Fields and entries of other
//! plugins go through untouched, as far as the version knows them.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{Failure, Version, code};

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub interfaces: Vec<Interface>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ips: Vec<Ip>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub routes: Vec<Route>,
    #[serde(default, skip_serializing_if = "Dns::is_empty")]
    pub dns: Dns,
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Interface {
    pub name: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<String>,
    /// The netns path of a pod's interface; none for the node's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sandbox: Option<String>,
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Ip {
    /// An index into the interfaces.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interface: Option<usize>,
    pub address: IpNet,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<IpAddr>,
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Route {
    pub dst: IpNet,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gw: Option<IpAddr>,
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dns {
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub nameservers: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub domain: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub search: Vec<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub options: Vec<String>,
}

impl Dns {
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// What interfaces and routes have since 1.1.0.
const INTERFACE_1_1: [&str; 3] = ["mtu", "socketPath", "pciID"];
const ROUTE_1_1: [&str; 5] = ["mtu", "advmss", "priority", "table", "scope"];

impl Outcome {
    /// Reads a result of any version; one that names none is of `version`.
    pub fn parse(what: &str, value: Value, version: Version) -> Result<Self, Failure> {
        let refused = |why: String| Failure::new(code::DECODE, format!("{what}: {why}"));
        let Value::Object(mut fields) = value else {
            return Err(refused("it is no JSON object".to_owned()));
        };
        match fields.remove("cniVersion") {
            None => {}
            Some(Value::String(found)) => {
                found.parse::<Version>().map_err(|failure| Failure {
                    msg: format!("{what}: {}", failure.msg),
                    ..failure
                })?;
            }
            Some(other) => return Err(refused(format!("cniVersion {other} is no string"))),
        }
        fields.retain(|_, value| !value.is_null());
        let mut outcome: Self = serde_json::from_value(Value::Object(fields))
            .map_err(|error| refused(format!("{error}; is it of CNI {version}?")))?;
        for ip in &mut outcome.ips {
            // Said by the address itself since 1.0.0.
            ip.other.remove("version");
            let interfaces = outcome.interfaces.len();
            if let Some(index) = ip.interface.filter(|index| *index >= interfaces) {
                return Err(refused(format!(
                    "{} is on interface {index}, but there are {interfaces}",
                    ip.address
                )));
            }
        }
        Ok(outcome)
    }

    pub fn to_json(&self, version: Version) -> Value {
        let mut outcome = self.clone();
        if version < Version::V1_1_0 {
            for interface in &mut outcome.interfaces {
                interface
                    .other
                    .retain(|key, _| !INTERFACE_1_1.contains(&&**key));
            }
            for route in &mut outcome.routes {
                route.other.retain(|key, _| !ROUTE_1_1.contains(&&**key));
            }
        }
        if version < Version::V1_0_0 {
            for ip in &mut outcome.ips {
                let family = if ip.address.addr().is_ipv4() {
                    "4"
                } else {
                    "6"
                };
                ip.other.insert("version".to_owned(), family.into());
            }
        }
        outcome
            .other
            .insert("cniVersion".to_owned(), version.as_str().into());
        serde_json::to_value(outcome).expect("string keys and no fallible serializers")
    }
}

//! How a node is reached: the spec of its resource in etcd, and the
//! annotations of its Kubernetes object.

use std::{collections::BTreeMap, net::IpAddr, str::FromStr};

use ipnet::IpNet;
use serde::Deserialize;
use serde_json::{Value as Json, json};
use weft_api::names::Mac;

use super::{CALICO, derived_mac, node_key};
use crate::Error;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    pub name: String,
    pub v4: Tunnel,
    pub v6: Tunnel,
}

/// The VXLAN of one family.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tunnel {
    /// The node's own, with the length of its link's prefix.
    pub address: Option<IpNet>,
    /// In the pod network.
    pub tunnel: Option<IpAddr>,
    /// None: it follows from the name.
    pub mac: Option<Mac>,
    /// Of IP-in-IP, in the pod network. Without one, what another wrote stays.
    pub ipip: Option<IpAddr>,
}

/// What one tunnel is told by: fields of the spec, and annotations.
struct Names {
    address: &'static str,
    tunnel: &'static str,
    mac: &'static str,
    ipip: &'static str,
    address_annotation: &'static str,
    tunnel_annotation: &'static str,
    mac_annotation: &'static str,
    ipip_annotation: &'static str,
}

const V4: Names = Names {
    address: "ipv4Address",
    tunnel: "ipv4VXLANTunnelAddr",
    mac: "vxlanTunnelMACAddr",
    ipip: "ipv4IPIPTunnelAddr",
    address_annotation: "projectcalico.org/IPv4Address",
    tunnel_annotation: "projectcalico.org/IPv4VXLANTunnelAddr",
    mac_annotation: "projectcalico.org/VXLANTunnelMACAddr",
    ipip_annotation: "projectcalico.org/IPv4IPIPTunnelAddr",
};
const V6: Names = Names {
    address: "ipv6Address",
    tunnel: "ipv6VXLANTunnelAddr",
    mac: "vxlanTunnelMACAddrV6",
    ipip: "ipv6IPIPTunnelAddr",
    address_annotation: "projectcalico.org/IPv6Address",
    tunnel_annotation: "projectcalico.org/IPv6VXLANTunnelAddr",
    mac_annotation: "projectcalico.org/VXLANTunnelMACAddrV6",
    ipip_annotation: "projectcalico.org/IPv6IPIPTunnelAddr",
};

impl Record {
    /// Of the value at `key`.
    pub fn parse(key: &str, value: &[u8]) -> Result<Self, Error> {
        #[derive(Deserialize)]
        struct Raw {
            metadata: Metadata,
            #[serde(default)]
            spec: Json,
        }
        #[derive(Deserialize)]
        struct Metadata {
            name: String,
        }
        let raw: Raw = crate::json(key, CALICO, value)?;
        let read = |names: &Names, v4| {
            let bgp = raw.spec.get("bgp").unwrap_or(&Json::Null);
            let field = |of: &Json, name: &'static str| match of.get(name) {
                None | Some(Json::Null) => Ok(None),
                Some(Json::String(text)) => Ok(Some(text.clone()).filter(|t| !t.is_empty())),
                Some(other) => Err(Error::field(key, name, format!("{other} is no text"))),
            };
            Tunnel::read(
                key,
                v4,
                [
                    (names.address, field(bgp, names.address)?),
                    (names.tunnel, field(&raw.spec, names.tunnel)?),
                    (names.mac, field(&raw.spec, names.mac)?),
                    (names.ipip, field(bgp, names.ipip)?),
                ],
            )
        };
        Ok(Self {
            v4: read(&V4, true)?,
            v6: read(&V6, false)?,
            name: raw.metadata.name,
        })
    }

    /// Of the annotations of a Kubernetes node.
    pub fn of_annotations(
        name: &str,
        annotations: &BTreeMap<String, String>,
    ) -> Result<Self, Error> {
        let read = |names: &Names, v4| {
            let fields = [
                names.address_annotation,
                names.tunnel_annotation,
                names.mac_annotation,
                names.ipip_annotation,
            ];
            let found = fields.map(|name| (name, annotations.get(name).cloned()));
            Tunnel::read(name, v4, found)
        };
        Ok(Self {
            v4: read(&V4, true)?,
            v6: read(&V6, false)?,
            name: name.to_owned(),
        })
    }

    /// As Calico's own node writes it; what else stands in `before`, another
    /// writer's, stays.
    pub fn to_json(&self, before: Option<Json>) -> Json {
        let mut node = before.filter(Json::is_object).unwrap_or_else(|| json!({}));
        node["kind"] = "Node".into();
        node["apiVersion"] = "projectcalico.org/v3".into();
        set(&mut node, &["metadata", "name"], Some(self.name.clone()));
        for (names, tunnel) in [(&V4, &self.v4), (&V6, &self.v6)] {
            let [address, inner, mac] = tunnel.texts();
            set(&mut node, &["spec", "bgp", names.address], address);
            set(&mut node, &["spec", names.tunnel], inner);
            set(&mut node, &["spec", names.mac], mac);
            if let Some(ipip) = tunnel.ipip {
                set(
                    &mut node,
                    &["spec", "bgp", names.ipip],
                    Some(ipip.to_string()),
                );
            }
        }
        node
    }

    pub fn annotations(&self) -> BTreeMap<String, String> {
        let families = [(&V4, &self.v4), (&V6, &self.v6)].into_iter();
        families
            .flat_map(|(names, tunnel)| {
                let [address, inner, mac] = tunnel.texts();
                [
                    (names.address_annotation, address),
                    (names.tunnel_annotation, inner),
                    (names.mac_annotation, mac),
                    (names.ipip_annotation, tunnel.ipip.map(|a| a.to_string())),
                ]
            })
            .filter_map(|(name, text)| Some((name.to_owned(), text?)))
            .collect()
    }

    pub fn key(&self) -> String {
        node_key(&self.name)
    }

    pub fn mac(&self, v6: bool) -> Mac {
        let tunnel = if v6 { &self.v6 } else { &self.v4 };
        tunnel.mac.unwrap_or_else(|| derived_mac(&self.name, v6))
    }
}

/// Of the value of a node, what selectors select by. Labels that are no text
/// are none.
pub fn labels(value: &[u8]) -> BTreeMap<String, String> {
    let node: Json = serde_json::from_slice(value).unwrap_or_default();
    let labels = node["metadata"]["labels"].as_object();
    let labels = labels.into_iter().flatten();
    labels
        .filter_map(|(name, value)| Some((name.clone(), value.as_str()?.to_owned())))
        .collect()
}

impl Tunnel {
    fn read(
        key: &str,
        v4: bool,
        [address, tunnel, mac, ipip]: [(&'static str, Option<String>); 4],
    ) -> Result<Self, Error> {
        let family = if v4 { "IPv4" } else { "IPv6" };
        let wrong = |field, text: &str| {
            let problem = format!("{text:?} is no address of {family}; correct it");
            Error::field(key, field, problem)
        };
        let of = |net: &IpNet| net.addr().is_ipv4() == v4;
        let (field, text) = address;
        let address = text
            .map(|text| net(&text).filter(of).ok_or_else(|| wrong(field, &text)))
            .transpose()?;
        let inner = |(field, text): (_, Option<String>)| {
            text.map(|text| {
                let address = IpAddr::from_str(&text).ok();
                address
                    .filter(|a| a.is_ipv4() == v4)
                    .ok_or_else(|| wrong(field, &text))
            })
            .transpose()
        };
        let (tunnel, ipip) = (inner(tunnel)?, inner(ipip)?);
        let (field, text) = mac;
        let mac = text
            .map(|text| {
                text.parse()
                    .map_err(|error| Error::field(key, field, error))
            })
            .transpose()?;
        Ok(Self {
            address,
            tunnel,
            mac,
            ipip,
        })
    }

    fn texts(&self) -> [Option<String>; 3] {
        [
            self.address.map(|a| a.to_string()),
            self.tunnel.map(|a| a.to_string()),
            self.mac.map(|a| a.to_string()),
        ]
    }
}

/// With or without a length.
pub(super) fn net(text: &str) -> Option<IpNet> {
    let address = || text.parse::<IpAddr>().map(IpNet::from);
    text.parse().or_else(|_| address()).ok()
}

/// Sets, or takes away, what stands at `path`; whatever is no object on the
/// way becomes one.
fn set(root: &mut Json, path: &[&str], text: Option<String>) {
    let Some((last, path)) = path.split_last() else {
        return;
    };
    let mut at = root;
    for name in path {
        if text.is_none() && !at.get(name).is_some_and(Json::is_object) {
            return;
        }
        if !at[*name].is_object() {
            at[*name] = json!({});
        }
        at = &mut at[*name];
    }
    match (text, at.as_object_mut()) {
        (Some(text), _) => at[*last] = text.into(),
        (None, Some(object)) => {
            object.remove(*last);
        }
        (None, None) => {}
    }
}

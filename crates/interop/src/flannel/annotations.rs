//! A lease as Kubernetes holds it: annotations of the Node object, whose pod
//! CIDRs are the subnets.

use std::collections::BTreeMap;

use ipnet::IpNet;

use super::{Endpoint, Lease, Record, SubnetKey, VXLAN};
use crate::Error;

/// Of the annotations' names, where flannel is told no other.
pub const PREFIX: &str = "flannel.alpha.coreos.com/";

const MANAGED: &str = "kube-subnet-manager";
const BACKEND: &str = "backend-type";

/// What one tunnel is told by.
struct Names {
    data: &'static str,
    public: &'static str,
    overwrite: &'static str,
}

const V4: Names = Names {
    data: "backend-data",
    public: "public-ip",
    overwrite: "public-ip-overwrite",
};
const V6: Names = Names {
    data: "backend-v6-data",
    public: "public-ipv6",
    overwrite: "public-ipv6-overwrite",
};

type Annotations = BTreeMap<String, String>;

/// Of a Node object; none where flannel does not run on it.
pub fn lease(
    prefix: &str,
    node: &str,
    pod_cidrs: &[IpNet],
    annotations: &Annotations,
) -> Result<Option<Lease>, Error> {
    let text = |name: &str| {
        annotations
            .get(&format!("{prefix}{name}"))
            .map(String::as_str)
    };
    if text(MANAGED) != Some("true") {
        return Ok(None);
    }
    let mut key = SubnetKey { v4: None, v6: None };
    for cidr in pod_cidrs {
        match cidr.trunc() {
            IpNet::V4(net) => key.v4 = key.v4.or(Some(net)),
            IpNet::V6(net) => key.v6 = key.v6.or(Some(net)),
        }
    }
    if pod_cidrs.is_empty() {
        let problem = "the node has none; run the controller manager with --allocate-node-cidrs";
        return Err(Error::field(node, "spec.podCIDRs", problem));
    }
    let backend = text(BACKEND).unwrap_or_default().to_owned();
    let vxlan = backend == VXLAN;
    let data = |names: &Names| -> Result<Option<Endpoint>, Error> {
        text(names.data)
            // What flannel writes where it has no data of a family.
            .filter(|text| vxlan && !matches!(text.trim(), "" | "null"))
            .map(|text| Endpoint::parse(node, names.data, text))
            .transpose()
    };
    Ok(Some(Lease {
        key,
        record: Record {
            public_v4: public(node, &V4, text)?,
            public_v6: public(node, &V6, text)?,
            v4: data(&V4)?,
            v6: data(&V6)?,
            backend,
        },
    }))
}

/// An administrator's word goes before the node's own.
fn public<'a, A: std::str::FromStr>(
    node: &str,
    names: &Names,
    text: impl Fn(&str) -> Option<&'a str>,
) -> Result<Option<A>, Error> {
    let given = [names.overwrite, names.public]
        .into_iter()
        .find_map(|name| Some((name, text(name)?)));
    given
        .map(|(name, text)| {
            text.parse().map_err(|_| {
                let problem = format!("{text:?} is no address of its family; correct it");
                Error::field(node, name, problem)
            })
        })
        .transpose()
}

/// All that a node is told by, with their prefix.
pub fn write(prefix: &str, record: &Record) -> Annotations {
    let data = |endpoint: Option<Endpoint>| endpoint.map(Endpoint::to_json);
    let pairs = [
        (MANAGED, Some("true".to_owned())),
        (BACKEND, Some(record.backend.clone())),
        (V4.data, data(record.v4)),
        (V4.public, record.public_v4.map(|a| a.to_string())),
        (V6.data, data(record.v6)),
        (V6.public, record.public_v6.map(|a| a.to_string())),
    ];
    let set = pairs.into_iter();
    set.filter_map(|(name, value)| Some((format!("{prefix}{name}"), value?)))
        .collect()
}

/// As [`write()`], for a node that is told by `old` now.
///
/// flannel passes over a change of a node of both families where nothing of
/// its IPv6 part has changed. So a change of the IPv4 part alone adds a space
/// to the IPv6 data, or takes it away: the text is another, its meaning not.
pub fn update(prefix: &str, old: &Annotations, record: &Record) -> Annotations {
    let mut new = write(prefix, record);
    let key = |name: &str| format!("{prefix}{name}");
    let same = |new: &Annotations, name: &str| old.get(&key(name)) == new.get(&key(name));
    let Some(data) = new.get(&key(V6.data)).cloned() else {
        return new;
    };
    let meaning = old
        .get(&key(V6.data))
        .is_some_and(|old| old.trim_end() == data);
    if !meaning || !same(&new, V6.public) || !same(&new, BACKEND) {
        return new;
    }
    let spaced = !same(&new, V6.data);
    let moved = !same(&new, V4.data) || !same(&new, V4.public);
    if spaced != moved {
        new.insert(key(V6.data), format!("{data} "));
    }
    new
}

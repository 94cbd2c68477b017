//! Pods, namespaces and nodes, as far as policies ask about them.

use std::{
    fmt::{self, Display, Formatter},
    net::IpAddr,
};

use serde::Deserialize;

use super::{Labels, Protocol, ports::number};

/// The label that every namespace has, with its own name.
const NAMESPACE_NAME_LABEL: &str = "kubernetes.io/metadata.name";

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    pub name: PodName,
    pub labels: Labels,
    /// None of a pod that has ended, or that lives on its node's network.
    pub addresses: Vec<IpAddr>,
    pub ports: Vec<NamedPort>,
    pub node: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PodName {
    pub namespace: String,
    pub name: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedPort {
    pub name: String,
    pub protocol: Protocol,
    pub port: u16,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Namespace {
    pub name: String,
    /// Its own name among them.
    pub labels: Labels,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    pub name: String,
    pub labels: Labels,
    pub addresses: Vec<IpAddr>,
}

impl Namespace {
    pub(super) fn new(name: String, mut labels: Labels) -> Self {
        labels.set(NAMESPACE_NAME_LABEL, &name);
        Self { name, labels }
    }

    /// One of which only the name is known.
    pub(super) fn nameless(name: &str) -> Self {
        Self::new(name.to_owned(), Labels::default())
    }
}

impl Display for PodName {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct PodSpec {
    node_name: Option<String>,
    host_network: bool,
    containers: Vec<Container>,
    init_containers: Vec<Container>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Container {
    #[serde(default)]
    ports: Vec<ContainerPort>,
    restart_policy: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ContainerPort {
    name: Option<String>,
    container_port: PortNumber,
    protocol: Option<Protocol>,
}

#[derive(Deserialize)]
#[serde(try_from = "i64")]
struct PortNumber(u16);

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct PodStatus {
    phase: Option<String>,
    #[serde(rename = "podIP")]
    pod_ip: Option<IpAddr>,
    #[serde(rename = "podIPs")]
    pod_ips: Vec<PodIp>,
}

#[derive(Deserialize)]
struct PodIp {
    ip: IpAddr,
}

impl PodSpec {
    pub(super) fn pod(self, name: PodName, labels: Labels, status: PodStatus) -> Pod {
        let lasting = |container: &Container| container.restart_policy.as_deref() == Some("Always");
        let sidecars = self.init_containers.into_iter().filter(lasting);
        let ports = self
            .containers
            .into_iter()
            .chain(sidecars)
            .flat_map(|c| c.ports);
        let named = ports.filter_map(|port| {
            Some(NamedPort {
                name: port.name?,
                protocol: port.protocol.unwrap_or_default(),
                port: port.container_port.0,
            })
        });
        let addresses = match self.host_network {
            true => Vec::new(),
            false => status.addresses(),
        };
        Pod {
            name,
            labels,
            addresses,
            ports: named.collect(),
            node: self.node_name.filter(|node| !node.is_empty()),
        }
    }
}

impl PodStatus {
    /// Those of an ended pod may be another's by now.
    fn addresses(self) -> Vec<IpAddr> {
        if matches!(self.phase.as_deref(), Some("Succeeded" | "Failed")) {
            return Vec::new();
        }
        let mut addresses: Vec<_> = self.pod_ips.into_iter().map(|one| one.ip).collect();
        addresses.extend(self.pod_ip);
        addresses.sort_unstable();
        addresses.dedup();
        addresses
    }
}

impl TryFrom<i64> for PortNumber {
    type Error = String;

    fn try_from(text: i64) -> Result<Self, String> {
        number(text).map(Self)
    }
}

#[derive(Default, Deserialize)]
#[serde(default)]
pub(super) struct NodeStatus {
    addresses: Vec<NodeAddress>,
}

#[derive(Deserialize)]
struct NodeAddress {
    address: String,
}

impl NodeStatus {
    /// The addresses among what a node is known by, which are host names too.
    pub(super) fn addresses(self) -> Vec<IpAddr> {
        let texts = self.addresses.into_iter();
        let mut addresses: Vec<_> = texts.filter_map(|one| one.address.parse().ok()).collect();
        addresses.sort_unstable();
        addresses.dedup();
        addresses
    }
}

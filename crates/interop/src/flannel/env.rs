//! `/run/flannel/subnet.env`: what flannel leaves for the CNI plugin.

use std::fmt;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::Error;

/// Each family's network, and the node's subnet in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SubnetEnv {
    pub v4: Option<(Ipv4Net, Ipv4Net)>,
    pub v6: Option<(Ipv6Net, Ipv6Net)>,
    /// Of the pods.
    pub mtu: u16,
    pub masquerade: bool,
}

impl SubnetEnv {
    /// Of the text of file `path`.
    pub fn parse(path: &str, text: &str) -> Result<Self, Error> {
        let find = |name: &str| {
            text.lines()
                .rev()
                .find_map(|line| line.strip_prefix(name)?.strip_prefix('='))
        };
        let net = |field: &'static str| -> Result<Option<IpNet>, Error> {
            find(field)
                .map(|text| text.parse().map(|net: IpNet| net.trunc()))
                .transpose()
                .map_err(|error| Error::field(path, field, error))
        };
        let v4 = match (net("FLANNEL_NETWORK")?, net("FLANNEL_SUBNET")?) {
            (Some(IpNet::V4(network)), Some(IpNet::V4(subnet))) => Some((network, subnet)),
            (None, None) => None,
            _ => {
                let problem = "network and subnet of IPv4 belong together; start flannel again";
                return Err(Error::field(path, "FLANNEL_SUBNET", problem));
            }
        };
        let v6 = match (net("FLANNEL_IPV6_NETWORK")?, net("FLANNEL_IPV6_SUBNET")?) {
            (Some(IpNet::V6(network)), Some(IpNet::V6(subnet))) => Some((network, subnet)),
            (None, None) => None,
            _ => {
                let problem = "network and subnet of IPv6 belong together; start flannel again";
                return Err(Error::field(path, "FLANNEL_IPV6_SUBNET", problem));
            }
        };
        let mtu = find("FLANNEL_MTU").unwrap_or_default();
        Ok(Self {
            v4,
            v6,
            mtu: mtu
                .parse()
                .map_err(|_| Error::field(path, "FLANNEL_MTU", format!("{mtu:?} is no MTU")))?,
            masquerade: find("FLANNEL_IPMASQ") == Some("true"),
        })
    }
}

/// The subnet is written with its first pod address, the bridge's.
impl fmt::Display for SubnetEnv {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some((network, subnet)) = self.v4 {
            let first = u32::from(subnet.addr()).saturating_add(1);
            writeln!(f, "FLANNEL_NETWORK={network}")?;
            let first = std::net::Ipv4Addr::from(first);
            writeln!(f, "FLANNEL_SUBNET={first}/{}", subnet.prefix_len())?;
        }
        if let Some((network, subnet)) = self.v6 {
            let first = u128::from(subnet.addr()).saturating_add(1);
            writeln!(f, "FLANNEL_IPV6_NETWORK={network}")?;
            let first = std::net::Ipv6Addr::from(first);
            writeln!(f, "FLANNEL_IPV6_SUBNET={first}/{}", subnet.prefix_len())?;
        }
        writeln!(f, "FLANNEL_MTU={}", self.mtu)?;
        writeln!(f, "FLANNEL_IPMASQ={}", self.masquerade)
    }
}

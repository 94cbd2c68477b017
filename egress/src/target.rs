//! Where a pod's flow leads to outside.

use std::net::{IpAddr, SocketAddr};

use weft_wire::{Key, protocol};

/// DNS (RFC 1035 section 4.2).
const DOMAIN: u16 = 53;

/// An address that pods ask for names, and the resolver that answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Dns {
    pub address: IpAddr,
    pub resolver: SocketAddr,
}

/// None where no pod may go: the node's own loopback, and what names no host.
pub fn target(key: &Key, dns: Option<Dns>) -> Option<SocketAddr> {
    let ports = [protocol::TCP, protocol::UDP].contains(&key.protocol);
    let port = if ports { key.dst_port } else { 0 };
    if let Some(dns) = dns
        && ports
        && (key.dst, port) == (dns.address, DOMAIN)
    {
        return Some(dns.resolver);
    }
    let named = !ports || port != 0;
    (named && is_outside(key.dst)).then_some(SocketAddr::new(key.dst, port))
}

/// Whether that names a host besides this one.
pub fn is_outside(address: IpAddr) -> bool {
    // The kernel takes the unspecified address, and IPv4 written as IPv6, for
    // ways to itself too.
    let refused = address.is_loopback() || address.is_unspecified() || address.is_multicast();
    match address {
        IpAddr::V4(v4) => {
            !refused && !v4.is_broadcast() && !v4.is_link_local() && v4.octets()[0] != 0
        }
        IpAddr::V6(v6) => !refused && v6.to_ipv4_mapped().is_none() && !v6.is_unicast_link_local(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(dst: &str, dst_port: u16) -> Key {
        Key {
            src: "10.1.0.1".parse().expect("an address"),
            dst: dst.parse().expect("an address"),
            protocol: protocol::TCP,
            src_port: 4000,
            dst_port,
        }
    }

    #[test]
    fn no_flow_leads_into_the_node() {
        for dst in [
            "127.0.0.1",
            "127.9.9.9",
            "0.0.0.0",
            "0.1.2.3",
            "255.255.255.255",
            "224.0.0.1",
            "169.254.169.254",
            "::1",
            "::",
            "::ffff:127.0.0.1",
            "::ffff:192.0.2.1",
            "ff02::1",
            "fe80::1",
        ] {
            assert_eq!(target(&key(dst, 80), None), None, "{dst}");
        }
        for dst in ["192.0.2.1", "2001:db8::1", "10.0.0.1"] {
            assert!(target(&key(dst, 80), None).is_some(), "{dst}");
            assert_eq!(target(&key(dst, 0), None), None, "port 0 is none");
        }
    }

    #[test]
    fn names_are_asked_of_the_resolver() {
        let dns = Dns {
            address: "198.18.0.53".parse().expect("an address"),
            resolver: "127.0.0.53:53".parse().expect("an address"),
        };
        let by = |port| target(&key("198.18.0.53", port), Some(dns));
        assert_eq!(by(53), Some(dns.resolver));
        assert_eq!(by(80), "198.18.0.53:80".parse().ok());
    }
}

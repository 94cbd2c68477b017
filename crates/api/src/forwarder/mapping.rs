//! Ports of the node that stand for ports of a pod.

use std::{fmt, net::IpAddr, num::NonZeroU16};

use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PortMapping {
    pub host_port: NonZeroU16,
    pub container_port: NonZeroU16,
    pub protocol: Protocol,
    /// The node's address; the unspecified one stands for all of its family,
    /// none for all of both.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_ip: Option<IpAddr>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Protocol {
    Tcp,
    Udp,
    Sctp,
}

impl Protocol {
    pub fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        }
    }
}

impl PortMapping {
    /// Whether a packet to the node could be meant for either.
    pub fn collides(&self, other: &Self) -> bool {
        let addresses = match (self.host_ip, other.host_ip) {
            (None, _) | (_, None) => true,
            (Some(one), Some(two)) => {
                one == two
                    || one.is_ipv4() == two.is_ipv4()
                        && (one.is_unspecified() || two.is_unspecified())
            }
        };
        addresses && self.host_port == other.host_port && self.protocol == other.protocol
    }

    /// The two places in a list that collide, if any do.
    pub fn collision(list: &[Self]) -> Option<(usize, usize)> {
        (0..list.len()).find_map(|second| {
            let first = list[..second]
                .iter()
                .position(|one| one.collides(&list[second]))?;
            Some((first, second))
        })
    }

    /// The node's side, for people: `192.0.2.1:8080/tcp`, `*:8080/tcp`.
    pub fn published(&self) -> impl fmt::Display {
        let (port, protocol) = (self.host_port, self.protocol.name());
        match self.host_ip {
            None => format!("*:{port}/{protocol}"),
            Some(IpAddr::V4(ip)) => format!("{ip}:{port}/{protocol}"),
            Some(IpAddr::V6(ip)) => format!("[{ip}]:{port}/{protocol}"),
        }
    }
}

/// `192.0.2.1:8080/tcp to 80`
impl fmt::Display for PortMapping {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} to {}", self.published(), self.container_port)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mapping(text: &str) -> PortMapping {
        let (ip, protocol) = text.split_once(' ').expect("an address and a protocol");
        let json = match ip {
            "*" => format!(r#"{{"host_port":80,"container_port":8080,"protocol":"{protocol}"}}"#),
            ip => format!(
                r#"{{"host_port":80,"container_port":8080,"protocol":"{protocol}","host_ip":"{ip}"}}"#
            ),
        };
        serde_json::from_str(&json).expect("a mapping")
    }

    #[test]
    fn an_unspecified_address_collides_with_all_of_its_family() {
        for (one, two, collide) in [
            ("* tcp", "* tcp", true),
            ("* tcp", "* udp", false),
            ("* tcp", "192.0.2.1 tcp", true),
            ("* tcp", ":: tcp", true),
            ("0.0.0.0 tcp", "192.0.2.1 tcp", true),
            ("0.0.0.0 tcp", "2001:db8::1 tcp", false),
            ("0.0.0.0 tcp", ":: tcp", false),
            (":: sctp", "2001:db8::1 sctp", true),
            ("192.0.2.1 tcp", "192.0.2.1 tcp", true),
            ("192.0.2.1 tcp", "192.0.2.2 tcp", false),
        ] {
            assert_eq!(mapping(one).collides(&mapping(two)), collide, "{one} {two}");
            assert_eq!(mapping(two).collides(&mapping(one)), collide, "{two} {one}");
        }
        let mut other_port = mapping("* tcp");
        other_port.host_port = other_port.container_port;
        assert!(!other_port.collides(&mapping("* tcp")));
    }

    #[test]
    fn a_list_that_collides_with_itself_says_where() {
        let list = ["192.0.2.1 tcp", "192.0.2.1 udp", "0.0.0.0 udp"].map(mapping);
        assert_eq!(PortMapping::collision(&list), Some((1, 2)));
        assert_eq!(PortMapping::collision(&list[..2]), None);
    }

    #[test]
    fn a_mapping_reads_well() {
        assert_eq!(mapping("* tcp").to_string(), "*:80/tcp to 8080");
        assert_eq!(mapping(":: udp").to_string(), "[::]:80/udp to 8080");
    }
}

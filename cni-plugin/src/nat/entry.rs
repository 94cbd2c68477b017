//! What is published: for a port of the node, the pod's address and port; and
//! the form that the kernel's maps have it in.

use std::{
    collections::BTreeSet,
    fmt,
    net::{IpAddr, SocketAddr},
    num::NonZeroU16,
};

use weft_api::forwarder::{Port, PortMapping, PortState, Protocol};

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Family {
    V4,
    V6,
}

impl Family {
    pub const ALL: [Self; 2] = [Self::V4, Self::V6];

    pub fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }

    /// NFPROTO_IPV4 and NFPROTO_IPV6.
    pub fn number(self) -> u8 {
        match self {
            Self::V4 => 2,
            Self::V6 => 10,
        }
    }

    /// Of an address, in bytes.
    pub fn length(self) -> u32 {
        match self {
            Self::V4 => 4,
            Self::V6 => 16,
        }
    }

    /// Of an address, in registers of 32 bits.
    pub fn registers(self) -> u32 {
        self.length() / 4
    }
}

/// One line of a map.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Entry {
    /// None where every address of the node will do.
    pub host_ip: Option<IpAddr>,
    pub protocol: Protocol,
    pub host_port: u16,
    pub to: SocketAddr,
}

impl Entry {
    /// What the forwarder's ports publish, as far as their pods have an
    /// address of the family. Pods that are gone publish nothing.
    pub fn all(ports: &[Port]) -> BTreeSet<Self> {
        let up = ports.iter().filter(|port| port.state == PortState::Up);
        up.flat_map(Self::of).collect()
    }

    pub fn of(port: &Port) -> Vec<Self> {
        let mappings = &port.capabilities.port_mappings;
        let entry = |mapping: &PortMapping, address: IpAddr| {
            let fits = mapping
                .host_ip
                .is_none_or(|ip| ip.is_ipv4() == address.is_ipv4());
            fits.then(|| Self {
                host_ip: mapping.host_ip.filter(|ip| !ip.is_unspecified()),
                protocol: mapping.protocol,
                host_port: mapping.host_port.get(),
                to: (address, mapping.container_port.get()).into(),
            })
        };
        // A port of the node leads to one address of a family: the first.
        let first = |v4| port.addresses.iter().copied().find(|a| a.is_ipv4() == v4);
        let addresses = [first(true), first(false)];
        let entries = mappings.iter().flat_map(|mapping| {
            let addresses = addresses.into_iter().flatten();
            addresses.filter_map(move |address| entry(mapping, address))
        });
        entries.collect()
    }

    pub fn map(&self) -> Map {
        Map {
            family: Family::of(self.to.ip()),
            by_address: self.host_ip.is_some(),
        }
    }

    pub fn key(&self) -> Vec<u8> {
        let mut key = Vec::new();
        if let Some(ip) = self.host_ip {
            put_address(&mut key, ip);
        }
        key.extend([number(self.protocol), 0, 0, 0]);
        put_port(&mut key, self.host_port);
        key
    }

    pub fn value(&self) -> Vec<u8> {
        let mut value = Vec::new();
        put_address(&mut value, self.to.ip());
        put_port(&mut value, self.to.port());
        value
    }

    /// The entry that [`Entry::key`] and [`Entry::value`] are of.
    pub fn parse(map: Map, key: &[u8], value: &[u8]) -> Option<Self> {
        let mut key = key;
        let host_ip = match map.by_address {
            true => Some(take_address(map.family, &mut key)?),
            false => None,
        };
        let protocol = protocol(*key.first()?)?;
        let host_port = take_port(key.get(4..)?)?;
        let mut value = value;
        let address = take_address(map.family, &mut value)?;
        Some(Self {
            host_ip,
            protocol,
            host_port,
            to: (address, take_port(value)?).into(),
        })
    }
}

/// `*:8080/tcp to 10.244.1.2:80`
impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host_ip {
            Some(ip) => write!(f, "{}", SocketAddr::new(ip, self.host_port))?,
            None => write!(f, "*:{}", self.host_port)?,
        }
        write!(f, "/{} to {}", self.protocol.name(), self.to)
    }
}

/// One of the kernel's maps. Those by address come first in each family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Map {
    pub family: Family,
    pub by_address: bool,
}

impl Map {
    pub const ALL: [Self; 4] = [
        Self::new(Family::V4, true),
        Self::new(Family::V4, false),
        Self::new(Family::V6, true),
        Self::new(Family::V6, false),
    ];

    const fn new(family: Family, by_address: bool) -> Self {
        Self { family, by_address }
    }

    pub fn name(self) -> &'static str {
        match (self.family, self.by_address) {
            (Family::V4, true) => "ports-by-address-v4",
            (Family::V4, false) => "ports-v4",
            (Family::V6, true) => "ports-by-address-v6",
            (Family::V6, false) => "ports-v6",
        }
    }

    /// In bytes, each field filled up to a register.
    pub fn key_length(self) -> u32 {
        let address = if self.by_address {
            self.family.length()
        } else {
            0
        };
        address + 4 + 4
    }

    pub fn value_length(self) -> u32 {
        self.family.length() + 4
    }

    /// For who lists the ruleset: six bits for each field, as `nft` numbers
    /// types (nftables, include/datatype.h).
    pub fn key_type(self) -> u32 {
        let address = if self.by_address {
            self.address_type()
        } else {
            0
        };
        (address << 6 | INET_PROTO) << 6 | INET_SERVICE
    }

    pub fn value_type(self) -> u32 {
        self.address_type() << 6 | INET_SERVICE
    }

    fn address_type(self) -> u32 {
        match self.family {
            Family::V4 => 7,
            Family::V6 => 8,
        }
    }
}

const INET_PROTO: u32 = 12;
const INET_SERVICE: u32 = 13;

/// As IP has it.
pub fn number(protocol: Protocol) -> u8 {
    match protocol {
        Protocol::Tcp => 6,
        Protocol::Udp => 17,
        Protocol::Sctp => 132,
    }
}

fn protocol(found: u8) -> Option<Protocol> {
    let all = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp];
    all.into_iter().find(|protocol| number(*protocol) == found)
}

fn put_address(bytes: &mut Vec<u8>, address: IpAddr) {
    match address {
        IpAddr::V4(v4) => bytes.extend(v4.octets()),
        IpAddr::V6(v6) => bytes.extend(v6.octets()),
    }
}

fn put_port(bytes: &mut Vec<u8>, port: u16) {
    bytes.extend(port.to_be_bytes());
    bytes.extend([0, 0]);
}

fn take_address(family: Family, bytes: &mut &[u8]) -> Option<IpAddr> {
    match family {
        Family::V4 => {
            let (address, rest) = bytes.split_first_chunk::<4>()?;
            *bytes = rest;
            Some((*address).into())
        }
        Family::V6 => {
            let (address, rest) = bytes.split_first_chunk::<16>()?;
            *bytes = rest;
            Some((*address).into())
        }
    }
}

fn take_port(bytes: &[u8]) -> Option<u16> {
    let port = u16::from_be_bytes(*bytes.first_chunk()?);
    NonZeroU16::new(port).map(NonZeroU16::get)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn port(name: &str, state: &str, addresses: &[&str], mappings: &Value) -> Port {
        let nothing = json!({"packets": 0, "bytes": 0});
        let port = json!({"name": name, "driver": "tap", "state": state,
            "mac": "02:00:00:00:00:01", "addresses": addresses, "mtu": 1450, "queues": 1,
            "uso": true, "capabilities": {"port_mappings": mappings}, "age_ms": 1,
            "from_pod": nothing, "to_pod": nothing});
        serde_json::from_value(port).expect("a port")
    }

    fn mapping(port: u16, protocol: &str, ip: Option<&str>) -> Value {
        let mut mapping = json!({"host_port": port, "container_port": 53, "protocol": protocol});
        if let Some(ip) = ip {
            mapping["host_ip"] = ip.into();
        }
        mapping
    }

    fn told(ports: &[Port]) -> Vec<String> {
        Entry::all(ports).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_mapping_leads_where_the_pod_has_an_address_of_the_family() {
        let both = ["10.1.0.2", "fd00::2"];
        for (addresses, ip, expected) in [
            (
                &both[..],
                None,
                &["*:80/tcp to 10.1.0.2:53", "*:80/tcp to [fd00::2]:53"][..],
            ),
            (&both[..1], None, &["*:80/tcp to 10.1.0.2:53"]),
            (&both, Some("0.0.0.0"), &["*:80/tcp to 10.1.0.2:53"]),
            (&both, Some("::"), &["*:80/tcp to [fd00::2]:53"]),
            (
                &both,
                Some("192.0.2.1"),
                &["192.0.2.1:80/tcp to 10.1.0.2:53"],
            ),
            (&both[1..], Some("192.0.2.1"), &[]),
            (
                &["10.1.0.2", "10.1.0.3"],
                None,
                &["*:80/tcp to 10.1.0.2:53"],
            ),
        ] {
            let mappings = json!([mapping(80, "tcp", ip)]);
            let ports = [port("p", "up", addresses, &mappings)];
            assert_eq!(told(&ports), expected, "{addresses:?} {ip:?}");
        }
    }

    #[test]
    fn who_is_gone_publishes_nothing() {
        let mappings = json!([mapping(80, "udp", None)]);
        let gone = port("one", "gone", &["10.1.0.2"], &mappings);
        let up = port("two", "up", &["10.1.0.3"], &mappings);
        assert_eq!(told(&[gone, up]), ["*:80/udp to 10.1.0.3:53"]);
    }

    #[test]
    fn what_the_kernel_holds_is_what_was_put_there() {
        let mappings = json!([
            mapping(1, "tcp", None),
            mapping(65535, "udp", Some("192.0.2.1")),
            mapping(9, "sctp", Some("2001:db8::1")),
        ]);
        let port = port("p", "up", &["10.1.0.2", "fd00::2"], &mappings);
        let entries = Entry::of(&port);
        assert_eq!(entries.len(), 4);
        for entry in entries {
            let (map, key, value) = (entry.map(), entry.key(), entry.value());
            let lengths = (map.key_length() as usize, map.value_length() as usize);
            assert_eq!((key.len(), value.len()), lengths, "{entry}");
            assert_eq!(Entry::parse(map, &key, &value), Some(entry));
            for short in 0..key.len() - 3 {
                assert_eq!(Entry::parse(map, &key[..short], &value), None);
            }
            assert_eq!(Entry::parse(map, &key, &value[..4]), None);
        }
    }
}

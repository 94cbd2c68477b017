//! The configuration file: TOML, every key optional, no key unknown. What
//! leaves this file is complete and within its limits.

use std::{
    collections::BTreeMap,
    fs, io,
    net::{IpAddr, SocketAddr},
    num::NonZero,
    path::{Path, PathBuf},
    thread,
};

use ipnet::IpNet;
use nix::ifaddrs::getifaddrs;
use serde::Deserialize;
use weft_api::{
    forwarder::{DEFAULT_PORT, sound},
    ipam,
    names::{Mac, Name, Vni},
};

use crate::{sys, uplink::UplinkConfig};

/// Workers that start unless told otherwise, where the machine has the
/// processors: more pay only with as many busy flows.
const WORKERS_DEFAULT: usize = 4;
const WORKERS_MAX: usize = 256;
const ENTROPY_PORTS_DEFAULT: u16 = 16;
const ENTROPY_PORTS_MAX: u16 = 1024;
/// Ethernet's MTU (IEEE 802.3), where no interface says otherwise.
const MTU_DEFAULT: u16 = 1500;
/// Every IPv4 link carries so much (RFC 791).
const MTU_MIN: u16 = 576;
const MODE_DEFAULT: u32 = 0o600;

#[derive(Debug, Clone)]
pub struct Config {
    pub node: Name,
    pub workers: usize,
    pub vtep_mac: Mac,
    pub metrics: Option<SocketAddr>,
    pub uplink: UplinkConfig,
    pub vni: Vni,
    /// The control socket's file mode.
    pub mode: u32,
    /// Who may connect besides root and the forwarder's own user.
    pub uids: Vec<u32>,
    /// The socket of the IPAM server to follow.
    pub ipam: Option<PathBuf>,
    /// Makes the node known to that server, so long as it runs.
    pub register: bool,
    /// Of the node that registers, for the pools' node selectors.
    pub labels: BTreeMap<String, String>,
}

#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("read {}: {error}; name a readable file or leave --config out", path.display())]
    Read { path: PathBuf, error: io::Error },
    #[error("{}: {problem}", path.display())]
    Parse {
        path: PathBuf,
        problem: toml::de::Error,
    },
    #[error("{key}: {problem}; {remedy}")]
    Value {
        key: &'static str,
        problem: String,
        remedy: String,
    },
}

impl Config {
    /// The file at `path`, or the defaults without one, with `place` in the
    /// stead of what it says of the node.
    pub fn load(path: Option<&Path>, place: Place) -> Result<Self, ConfigError> {
        let mut file = path.map_or_else(|| Ok(File::default()), File::read)?;
        file.node = place.node.or(file.node);
        if !place.underlay.is_empty() {
            file.uplink.addresses = place.underlay;
        }
        file.complete()
    }

    pub fn set_workers(&mut self, workers: usize) -> Result<(), ConfigError> {
        self.workers = within("workers", workers, 1, WORKERS_MAX)?;
        Ok(())
    }

    /// What the node tells the IPAM server of itself, if it is to.
    pub fn registration(&self) -> Result<Option<ipam::Node>, ConfigError> {
        if !self.register {
            return Ok(None);
        }
        let refuse = |problem: &str, remedy: &str| Err(value("ipam.register", problem, remedy));
        if self.ipam.is_none() {
            return refuse("there is no IPAM server", "name its socket by ipam.socket");
        }
        if self.uplink.addresses.is_empty() {
            return refuse(
                "there is no address to register",
                "list the node's addresses in uplink.addresses",
            );
        }
        let underlay = subnets_of(&self.uplink.addresses)
            .map_err(|problem| value("ipam.register", problem, "set ipam.register to false"))?;
        Ok(Some(ipam::Node {
            name: self.node.clone(),
            underlay,
            vtep_mac: self.vtep_mac,
            vni: self.vni,
            port: self.uplink.port,
            tunnel: Vec::new(),
            labels: self.labels.clone(),
            registered: None,
        }))
    }
}

/// What differs from node to node where they share a file.
#[derive(Debug, Clone, Default)]
pub struct Place {
    pub node: Option<Name>,
    pub underlay: Vec<IpAddr>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct File {
    node: Option<Name>,
    workers: Option<usize>,
    vtep_mac: Option<Mac>,
    metrics: Option<SocketAddr>,
    uplink: Uplink,
    control: Control,
    ipam: Ipam,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Uplink {
    addresses: Vec<IpAddr>,
    port: u16,
    vni: Vni,
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
            port: DEFAULT_PORT,
            vni: Vni::DEFAULT,
            mtu: None,
            entropy_ports: ENTROPY_PORTS_DEFAULT,
            gso: true,
            gro: true,
            ipip: true,
        }
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Control {
    mode: Option<String>,
    uids: Vec<u32>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Ipam {
    socket: Option<PathBuf>,
    register: bool,
    labels: BTreeMap<String, String>,
}

impl File {
    fn read(path: &Path) -> Result<Self, ConfigError> {
        let text = fs::read_to_string(path).map_err(|error| ConfigError::Read {
            path: path.to_owned(),
            error,
        })?;
        toml::from_str(&text).map_err(|problem| ConfigError::Parse {
            path: path.to_owned(),
            problem,
        })
    }

    fn complete(self) -> Result<Config, ConfigError> {
        let node = match self.node {
            Some(node) => node,
            None => hostname()?,
        };
        let vtep_mac = match self.vtep_mac {
            Some(mac) => sound::unicast_mac(mac)
                .map_err(|problem| value("vtep_mac", problem, "give a unicast MAC"))?,
            None => mac_of(&node),
        };
        let mut config = Config {
            node,
            workers: 0,
            vtep_mac,
            metrics: self.metrics,
            vni: self.uplink.vni,
            uplink: self.uplink.complete()?,
            mode: self.control.mode()?,
            uids: self.control.uids,
            ipam: self.ipam.socket,
            register: self.ipam.register,
            labels: self.ipam.labels,
        };
        config.set_workers(self.workers.unwrap_or_else(default_workers))?;
        Ok(config)
    }
}

impl Uplink {
    fn complete(self) -> Result<UplinkConfig, ConfigError> {
        let key = "uplink.addresses";
        sound::underlay(&self.addresses)
            .map_err(|problem| value(key, problem, "list the node's addresses that peers reach"))?;
        if self.port == 0 {
            return Err(value("uplink.port", "port 0 is none", "give 1 to 65535"));
        }
        let entropy_ports = within(
            "uplink.entropy_ports",
            self.entropy_ports,
            1,
            ENTROPY_PORTS_MAX,
        )?;
        let mtu = self.mtu()?;
        Ok(UplinkConfig {
            addresses: self.addresses,
            port: self.port,
            mtu,
            entropy_ports,
            gso: self.gso,
            gro: self.gro,
            ipip: self.ipip,
        })
    }

    /// What the file says, else the least MTU among the interfaces that hold
    /// the addresses.
    fn mtu(&self) -> Result<u16, ConfigError> {
        if let Some(mtu) = self.mtu {
            return within("uplink.mtu", mtu, MTU_MIN, u16::MAX);
        }
        let found = interfaces_of(&self.addresses)
            .map_err(|problem| value("uplink.mtu", problem, "set it by hand"))?;
        let least = found
            .iter()
            .filter_map(|interface| sys::link::mtu(interface).ok())
            .min();
        within(
            "uplink.mtu",
            least.unwrap_or(MTU_DEFAULT),
            MTU_MIN,
            u16::MAX,
        )
    }
}

impl Control {
    fn mode(&self) -> Result<u32, ConfigError> {
        let Some(text) = &self.mode else {
            return Ok(MODE_DEFAULT);
        };
        match u32::from_str_radix(text, 8) {
            Ok(mode) if mode <= 0o777 => Ok(mode),
            _ => Err(value(
                "control.mode",
                format!("{text:?} is no file mode"),
                "give three octal digits, as \"0660\"",
            )),
        }
    }
}

fn hostname() -> Result<Name, ConfigError> {
    let remedy = "name the node in the configuration: node = \"…\"";
    let text = fs::read_to_string("/proc/sys/kernel/hostname").map_err(|e| {
        value(
            "node",
            format!("the host's name cannot be read: {e}"),
            remedy,
        )
    })?;
    Name::new(text.trim()).map_err(|e| value("node", e, remedy))
}

/// A locally administered unicast MAC: the low 48 bits of the name's FNV-1a
/// hash with the two lowest bits of the first byte set to `10`.
pub fn mac_of(node: &Name) -> Mac {
    let hash = node
        .as_str()
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
        });
    let [_, _, first, b, c, d, e, f] = hash.to_be_bytes();
    Mac([first & 0xfc | 0x02, b, c, d, e, f])
}

fn interfaces_of(addresses: &[IpAddr]) -> io::Result<Vec<String>> {
    let holds = |storage: Option<nix::sys::socket::SockaddrStorage>| {
        let Some(storage) = storage else { return false };
        let v4 = storage.as_sockaddr_in().map(|a| IpAddr::from(a.ip()));
        let v6 = storage.as_sockaddr_in6().map(|a| IpAddr::from(a.ip()));
        v4.or(v6)
            .is_some_and(|address| addresses.contains(&address))
    };
    let found = getifaddrs()?
        .filter(|i| holds(i.address))
        .map(|i| i.interface_name);
    Ok(found.collect())
}

/// Each with the prefix that its interface has, or alone.
fn subnets_of(addresses: &[IpAddr]) -> io::Result<Vec<IpNet>> {
    let ip = |storage: Option<nix::sys::socket::SockaddrStorage>| {
        let storage = storage?;
        let v4 = storage.as_sockaddr_in().map(|a| IpAddr::from(a.ip()));
        let v6 = storage.as_sockaddr_in6().map(|a| IpAddr::from(a.ip()));
        v4.or(v6)
    };
    let found: Vec<_> = getifaddrs()?
        .filter_map(|one| IpNet::with_netmask(ip(one.address)?, ip(one.netmask)?).ok())
        .collect();
    let subnet = |address: &IpAddr| {
        let known = found.iter().find(|net| net.addr() == *address);
        known.copied().unwrap_or_else(|| IpNet::from(*address))
    };
    Ok(addresses.iter().map(subnet).collect())
}

fn default_workers() -> usize {
    thread::available_parallelism()
        .map_or(1, NonZero::get)
        .min(WORKERS_DEFAULT)
}

fn within<T>(key: &'static str, given: T, least: T, most: T) -> Result<T, ConfigError>
where
    T: PartialOrd + std::fmt::Display,
{
    if given < least || given > most {
        let problem = format!("{given} is out of range");
        return Err(value(key, problem, format!("give {least} to {most}")));
    }
    Ok(given)
}

fn value(key: &'static str, problem: impl ToString, remedy: impl ToString) -> ConfigError {
    ConfigError::Value {
        key,
        problem: problem.to_string(),
        remedy: remedy.to_string(),
    }
}

#[cfg(test)]
mod tests;

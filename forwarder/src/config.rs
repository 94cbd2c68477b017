//! The configuration file: TOML, every key optional, no key unknown. What
//! leaves this file is complete and within its limits.

mod probes;
mod uplink;

use std::{
    collections::BTreeMap,
    fs, io,
    net::{IpAddr, SocketAddr},
    num::NonZero,
    path::{Path, PathBuf},
    thread,
};

use serde::Deserialize;
use weft_api::{
    forwarder::sound,
    ipam,
    names::{Mac, Name, Vni},
};

use crate::{
    links,
    nodes::{self, NodesError},
    paths::ProbesConfig,
    uplink::UplinkConfig,
};
use probes::Probes;
use uplink::Uplink;

/// Workers that start unless told otherwise, where the machine has the
/// processors: more pay only with as many busy flows.
const WORKERS_DEFAULT: usize = 4;
const WORKERS_MAX: usize = 256;
const MODE_DEFAULT: u32 = 0o600;

#[derive(Debug, Clone)]
pub struct Config {
    pub node: Name,
    pub workers: usize,
    pub vtep_mac: Mac,
    pub metrics: Option<SocketAddr>,
    pub uplink: UplinkConfig,
    pub probes: ProbesConfig,
    pub vni: Vni,
    /// The control socket's file mode.
    pub mode: u32,
    /// Who may connect besides root and the forwarder's own user.
    pub uids: Vec<u32>,
    /// The file that names all nodes.
    pub nodes: Option<PathBuf>,
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
    #[error(transparent)]
    Nodes(#[from] NodesError),
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
        file.nodes = place.nodes.or(file.nodes);
        if !place.underlay.is_empty() {
            file.uplink.addresses = place.underlay;
        }
        file.complete()
    }

    pub fn set_workers(&mut self, workers: usize) -> Result<(), ConfigError> {
        self.workers = within("workers", workers, 1, WORKERS_MAX)?;
        Ok(())
    }

    /// At most one may say what nodes there are.
    pub fn check_sources(&self) -> Result<(), ConfigError> {
        match (&self.nodes, &self.ipam) {
            (Some(file), Some(socket)) => Err(value(
                "nodes",
                format!(
                    "both the file {} and the IPAM server at {} would say what nodes there are",
                    file.display(),
                    socket.display()
                ),
                "name one of them",
            )),
            _ => Ok(()),
        }
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
        let underlay = links::subnets_of(&self.uplink.addresses)
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
    pub nodes: Option<PathBuf>,
    pub underlay: Vec<IpAddr>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct File {
    node: Option<Name>,
    nodes: Option<PathBuf>,
    workers: Option<usize>,
    vtep_mac: Option<Mac>,
    metrics: Option<SocketAddr>,
    uplink: Uplink,
    probes: Probes,
    control: Control,
    ipam: Ipam,
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

    fn complete(mut self) -> Result<Config, ConfigError> {
        let node = match self.node {
            Some(node) => node,
            None => hostname()?,
        };
        if let Some(file) = &self.nodes {
            self.uplink.adopt(&nodes::read_as(file, &node)?.node);
        }
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
            probes: self.probes.complete()?,
            mode: self.control.mode()?,
            uids: self.control.uids,
            nodes: self.nodes,
            ipam: self.ipam.socket,
            register: self.ipam.register,
            labels: self.ipam.labels,
        };
        config.set_workers(self.workers.unwrap_or_else(default_workers))?;
        Ok(config)
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

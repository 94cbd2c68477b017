//! The network configuration on stdin.

use std::{net::IpAddr, path::PathBuf};

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use weft_api::{
    ipam::{Attachment, Family},
    names::Name,
};

use super::{Args, Dns, Failure, Outcome, Route, Runtime, Version, code, environment::identifier};

/// Longest configuration in bytes; a result of a thousand interfaces fits.
pub const CONFIG_MAX: usize = 8 << 20;

/// Where GC finds the attachments that exist. Both names are in use.
pub const VALID_ATTACHMENTS: [&str; 2] = ["cni.dev/valid-attachments", "cni.dev/attachments"];

const FORWARDER: &str = "/run/weft/forwarder.sock";
const IPAM: &str = "/run/weft/ipam.sock";

/// 1500 bytes of Ethernet less 50 of VXLAN over IPv4 (RFC 7348 section 5).
const MTU: u16 = 1450;
/// The smallest an IPv4 host must take (RFC 791).
const MTU_MIN: u16 = 576;

#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    pub version: Version,
    pub name: Name,
    pub previous: Option<Outcome>,
    pub runtime: Runtime,
    pub dns: Dns,
    pub attach: Attach,
    pub queues: usize,
    pub mtu: u16,
    pub forwarder: PathBuf,
    /// The node's name; the forwarder knows it too.
    pub node: Option<Name>,
    pub ipam: Ipam,
    /// On GC: those that exist; others are stale.
    pub valid: Option<Vec<Attachment>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Attach {
    Tap,
    Veth,
}

/// Who gives out addresses.
#[derive(Debug, Clone, PartialEq)]
pub enum Ipam {
    Weft(Weft),
    /// The plugin of that name.
    Delegate(String),
}

#[derive(Debug, Clone, PartialEq)]
pub struct Weft {
    pub socket: PathBuf,
    pub pools: Vec<String>,
    pub families: Vec<Family>,
    /// Whether an address is given out with its block's prefix instead of as
    /// a host of its own. For plugins that delegate.
    pub whole_block: bool,
    /// Where to a whole block's hosts go; each is given out with the
    /// addresses of the block that it lies in.
    pub gateways: Vec<IpAddr>,
    /// Given out with each address.
    pub routes: Vec<Route>,
    /// Who gets the same addresses again, where `sticky` is asked for and the
    /// runtime names the pod.
    pub identity: Option<Name>,
    sticky: bool,
}

impl Weft {
    /// A pod's name is its identity only if the pod that comes after it has
    /// the same one: so it is a StatefulSet's, and not a Deployment's. Namespace
    /// and name of a StatefulSet's pod, 63 bytes each, fit a name.
    fn identify(&mut self, args: &Args) {
        let pod = args.pod_namespace.as_ref().zip(args.pod_name.as_ref());
        self.identity = pod
            .filter(|_| self.sticky)
            .and_then(|(namespace, name)| Name::new(format!("{namespace}/{name}")).ok());
    }
}

impl Config {
    pub fn parse(bytes: &[u8]) -> Result<Self, Failure> {
        Self::parse_for(bytes, &Args::default())
    }

    /// Without what is asked for one pod.
    fn of_map(map: &Map<String, Value>) -> Result<Self, Failure> {
        let version = version(map)?;
        let name: String = needed(map, "name")?;
        let name = identifier("name", &name, code::CONFIG)?;
        let _type: String = needed(map, "type")?;
        let previous = match map.get("prevResult") {
            None | Some(Value::Null) => None,
            Some(value) => Some(Outcome::parse("prevResult", value.clone(), version)?),
        };
        let queues = field(map, "queues")?.unwrap_or(1);
        if !(1..=weft_api::forwarder::QUEUES_MAX).contains(&queues) {
            return Err(invalid("queues", map, "use 1 to 64"));
        }
        let mtu = field(map, "mtu")?.unwrap_or(MTU);
        if mtu < MTU_MIN {
            return Err(invalid("mtu", map, "use 576 to 65535"));
        }
        Ok(Self {
            version,
            previous,
            runtime: Runtime::default(),
            dns: field(map, "dns")?.unwrap_or_default(),
            attach: attach(map)?,
            queues,
            mtu,
            forwarder: socket(map, "forwarder", FORWARDER)?,
            node: field(map, "node")?,
            ipam: ipam(map)?,
            valid: valid(map, &name)?,
            name,
        })
    }

    /// The configuration with what is asked for one pod, by CNI_ARGS too.
    pub fn parse_for(bytes: &[u8], args: &Args) -> Result<Self, Failure> {
        let map = object(bytes)?;
        let mut config = Self::of_map(&map)?;
        config.runtime = Runtime::parse(&map, args, &config.ipam)?;
        if let Ipam::Weft(weft) = &mut config.ipam {
            weft.identify(args);
        }
        Ok(config)
    }

    /// The configuration of a DEL. A runtime deletes what ADD has refused,
    /// with what ADD has refused it for: only where resources are is read.
    pub fn parse_for_del(bytes: &[u8]) -> Result<Self, Failure> {
        const READ: [&str; 6] = ["cniVersion", "name", "type", "forwarder", "node", "ipam"];

        let mut map = object(bytes)?;
        map.retain(|key, _| READ.contains(&key.as_str()));
        Self::of_map(&map)
    }

    /// The version that a configuration names, spoken or not.
    pub fn named_version(bytes: &[u8]) -> Option<String> {
        let map = object(bytes).ok()?;
        map.get("cniVersion")?.as_str().map(str::to_owned)
    }
}

fn object(bytes: &[u8]) -> Result<Map<String, Value>, Failure> {
    if bytes.len() > CONFIG_MAX {
        return Err(Failure::new(
            code::DECODE,
            format!("the configuration has more than {CONFIG_MAX} bytes; shorten it"),
        ));
    }
    match serde_json::from_slice(bytes) {
        Ok(Value::Object(map)) => Ok(map),
        Ok(_) => Err(Failure::new(
            code::DECODE,
            "the configuration on stdin is no JSON object",
        )),
        Err(error) => Err(Failure::new(
            code::DECODE,
            "the configuration on stdin is no JSON; give one network configuration",
        )
        .with_details(error.to_string())),
    }
}

fn version(map: &Map<String, Value>) -> Result<Version, Failure> {
    // The specification's meaning of silence.
    let named: Option<String> = field(map, "cniVersion")?;
    named.as_deref().unwrap_or("0.1.0").parse()
}

/// A field that may be missing; one of the wrong shape is named.
pub(super) fn field<T: DeserializeOwned>(
    map: &Map<String, Value>,
    key: &str,
) -> Result<Option<T>, Failure> {
    match map.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => T::deserialize(value).map(Some).map_err(|error| {
            Failure::new(code::CONFIG, format!("{key} is {}: {error}", short(value)))
        }),
    }
}

fn needed<T: DeserializeOwned>(map: &Map<String, Value>, key: &str) -> Result<T, Failure> {
    field(map, key)?.ok_or_else(|| {
        Failure::new(
            code::CONFIG,
            format!("the configuration has no {key}; add it"),
        )
    })
}

fn invalid(key: &str, map: &Map<String, Value>, remedy: &str) -> Failure {
    let value = map.get(key).map(short).unwrap_or_default();
    Failure::new(code::CONFIG, format!("{key} is {value}; {remedy}"))
}

pub(super) fn short(value: &Value) -> String {
    const LONGEST: usize = 200;

    let mut text = value.to_string();
    if let Some((end, _)) = text.char_indices().nth(LONGEST) {
        text.truncate(end);
        text.push('…');
    }
    text
}

fn socket(map: &Map<String, Value>, key: &str, default: &str) -> Result<PathBuf, Failure> {
    let path: PathBuf = field(map, key)?.unwrap_or_else(|| default.into());
    if path.is_absolute() {
        Ok(path)
    } else {
        Err(invalid(key, map, "give the socket's absolute path"))
    }
}

fn attach(map: &Map<String, Value>) -> Result<Attach, Failure> {
    let attach: Option<String> = field(map, "attach")?;
    match attach.as_deref() {
        None | Some("tap") => Ok(Attach::Tap),
        Some("veth") => Ok(Attach::Veth),
        Some(other) => Err(Failure::new(
            code::UNSUPPORTED,
            format!("attach is {other:?}; write \"tap\" or \"veth\""),
        )),
    }
}

fn ipam(map: &Map<String, Value>) -> Result<Ipam, Failure> {
    let ipam: Map<String, Value> = field(map, "ipam")?.unwrap_or_default();
    let name: Option<String> = field(&ipam, "type")?;
    match name.as_deref() {
        None | Some("" | "weft" | "weft-ipam-cni") => {}
        Some(name) if name.contains('/') => {
            return Err(invalid("ipam", map, "type is a plugin's name, not a path"));
        }
        Some(name) => return Ok(Ipam::Delegate(name.to_owned())),
    }
    let families: Option<Vec<Family>> = field(&ipam, "families")?;
    let mut families = families.unwrap_or_else(|| vec![Family::V4]);
    families.dedup();
    if families.is_empty() || families.len() > 2 {
        return Err(invalid("ipam", map, "families is any of \"v4\" and \"v6\""));
    }
    Ok(Ipam::Weft(Weft {
        socket: socket(&ipam, "socket", IPAM)?,
        pools: field(&ipam, "pools")?.unwrap_or_default(),
        families,
        whole_block: field(&ipam, "wholeBlock")?.unwrap_or_default(),
        gateways: field(&ipam, "gateways")?.unwrap_or_default(),
        routes: field(&ipam, "routes")?.unwrap_or_default(),
        identity: None,
        sticky: field(&ipam, "sticky")?.unwrap_or_default(),
    }))
}

/// None where nothing is said. Go programs write a list of none as null.
fn valid(map: &Map<String, Value>, network: &Name) -> Result<Option<Vec<Attachment>>, Failure> {
    if !VALID_ATTACHMENTS.iter().any(|key| map.contains_key(*key)) {
        return Ok(None);
    }
    let mut listed: Option<Vec<Map<String, Value>>> = None;
    for key in VALID_ATTACHMENTS {
        listed = listed.or(field(map, key)?);
    }
    let parse = |entry: &Map<String, Value>| {
        Ok(Attachment {
            network: network.clone(),
            container: needed(entry, "containerID")?,
            interface: needed(entry, "ifname")?,
        })
    };
    let listed = listed.unwrap_or_default();
    listed.iter().map(parse).collect::<Result<_, _>>().map(Some)
}

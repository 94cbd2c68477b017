//! What a runtime asks for one pod: capability arguments, `args.cni` and
//! CNI_ARGS, the first of them that speaks being heard.

use std::net::IpAddr;

use ipnet::IpNet;
use serde_json::{Map, Value};
use weft_api::names::Mac;

use super::{Args, Dns, Failure, code, config::field};

#[derive(Debug, Clone, Default, PartialEq)]
pub struct Runtime {
    pub mac: Option<Mac>,
    pub ips: Vec<IpAddr>,
    /// The subnets of the ranges that addresses may come from.
    pub subnets: Vec<IpNet>,
    pub dns: Option<Dns>,
}

impl Runtime {
    pub(super) fn parse(config: &Map<String, Value>) -> Result<Self, Failure> {
        let capabilities: Map<String, Value> = field(config, "runtimeConfig")?.unwrap_or_default();
        for (key, instead) in [("portMappings", "portmap"), ("bandwidth", "bandwidth")] {
            match capabilities.get(key) {
                None | Some(Value::Null) => {}
                Some(Value::Array(none)) if none.is_empty() => {}
                Some(Value::Object(none)) if none.is_empty() => {}
                Some(value) => {
                    return Err(Failure::new(
                        code::UNSUPPORTED,
                        format!(
                            "runtimeConfig.{key} is {value}, which is not supported; take \
                             capabilities.{key} away from weft-cni, and chain plugin {instead}"
                        ),
                    ));
                }
            }
        }
        let args: Map<String, Value> = field(config, "args")?.unwrap_or_default();
        let args: Map<String, Value> = field(&args, "cni")?.unwrap_or_default();
        let mac: Option<String> = field(&capabilities, "mac")?;
        let mac = mac
            .filter(|mac| !mac.is_empty())
            .or(field(&args, "mac")?)
            .filter(|mac| !mac.is_empty());
        let ips: Option<Vec<String>> = field(&capabilities, "ips")?;
        let ips = ips.filter(|ips| !ips.is_empty()).or(field(&args, "ips")?);
        Ok(Self {
            mac: mac.map(|mac| parse_mac(&mac, code::CONFIG)).transpose()?,
            ips: parse_ips(ips.iter().flatten(), code::CONFIG)?,
            subnets: subnets(&capabilities)?,
            dns: field(&capabilities, "dns")?,
        })
    }

    /// Adds what CNI_ARGS say, where `config` is silent: the conventions want
    /// them ignored beside an equivalent.
    pub(super) fn with_args(mut self, args: &Args) -> Result<Self, Failure> {
        if let Some(mac) = args.mac.as_ref().filter(|_| self.mac.is_none()) {
            self.mac = Some(parse_mac(mac, code::ENVIRONMENT)?);
        }
        if let Some(ip) = args.ip.as_ref().filter(|_| self.ips.is_empty()) {
            self.ips = parse_ips(ip.split(','), code::ENVIRONMENT)?;
        }
        Ok(self)
    }
}

fn parse_mac(text: &str, code: u32) -> Result<Mac, Failure> {
    let mac: Mac = text
        .parse()
        .map_err(|error| Failure::new(code, format!("mac: {error}")))?;
    // The lowest bit of the first byte makes a group of it (IEEE 802).
    if mac.0[0] & 1 == 1 || mac.0 == [0; 6] {
        return Err(Failure::new(
            code,
            format!("mac is {mac}, which no interface may have; give a unicast address"),
        ));
    }
    Ok(mac)
}

fn parse_ips(
    texts: impl IntoIterator<Item = impl AsRef<str>>,
    code: u32,
) -> Result<Vec<IpAddr>, Failure> {
    let mut ips = Vec::new();
    for text in texts {
        let text = text.as_ref();
        let ip: Option<IpAddr> = text.parse().ok();
        let ip = ip.or_else(|| Some(text.parse::<IpNet>().ok()?.addr()));
        let ip = ip.ok_or_else(|| {
            Failure::new(
                code,
                format!("ips holds {text:?}, which is no IP address; write 10.0.0.1 or fd00::1"),
            )
        })?;
        if ips
            .iter()
            .any(|other: &IpAddr| other.is_ipv4() == ip.is_ipv4())
        {
            return Err(Failure::new(
                code,
                format!("ips holds {ip} and another of its family; ask for one of each"),
            ));
        }
        ips.push(ip);
    }
    Ok(ips)
}

fn subnets(capabilities: &Map<String, Value>) -> Result<Vec<IpNet>, Failure> {
    let sets: Vec<Vec<Map<String, Value>>> = field(capabilities, "ipRanges")?.unwrap_or_default();
    let mut subnets = Vec::new();
    for range in sets.iter().flatten() {
        let subnet: Option<IpNet> = field(range, "subnet")?;
        subnets.push(subnet.ok_or_else(|| {
            Failure::new(
                code::CONFIG,
                "runtimeConfig.ipRanges holds a range without a subnet; add it",
            )
        })?);
    }
    Ok(subnets)
}

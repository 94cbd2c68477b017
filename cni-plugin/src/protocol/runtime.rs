//! What a runtime asks for one pod: capability arguments, `args.cni` and
//! CNI_ARGS, the first of them that speaks being heard: the conventions want
//! CNI_ARGS ignored beside an equivalent.

use std::net::IpAddr;

use ipnet::IpNet;
use serde_json::{Map, Value};
use weft_api::{forwarder::Capabilities, names::Mac};

use super::{
    Args, Dns, Failure, Ipam,
    capabilities::{self, value},
    code,
    config::{field, short},
};

#[derive(Debug, Clone, Default, PartialEq)]
pub struct Runtime {
    pub mac: Option<Mac>,
    pub ips: Vec<IpAddr>,
    /// Pools of weft's IPAM server that addresses may come from. Another
    /// IPAM plugin reads its ranges itself.
    pub ranges: Vec<IpNet>,
    pub dns: Option<Dns>,
    pub capabilities: Capabilities,
}

impl Runtime {
    pub(super) fn parse(
        config: &Map<String, Value>,
        args: &Args,
        ipam: &Ipam,
    ) -> Result<Self, Failure> {
        let asked: Map<String, Value> = field(config, "runtimeConfig")?.unwrap_or_default();
        let hints: Map<String, Value> = field(config, "args")?.unwrap_or_default();
        let hints: Map<String, Value> = field(&hints, "cni")?.unwrap_or_default();
        let macs = [
            (field(&asked, "mac")?, code::CONFIG),
            (field(&hints, "mac")?, code::CONFIG),
            (args.mac.clone(), code::ENVIRONMENT),
        ];
        let mac = first(macs, String::is_empty).map(|(mac, code)| parse_mac(&mac, code));
        let listed = |text: &String| text.split(',').map(str::to_owned).collect();
        let ips = [
            (field(&asked, "ips")?, code::CONFIG),
            (field(&hints, "ips")?, code::CONFIG),
            (args.ip.as_ref().map(listed), code::ENVIRONMENT),
        ];
        let ips = first(ips, Vec::is_empty).map(|(ips, code)| parse_ips(&ips, ipam, code));
        Ok(Self {
            mac: mac.transpose()?,
            ips: ips.transpose()?.unwrap_or_default(),
            ranges: match ipam {
                Ipam::Weft(_) => ranges(&asked)?,
                Ipam::Delegate(_) => Vec::new(),
            },
            dns: capabilities::dns(&asked)?,
            capabilities: capabilities::of_forwarder(config, &asked)?,
        })
    }
}

/// The first that says anything.
fn first<T>(all: [(Option<T>, u32); 3], is_empty: fn(&T) -> bool) -> Option<(T, u32)> {
    let mut said = all.into_iter().filter_map(|(one, code)| Some((one?, code)));
    said.find(|(one, _)| !is_empty(one))
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

fn parse_ips(texts: &[String], ipam: &Ipam, code: u32) -> Result<Vec<IpAddr>, Failure> {
    let mut ips: Vec<IpAddr> = Vec::new();
    for text in texts {
        let ip: Option<IpAddr> = text.parse().ok();
        let ip = ip.or_else(|| Some(text.parse::<IpNet>().ok()?.addr()));
        let ip = ip.ok_or_else(|| {
            let msg =
                format!("ips holds {text:?}, which is no IP address; write 10.0.0.1 or fd00::1");
            Failure::new(code, msg)
        })?;
        let of_its_family = |other: &IpAddr| other.is_ipv4() == ip.is_ipv4();
        if matches!(ipam, Ipam::Weft(_)) && ips.iter().any(of_its_family) {
            let msg = format!("ips holds {ip} and another of its family; ask for one of each");
            return Err(Failure::new(code, msg));
        }
        ips.push(ip);
    }
    Ok(ips)
}

/// Each range must be a pool: what is a part of one has no meaning to the
/// IPAM server. Gateways have none to a pod, whose gateway is weft's.
fn ranges(asked: &Map<String, Value>) -> Result<Vec<IpNet>, Failure> {
    let sets: Vec<Vec<Map<String, Value>>> = field(asked, "ipRanges")?.unwrap_or_default();
    let mut pools = Vec::new();
    for range in sets.iter().flatten() {
        for key in ["rangeStart", "rangeEnd"] {
            if let Some(part) = value(range, key).filter(|part| *part != "") {
                let msg = format!(
                    "runtimeConfig.ipRanges has {key} {}; weft's IPAM server gives addresses of \
                     whole pools only: give a pool's CIDR as subnet alone, or make a pool of the range",
                    short(part)
                );
                return Err(Failure::new(code::UNSUPPORTED, msg));
            }
        }
        let subnet = value(range, "subnet");
        let pool: Option<IpNet> = subnet.and_then(|subnet| subnet.as_str()?.parse().ok());
        pools.push(pool.ok_or_else(|| {
            let found = subnet.map_or("missing".to_owned(), short);
            let msg = format!(
                "subnet of a range in runtimeConfig.ipRanges is {found}; give a pool's CIDR"
            );
            Failure::new(code::CONFIG, msg)
        })?);
    }
    Ok(pools)
}

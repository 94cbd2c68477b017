//! Capability arguments as the CNI conventions have them, and the settings
//! that stand in for them where the runtime is silent.
//!
//! The case of their keys does not matter: Go programs read them that way,
//! and containerd writes them with a capital (`HostPort`).

use std::num::{NonZeroU16, NonZeroU64};

use serde_json::{Map, Value};
use weft_api::forwarder::{Bandwidth, Capabilities, Limit, PortMapping, Protocol};

use super::{
    Dns, Failure, code,
    config::{field, short},
};

/// The forwarder's part of what the runtime asks in `capabilities`, which is
/// `runtimeConfig`. A bandwidth may stand in `config` itself; limits of
/// connections and of packets stand nowhere else, for CNI has no word for them.
pub(super) fn of_forwarder(
    config: &Map<String, Value>,
    capabilities: &Map<String, Value>,
) -> Result<Capabilities, Failure> {
    let asked: Option<Map<String, Value>> = field(capabilities, "bandwidth")?;
    let bandwidth = match &asked {
        Some(asked) => bandwidth("runtimeConfig.bandwidth.", asked),
        None => bandwidth("", config),
    }?;
    Ok(Capabilities {
        connections: field(config, "connections")?,
        packets: field(config, "packets")?.unwrap_or_default(),
        bandwidth,
        port_mappings: port_mappings(capabilities)?,
    })
}

/// CNI looks at the pod from the network: ingress goes to the pod.
fn bandwidth(place: &str, map: &Map<String, Value>) -> Result<Bandwidth, Failure> {
    Ok(Bandwidth {
        from_pod: limit(place, map, ["egressRate", "egressBurst"])?,
        to_pod: limit(place, map, ["ingressRate", "ingressBurst"])?,
    })
}

fn limit(place: &str, map: &Map<String, Value>, keys: [&str; 2]) -> Result<Option<Limit>, Failure> {
    let number = |key: &str| match value(map, key) {
        None => Ok(None),
        Some(value) => match value.as_u64() {
            Some(number) => Ok(NonZeroU64::new(number)),
            None => Err(wrong(
                format!("{place}{key}"),
                value,
                "give a whole number of bits, at most 2^64 - 1",
            )),
        },
    };
    let [rate, burst] = [number(keys[0])?, number(keys[1])?];
    let half = |has: &str, number: NonZeroU64, lacks: &str| {
        let found = value(map, lacks).unwrap_or(&Value::Null);
        let msg = format!(
            "{place}{has} is {number}, but {place}{lacks} is {found}; give both, or neither"
        );
        Err(Failure::new(code::CONFIG, msg))
    };
    match (rate, burst) {
        (Some(rate), Some(burst)) => Ok(Some(Limit { rate, burst })),
        // containerd writes zeros for a direction without a limit.
        (None, None) => Ok(None),
        (Some(rate), None) => half(keys[0], rate, keys[1]),
        (None, Some(burst)) => half(keys[1], burst, keys[0]),
    }
}

fn port_mappings(capabilities: &Map<String, Value>) -> Result<Vec<PortMapping>, Failure> {
    let entries: Vec<Map<String, Value>> = field(capabilities, "portMappings")?.unwrap_or_default();
    let mut mappings: Vec<PortMapping> = Vec::new();
    for (place, entry) in entries.iter().enumerate() {
        let mapping = port_mapping(&format!("runtimeConfig.portMappings[{place}]"), entry)?;
        if let Some(other) = mappings.iter().find(|other| other.collides(&mapping)) {
            let msg = format!(
                "runtimeConfig.portMappings has both {other} and {mapping}; publish a port once"
            );
            return Err(Failure::new(code::CONFIG, msg));
        }
        mappings.push(mapping);
    }
    Ok(mappings)
}

fn port_mapping(place: &str, entry: &Map<String, Value>) -> Result<PortMapping, Failure> {
    let port = |key: &str| {
        let value = value(entry, key).unwrap_or(&Value::Null);
        let number = value.as_u64().and_then(|port| u16::try_from(port).ok());
        number
            .and_then(NonZeroU16::new)
            .ok_or_else(|| wrong(format!("{place}.{key}"), value, "give a port, 1 to 65535"))
    };
    let text = |key: &str, remedy: &str| match value(entry, key) {
        None => Ok(""),
        Some(Value::String(text)) => Ok(text.as_str()),
        Some(other) => Err(wrong(format!("{place}.{key}"), other, remedy)),
    };
    const PROTOCOLS: &str = "use tcp, udp or sctp";
    let protocol = match &*text("protocol", PROTOCOLS)?.to_ascii_lowercase() {
        "" | "tcp" => Protocol::Tcp,
        "udp" => Protocol::Udp,
        "sctp" => Protocol::Sctp,
        other => {
            let msg = format!("{place}.protocol is {other:?}; {PROTOCOLS}");
            return Err(Failure::new(code::UNSUPPORTED, msg));
        }
    };
    const HOST_IP: &str = "give an IP address of the node, or leave it out";
    let host_ip = match text("hostIP", HOST_IP)? {
        "" => None,
        ip => Some(ip.parse().map_err(|_| {
            let msg = format!("{place}.hostIP is {ip:?}; {HOST_IP}");
            Failure::new(code::CONFIG, msg)
        })?),
    };
    Ok(PortMapping {
        host_port: port("hostPort")?,
        container_port: port("containerPort")?,
        protocol,
        host_ip,
    })
}

/// What the runtime says of name servers. The conventions have other keys
/// than results have; both are understood.
pub(super) fn dns(capabilities: &Map<String, Value>) -> Result<Option<Dns>, Failure> {
    let Some(map): Option<Map<String, Value>> = field(capabilities, "dns")? else {
        return Ok(None);
    };
    let texts = |keys: [&str; 2]| {
        let Some(found) = keys.iter().find_map(|key| value(&map, key)) else {
            return Ok(Vec::new());
        };
        serde_json::from_value(found.clone()).map_err(|_| {
            let place = format!("runtimeConfig.dns.{}", keys[0]);
            wrong(place, found, "give a list of strings")
        })
    };
    Ok(Some(Dns {
        nameservers: texts(["servers", "nameservers"])?,
        domain: field(&map, "domain")?,
        search: texts(["searches", "search"])?,
        options: texts(["options", "options"])?,
    }))
}

/// The value of a key, whose case does not matter; null is none.
pub(super) fn value<'a>(map: &'a Map<String, Value>, key: &str) -> Option<&'a Value> {
    let found = map.get(key).or_else(|| {
        map.iter()
            .find(|(name, _)| name.eq_ignore_ascii_case(key))
            .map(|(_, value)| value)
    });
    found.filter(|value| !value.is_null())
}

fn wrong(place: String, value: &Value, remedy: &str) -> Failure {
    Failure::new(
        code::CONFIG,
        format!("{place} is {}; {remedy}", short(value)),
    )
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn limits_that_cni_has_no_word_for_stand_in_the_configuration() {
        let read = |config: Value| {
            let config = config.as_object().cloned().unwrap_or_default();
            of_forwarder(&config, &Map::new())
        };
        let config = json!({"connections": 7, "packets": {"to_pod": {"rate": 9, "burst": 2}}});
        let asked = read(config).expect("good");
        let to_pod = asked.packets.to_pod.expect("a limit");
        assert_eq!(asked.connections.map(u32::from), Some(7));
        assert_eq!((to_pod.rate.get(), to_pod.burst.get()), (9, 2));
        assert_eq!(asked.packets.from_pod, None);
        assert!(read(json!({})).expect("good").is_plain());
        for wrong in [
            json!({"connections": 0}),
            json!({"packets": {"to_pod": {"rate": 0, "burst": 2}}}),
            json!({"packets": {"to_pod": {"rate": 9}}}),
            json!({"packets": {"both": {"rate": 9, "burst": 2}}}),
        ] {
            assert!(read(wrong.clone()).is_err(), "{wrong}");
        }
    }
}

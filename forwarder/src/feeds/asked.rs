//! A question about a flow, in words: its ends by name, its port as text.

use std::net::IpAddr;

use weft_api::forwarder::{Code, Error, Explain};
use weft_policy::{Flow, Objects, Transport, object::PodName};
use weft_wire::protocol;

use crate::publish::refusal;

/// The flow that is asked about. `ports` knows the addresses of a port of the
/// forwarder by name; a name is a port's before it is a pod's.
pub fn flow(
    asked: &Explain,
    objects: &Objects,
    ports: impl Fn(&str) -> Option<Vec<IpAddr>>,
) -> Result<Flow, Error> {
    let end = |text: &str| {
        addresses(text, objects, &ports).ok_or_else(|| {
            let message = format!("explain: {text:?} is no address, port, pod or node with one");
            let hint = "give an address, a port, NAMESPACE/POD, or node/NAME";
            refusal(Code::NotFound, message, hint)
        })
    };
    let (sources, destinations) = (end(&asked.from)?, end(&asked.to)?);
    let transport = transport(&asked.port).ok_or_else(|| {
        let message = format!("explain: {:?} is no port", asked.port);
        refusal(
            Code::Invalid,
            message,
            "give PORT/tcp, /udp or /sctp, or icmp",
        )
    })?;
    for &source in &sources {
        let same = |other: &&IpAddr| other.is_ipv4() == source.is_ipv4();
        if let Some(&destination) = destinations.iter().find(same) {
            let transport = match transport {
                Transport::Other(_) if source.is_ipv6() => Transport::Other(protocol::ICMPV6),
                other => other,
            };
            return Ok(Flow {
                source,
                destination,
                transport,
            });
        }
    }
    let message = format!(
        "explain: {} and {} have no addresses of one family",
        asked.from, asked.to
    );
    Err(refusal(Code::Invalid, message, "ask about another pair"))
}

/// Never an empty list.
fn addresses(
    text: &str,
    objects: &Objects,
    ports: impl Fn(&str) -> Option<Vec<IpAddr>>,
) -> Option<Vec<IpAddr>> {
    if let Ok(address) = text.parse() {
        return Some(vec![address]);
    }
    let (namespace, name) = text.split_once('/').unwrap_or(("default", text));
    let pod = PodName {
        namespace: namespace.to_owned(),
        name: name.to_owned(),
    };
    let of_pod = || objects.pods.get(&pod).map(|pod| pod.addresses.clone());
    let of_node = || {
        let node = objects.nodes.get(text.strip_prefix("node/")?)?;
        Some(node.addresses.clone())
    };
    let found = ports(text).or_else(of_pod).or_else(of_node)?;
    (!found.is_empty()).then_some(found)
}

fn transport(text: &str) -> Option<Transport> {
    let text = text.to_ascii_lowercase();
    if text == "icmp" {
        return Some(Transport::Other(protocol::ICMP));
    }
    let (port, protocol) = text.split_once('/').unwrap_or((&text, "tcp"));
    let port = port.parse().ok().filter(|port| *port > 0)?;
    match protocol {
        "tcp" => Some(Transport::Tcp(port)),
        "udp" => Some(Transport::Udp(port)),
        "sctp" => Some(Transport::Sctp(port)),
        _ => None,
    }
}

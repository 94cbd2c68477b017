//! CHECK's part of bandwidth and port mappings: what the runtime asks against
//! what the forwarder has.

use weft_api::forwarder::{Limit, Port, PortMapping};

use crate::protocol::Runtime;

/// A sentence for each difference.
pub(super) fn differences(runtime: &Runtime, port: &Port) -> Vec<String> {
    let (asked, found) = (&runtime.capabilities, &port.capabilities);
    let mut differences = Vec::new();
    for (direction, asked, found) in [
        ("ingress", asked.bandwidth.to_pod, found.bandwidth.to_pod),
        ("egress", asked.bandwidth.from_pod, found.bandwidth.from_pod),
    ] {
        if asked != found {
            differences.push(format!(
                "{direction} bandwidth of the forwarder's port {} is {}, not {}",
                port.name,
                limit(found),
                limit(asked)
            ));
        }
    }
    let (asked, found) = (&asked.port_mappings, &found.port_mappings);
    for missing in lacking(asked, found) {
        differences.push(format!("the forwarder does not publish {missing}"));
    }
    for unasked in lacking(found, asked) {
        differences.push(format!(
            "the forwarder publishes {unasked}, which is not asked for"
        ));
    }
    differences
}

fn lacking<'a>(
    list: &'a [PortMapping],
    other: &'a [PortMapping],
) -> impl Iterator<Item = &'a PortMapping> {
    list.iter().filter(|one| !other.contains(one))
}

fn limit(limit: Option<Limit>) -> String {
    match limit {
        None => "unlimited".to_owned(),
        Some(Limit { rate, burst }) => format!("{rate} bit/s with bursts of {burst} bits"),
    }
}

//! The host port in `weft status`.

use weft_api::forwarder::{Peer, Port, PortState, Status};

use crate::{host::plan::around_underlay, ipam::words::joined};

/// How the node and its pods reach each other.
pub fn host(ports: &[Port]) -> String {
    let found = ports
        .iter()
        .find_map(|port| Some((port, port.host.as_ref()?)));
    let Some((port, host)) = found else {
        return "none: node and pods do not reach each other before weft host up".to_owned();
    };
    let (name, pools) = (&port.name, joined(&host.pools));
    match port.state {
        PortState::Up if port.addresses.is_empty() => format!("{name}, for the pods of {pools}"),
        PortState::Up => format!(
            "{name} with {}, for the pods of {pools}",
            joined(&port.addresses)
        ),
        PortState::Gone => format!("{name} was deleted; weft host up makes it anew"),
    }
}

/// Pools whose routes lead datagrams for a node's underlay into the tunnel.
pub fn around(status: &Status, ports: &[Port], peers: &[Peer]) -> String {
    let pools = ports
        .iter()
        .filter_map(|port| Some(&port.host.as_ref()?.pools));
    let around = pools.flat_map(|pools| around_underlay(pools, status, peers));
    around.map(|held| held.line()).collect()
}

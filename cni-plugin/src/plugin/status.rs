//! STATUS: whether an ADD would be served.

use weft_api::{
    ipam::{Allocate, Attachment, Request as IpamRequest, Use},
    names::Name,
};
use weft_socket::ipam::Client as IpamClient;

use super::{Order, delegate, server};
use crate::{
    forwarder::Client,
    protocol::{Failure, Ipam, Weft, code},
};

pub(super) fn status(order: &Order) -> Result<(), Failure> {
    let status = Client::connect(&order.config.forwarder)
        .and_then(|mut client| client.status())
        // Without it no pod's packets go anywhere.
        .map_err(|error| Failure::new(code::LIMITED, error.to_string()))?;
    match &order.config.ipam {
        Ipam::Weft(weft) => {
            let node = order.config.node.clone().unwrap_or(status.node);
            gives_addresses(order, weft, node)
        }
        Ipam::Delegate(name) => delegate::run(order, name, "STATUS")
            .map(drop)
            .map_err(no_addresses),
    }
}

/// Whether a pod of this node would get its addresses now.
pub(super) fn gives_addresses(order: &Order, weft: &Weft, node: Name) -> Result<(), Failure> {
    /// No container's: those begin with a letter or digit.
    const NOBODY: &str = "-";

    let nobody = Name::new(NOBODY).map_err(|error| Failure::new(code::IO, error.to_string()))?;
    let probe = Allocate {
        attachment: Attachment {
            network: order.config.name.clone(),
            container: nobody.clone(),
            interface: nobody,
        },
        node,
        families: weft.families.clone(),
        purpose: Use::Workload,
        addresses: Vec::new(),
        pools: weft.pools.clone(),
        identity: None,
        pod: None,
        namespace_labels: std::collections::BTreeMap::new(),
    };
    let reply = IpamClient::connect(&weft.socket)
        .and_then(|mut client| client.request(&IpamRequest::Probe(Box::new(probe))))
        .map_err(|error| no_addresses(server::of_ipam(&error)))?;
    server::allocated(reply, &weft.families)
        .map(drop)
        .map_err(|error| no_addresses(server::of_ipam(&error)))
}

/// What STATUS may say of it; pods that have their addresses keep them.
fn no_addresses(failure: Failure) -> Failure {
    let code = match failure.code {
        code::LIMITED => code::LIMITED,
        _ => code::NOT_AVAILABLE,
    };
    Failure { code, ..failure }
}

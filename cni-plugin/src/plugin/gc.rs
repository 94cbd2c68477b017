//! GC: frees every attachment of the network that is not listed, first at
//! the forwarder, then at the IPAM server. It goes on after failures.

use std::collections::BTreeSet;

use weft_api::{
    forwarder::{Reply, Request},
    ipam::{Attachment, Gc, Reply as IpamReply, Request as IpamRequest, is_young},
    names::Name,
};
use weft_socket::ipam::Client as IpamClient;

use super::{Order, delegate, server};
use crate::{
    forwarder::Client,
    protocol::{Failure, Ipam, Weft, code},
};

pub(super) fn gc(order: &Order) -> Result<(), Failure> {
    let valid = valid(order)?;
    let mut failures = Vec::new();
    let forwarder = match known(order) {
        Ok(known) => Some(known),
        Err(failure) => {
            failures.push(failure);
            None
        }
    };
    let node = match (&order.config.node, &forwarder) {
        (None, Some((_, node, _))) => Ok(node.clone()),
        _ => server::host(&order.config),
    };
    let known = match (&order.config.ipam, &node) {
        (Ipam::Weft(weft), Ok(node)) => young(weft, node).map(Some),
        _ => Ok(None),
    };
    let none = BTreeSet::new();
    match (forwarder, &known) {
        (Some((client, _, ports)), Ok(known)) => {
            let young = known.as_ref().map_or(&none, |(_, young)| young);
            failures.extend(detach_stale(order, client, ports, valid, young));
        }
        (_, Err(failure)) => failures.push(failure.clone()),
        (None, Ok(_)) => {}
    }
    match (&order.config.ipam, node, known) {
        (Ipam::Delegate(name), ..) => failures.extend(delegate::run(order, name, "GC").err()),
        (Ipam::Weft(weft), Ok(node), Ok(known)) => {
            // What kept its port above keeps its address.
            let before = known.map(|(mark, _)| mark);
            failures.extend(release_stale(order, weft, node, before).err());
        }
        (Ipam::Weft(_), Err(failure), _) => failures.push(failure),
        (Ipam::Weft(_), Ok(_), Err(_)) => {}
    }
    Failure::all(failures).map_or(Ok(()), Err)
}

/// Without a list nothing is known to be stale.
fn valid(order: &Order) -> Result<&[Attachment], Failure> {
    order.config.valid.as_deref().ok_or_else(|| {
        Failure::new(
            code::CONFIG,
            "GC has no cni.dev/valid-attachments; list those that exist",
        )
    })
}

/// The forwarder, its node's name, and its ports.
fn known(order: &Order) -> Result<(Client, Name, Vec<Name>), Failure> {
    let of = |error| server::of_forwarder(&error);
    let mut client = Client::connect(&order.config.forwarder).map_err(of)?;
    let status = client.request(&Request::Status).map_err(of)?;
    let list = client.request(&Request::List).map_err(of)?;
    match (status, list) {
        (Reply::Status(status), Reply::Ports(ports)) => {
            let ports = ports.into_iter().map(|port| port.name).collect();
            Ok((client, status.node, ports))
        }
        _ => Err(Failure::new(
            code::DECODE,
            "the forwarder gave answers of another kind",
        )),
    }
}

/// The server's mark, and the handles that are young under it: the list, which
/// was made before this process, need not have them.
fn young(weft: &Weft, node: &Name) -> Result<(u64, BTreeSet<String>), Failure> {
    let of = |error| server::of_ipam(&error);
    let mut client = IpamClient::connect(&weft.socket).map_err(of)?;
    let IpamReply::Status(status) = client.request(&IpamRequest::Status).map_err(of)? else {
        return Err(Failure::new(
            code::DECODE,
            "the IPAM server answered no status",
        ));
    };
    let request = IpamRequest::Allocations {
        node: Some(node.clone()),
        borrowed: false,
    };
    let IpamReply::Allocations(all) = client.request(&request).map_err(of)? else {
        return Err(Failure::new(
            code::DECODE,
            "the IPAM server answered no allocations",
        ));
    };
    let young = (all.into_iter())
        .filter(|one| is_young(one.mark, status.mark))
        .filter_map(|one| Some(one.handle?.as_str().to_owned()));
    Ok((status.mark, young.collect()))
}

fn detach_stale(
    order: &Order,
    mut client: Client,
    ports: Vec<Name>,
    valid: &[Attachment],
    young: &BTreeSet<String>,
) -> Vec<Failure> {
    let valid: BTreeSet<_> = valid
        .iter()
        .map(|one| one.handle().as_str().to_owned())
        .collect();
    let network = format!("{}/", order.config.name);
    let stale = ports.into_iter().filter(|port| {
        let port = port.as_str();
        port.starts_with(&network) && !valid.contains(port) && !young.contains(port)
    });
    let mut failures = Vec::new();
    for name in stale {
        eprintln!("weft-cni: GC: {name} is stale");
        if let Err(error) = client.request(&Request::Detach { name }) {
            failures.push(server::of_forwarder(&error));
        }
    }
    failures
}

pub(super) fn release_stale(
    order: &Order,
    weft: &Weft,
    node: Name,
    before: Option<u64>,
) -> Result<(), Failure> {
    let of = |error| server::of_ipam(&error);
    let request = IpamRequest::Gc(Gc {
        network: order.config.name.clone(),
        node,
        valid: valid(order)?.to_vec(),
        before,
    });
    IpamClient::connect(&weft.socket)
        .map_err(of)?
        .request(&request)
        .map_err(of)
        .map(drop)
}

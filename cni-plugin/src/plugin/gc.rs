//! GC: frees every attachment of the network that is not listed, first at
//! the forwarder, then what they published, then at the IPAM server. It goes on after failures.
//!
//! What was attached after the call began is newer than the list, and counts
//! as listed wherever addresses come from.

use std::collections::BTreeSet;

use weft_api::{
    forwarder::{Code, Port},
    ipam::{Attachment, Gc, Reply as IpamReply, Request as IpamRequest, is_young},
    names::Name,
};
use weft_socket::ipam::Client as IpamClient;

use super::{Order, delegate, publish, server};
use crate::{
    forwarder::{Client, ClientError},
    link::{self, LinkError},
    protocol::{Failure, Ipam, Weft, code},
};

pub(super) fn gc(order: &Order) -> Result<(), Failure> {
    let mut valid = valid(order)?.to_vec();
    let listed = valid.len();
    let mut failures = Vec::new();
    let forwarder = match known(order) {
        Ok((client, node, ports)) => {
            let age = order.began.elapsed().as_millis();
            let newer = |port: &&Port| u128::from(port.age_ms) <= age;
            let newer = ports.iter().filter(newer).filter_map(attachment);
            valid.extend(newer.filter(|one| one.network == order.config.name));
            let names = ports.into_iter().map(|port| port.name).collect();
            Some((client, node, names))
        }
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
            failures.extend(detach_stale(order, client, ports, &valid, young));
        }
        (_, Err(failure)) => failures.push(failure.clone()),
        (None, Ok(_)) => {}
    }
    if let Err(failure) = publish::mend(order) {
        // A port of the node may lead to an address that would be free.
        failures.push(failure);
        return Failure::all(failures).map_or(Ok(()), Err);
    }
    match (&order.config.ipam, node, known) {
        (Ipam::Delegate(name), ..) => {
            failures.extend(delegate::gc(order, name, &valid[listed..]).err());
        }
        (Ipam::Weft(weft), Ok(node), Ok(known)) => {
            // What kept its port above keeps its address.
            let before = known.map(|(mark, _)| mark);
            failures.extend(release_stale(order, weft, node, before, valid).err());
        }
        (Ipam::Weft(_), Err(failure), _) => failures.push(failure),
        (Ipam::Weft(_), Ok(_), Err(_)) => {}
    }
    Failure::all(failures).map_or(Ok(()), Err)
}

/// Without a list nothing is known to be stale.
pub(super) fn valid(order: &Order) -> Result<&[Attachment], Failure> {
    order.config.valid.as_deref().ok_or_else(|| {
        Failure::new(
            code::CONFIG,
            "GC has no cni.dev/valid-attachments; list those that exist",
        )
    })
}

/// The forwarder, its node's name, and its ports.
fn known(order: &Order) -> Result<(Client, Name, Vec<Port>), Failure> {
    let of = |error| server::of_forwarder(&error);
    let mut client = Client::connect(&order.config.forwarder).map_err(of)?;
    let node = client.status().map_err(of)?.node;
    let ports = client.ports().map_err(of)?;
    Ok((client, node, ports))
}

/// Whose port it is, by the handle that its name is.
fn attachment(port: &Port) -> Option<Attachment> {
    let mut names = port.name.as_str().split('/').map(Name::new);
    let mut name = || names.next()?.ok();
    Some(Attachment {
        network: name()?,
        container: name()?,
        interface: name()?,
    })
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
        match client.detach(name.clone()) {
            // A tap goes with its fds, a veth does not.
            Ok(()) => failures.extend(link::remove_host_end(&name).err().map(of_link)),
            // A DEL came first.
            Err(ClientError::Refused(refusal)) if refusal.code == Code::NotFound => {}
            Err(error) => {
                failures.push(server::of_forwarder(&error));
                // Nor will it answer for the others.
                if matches!(error, ClientError::Line(_)) {
                    break;
                }
            }
        }
    }
    failures
}

fn of_link(error: LinkError) -> Failure {
    Failure::new(code::LINK, error.to_string())
}

pub(super) fn release_stale(
    order: &Order,
    weft: &Weft,
    node: Name,
    before: Option<u64>,
    valid: Vec<Attachment>,
) -> Result<(), Failure> {
    let of = |error| server::of_ipam(&error);
    let request = IpamRequest::Gc(Gc {
        network: order.config.name.clone(),
        node,
        valid,
        before,
    });
    IpamClient::connect(&weft.socket)
        .map_err(of)?
        .request(&request)
        .map_err(of)
        .map(drop)
}

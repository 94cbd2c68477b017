//! DEL: frees what can be freed, however often it is asked.
//!
//! The specification wants DEL to succeed though resources are missing. So a
//! namespace, a link, a port or an address that is gone is no failure, and
//! nor is a daemon that is not there: a forwarder that has ended holds no
//! port, and the addresses of an IPAM server that has ended are GC's to
//! release. A daemon that is there and does not answer is another matter:
//! success would make the runtime forget an attachment that nobody has let
//! go. The rest is freed, and code 11 makes the runtime ask again. The
//! clients' deadlines bound the wait.

use std::path::Path;

use weft_api::{ipam::Attachment, names::Name};
use weft_socket::ipam::ClientError;

use super::{Order, add, delegate, port, publish, server};
use crate::{
    forwarder::{Client, ClientError as ForwarderError},
    netns::Netns,
    protocol::{Failure, Ipam, Pod},
    wire_pod,
};

pub(super) fn del(order: &Order, pod: &Pod, netns: Option<&Path>) -> Result<(), Failure> {
    let attachment = order.attachment(pod);
    let port = match port(&attachment) {
        Ok(port) => port,
        Err(failure) => {
            // ADD has refused it before it made anything.
            eprintln!("weft-cni: DEL: {failure}");
            return Ok(());
        }
    };
    let mut failures = Vec::new();
    let mut forwarder = match Client::connect(&order.config.forwarder) {
        Ok(client) => Some(client),
        Err(ForwarderError::Line(error)) if error.is_absent() => {
            // A forwarder that has gone holds no port.
            eprintln!("weft-cni: DEL {port}: {error}");
            None
        }
        Err(error) => {
            failures.push(server::of_forwarder(&error));
            None
        }
    };
    let inside = netns.and_then(still_there);
    let interface = pod.interface.as_str();
    let inside = inside.as_ref();
    // Before somebody else may get the address.
    let release = || publish::mend(order).and_then(|()| release(order, &port, attachment));
    let (errors, released) =
        wire_pod::detach_pod(inside, &port, interface, forwarder.as_mut(), release);
    failures.extend(errors.iter().map(add::of_wiring));
    failures.extend(released.err());
    Failure::all(failures).map_or(Ok(()), Err)
}

fn release(order: &Order, port: &Name, attachment: Attachment) -> Result<(), Failure> {
    match &order.config.ipam {
        Ipam::Delegate(name) => delegate::run(order, name, "DEL").map(drop),
        Ipam::Weft(weft) => match server::release(weft, attachment) {
            Err(ClientError::Line(error)) if error.is_absent() => {
                eprintln!("weft-cni: DEL {port}: {error}; GC will release its address");
                Ok(())
            }
            released => released.map_err(|error| server::of_ipam(&error)),
        },
    }
}

/// A path without a namespace behind it is what is left of a pod that ended.
fn still_there(path: &Path) -> Option<Netns> {
    match Netns::open(path) {
        Ok(netns) => Some(netns),
        Err(error) => {
            eprintln!("weft-cni: DEL: {error}");
            None
        }
    }
}

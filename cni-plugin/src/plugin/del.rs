//! DEL: frees what can be freed, however often it is asked. What is gone is
//! no failure; what cannot be reached is left to GC.

use std::path::Path;

use weft_socket::{ipam::ClientError, line::LineError};

use super::{Order, add, delegate, port, server};
use crate::{
    forwarder::{Client, ClientError as ForwarderError},
    netns::Netns,
    protocol::{Failure, Ipam, Pod},
    wire_pod,
};

pub(super) fn del(order: &Order, pod: &Pod, netns: Option<&Path>) -> Result<(), Failure> {
    let attachment = order.attachment(pod);
    let port = port(&attachment)?;
    let mut failures = Vec::new();
    let mut forwarder = match Client::connect(&order.config.forwarder) {
        Ok(client) => Some(client),
        Err(error @ ForwarderError::Connect { .. }) => {
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
    let detached = wire_pod::detach_pod(inside.as_ref(), &port, interface, forwarder.as_mut());
    if let Err(errors) = detached {
        failures.extend(errors.iter().map(add::of_wiring));
    }
    let released = match &order.config.ipam {
        Ipam::Delegate(name) => delegate::run(order, name, "DEL").map(drop),
        Ipam::Weft(weft) => match server::release(weft, attachment) {
            Err(error @ ClientError::Line(LineError::Connect { .. })) => {
                eprintln!("weft-cni: DEL {port}: {error}; GC will release its address");
                Ok(())
            }
            released => released.map_err(|error| server::of_ipam(&error)),
        },
    };
    failures.extend(released.err());
    Failure::all(failures).map_or(Ok(()), Err)
}

/// A path without a namespace behind it is what is left of a pod that ended.
fn still_there(path: &Path) -> Option<Netns> {
    let netns = Netns::open(path);
    match netns.and_then(|netns| netns.run(|| ()).map(|()| netns)) {
        Ok(netns) => Some(netns),
        Err(error) => {
            eprintln!("weft-cni: DEL: {error}");
            None
        }
    }
}

//! A pod's whole attachment in one step: its link, and its port at the
//! forwarder. Both are there afterwards, or neither.

use std::os::fd::AsFd;

use weft_api::{
    forwarder::{Attach, Capabilities, Code, Driver, Host, Port},
    names::Name,
};

use crate::{
    forwarder::{Client, ClientError},
    link::{self, LinkError, Role, Wiring},
    netns::{Netns, NetnsError},
};

#[derive(Debug, thiserror::Error)]
pub enum WireError {
    #[error("wire {port}: {error}")]
    Link { port: Name, error: LinkError },
    #[error("attach {port}: {error}")]
    Attach { port: Name, error: ClientError },
    #[error("attach {port}: {error}; undoing it failed too: {}; do it by hand", listed(.undo))]
    Undo {
        port: Name,
        error: ClientError,
        undo: Vec<WireError>,
    },
    #[error("detach {port}: {error}")]
    Detach { port: Name, error: ClientError },
}

fn listed(errors: &[WireError]) -> String {
    let errors: Vec<_> = errors.iter().map(ToString::to_string).collect();
    errors.join("; ")
}

/// Makes the pod's link and hands it to the forwarder as port `port`. The
/// host end of a veth appears in the caller's namespace.
pub fn attach_pod(
    pod: &Netns,
    port: &Name,
    wiring: &Wiring,
    capabilities: Capabilities,
    forwarder: &mut Client,
) -> Result<Driver, WireError> {
    let named = || port.clone();
    let device = link::add(pod, port, wiring).map_err(|error| WireError::Link {
        port: named(),
        error,
    })?;
    let attach = Attach {
        name: named(),
        driver: device.driver,
        mac: wiring.mac,
        addresses: wiring.addresses.clone(),
        mtu: wiring.mtu,
        capabilities,
        host: match &wiring.role {
            Role::Pod => None,
            Role::Host { pools } => Some(Host {
                pools: pools.clone(),
            }),
        },
    };
    let fds: Vec<_> = device.fds.iter().map(AsFd::as_fd).collect();
    let Err(error) = forwarder.attach(attach, &fds) else {
        return Ok(device.driver);
    };
    match undo(pod, port, wiring, forwarder, &error) {
        undo if undo.is_empty() => Err(WireError::Attach {
            port: named(),
            error,
        }),
        undo => Err(WireError::Undo {
            port: named(),
            error,
            undo,
        }),
    }
}

/// What is left of an attachment that failed by `error` is taken away.
/// Returns what could not be.
fn undo(
    pod: &Netns,
    port: &Name,
    wiring: &Wiring,
    forwarder: &Client,
    error: &ClientError,
) -> Vec<WireError> {
    let mut errors = Vec::new();
    if !matches!(error, ClientError::Refused(_))
        && let Err(error) = let_go(port, wiring, forwarder)
    {
        errors.push(WireError::Detach {
            port: port.clone(),
            error,
        });
    }
    if let Err(error) = link::remove(pod, &wiring.interface) {
        errors.push(WireError::Link {
            port: port.clone(),
            error,
        });
    }
    errors
}

/// Detaches the port if the forwarder took it and only its answer is
/// missing. A port of that name with another MAC is somebody else's.
fn let_go(port: &Name, wiring: &Wiring, forwarder: &Client) -> Result<(), ClientError> {
    let mut fresh = forwarder.again()?;
    let taken = |found: &Port| found.name == *port && found.mac == wiring.mac;
    if fresh.ports()?.iter().any(taken) {
        fresh.detach(port.clone())?;
    }
    Ok(())
}

/// Takes a pod's port and link away, as far as they are there. Goes on after
/// an error, and tells all of them. `meanwhile` begins once the port is
/// detached, beside a tap that leaves, or else once the link is gone.
pub fn detach_pod<T>(
    pod: Option<&Netns>,
    port: &Name,
    interface: &str,
    forwarder: Option<&mut Client>,
    meanwhile: impl FnOnce() -> T,
) -> (Vec<WireError>, T) {
    let mut errors = Vec::new();
    let wired = |error| WireError::Link {
        port: port.clone(),
        error,
    };
    let ours = match pod.map(|pod| link::ours(pod, interface)).transpose() {
        Ok(ours) => ours.flatten(),
        // Who cannot enter has made nothing there.
        Err(LinkError::Netns(NetnsError::NotNetns { .. } | NetnsError::Enter { .. })) => None,
        Err(error) => {
            errors.push(wired(error));
            None
        }
    };
    let detached = forwarder.map(|client| client.detach(port.clone()));
    let is_let_go = matches!(detached, Some(Ok(_)));
    match detached {
        Some(Err(ClientError::Refused(refusal))) if refusal.code == Code::NotFound => {}
        Some(Err(error)) => errors.push(WireError::Detach {
            port: port.clone(),
            error,
        }),
        Some(Ok(_)) | None => {}
    }
    let is_tap = ours.as_ref().is_some_and(|link| link.tap);
    let pod = pod.filter(|_| ours.is_some());
    if let Some(pod) = pod.filter(|_| is_tap && is_let_go) {
        let (has_left, done) = link::has_left(pod, interface, meanwhile);
        if !has_left {
            errors.extend(link::remove(pod, interface).map_err(wired).err());
        }
        return (errors, done);
    }
    if let Some(pod) = pod {
        errors.extend(link::remove(pod, interface).map_err(wired).err());
    }
    if !is_tap {
        errors.extend(link::remove_host_end(port).map_err(wired).err());
    }
    (errors, meanwhile())
}

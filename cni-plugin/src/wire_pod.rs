//! A pod's whole attachment in one step: its link, and its port at the
//! forwarder. Both are there afterwards, or neither.

use std::os::fd::AsFd;

use weft_api::{
    forwarder::{Attach, Code, Driver, Request},
    names::Name,
};

use crate::{
    forwarder::{Client, ClientError},
    link::{self, LinkError, Wiring},
    netns::Netns,
};

#[derive(Debug, thiserror::Error)]
pub enum WireError {
    #[error("wire {port}: {error}")]
    Link { port: Name, error: LinkError },
    #[error("attach {port}: {error}")]
    Attach { port: Name, error: ClientError },
    #[error("attach {port}: {error}; undoing its link failed too: {undo}; delete it by hand")]
    Undo {
        port: Name,
        error: ClientError,
        undo: Box<LinkError>,
    },
    #[error("detach {port}: {error}")]
    Detach { port: Name, error: ClientError },
}

/// Makes the pod's link and hands it to the forwarder as port `port`. The
/// host end of a veth appears in the caller's namespace.
pub fn attach_pod(
    pod: &Netns,
    port: &Name,
    wiring: &Wiring,
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
    };
    let fds: Vec<_> = device.fds.iter().map(AsFd::as_fd).collect();
    let Err(error) = forwarder.attach(attach, &fds) else {
        return Ok(device.driver);
    };
    match link::remove(pod, &wiring.interface) {
        Ok(()) => Err(WireError::Attach {
            port: named(),
            error,
        }),
        Err(undo) => Err(WireError::Undo {
            port: named(),
            error,
            undo: Box::new(undo),
        }),
    }
}

/// Takes a pod's port and link away, as far as they are there. Goes on after
/// an error, and tells all of them.
pub fn detach_pod(
    pod: Option<&Netns>,
    port: &Name,
    interface: &str,
    forwarder: Option<&mut Client>,
) -> Result<(), Vec<WireError>> {
    let mut errors = Vec::new();
    let detached = forwarder.map(|client| client.request(&Request::Detach { name: port.clone() }));
    match detached {
        Some(Err(ClientError::Refused(refusal))) if refusal.code == Code::NotFound => {}
        Some(Err(error)) => errors.push(WireError::Detach {
            port: port.clone(),
            error,
        }),
        Some(Ok(_)) | None => {}
    }
    if let Some(Err(error)) = pod.map(|pod| link::remove(pod, interface)) {
        errors.push(WireError::Link {
            port: port.clone(),
            error,
        });
    }
    if errors.is_empty() {
        Ok(())
    } else {
        Err(errors)
    }
}

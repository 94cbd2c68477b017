//! A tap and its queues. It belongs to the namespace in which the tun node
//! was opened, and lives exactly as long as its fds.

use std::{
    fs::File,
    os::fd::OwnedFd,
    thread,
    time::{Duration, Instant},
};

use nix::errno::Errno;
use weft_api::forwarder::{Driver, QUEUES_MAX};

use super::{Device, LinkError, exists, is};
use crate::{netns::Netns, sys};

pub(super) const TUN: &str = "/dev/net/tun";

/// Makes the tap in the calling thread's namespace: a tap belongs to the one
/// in which the node was opened.
pub(super) fn add_tap(interface: &str, queues: usize) -> Result<Device, LinkError> {
    if queues == 0 || queues > QUEUES_MAX {
        return Err(LinkError::Queues {
            interface: interface.to_owned(),
            queues,
        });
    }
    match tap_queues(interface, queues) {
        Err(LinkError::Tap { error, .. }) if is(&error, Errno::EINVAL) => basic(interface),
        queues => Ok(Device {
            driver: Driver::Tap,
            fds: queues?,
        }),
    }
}

fn tap_queues(interface: &str, queues: usize) -> Result<Vec<OwnedFd>, LinkError> {
    let mut fds = Vec::with_capacity(queues);
    for number in 0..queues {
        let tun = open_tun()?;
        sys::tap_queue(&tun, interface, number, queues).map_err(|error| LinkError::Tap {
            interface: interface.to_owned(),
            error,
        })?;
        if number == 0 {
            // USO came with kernel 6.2; without TSO a tap still carries
            // finished packets, only slower.
            sys::tap_offloads(&tun, sys::OFFLOADS_USO)
                .or_else(|_| sys::tap_offloads(&tun, sys::OFFLOADS))
                .or_else(|_| sys::tap_offloads(&tun, 0))
                .map_err(|error| LinkError::Offloads {
                    interface: interface.to_owned(),
                    error,
                })?;
        }
        fds.push(tun.into());
    }
    Ok(fds)
}

fn open_tun() -> Result<File, LinkError> {
    File::options()
        .read(true)
        .write(true)
        .open(TUN)
        .map_err(|error| LinkError::Tun { error })
}

/// The driver for kernels and sandboxes that take no more than a plain tap.
#[cfg(feature = "basic-tap")]
pub(super) fn basic(interface: &str) -> Result<Device, LinkError> {
    // tun-tap has one error for the node and for the device; tell them apart.
    drop(open_tun()?);
    let fd = sys::basic_tap(interface).map_err(|error| LinkError::Tap {
        interface: interface.to_owned(),
        error,
    })?;
    Ok(Device {
        driver: Driver::Basic,
        fds: vec![fd],
    })
}

#[cfg(not(feature = "basic-tap"))]
pub(super) fn basic(interface: &str) -> Result<Device, LinkError> {
    Err(LinkError::NoBasicDriver {
        interface: interface.to_owned(),
    })
}

/// Whether a tap whose fds are being closed has left its namespace; waits for
/// that beside `meanwhile`. Asked by name, since netlink would answer only
/// once the kernel is done with the link, and that takes some 20 ms more.
pub fn has_left<T>(netns: &Netns, interface: &str, meanwhile: impl FnOnce() -> T) -> (bool, T) {
    const DEADLINE: Duration = Duration::from_millis(100);
    const PAUSE: Duration = Duration::from_micros(200);

    let wait = || {
        let until = Instant::now() + DEADLINE;
        while !matches!(exists(interface), Ok(false)) {
            if Instant::now() > until {
                return false;
            }
            thread::sleep(PAUSE);
        }
        true
    };
    let (left, done) = netns.run_beside(wait, meanwhile);
    (left.unwrap_or(false), done)
}

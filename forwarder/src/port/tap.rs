//! Tap queues with a virtio-net header and all the offloads the kernel has.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use weft_wire::vnet;

use super::{Offloads, PortError};
use crate::sys;

/// Checks that all fds are such queues and sets the device up.
///
/// Header size and offload mask are state of the device and outlive its
/// users, so both are set whatever they were.
pub fn open(queues: &[OwnedFd]) -> Result<Offloads, PortError> {
    if queues.is_empty() {
        return Err(PortError::Count {
            driver: "tap",
            expected: "at least 1",
            found: 0,
        });
    }
    let mut offloads = Offloads {
        tcp: true,
        udp: true,
    };
    // All of them before the first is changed.
    for (place, queue) in queues.iter().enumerate() {
        recognise(queue.as_fd()).map_err(|error| PortError::NotThis {
            place,
            expected: "tap queue with IFF_VNET_HDR and IFF_NO_PI",
            error,
        })?;
    }
    for (place, queue) in queues.iter().enumerate() {
        let fd = queue.as_fd();
        let failed = |what| move |error| PortError::Setup { place, what, error };
        sys::set_vnet_header_size(fd, vnet::LEN)
            .map_err(failed("set the virtio-net header size"))?;
        let all = sys::CHECKSUM | sys::TCP | sys::UDP;
        // Kernels before 6.2 have no USO.
        if sys::set_tap_offload(fd, all).is_err() {
            offloads.udp = false;
            let most = sys::CHECKSUM | sys::TCP;
            sys::set_tap_offload(fd, most).map_err(failed("set its offloads"))?;
        }
    }
    Ok(offloads)
}

fn recognise(fd: BorrowedFd<'_>) -> std::io::Result<()> {
    let flags = sys::tap_flags(fd)?;
    let needed = libc::IFF_TAP | libc::IFF_VNET_HDR | libc::IFF_NO_PI;
    if flags & needed == needed {
        Ok(())
    } else {
        Err(std::io::Error::other(format!(
            "its flags are {flags:#x}, {needed:#x} are needed"
        )))
    }
}

/// Whether the queue outlived its device (drivers/net/tun.c).
pub fn is_detached(fd: BorrowedFd<'_>) -> bool {
    sys::tap_flags(fd).is_err_and(|error| error.raw_os_error() == Some(libc::EBADFD))
}

//! Packet sockets on the host end of a veth, with a virtio-net header
//! (`PACKET_VNET_HDR`), so that a pod with a veth has the offloads of one
//! with a tap.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use nix::sys::socket::{SockType, getsockopt, sockopt};

use super::{Offloads, PortError};
use crate::sys;

pub fn open(queues: &[OwnedFd]) -> Result<Offloads, PortError> {
    if queues.is_empty() {
        return Err(PortError::Count {
            driver: "veth",
            expected: "at least 1",
            found: 0,
        });
    }
    // All of them before the first is changed.
    for (place, queue) in queues.iter().enumerate() {
        recognise(queue).map_err(|error| PortError::NotThis {
            place,
            expected: "raw packet socket bound to an interface",
            error,
        })?;
    }
    for (place, queue) in queues.iter().enumerate() {
        for (name, what) in [
            (libc::PACKET_VNET_HDR, "set PACKET_VNET_HDR"),
            // What we send must not come back as received.
            (libc::PACKET_IGNORE_OUTGOING, "set PACKET_IGNORE_OUTGOING"),
            (libc::PACKET_QDISC_BYPASS, "set PACKET_QDISC_BYPASS"),
        ] {
            sys::set_option(queue, libc::SOL_PACKET, name, 1)
                .map_err(|error| PortError::Setup { place, what, error })?;
        }
    }
    Ok(Offloads {
        tcp: true,
        udp: true,
    })
}

fn recognise(queue: &OwnedFd) -> io::Result<()> {
    let interface = sys::packet_interface(queue.as_fd())?;
    if getsockopt(queue, sockopt::SockType)? != SockType::Raw {
        return Err(io::Error::other("its type is not SOCK_RAW"));
    }
    if interface <= 0 {
        return Err(io::Error::other("it is not bound to an interface"));
    }
    Ok(())
}

/// Whether the interface was deleted: the kernel then binds the socket to
/// interface -1 (net/packet/af_packet.c, `packet_notifier`).
pub fn unbound(fd: BorrowedFd<'_>) -> bool {
    sys::packet_interface(fd).is_ok_and(|interface| interface == -1)
}

/// Whether the pod's end is up. To a device whose other end is down the
/// kernel says the same as to a full one (net/core/dev.c,
/// `__dev_direct_xmit`).
pub fn has_carrier(fd: BorrowedFd<'_>) -> bool {
    sys::link::has_carrier(fd).unwrap_or(false)
}

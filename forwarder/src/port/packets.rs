//! Frames as the messages of a Unix socket (SOCK_SEQPACKET): what a tap speaks,
//! to a process instead of a kernel. Super-frames and partial checksums pass
//! whole.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::socket::{AddressFamily, SockType, SockaddrLike, SockaddrStorage, getsockname, sockopt},
};

use super::{Offloads, PortError};
use crate::sys;

/// Bytes that may wait for the other process. The kernel gives as much as its
/// `net.core.wmem_max` allows, twice.
const WAITING: libc::c_int = 4 << 20;

pub fn open(queues: &[OwnedFd]) -> Result<Offloads, PortError> {
    if queues.is_empty() {
        return Err(PortError::Count {
            driver: "packets",
            expected: "at least 1",
            found: 0,
        });
    }
    // All of them before the first is changed.
    for (place, queue) in queues.iter().enumerate() {
        recognise(queue).map_err(|error| PortError::NotThis {
            place,
            expected: "connected Unix socket of type SOCK_SEQPACKET",
            error,
        })?;
    }
    for (place, queue) in queues.iter().enumerate() {
        let what = "set SO_SNDBUF";
        sys::set_option(queue, libc::SOL_SOCKET, libc::SO_SNDBUF, WAITING)
            .map_err(|error| PortError::Setup { place, what, error })?;
    }
    Ok(Offloads {
        tcp: true,
        udp: true,
    })
}

fn recognise(queue: &OwnedFd) -> io::Result<()> {
    use std::os::fd::AsRawFd;
    let address: SockaddrStorage = getsockname(queue.as_raw_fd())?;
    if address.family() != Some(AddressFamily::Unix) {
        return Err(io::Error::other("it is no Unix socket"));
    }
    if nix::sys::socket::getsockopt(queue, sockopt::SockType)? != SockType::SeqPacket {
        return Err(io::Error::other("its type is not SOCK_SEQPACKET"));
    }
    if hung_up(queue.as_fd()) {
        return Err(io::Error::other("its other end is closed"));
    }
    Ok(())
}

/// Whether the other end is closed: nothing more is sent to it, and nothing
/// comes behind what has come already.
pub fn hung_up(fd: BorrowedFd<'_>) -> bool {
    let mut watched = [PollFd::new(fd, PollFlags::empty())];
    let told = poll(&mut watched, PollTimeout::ZERO);
    let events = watched[0].revents().unwrap_or(PollFlags::empty());
    told.is_ok() && events.contains(PollFlags::POLLHUP)
}

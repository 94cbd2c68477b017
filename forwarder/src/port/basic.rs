//! One tap queue without virtio-net header: for kernels and sandboxes that
//! know no more (gVisor's tun takes exactly IFF_TAP and IFF_NO_PI).

use std::os::fd::{AsFd, OwnedFd};

use super::{Offloads, PortError};
use crate::sys;

pub fn open(queues: &[OwnedFd]) -> Result<Offloads, PortError> {
    let [queue] = queues else {
        let found = queues.len();
        return Err(PortError::Count {
            driver: "basic",
            expected: "exactly 1",
            found,
        });
    };
    let not_this = |error| PortError::NotThis {
        place: 0,
        expected: "plain tap queue with IFF_NO_PI and without IFF_VNET_HDR",
        error,
    };
    let flags = sys::tap_flags(queue.as_fd()).map_err(not_this)?;
    let mask = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    if flags & mask != libc::IFF_TAP | libc::IFF_NO_PI {
        return Err(not_this(std::io::Error::other(format!(
            "its flags are {flags:#x}"
        ))));
    }
    // Offloads that an earlier user left on the device would reach us as
    // frames without the header that explains them. Sandboxes without this
    // ioctl have no offloads either.
    let _ = sys::set_tap_offload(queue.as_fd(), 0);
    Ok(Offloads::default())
}

//! What the kernel knows about a network interface of this namespace.

use std::{
    io,
    mem::zeroed,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
};

/// The interface's MTU in bytes (SIOCGIFMTU, netdevice(7)). The ioctl asks
/// this thread's own network namespace, which a mounted /sys need not show.
pub fn mtu(interface: &str) -> io::Result<u16> {
    // SAFETY: ifreq is plain data, for which all zeroes is a value.
    let mut request: libc::ifreq = unsafe { zeroed() };
    // The kernel wants the name with a zero byte behind it.
    if interface.len() >= request.ifr_name.len() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (to, from) in request.ifr_name.iter_mut().zip(interface.bytes()) {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    // SAFETY: socket(2) takes no pointers.
    let fd = unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the socket is open and nobody else's.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    // SAFETY: SIOCGIFMTU reads the name and writes the MTU of one live ifreq.
    if unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFMTU, &raw mut request) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: SIOCGIFMTU succeeded, so this member is the one that was written.
    let mtu = unsafe { request.ifr_ifru.ifru_mtu };
    // Loopback's 65536 is one more than any IP packet can use.
    Ok(u16::try_from(mtu.max(0)).unwrap_or(u16::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_has_an_mtu_and_nothing_has_none() {
        assert_eq!(mtu("lo").expect("loopback exists"), u16::MAX);
        assert!(mtu("no-such-link").is_err());
        assert!(mtu("a-name-of-far-too-many-bytes").is_err());
    }
}

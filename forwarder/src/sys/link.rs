//! Network interfaces of this thread's own namespace, by ioctl
//! (netdevice(7)): a mounted /sys need not show that namespace.

use std::{
    io,
    mem::zeroed,
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
};

/// linux/ethtool.h.
const ETHTOOL_GLINK: u32 = 0x0a;

/// The interface's MTU in bytes.
pub fn mtu(interface: &str) -> io::Result<u16> {
    let mut request = request(interface)?;
    ask(libc::SIOCGIFMTU, &mut request)?;
    // SAFETY: SIOCGIFMTU succeeded, so this member is the one it wrote.
    let mtu = unsafe { request.ifr_ifru.ifru_mtu };
    // Loopback's 65536 is one more than any IP packet can use.
    Ok(u16::try_from(mtu.max(0)).unwrap_or(u16::MAX))
}

/// Sets the interface up.
pub fn raise(interface: &str) -> io::Result<()> {
    let mut request = request(interface)?;
    ask(libc::SIOCGIFFLAGS, &mut request)?;
    let up = libc::c_short::try_from(libc::IFF_UP).map_err(io::Error::other)?;
    // SAFETY: SIOCGIFFLAGS succeeded, so this member is the one it wrote.
    unsafe { request.ifr_ifru.ifru_flags |= up };
    ask(libc::SIOCSIFFLAGS, &mut request)
}

/// Whether something that is up is at the other end of the interface that a
/// packet socket is bound to.
pub fn has_carrier(packet_socket: BorrowedFd<'_>) -> io::Result<bool> {
    // SAFETY: ifreq is plain data, for which all zeroes is a value.
    let mut request: libc::ifreq = unsafe { zeroed() };
    request.ifr_ifru.ifru_ifindex = super::packet_interface(packet_socket)?;
    ask_by(packet_socket, libc::SIOCGIFNAME, &mut request)?;
    // struct ethtool_value: the command, and room for the answer.
    let mut value = [ETHTOOL_GLINK, 0];
    request.ifr_ifru.ifru_data = (&raw mut value).cast();
    ask_by(packet_socket, libc::SIOCETHTOOL, &mut request)?;
    Ok(value[1] != 0)
}

fn request(interface: &str) -> io::Result<libc::ifreq> {
    // SAFETY: ifreq is plain data, for which all zeroes is a value.
    let mut request: libc::ifreq = unsafe { zeroed() };
    // The kernel wants the name with a zero byte behind it.
    if interface.len() >= request.ifr_name.len() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (to, from) in request.ifr_name.iter_mut().zip(interface.bytes()) {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    Ok(request)
}

fn ask(number: libc::c_ulong, request: &mut libc::ifreq) -> io::Result<()> {
    // SAFETY: socket(2) takes no pointers.
    let fd = unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the socket is open and nobody else's.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    ask_by(socket.as_fd(), number, request)
}

fn ask_by(
    socket: BorrowedFd<'_>,
    number: libc::c_ulong,
    request: &mut libc::ifreq,
) -> io::Result<()> {
    // SAFETY: the interface ioctls of this file read and write one ifreq,
    // and `request` is one; where it points at data, that is as the ioctl
    // wants it.
    if unsafe { libc::ioctl(socket.as_raw_fd(), number as _, request) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
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

//! The kernel calls that no crate offers safely: tap set-up, AF_PACKET
//! options, device features. Everything unsafe of this crate is here; nothing
//! here decides.

pub mod ethtool;

use std::{
    ffi::c_int,
    fs::File,
    io, mem,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
};

/// `struct virtio_net_hdr` without `num_buffers` (virtio_net.h).
pub const VNET_HEADER_LEN: c_int = 10;

/// `TUN_F_*` of if_tun.h.
pub const OFFLOADS: c_int = 0x01 | 0x02 | 0x04 | 0x08; // CSUM, TSO4, TSO6, TSO_ECN
pub const OFFLOADS_USO: c_int = OFFLOADS | 0x20 | 0x40; // USO4, USO6 (kernel 6.2)

/// Socket options of if_packet.h.
pub const PACKET_VNET_HDR: c_int = 15;
pub const PACKET_QDISC_BYPASS: c_int = 20;
pub const PACKET_IGNORE_OUTGOING: c_int = 23;

/// Of socket.h.
const SO_NETNS_COOKIE: c_int = 71;

mod ioctl {
    use super::c_int;
    nix::ioctl_write_ptr_bad!(tunsetiff, libc::TUNSETIFF, libc::ifreq);
    nix::ioctl_write_ptr_bad!(tunsetvnethdrsz, libc::TUNSETVNETHDRSZ, c_int);
    nix::ioctl_write_int_bad!(tunsetoffload, libc::TUNSETOFFLOAD);
}

/// Makes `tun`, an open `/dev/net/tun`, queue `number` of `count` of tap
/// `name` with a vnet header. The first queue creates the device and fails
/// with EBUSY where the name is taken; the others join it.
pub fn tap_queue(tun: &File, name: &str, number: usize, count: usize) -> io::Result<()> {
    let mut flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    if number == 0 {
        flags |= libc::IFF_TUN_EXCL;
    }
    if count > 1 {
        // For these the kernel sets up 256 queues, whatever `count` is:
        // milliseconds, and megabytes of memory.
        flags |= libc::IFF_MULTI_QUEUE;
    }
    let mut request = named_request(name)?;
    // IFF_TUN_EXCL is bit 15: the value fits the unsigned 16 bits that the
    // kernel reads, and `as` keeps those bits.
    request.ifr_ifru.ifru_flags = flags as libc::c_short;
    // SAFETY: the fd is open for the call, and the request is a whole ifreq
    // that the kernel copies before it returns.
    unsafe { ioctl::tunsetiff(tun.as_raw_fd(), &request) }?;
    // SAFETY: as above, with a whole int.
    unsafe { ioctl::tunsetvnethdrsz(tun.as_raw_fd(), &VNET_HEADER_LEN) }?;
    Ok(())
}

/// The number of the socket's network namespace, which no other gets until
/// the machine starts anew, unlike its inode (kernel 5.14).
pub fn netns_cookie(socket: &impl AsRawFd) -> io::Result<u64> {
    let mut cookie = 0_u64;
    let mut len = libc::socklen_t::try_from(size_of_val(&cookie)).map_err(io::Error::other)?;
    // SAFETY: the pointers are to a whole u64 and to its length, both alive
    // for the call.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut len,
        )
    };
    if result == 0 {
        Ok(cookie)
    } else {
        Err(io::Error::last_os_error())
    }
}

/// What the pod may hand over unfinished: checksums, TCP and UDP
/// super-frames. The mask belongs to the device, not to the queue.
pub fn tap_offloads(queue: &File, mask: c_int) -> io::Result<()> {
    // SAFETY: the fd is open for the call; the argument is a plain number.
    unsafe { ioctl::tunsetoffload(queue.as_raw_fd(), mask) }?;
    Ok(())
}

/// A tap of one queue without a header, by the crate that does just that.
#[cfg(feature = "basic-tap")]
pub fn basic_tap(name: &str) -> io::Result<OwnedFd> {
    use std::os::fd::IntoRawFd;

    let tap = tun_tap::Iface::without_packet_info(name, tun_tap::Mode::Tap)?;
    // SAFETY: the crate gives the fd up, so it is nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(tap.into_raw_fd()) })
}

/// An AF_PACKET socket that takes nothing until [`packet_bind`].
pub fn packet_socket() -> io::Result<OwnedFd> {
    let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: plain numbers in, a new fd or -1 out.
    let fd = unsafe { libc::socket(libc::AF_PACKET, kind, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the fd is new and nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

pub fn packet_option(socket: &OwnedFd, option: c_int, value: c_int) -> io::Result<()> {
    set_int(socket, libc::SOL_PACKET, option, value)
}

/// Asks for `bytes` of receive and send buffer; the kernel clamps to its
/// rmem_max and wmem_max, unless the caller may pass them.
pub fn socket_buffers(socket: &OwnedFd, bytes: c_int) -> io::Result<()> {
    for (force, plain) in [
        (libc::SO_RCVBUFFORCE, libc::SO_RCVBUF),
        (libc::SO_SNDBUFFORCE, libc::SO_SNDBUF),
    ] {
        set_int(socket, libc::SOL_SOCKET, force, bytes)
            .or_else(|_| set_int(socket, libc::SOL_SOCKET, plain, bytes))?;
    }
    Ok(())
}

/// Starts taking every frame of the device `index`.
pub fn packet_bind(socket: &OwnedFd, index: u32) -> io::Result<()> {
    // SAFETY: sockaddr_ll is plain data; all zeros is a valid value.
    let mut address: libc::sockaddr_ll = unsafe { mem::zeroed() };
    address.sll_family = libc::AF_PACKET as libc::sa_family_t;
    address.sll_protocol = (libc::ETH_P_ALL as u16).to_be();
    address.sll_ifindex = c_int::try_from(index).map_err(io::Error::other)?;
    let len = size_of_val(&address) as libc::socklen_t;
    // SAFETY: the address is a whole sockaddr_ll of the length given.
    let done = unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), len) };
    if done < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

fn set_int(socket: &OwnedFd, level: c_int, option: c_int, value: c_int) -> io::Result<()> {
    // SAFETY: the value is a whole int of the length given.
    let done = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            option,
            (&raw const value).cast(),
            size_of::<c_int>() as libc::socklen_t,
        )
    };
    if done < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

pub(crate) fn named_request(name: &str) -> io::Result<libc::ifreq> {
    // SAFETY: ifreq is plain data; all zeros is a valid value.
    let mut request: libc::ifreq = unsafe { mem::zeroed() };
    if name.is_empty() || name.len() >= request.ifr_name.len() || name.contains('\0') {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from.cast_signed() as libc::c_char;
    }
    Ok(request)
}

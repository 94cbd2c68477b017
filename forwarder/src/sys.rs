//! Ioctls and socket options that no library offers.

use std::{
    fs::File,
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
};

pub mod link;
pub mod passing;

mod ioctl {
    use nix::{ioctl_read, ioctl_write_int, ioctl_write_ptr};

    // linux/if_tun.h: all of magic 'T'.
    ioctl_write_ptr!(tun_set_interface, b'T', 202, libc::c_int);
    ioctl_write_int!(tun_set_offload, b'T', 208);
    ioctl_read!(tun_interface, b'T', 210, libc::c_uint);
    ioctl_write_ptr!(tun_set_vnet_header_size, b'T', 216, libc::c_int);
}

/// `TUN_F_*` (linux/if_tun.h): what the reader of a tap accepts.
pub const CHECKSUM: libc::c_uint = libc::TUN_F_CSUM;
pub const TCP: libc::c_uint = libc::TUN_F_TSO4 | libc::TUN_F_TSO6 | libc::TUN_F_TSO_ECN;
pub const UDP: libc::c_uint = libc::TUN_F_USO4 | libc::TUN_F_USO6;

/// Makes `tun`, an open `/dev/net/tun`, the queue of a new device with these
/// `IFF_*` flags; the kernel names it.
pub fn make_tap(tun: File, flags: libc::c_int) -> io::Result<File> {
    // SAFETY: an all-zero ifreq is a valid value of that plain C struct.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    request.ifr_ifru.ifru_flags = libc::c_short::try_from(flags).map_err(io::Error::other)?;
    // SAFETY: TUNSETIFF reads and writes one ifreq at the pointer, whatever
    // type its number is made from; `request` is one.
    unsafe { ioctl::tun_set_interface(tun.as_raw_fd(), (&raw const request).cast()) }?;
    Ok(tun)
}

/// The `IFF_*` flags of the tap that `fd` is a queue of.
pub fn tap_flags(fd: BorrowedFd<'_>) -> io::Result<libc::c_int> {
    // SAFETY: an all-zero ifreq is a valid value of that plain C struct.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // SAFETY: TUNGETIFF writes one ifreq at the pointer; `request` is one.
    unsafe { ioctl::tun_interface(fd.as_raw_fd(), (&raw mut request).cast()) }?;
    // SAFETY: TUNGETIFF fills the flags of the union.
    Ok(unsafe { request.ifr_ifru.ifru_flags }.into())
}

/// The index of the interface that packet socket `fd` is bound to, 0 if to
/// none. `getsockname` of a packet socket tells as many bytes as the
/// interface's address has, 18 on Ethernet, which nix takes for no address.
pub fn packet_interface(fd: BorrowedFd<'_>) -> io::Result<libc::c_int> {
    // SAFETY: an all-zero sockaddr_ll is a valid value of that plain C struct.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    let mut len = libc::socklen_t::try_from(size_of_val(&address)).map_err(io::Error::other)?;
    // SAFETY: the kernel writes at most `len` bytes, the size of `address`.
    let told = unsafe { libc::getsockname(fd.as_raw_fd(), (&raw mut address).cast(), &mut len) };
    if told < 0 {
        return Err(io::Error::last_os_error());
    }
    if i32::from(address.sll_family) != libc::AF_PACKET {
        return Err(io::Error::other("it is no packet socket"));
    }
    Ok(address.sll_ifindex)
}

/// Sets which offloads the kernel may leave to us; state of the device.
pub fn set_tap_offload(fd: BorrowedFd<'_>, offload: libc::c_uint) -> io::Result<()> {
    // SAFETY: TUNSETOFFLOAD takes its argument by value.
    unsafe { ioctl::tun_set_offload(fd.as_raw_fd(), offload.into()) }?;
    Ok(())
}

/// Sets the bytes of virtio-net header before each frame; state of the
/// device.
pub fn set_vnet_header_size(fd: BorrowedFd<'_>, size: usize) -> io::Result<()> {
    let size = libc::c_int::try_from(size).map_err(io::Error::other)?;
    // SAFETY: TUNSETVNETHDRSZ reads one int at the pointer.
    unsafe { ioctl::tun_set_vnet_header_size(fd.as_raw_fd(), &raw const size) }?;
    Ok(())
}

/// A raw IPv4 socket of an IP protocol; needs CAP_NET_RAW.
pub fn raw_socket(protocol: u8) -> io::Result<OwnedFd> {
    let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: socket takes its arguments by value.
    let fd = unsafe { libc::socket(libc::AF_INET, kind, protocol.into()) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor, and nobody else
    // knows of it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// An int-sized socket option.
pub fn option(fd: impl AsFd, level: libc::c_int, name: libc::c_int) -> io::Result<libc::c_int> {
    let mut value: libc::c_int = 0;
    let mut len = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `len` bytes, the size of `value`.
    let result = unsafe {
        let value = (&raw mut value).cast();
        libc::getsockopt(fd.as_fd().as_raw_fd(), level, name, value, &raw mut len)
    };
    if result == 0 {
        Ok(value)
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Sets an int-sized socket option.
pub fn set_option(
    fd: impl AsFd,
    level: libc::c_int,
    name: libc::c_int,
    value: libc::c_int,
) -> io::Result<()> {
    // SAFETY: the option's value is the int at the pointer, of the size given.
    let result = unsafe {
        libc::setsockopt(
            fd.as_fd().as_raw_fd(),
            level,
            name,
            (&raw const value).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

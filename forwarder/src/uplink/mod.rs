//! The UDP side: datagrams to and from peers.
//!
//! Each worker receives on its own socket of the VXLAN port
//! ([`receive`], SO_REUSEPORT); all workers send from one set of sockets
//! whose source ports spread the flows ([`send`]). Beside them is one raw
//! socket for IP-in-IP ([`ipip`]), from which one worker receives, and for each
//! address a socket that asks what the path carries ([`question`]).

use std::{
    io,
    net::{IpAddr, SocketAddr},
    os::fd::{AsRawFd, OwnedFd},
};

use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrStorage, bind, setsockopt, socket, sockopt,
};

use crate::sys;

pub mod ipip;
pub mod question;
pub mod receive;
pub mod send;

pub use receive::Receiver;
pub use send::Sender;

#[derive(Debug, Clone)]
pub struct UplinkConfig {
    /// The node's underlay addresses, at most one of each family.
    pub addresses: Vec<IpAddr>,
    pub port: u16,
    /// The underlay's MTU in bytes of IP packet.
    pub mtu: u16,
    /// Whether that is what the links say, and follows them.
    pub mtu_of_links: bool,
    /// Sockets, and so source ports, over which flows are spread.
    pub entropy_ports: u16,
    /// Try UDP_SEGMENT and UDP_GRO.
    pub gso: bool,
    pub gro: bool,
    /// Speak IP-in-IP, where a raw socket is to be had.
    pub ipip: bool,
}

#[derive(Debug, thiserror::Error)]
pub enum UplinkError {
    #[error(
        "UDP port {port} on {address} is taken: another overlay or forwarder owns it; \
         stop that or choose another port"
    )]
    Taken { address: IpAddr, port: u16 },
    #[error("open a UDP socket on {address} port {port}: {error}; is the address this node's?")]
    Open {
        address: IpAddr,
        port: u16,
        error: io::Error,
    },
}

/// Bytes of kernel buffer asked for on each socket: some 60 super-frames.
pub(crate) const BUFFER: usize = 4 << 20;

/// Checks that nobody listens where this uplink is to. To be called before
/// any socket of it is open: those share their port with each other, and so
/// would with another forwarder's, among which the kernel spreads datagrams.
pub fn check_free(config: &UplinkConfig) -> Result<(), UplinkError> {
    for &address in &config.addresses {
        bound(address, config.port, Sharing::Never)?;
    }
    Ok(())
}

/// A UDP socket bound to one of the node's addresses.
fn open(address: IpAddr, port: u16) -> Result<OwnedFd, UplinkError> {
    // A port that the kernel chooses is ours alone.
    let sharing = if port == 0 {
        Sharing::Never
    } else {
        Sharing::AmongWorkers
    };
    bound(address, port, sharing)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sharing {
    Never,
    AmongWorkers,
}

fn bound(address: IpAddr, port: u16, sharing: Sharing) -> Result<OwnedFd, UplinkError> {
    try_open(address, port, sharing).map_err(|error| match error.raw_os_error() {
        Some(libc::EADDRINUSE) => UplinkError::Taken { address, port },
        _ => UplinkError::Open {
            address,
            port,
            error,
        },
    })
}

fn try_open(address: IpAddr, port: u16, sharing: Sharing) -> io::Result<OwnedFd> {
    let family = if address.is_ipv4() {
        AddressFamily::Inet
    } else {
        AddressFamily::Inet6
    };
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd = socket(family, SockType::Datagram, flags, None)?;
    if sharing == Sharing::AmongWorkers {
        setsockopt(&fd, sockopt::ReusePort, &true)?;
    }
    // Forced sizes need a privilege; without it the system's limit holds.
    if setsockopt(&fd, sockopt::RcvBufForce, &BUFFER).is_err() {
        setsockopt(&fd, sockopt::RcvBuf, &BUFFER)?;
    }
    setsockopt(&fd, sockopt::SndBuf, &BUFFER)?;
    // Like the kernel's VXLAN: no DF on the outer packet.
    let (level, name) = if address.is_ipv4() {
        (libc::IPPROTO_IP, libc::IP_MTU_DISCOVER)
    } else {
        (libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER)
    };
    sys::set_option(&fd, level, name, libc::IP_PMTUDISC_DONT)?;
    bind(
        fd.as_raw_fd(),
        &SockaddrStorage::from(SocketAddr::new(address, port)),
    )?;
    Ok(fd)
}

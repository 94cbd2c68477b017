//! A socket of the node's that stands for a port of a pod.

use std::{
    fmt,
    io::IoSliceMut,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::{AsFd, AsRawFd, OwnedFd, RawFd},
    rc::Rc,
};

use mio::net::TcpListener;
use nix::{
    errno::Errno,
    libc,
    sys::socket::{
        AddressFamily, Backlog, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType,
        SockaddrStorage, bind, listen, recvmsg, sendmsg, setsockopt, socket, sockopt,
    },
};
use weft_api::forwarder::Protocol;

/// Connections that wait to be taken, cut by `net.core.somaxconn`.
const BACKLOG: i32 = 4096;

/// Where on the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    pub protocol: Protocol,
    pub address: SocketAddr,
}

#[derive(Debug)]
pub enum Socket {
    Tcp(TcpListener),
    Udp(Rc<Datagrams>),
}

/// What comes by it knows which of the node's addresses it was sent to, and
/// what leaves says which it is from.
#[derive(Debug)]
pub struct Datagrams(OwnedFd);

/// What one read brought.
#[derive(Debug)]
pub struct Came {
    pub from: SocketAddr,
    pub to: Local,
    pub bytes: usize,
    /// Of each datagram, where they are several.
    pub size: Option<u16>,
}

/// An address of the node's, and the link if it is only known there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Local {
    pub address: IpAddr,
    link: u32,
}

/// Why a port cannot be served.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    #[error("another process of this node has that port; end it, or publish another port")]
    InUse,
    #[error(
        "this node lets no ordinary process have port {0}; \
         set net.ipv4.ip_unprivileged_port_start to {0} or less"
    )]
    Privileged(u16),
    #[error("this node has no such address; publish the port on one that it has")]
    NoAddress,
    #[error("the pod has no address of that family; give it one, or publish no port of it there")]
    Family,
    #[error("sockets carry no SCTP; publish it where weft host up is the host port")]
    Protocol,
    #[error("{0}")]
    Kernel(Errno),
}

impl Socket {
    pub fn open(place: Place) -> Result<Self, Fault> {
        let opened = match place.protocol {
            Protocol::Tcp => listener(place.address).map(Self::Tcp),
            Protocol::Udp => Datagrams::open(place.address).map(|socket| Self::Udp(socket.into())),
            Protocol::Sctp => return Err(Fault::Protocol),
        };
        opened.map_err(|errno| match errno {
            Errno::EADDRINUSE => Fault::InUse,
            Errno::EACCES => Fault::Privileged(place.address.port()),
            Errno::EADDRNOTAVAIL => Fault::NoAddress,
            errno => Fault::Kernel(errno),
        })
    }
}

fn bound(kind: SockType, address: SocketAddr) -> nix::Result<OwnedFd> {
    let family = match address {
        SocketAddr::V4(_) => AddressFamily::Inet,
        SocketAddr::V6(_) => AddressFamily::Inet6,
    };
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let socket = socket(family, kind, flags, None)?;
    if address.is_ipv6() {
        setsockopt(&socket, sockopt::Ipv6V6Only, &true)?;
    }
    if kind == SockType::Stream {
        // Connections of a listener that was there before may still linger.
        setsockopt(&socket, sockopt::ReuseAddr, &true)?;
    }
    bind(socket.as_raw_fd(), &SockaddrStorage::from(address))?;
    Ok(socket)
}

fn listener(address: SocketAddr) -> nix::Result<TcpListener> {
    let socket = bound(SockType::Stream, address)?;
    listen(&socket, Backlog::new(BACKLOG)?)?;
    Ok(TcpListener::from_std(socket.into()))
}

impl Datagrams {
    fn open(address: SocketAddr) -> nix::Result<Self> {
        let socket = bound(SockType::Datagram, address)?;
        match address {
            SocketAddr::V4(_) => setsockopt(&socket, sockopt::Ipv4PacketInfo, &true)?,
            SocketAddr::V6(_) => setsockopt(&socket, sockopt::Ipv6RecvPacketInfo, &true)?,
        }
        // Without it, trains come one by one.
        let _ = setsockopt(&socket, sockopt::UdpGroSegment, &true);
        Ok(Self(socket))
    }

    pub fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }

    /// None of what comes from nowhere.
    pub fn receive(&self, buffer: &mut [u8]) -> nix::Result<Option<Came>> {
        let mut control = nix::cmsg_space!(libc::in6_pktinfo, i32);
        let mut room = [IoSliceMut::new(buffer)];
        let flags = MsgFlags::MSG_DONTWAIT;
        let message =
            recvmsg::<SockaddrStorage>(self.as_raw_fd(), &mut room, Some(&mut control), flags)?;
        let (mut to, mut size) = (None, None);
        for one in message.cmsgs().into_iter().flatten() {
            match one {
                ControlMessageOwned::Ipv4PacketInfo(info) => {
                    let address = u32::from_be(info.ipi_spec_dst.s_addr);
                    to = Some(Local::new(Ipv4Addr::from_bits(address).into(), 0));
                }
                ControlMessageOwned::Ipv6PacketInfo(info) => {
                    let address = Ipv6Addr::from(info.ipi6_addr.s6_addr);
                    to = Some(Local::new(address.into(), info.ipi6_ifindex));
                }
                ControlMessageOwned::UdpGroSegments(told) => {
                    size = u16::try_from(told).ok().filter(|size| *size > 0);
                }
                _ => {}
            }
        }
        let from = message.address.as_ref().and_then(socket_address);
        Ok(from.zip(to).map(|(from, to)| Came {
            from,
            to,
            bytes: message.bytes,
            size,
        }))
    }

    pub fn send(
        &self,
        from: Local,
        to: SocketAddr,
        payload: &[u8],
        size: Option<u16>,
    ) -> nix::Result<()> {
        let size = size.unwrap_or_default();
        let (v4, v6);
        let source = match from.address {
            IpAddr::V4(address) => {
                v4 = libc::in_pktinfo {
                    ipi_ifindex: 0,
                    ipi_spec_dst: libc::in_addr {
                        s_addr: address.to_bits().to_be(),
                    },
                    ipi_addr: libc::in_addr { s_addr: 0 },
                };
                ControlMessage::Ipv4PacketInfo(&v4)
            }
            IpAddr::V6(address) => {
                v6 = libc::in6_pktinfo {
                    ipi6_addr: libc::in6_addr {
                        s6_addr: address.octets(),
                    },
                    ipi6_ifindex: from.link,
                };
                ControlMessage::Ipv6PacketInfo(&v6)
            }
        };
        let control = [source, ControlMessage::UdpGsoSegments(&size)];
        let control = &control[..if size > 0 { 2 } else { 1 }];
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        let pieces = [std::io::IoSlice::new(payload)];
        let to = SockaddrStorage::from(to);
        sendmsg(self.as_raw_fd(), &pieces, control, flags, Some(&to)).map(drop)
    }
}

impl Local {
    fn new(address: IpAddr, link: u32) -> Self {
        let on_link = matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local());
        let link = if on_link { link } else { 0 };
        Self { address, link }
    }
}

fn socket_address(address: &SockaddrStorage) -> Option<SocketAddr> {
    let v4 = address
        .as_sockaddr_in()
        .map(|v4| SocketAddr::V4((*v4).into()));
    v4.or_else(|| {
        let v6 = address.as_sockaddr_in6()?;
        Some(SocketAddr::V6((*v6).into()))
    })
}

/// `192.0.2.1:8080/tcp`
impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.protocol.name())
    }
}

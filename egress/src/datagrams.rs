//! A flow of datagrams, or of pings: one connected socket of the kernel's.
//!
//! Trains go out and come in by one call each (UDP_SEGMENT, UDP_GRO), and are
//! super-frames on the pod's side. What routers outside say of a packet
//! (IP_RECVERR) is told to its pod, and a packet keeps the hops it has left, so
//! that paths can be traced.

use std::{
    io::{IoSlice, IoSliceMut},
    net::{IpAddr, SocketAddr},
    os::fd::{AsRawFd, OwnedFd, RawFd},
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    libc,
    sys::socket::{
        AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockProtocol,
        SockType, SockaddrIn, SockaddrIn6, SockaddrStorage, connect, recvmsg, sendmsg, setsockopt,
        socket, sockopt,
    },
};
use weft_wire::{ETHERNET_LEN, Ethernet, Key, checksum, parse, protocol};

use crate::{
    fragments::{cut, ethertype_of},
    link::{Full, Link, Segments},
    metrics::Counters,
    refusal::{Trouble, ip_len, reminder, tell, write_ip},
};

/// How long a flow that outside has not answered is kept, and one that it has
/// (RFC 4787 section 4.3: at least two minutes).
pub const UNANSWERED: Duration = Duration::from_secs(30);
pub const ANSWERED: Duration = Duration::from_secs(120);
/// An answered question is over (RFC 4787 allows it for well-known ports).
const DOMAIN: Duration = Duration::from_secs(10);

/// Reads of one turn, after which others have theirs.
pub const TURN: usize = 32;

/// Errors of one turn.
const TROUBLES: usize = 8;

/// Echo request (RFC 792, RFC 4443).
const REQUEST: u8 = 8;
const REQUEST_V6: u8 = 128;

#[derive(Debug)]
pub struct Datagrams {
    socket: OwnedFd,
    /// When something came or went last.
    pub used: Instant,
    answered: bool,
    /// Hops that the socket gives its packets.
    hops: u8,
    /// Of the last ping.
    sequence: u16,
    len: usize,
    /// Numbers packets to the pod, which may be cut on their way.
    id: u16,
}

/// Whether the ICMP packet with this key asks for an echo.
pub fn is_ping(key: &Key) -> bool {
    let [kind, code] = key.dst_port.to_be_bytes();
    let request = match key.protocol {
        protocol::ICMP => REQUEST,
        protocol::ICMPV6 => REQUEST_V6,
        _ => return false,
    };
    (kind, code) == (request, 0)
}

impl Datagrams {
    pub fn open(key: &Key, target: SocketAddr, now: Instant) -> Result<Self, Errno> {
        let family = match target {
            SocketAddr::V4(_) => AddressFamily::Inet,
            SocketAddr::V6(_) => AddressFamily::Inet6,
        };
        let kind = match key.protocol {
            protocol::ICMP => SockProtocol::Icmp,
            protocol::ICMPV6 => SockProtocol::IcmpV6,
            _ => SockProtocol::Udp,
        };
        let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
        let socket = socket(family, SockType::Datagram, flags, kind)?;
        match target {
            SocketAddr::V4(_) => setsockopt(&socket, sockopt::Ipv4RecvErr, &true)?,
            SocketAddr::V6(_) => setsockopt(&socket, sockopt::Ipv6RecvErr, &true)?,
        }
        if key.protocol == protocol::UDP {
            // Without it, trains come one by one.
            let _ = setsockopt(&socket, sockopt::UdpGroSegment, &true);
        }
        connect(socket.as_raw_fd(), &SockaddrStorage::from(target))?;
        Ok(Self {
            socket,
            used: now,
            answered: false,
            hops: 0,
            sequence: 0,
            len: 0,
            id: 0,
        })
    }

    pub fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }

    /// When the flow ends, unless it is used before.
    pub fn ends(&self, key: &Key) -> Instant {
        self.used
            + match self.answered {
                true if key.protocol == protocol::UDP && key.dst_port == 53 => DOMAIN,
                true => ANSWERED,
                false => UNANSWERED,
            }
    }

    /// Sends what the pod sent: a UDP payload, of which each datagram has
    /// `size` bytes where it is several, or an ICMP message.
    pub fn send(
        &mut self,
        tools: &mut Tools<'_>,
        key: &Key,
        hops: u8,
        payload: &[u8],
        size: Option<u16>,
    ) {
        self.used = tools.now;
        self.keep_hops(key, hops);
        self.len = size.map_or(payload.len(), usize::from);
        if let (true, Some(sequence)) = (is_ping(key), payload.get(6..8)) {
            self.sequence = u16::from_be_bytes([sequence[0], sequence[1]]);
        }
        let pieces = size.map_or(1, |size| payload.len().div_ceil(usize::from(size.max(1)))) as u64;
        let mut sent = self.write(payload, size);
        if sent.is_err() && sent != Err(Errno::EAGAIN) {
            // News of an earlier packet comes as a refusal of this one.
            self.hear_troubles(tools, key);
            sent = match size {
                Some(size) => self.write_each(payload, size),
                None => self.write(payload, None),
            };
        }
        match sent {
            Ok(()) => tools.counters.datagrams_to_outside.add(pieces),
            Err(_) => {
                self.hear_troubles(tools, key);
                tools.counters.dropped_outside.add(pieces);
            }
        }
    }

    fn write(&self, payload: &[u8], size: Option<u16>) -> Result<(), Errno> {
        let size = size.unwrap_or_default();
        let train = [ControlMessage::UdpGsoSegments(&size)];
        let control = if size > 0 { &train[..] } else { &[] };
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        let pieces = [IoSlice::new(payload)];
        sendmsg::<()>(self.socket.as_raw_fd(), &pieces, control, flags, None).map(drop)
    }

    /// For kernels and paths that take no trains.
    fn write_each(&self, payload: &[u8], size: u16) -> Result<(), Errno> {
        payload
            .chunks(usize::from(size.max(1)))
            .try_for_each(|datagram| self.write(datagram, None))
    }

    fn keep_hops(&mut self, key: &Key, hops: u8) {
        if self.hops == hops || hops == 0 {
            return;
        }
        self.hops = hops;
        let hops = i32::from(hops);
        // Where it fails, packets have the hops that this node gives its own.
        let _ = match key.src {
            IpAddr::V4(_) => setsockopt(&self.socket, sockopt::Ipv4Ttl, &hops),
            IpAddr::V6(_) => setsockopt(&self.socket, sockopt::Ipv6Ttl, &hops),
        };
    }

    /// Hands the pod what came. Says whether there may be more.
    pub fn turn(&mut self, tools: &mut Tools<'_>, key: &Key) -> bool {
        self.hear_troubles(tools, key);
        let mut control = nix::cmsg_space!(i32);
        for _ in 0..TURN {
            let mut room = [IoSliceMut::new(tools.buffer)];
            let flags = MsgFlags::MSG_DONTWAIT;
            let received = recvmsg::<()>(
                self.socket.as_raw_fd(),
                &mut room,
                Some(&mut control),
                flags,
            );
            let (bytes, size) = match received {
                Ok(message) => {
                    let mut told = message.cmsgs().into_iter().flatten();
                    let size = told.find_map(|one| match one {
                        ControlMessageOwned::UdpGroSegments(size) => u16::try_from(size).ok(),
                        _ => None,
                    });
                    (message.bytes, size)
                }
                Err(Errno::EAGAIN) => return false,
                Err(Errno::EINTR) => continue,
                // News of an earlier packet.
                Err(_) => {
                    self.hear_troubles(tools, key);
                    continue;
                }
            };
            self.used = tools.now;
            self.answered = true;
            pass(tools, key, &mut self.id, bytes, size);
        }
        true
    }

    fn hear_troubles(&mut self, tools: &mut Tools<'_>, key: &Key) {
        for _ in 0..TROUBLES {
            let told = match key.src {
                IpAddr::V4(_) => trouble_v4(self.socket.as_raw_fd()),
                IpAddr::V6(_) => trouble_v6(self.socket.as_raw_fd()),
            };
            let Ok((trouble, from)) = told else { return };
            let Some(trouble) = trouble else { continue };
            let packet = reminder(key, self.sequence, self.len);
            match tell(tools.link, key, from.unwrap_or(key.dst), trouble, &packet) {
                Ok(()) => tools.counters.errors_to_pods.add(1),
                Err(Full) => tools.counters.dropped_link.add(1),
            }
        }
    }
}

/// What a flow works with.
#[derive(Debug)]
pub struct Tools<'a> {
    pub link: &'a mut Link,
    pub counters: &'a Counters,
    pub now: Instant,
    /// Room for the largest datagram or train.
    pub buffer: &'a mut [u8],
    /// Of the pod's link.
    pub mtu: usize,
}

/// Hands the pod what the buffer's first `bytes` hold: datagrams of `size`
/// bytes, or one. `id` numbers packets.
pub fn pass(tools: &mut Tools<'_>, key: &Key, id: &mut u16, bytes: usize, size: Option<u16>) {
    let payload = &tools.buffer[..bytes];
    let each = size.map_or(bytes, usize::from).max(1);
    let head = ip_len(key.src) + if key.protocol == protocol::UDP { 8 } else { 0 };
    let count = |passed: Result<(), Full>, datagrams: usize| {
        let counter = match passed {
            Ok(()) => &tools.counters.datagrams_to_pods,
            Err(Full) => &tools.counters.dropped_link,
        };
        counter.add(datagrams as u64);
    };
    if head + each <= tools.mtu || key.src.is_ipv4() && bytes <= each {
        *id = id.wrapping_add(1);
        let passed = write(tools.link, key, *id, payload, size);
        return count(passed, bytes.div_ceil(each).max(1));
    }
    // The forwarder cuts what is of IPv4, but no trains.
    for datagram in payload.chunks(each) {
        *id = id.wrapping_add(1);
        let passed = match key.src {
            IpAddr::V4(_) => write(tools.link, key, *id, datagram, None),
            IpAddr::V6(_) => write_cut(tools.link, key, *id, datagram, tools.mtu),
        };
        count(passed, 1);
    }
}

fn write(
    link: &mut Link,
    key: &Key,
    id: u16,
    payload: &[u8],
    size: Option<u16>,
) -> Result<(), Full> {
    let len = packet_len(key, payload)?;
    let size = if key.protocol == protocol::UDP {
        size
    } else {
        None
    };
    let write = |packet: &mut [u8]| write_packet(packet, key, id, payload);
    link.send(len, Segments { size }, write).1
}

/// One that the pod's link does not hold (RFC 8200 section 4.5).
fn write_cut(link: &mut Link, key: &Key, id: u16, payload: &[u8], mtu: usize) -> Result<(), Full> {
    let mut frame = vec![0; ETHERNET_LEN + packet_len(key, payload)?];
    frame[12..14].copy_from_slice(&ethertype_of(key.src).to_be_bytes());
    write_packet(&mut frame[ETHERNET_LEN..], key, id, payload);
    if let Ok(Ethernet::Ip(packet)) = parse(&frame) {
        checksum::complete(&mut frame, &packet);
    }
    let content = &frame[ETHERNET_LEN + ip_len(key.src)..];
    cut(key, key.protocol, id.into(), content, mtu)
        .try_for_each(|(len, write)| link.send(len, Segments::default(), write).1)
}

/// Bytes of the packet around a payload, of which no packet holds too many.
fn packet_len(key: &Key, payload: &[u8]) -> Result<usize, Full> {
    let head = if key.protocol == protocol::UDP { 8 } else { 0 };
    match u16::try_from(head + payload.len()) {
        Ok(len) => Ok(ip_len(key.src) + usize::from(len)),
        Err(_) => Err(Full),
    }
}

fn write_packet(packet: &mut [u8], key: &Key, id: u16, payload: &[u8]) {
    write_ip(packet, key.dst, key.src, key.protocol, id);
    let transport = &mut packet[ip_len(key.src)..];
    if key.protocol == protocol::UDP {
        let len = u16::try_from(8 + payload.len()).unwrap_or(u16::MAX);
        transport[..2].copy_from_slice(&key.dst_port.to_be_bytes());
        transport[2..4].copy_from_slice(&key.src_port.to_be_bytes());
        transport[4..6].copy_from_slice(&len.to_be_bytes());
        transport[6..8].fill(0);
        transport[8..].copy_from_slice(payload);
        return;
    }
    transport.copy_from_slice(payload);
    // The kernel gave the ping an identifier of the socket's.
    if let Some(identifier) = transport.get_mut(4..6) {
        identifier.copy_from_slice(&key.src_port.to_be_bytes());
    }
}

type Told = Result<(Option<Trouble>, Option<IpAddr>), Errno>;

/// The next entry of the error queue (ip(7)): the trouble, if it is one that
/// pods are told, and who has it.
fn trouble_v4(fd: RawFd) -> Told {
    let mut control = nix::cmsg_space!(libc::sock_extended_err, libc::sockaddr_in);
    let mut told = (None, None);
    let flags = MsgFlags::MSG_ERRQUEUE | MsgFlags::MSG_DONTWAIT;
    let message = recvmsg::<SockaddrIn>(fd, &mut [], Some(&mut control), flags)?;
    for one in message.cmsgs()? {
        if let ControlMessageOwned::Ipv4RecvErr(error, from) = one {
            let from =
                from.map(|from| IpAddr::from(u32::from_be(from.sin_addr.s_addr).to_be_bytes()));
            told = (trouble(&error, true), from);
        }
    }
    Ok(told)
}

fn trouble_v6(fd: RawFd) -> Told {
    let mut control = nix::cmsg_space!(libc::sock_extended_err, libc::sockaddr_in6);
    let mut told = (None, None);
    let flags = MsgFlags::MSG_ERRQUEUE | MsgFlags::MSG_DONTWAIT;
    let message = recvmsg::<SockaddrIn6>(fd, &mut [], Some(&mut control), flags)?;
    for one in message.cmsgs()? {
        if let ControlMessageOwned::Ipv6RecvErr(error, from) = one {
            told = (
                trouble(&error, false),
                from.map(|from| IpAddr::from(from.sin6_addr.s6_addr)),
            );
        }
    }
    Ok(told)
}

fn trouble(error: &libc::sock_extended_err, v4: bool) -> Option<Trouble> {
    let too_big = i32::try_from(error.ee_errno).is_ok_and(|errno| errno == libc::EMSGSIZE);
    if too_big {
        return Some(Trouble::too_big(v4, error.ee_info));
    }
    match error.ee_origin {
        libc::SO_EE_ORIGIN_ICMP | libc::SO_EE_ORIGIN_ICMP6 => Some(Trouble {
            kind: error.ee_type,
            code: error.ee_code,
            word: 0,
        }),
        // This node's own: it has no way there.
        _ => Some(Trouble::host_unreachable(v4)),
    }
}

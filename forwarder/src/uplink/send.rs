//! Sends: one system call for up to 128 datagrams where the kernel has
//! UDP_SEGMENT, one for each where it has not.

use std::{
    io::IoSlice,
    net::SocketAddr,
    os::fd::{AsRawFd, OwnedFd},
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
};

use nix::{
    errno::Errno,
    sys::socket::{ControlMessage, MsgFlags, SockaddrStorage, sendmsg, setsockopt, sockopt},
};
use weft_engine::{
    DropReason, Peer, Way,
    outbox::{SEGMENTS_MAX, Send},
};

use super::{UplinkConfig, UplinkError, ipip::Ipip, open};

/// The sending sockets, shared by all workers.
#[derive(Debug)]
pub struct Sender {
    v4: Vec<OwnedFd>,
    v6: Vec<OwnedFd>,
    ipip: Option<Ipip>,
    mtu: usize,
    /// Most datagrams in one system call; 1 without UDP_SEGMENT.
    segments: AtomicUsize,
}

/// `UDP_MAX_SEGMENTS` of kernels before 6.9.
const SEGMENTS_OLD: usize = 64;

/// What became of a send's datagrams.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Sent {
    pub datagrams: u64,
    /// Of the datagrams that were sent.
    pub bytes: usize,
    pub system_calls: u64,
    pub lost: Option<(DropReason, u64)>,
}

impl Sender {
    pub fn open(config: &UplinkConfig) -> Result<Self, UplinkError> {
        let (mut v4, mut v6) = (Vec::new(), Vec::new());
        for &address in &config.addresses {
            let sockets = if address.is_ipv4() { &mut v4 } else { &mut v6 };
            for _ in 0..config.entropy_ports.max(1) {
                let socket = open(address, 0)?;
                // Nobody reads these; what strangers send to them must not
                // pin memory. The kernel's least size is what 0 comes to.
                let _ = setsockopt(&socket, sockopt::RcvBuf, &0);
                sockets.push(socket);
            }
        }
        Ok(Self {
            v4,
            v6,
            ipip: Ipip::open(config),
            mtu: config.mtu.into(),
            segments: AtomicUsize::new(if config.gso { SEGMENTS_MAX } else { 1 }),
        })
    }

    /// Whether sends use UDP_SEGMENT; false after the kernel refused it.
    pub fn gso(&self) -> bool {
        self.segments.load(Relaxed) > 1
    }

    /// The way by IP-in-IP, if there is one.
    pub fn ipip(&self) -> Option<&Ipip> {
        self.ipip.as_ref()
    }

    /// Sends to one peer by the send's way.
    pub fn send(&self, send: &Send, peer: &Peer) -> Sent {
        let sent = match send.way {
            Way::Vxlan | Way::VxlanL3 => peer.remote.map(|to| self.send_udp(send, to)),
            Way::Ipip => (self.ipip.as_ref().zip(peer.ipip))
                .map(|(socket, ipip)| socket.send(send, ipip.remote)),
        };
        sent.unwrap_or_else(|| Sent {
            lost: Some((DropReason::NoUplink, send.count() as u64)),
            ..Sent::default()
        })
    }

    /// Sends datagrams to one peer, in as few system calls as the kernel
    /// allows.
    fn send_udp(&self, send: &Send, to: SocketAddr) -> Sent {
        let datagrams = send.count() as u64;
        let sockets = if to.is_ipv4() { &self.v4 } else { &self.v6 };
        let Some(socket) = sockets.get(usize::from(send.socket) % sockets.len().max(1)) else {
            return Sent {
                lost: Some((DropReason::NoUplink, datagrams)),
                ..Sent::default()
            };
        };
        let to = Destination {
            socket,
            address: to.into(),
            v4: to.is_ipv4(),
            ecn: send.ecn,
        };
        let mut sent = Sent::default();
        let mut rest = &send.bytes[..];
        while !rest.is_empty() {
            let most = self.segments.load(Relaxed) * send.size;
            let (now, later) = rest.split_at(most.min(rest.len()));
            let several = now.len() > send.size;
            sent.system_calls += 1;
            match to.send(now, several.then_some(send.size)) {
                Ok(()) => sent.carried(now, send.size),
                Err(error) if several => match self.refused(error, now.len(), send.size, to.v4) {
                    Refused::AllOfItsSize => continue,
                    Refused::Alone => to.send_one_by_one(now, send.size, &mut sent),
                    Refused::Lost(reason) => sent.lost(reason, now, send.size),
                },
                Err(error) => sent.lost(reason(error), now, send.size),
            }
            rest = later;
        }
        sent
    }

    /// What a refused UDP_SEGMENT send of `len` bytes teaches.
    fn refused(&self, error: Errno, len: usize, size: usize, v4: bool) -> Refused {
        let headers = if v4 { 20 + 8 } else { 40 + 8 };
        let too_big = size + headers > self.mtu || error == Errno::EMSGSIZE;
        match error {
            // EINVAL is also what kernels before 6.11 say of a segment
            // above the MTU.
            Errno::EMSGSIZE | Errno::EINVAL if too_big => Refused::Alone,
            Errno::EINVAL if len > SEGMENTS_OLD * size => {
                self.segments.fetch_min(SEGMENTS_OLD, Relaxed);
                Refused::AllOfItsSize
            }
            // EIO: the device cannot finish checksums (net/ipv4/udp.c).
            Errno::EIO | Errno::EINVAL | Errno::ENOPROTOOPT | Errno::EOPNOTSUPP => {
                if self.segments.swap(1, Relaxed) > 1 {
                    tracing::warn!(%error, "the kernel refuses UDP_SEGMENT; sending singly");
                }
                Refused::AllOfItsSize
            }
            _ => Refused::Lost(reason(error)),
        }
    }
}

/// What to do about a refused send of several datagrams.
enum Refused {
    /// Fewer at a time are taken; the limit is known now.
    AllOfItsSize,
    /// The fault is this send's: its datagrams go singly.
    Alone,
    Lost(DropReason),
}

impl Sent {
    pub(super) fn carried(&mut self, bytes: &[u8], size: usize) {
        self.datagrams += bytes.len().div_ceil(size) as u64;
        self.bytes += bytes.len();
    }

    pub(super) fn lost(&mut self, reason: DropReason, bytes: &[u8], size: usize) {
        let lost = self.lost.get_or_insert((reason, 0));
        lost.1 += bytes.len().div_ceil(size) as u64;
    }
}

struct Destination<'a> {
    socket: &'a OwnedFd,
    address: SockaddrStorage,
    v4: bool,
    ecn: u8,
}

impl Destination<'_> {
    /// Sends one datagram, or several of `segments` bytes each.
    fn send(&self, bytes: &[u8], segments: Option<usize>) -> Result<(), Errno> {
        // A datagram is at most 65 507 bytes.
        let size = u16::try_from(segments.unwrap_or_default()).map_err(|_| Errno::EMSGSIZE)?;
        let class = i32::from(self.ecn);
        let mark = if self.v4 {
            ControlMessage::Ipv4Tos(&self.ecn)
        } else {
            ControlMessage::Ipv6TClass(&class)
        };
        let both = [ControlMessage::UdpGsoSegments(&size), mark];
        let messages = match (segments.is_some(), self.ecn != 0) {
            (true, true) => &both[..],
            (true, false) => &both[..1],
            (false, true) => &both[1..],
            (false, false) => &[],
        };
        let (fd, pieces) = (self.socket.as_raw_fd(), [IoSlice::new(bytes)]);
        loop {
            let flags = MsgFlags::MSG_DONTWAIT;
            match sendmsg(fd, &pieces, messages, flags, Some(&self.address)) {
                Err(Errno::EINTR) => {}
                result => return result.map(drop),
            }
        }
    }

    /// The others would mostly meet the same fate, but the last may be small
    /// enough; all are tried.
    fn send_one_by_one(&self, bytes: &[u8], size: usize, sent: &mut Sent) {
        for datagram in bytes.chunks(size) {
            sent.system_calls += 1;
            match self.send(datagram, None) {
                Ok(()) => sent.carried(datagram, size),
                Err(error) => sent.lost(reason(error), datagram, size),
            }
        }
    }
}

pub(super) fn reason(error: Errno) -> DropReason {
    match error {
        Errno::EAGAIN | Errno::ENOBUFS | Errno::ENOMEM => DropReason::UplinkFull,
        Errno::ENETUNREACH | Errno::EHOSTUNREACH | Errno::ENETDOWN | Errno::EADDRNOTAVAIL => {
            DropReason::UplinkDown
        }
        Errno::EMSGSIZE => DropReason::UplinkTooBig,
        _ => DropReason::UplinkRefused,
    }
}

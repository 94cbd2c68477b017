//! Sends: one system call for up to 128 datagrams where the kernel has
//! UDP_SEGMENT, one for each where it has not.

use std::{
    io::IoSlice,
    net::SocketAddr,
    os::fd::{AsRawFd, OwnedFd},
    sync::atomic::{AtomicBool, Ordering::Relaxed},
};

use nix::{
    errno::Errno,
    sys::socket::{ControlMessage, MsgFlags, SockaddrStorage, sendmsg},
};
use weft_engine::{DropReason, outbox::Send};

use super::{UplinkConfig, UplinkError, open};

/// The sending sockets, shared by all workers.
#[derive(Debug)]
pub struct Sender {
    v4: Vec<OwnedFd>,
    v6: Vec<OwnedFd>,
    mtu: usize,
    gso: AtomicBool,
}

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
                sockets.push(open(address, 0)?);
            }
        }
        Ok(Self {
            v4,
            v6,
            mtu: config.mtu.into(),
            gso: AtomicBool::new(config.gso),
        })
    }

    /// Whether sends use UDP_SEGMENT; false after the kernel refused it.
    pub fn gso(&self) -> bool {
        self.gso.load(Relaxed)
    }

    pub fn send(&self, send: &Send, to: SocketAddr) -> Sent {
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
        if datagrams > 1 && !self.gso() {
            return to.send_one_by_one(send);
        }
        let segments = (datagrams > 1).then_some(send.size);
        match to.send(&send.bytes, segments) {
            Ok(()) => Sent {
                datagrams,
                bytes: send.bytes.len(),
                system_calls: 1,
                lost: None,
            },
            Err(error) if datagrams > 1 && self.degrade(error, send.size, to.v4) => {
                to.send_one_by_one(send)
            }
            Err(error) => Sent {
                lost: Some((reason(error), datagrams)),
                system_calls: 1,
                ..Sent::default()
            },
        }
    }

    /// Whether a refused UDP_SEGMENT send should be tried datagram by
    /// datagram; if the fault is not this send's, all later ones are.
    fn degrade(&self, error: Errno, size: usize, v4: bool) -> bool {
        let headers = if v4 { 20 + 8 } else { 40 + 8 };
        let too_big = size + headers > self.mtu || error == Errno::EMSGSIZE;
        match error {
            // EINVAL is also what kernels before 6.11 say of a segment
            // above the MTU.
            Errno::EMSGSIZE | Errno::EINVAL if too_big => true,
            // EIO: the device cannot finish checksums (net/ipv4/udp.c).
            Errno::EIO | Errno::EINVAL | Errno::ENOPROTOOPT | Errno::EOPNOTSUPP => {
                if self.gso.swap(false, Relaxed) {
                    tracing::warn!(%error, "the kernel refuses UDP_SEGMENT; sending singly");
                }
                true
            }
            _ => false,
        }
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

    fn send_one_by_one(&self, send: &Send) -> Sent {
        let mut sent = Sent::default();
        for datagram in send.datagrams() {
            sent.system_calls += 1;
            match self.send(datagram, None) {
                Ok(()) => {
                    sent.datagrams += 1;
                    sent.bytes += datagram.len();
                }
                // The others would mostly meet the same fate, but the last
                // may be small enough; all are tried.
                Err(error) => sent.lost.get_or_insert((reason(error), 0)).1 += 1,
            }
        }
        sent
    }
}

fn reason(error: Errno) -> DropReason {
    match error {
        Errno::EAGAIN | Errno::ENOBUFS | Errno::ENOMEM => DropReason::UplinkFull,
        Errno::ENETUNREACH | Errno::EHOSTUNREACH | Errno::ENETDOWN | Errno::EADDRNOTAVAIL => {
            DropReason::UplinkDown
        }
        Errno::EMSGSIZE => DropReason::UplinkTooBig,
        _ => DropReason::UplinkRefused,
    }
}

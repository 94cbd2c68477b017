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
use weft_engine::{
    Batch, DropReason, Outbox,
    outbox::{Piece, Send},
};

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

    /// Sends what `outbox` gathered from `batch` for one peer's socket.
    pub fn send(&self, send: &Send, batch: &Batch, outbox: &Outbox, to: SocketAddr) -> Sent {
        let sockets = if to.is_ipv4() { &self.v4 } else { &self.v6 };
        let Some(socket) = sockets.get(usize::from(send.socket) % sockets.len().max(1)) else {
            return Sent {
                lost: Some((DropReason::NoUplink, send.datagrams)),
                ..Sent::default()
            };
        };
        let pieces: Vec<_> = send
            .pieces
            .iter()
            .map(|piece| slice(piece, batch, outbox))
            .collect();
        let to = Destination {
            socket,
            address: to.into(),
            v4: to.is_ipv4(),
            ecn: send.ecn,
        };
        if send.datagrams == 1 || self.gso() {
            match to.send(&pieces, send.size, send.datagrams > 1) {
                Ok(()) => {
                    return Sent {
                        datagrams: send.datagrams,
                        system_calls: 1,
                        lost: None,
                    };
                }
                Err(error) if send.datagrams > 1 && self.degrade(error, send.size, to.v4) => {}
                Err(error) => {
                    let lost = Some((reason(error), send.datagrams));
                    return Sent {
                        lost,
                        system_calls: 1,
                        ..Sent::default()
                    };
                }
            }
        }
        to.send_one_by_one(&pieces, send.size)
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
    fn send(&self, pieces: &[IoSlice<'_>], size: usize, segmented: bool) -> Result<(), Errno> {
        // A datagram is at most 65 507 bytes.
        let size = u16::try_from(size).map_err(|_| Errno::EMSGSIZE)?;
        let class = i32::from(self.ecn);
        let segments = ControlMessage::UdpGsoSegments(&size);
        let mark = if self.v4 {
            ControlMessage::Ipv4Tos(&self.ecn)
        } else {
            ControlMessage::Ipv6TClass(&class)
        };
        let both = [segments, mark];
        let messages = match (segmented, self.ecn != 0) {
            (true, true) => &both[..],
            (true, false) => &both[..1],
            (false, true) => &both[1..],
            (false, false) => &[],
        };
        loop {
            let flags = MsgFlags::MSG_DONTWAIT;
            match sendmsg(
                self.socket.as_raw_fd(),
                pieces,
                messages,
                flags,
                Some(&self.address),
            ) {
                // Asynchronous news of an earlier datagram (ICMP), told once.
                Err(Errno::EINTR | Errno::ECONNREFUSED) => {}
                result => return result.map(drop),
            }
        }
    }

    fn send_one_by_one(&self, pieces: &[IoSlice<'_>], size: usize) -> Sent {
        let mut sent = Sent::default();
        for datagram in cut(pieces, size) {
            sent.system_calls += 1;
            match self.send(&datagram, size, false) {
                Ok(()) => sent.datagrams += 1,
                // The rest of the same send would meet the same fate, but
                // its last datagram may be small enough; all are tried.
                Err(error) => {
                    let lost = sent.lost.get_or_insert((reason(error), 0));
                    lost.1 += 1;
                }
            }
        }
        sent
    }
}

/// The pieces of each datagram of `size` bytes.
fn cut<'a>(pieces: &[IoSlice<'a>], size: usize) -> Vec<Vec<IoSlice<'a>>> {
    let mut datagrams = vec![Vec::new()];
    let mut room = size;
    for piece in pieces {
        if room == 0 {
            datagrams.push(Vec::new());
            room = size;
        }
        // Pieces never straddle datagrams: the outbox adds them whole.
        room = room.saturating_sub(piece.len());
        if let Some(datagram) = datagrams.last_mut() {
            datagram.push(*piece);
        }
    }
    datagrams
}

fn slice<'a>(piece: &Piece, batch: &'a Batch, outbox: &'a Outbox) -> IoSlice<'a> {
    IoSlice::new(match *piece {
        Piece::Batch { start, len } => &batch.buffer()[start..start + len],
        Piece::Header { start, len } => &outbox.headers()[start..start + len],
    })
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

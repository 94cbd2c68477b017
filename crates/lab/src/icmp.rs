//! An echo request with a chosen hop limit, and whatever answers it: the
//! steps of a traceroute.

use std::{
    io,
    net::{IpAddr, SocketAddr, SocketAddrV6, UdpSocket},
    sync::atomic::{AtomicU16, Ordering::Relaxed},
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use nix::{
    net::if_::if_nametoindex,
    sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, setsockopt, socket, sockopt},
};
use weft_cni::netns::Netns;

use crate::probe::{DEADLINE, checksum, patiently};

/// Who answered, and what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Answer {
    pub from: IpAddr,
    pub says: Says,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Says {
    Here,
    /// TTL or hop limit ran out there.
    TimeExceeded,
    Unreachable {
        code: u8,
    },
    /// Nothing larger than this passes there.
    TooBig {
        mtu: u32,
    },
}

/// An echo request from a pod.
#[derive(Debug, Clone, Copy)]
pub struct Question {
    pub to: IpAddr,
    pub hop_limit: u8,
    /// Bytes of payload; an even number.
    pub size: usize,
}

impl Question {
    pub fn to(to: impl Into<IpAddr>) -> Self {
        Self {
            to: to.into(),
            hop_limit: 64,
            size: 56,
        }
    }

    /// Asks from `netns`; a link-local address is one on the link eth0.
    pub fn ask(self, netns: &Netns) -> anyhow::Result<Answer> {
        static NEXT: AtomicU16 = AtomicU16::new(1);
        let (socket, to) = netns.run(|| self.socket())?.context("open a raw socket")?;
        let mark = NEXT.fetch_add(1, Relaxed);
        let request = self.request(mark);
        socket
            .send_to(&request, to)
            .with_context(|| format!("ask {}", self.to))?;
        let until = Instant::now() + DEADLINE;
        let mut bytes = vec![0; 1 << 16];
        loop {
            let left = until.saturating_duration_since(Instant::now());
            socket.set_read_timeout(Some(left.max(Duration::from_millis(1))))?;
            let (len, from) = patiently(|| socket.recv_from(&mut bytes))
                .with_context(|| format!("wait for what answers {self:?}"))?;
            if let Some(says) = heard(&bytes[..len], self.to.is_ipv4(), &request)? {
                let from = from.ip();
                return Ok(Answer { from, says });
            }
        }
    }

    fn socket(self) -> io::Result<(UdpSocket, SocketAddr)> {
        let (family, protocol) = match self.to {
            IpAddr::V4(_) => (AddressFamily::Inet, SockProtocol::Icmp),
            IpAddr::V6(_) => (AddressFamily::Inet6, SockProtocol::IcmpV6),
        };
        let socket = socket(family, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol)?;
        let limit = i32::from(self.hop_limit);
        let to = match self.to {
            IpAddr::V4(_) => {
                setsockopt(&socket, sockopt::Ipv4Ttl, &limit)?;
                SocketAddr::new(self.to, 0)
            }
            IpAddr::V6(v6) => {
                setsockopt(&socket, sockopt::Ipv6Ttl, &limit)?;
                let scope = match v6.is_unicast_link_local() {
                    true => if_nametoindex("eth0")?,
                    false => 0,
                };
                SocketAddrV6::new(v6, 0, 0, scope).into()
            }
        };
        // It sends and receives as std's UDP sockets do.
        Ok((UdpSocket::from(socket), to))
    }

    /// Type, code, checksum, identifier, sequence number (RFC 792, RFC 4443).
    fn request(self, mark: u16) -> Vec<u8> {
        let kind = if self.to.is_ipv4() { 8 } else { 128 };
        let [high, low] = mark.to_be_bytes();
        let mut request = vec![kind, 0, 0, 0, b'w', b't', high, low];
        request.resize(8 + self.size, 0x77);
        if self.to.is_ipv4() {
            let sum = checksum(&request).to_be_bytes();
            request[2..4].copy_from_slice(&sum);
        }
        request
    }
}

/// What the message says of our request; nothing if it is about another.
fn heard(bytes: &[u8], v4: bool, request: &[u8]) -> anyhow::Result<Option<Says>> {
    let message = match bytes.first() {
        // A raw IPv4 socket hands out the IP header too.
        Some(first) if v4 => bytes.get(usize::from(first & 0x0f) * 4..),
        _ => Some(bytes),
    };
    let Some(message @ [kind, code, ..]) = message.filter(|message| message.len() >= 8) else {
        return Ok(None);
    };
    let word = u32::from_be_bytes([message[4], message[5], message[6], message[7]]);
    let says = match (v4, *kind, *code) {
        (true, 0, 0) | (false, 129, 0) => {
            return Ok((message[4..] == request[4..]).then_some(Says::Here));
        }
        (true, 11, 0) | (false, 3, 0) => Says::TimeExceeded,
        (true, 3, 4) => Says::TooBig { mtu: word & 0xffff },
        (false, 2, 0) => Says::TooBig { mtu: word },
        (true, 3, _) | (false, 1, _) => Says::Unreachable { code: *code },
        _ => return Ok(None),
    };
    let quoted = &message[8..];
    let header = match quoted.first() {
        Some(first) if v4 => usize::from(first & 0x0f) * 4,
        _ => 40,
    };
    let ours = |quote: &[u8]| quote.get(4..8) == Some(&request[4..8]);
    if !quoted.get(header..).is_some_and(ours) {
        return Ok(None);
    }
    // The kernel hands raw IPv4 sockets what it has not checked yet.
    ensure!(
        !v4 || message.len() % 2 == 1 || checksum(message) == 0,
        "an ICMP error with a wrong checksum: {message:02x?}"
    );
    Ok(Some(says))
}

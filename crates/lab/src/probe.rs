//! Questions that one pod asks another: does this kind of packet reach you,
//! and does your answer reach me? Every question ends by its deadline.
//!
//! A socket belongs to the namespace in which it was made, so both ends are
//! made inside their pods and used from here.

use std::{
    fmt,
    io::{self, Read, Write},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::AsFd,
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, socket},
};
use serde::{Deserialize, Serialize};

use crate::{lab::Pod, stop};

/// For each answer.
pub const DEADLINE: Duration = Duration::from_secs(3);

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Probe {
    Ping,
    Tcp,
    Udp,
    /// A datagram that fills the pods' MTU to the byte.
    FullSize,
    /// A datagram that has to be cut into fragments.
    OverSize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Family {
    V4,
    V6,
}

impl Probe {
    pub const ALL: [Self; 5] = [
        Self::Ping,
        Self::Tcp,
        Self::Udp,
        Self::FullSize,
        Self::OverSize,
    ];

    /// Asks, and returns the time to the answer. The error says what did not
    /// come.
    pub fn run(self, from: &Pod, to: &Pod, family: Family, mtu: u16) -> anyhow::Result<Duration> {
        stop::check()?;
        let address = family.of(to);
        match self {
            Self::Ping => ping(from, address),
            Self::Tcp => tcp(from, to, address),
            Self::Udp => udp(from, to, address, 64),
            Self::FullSize => udp(from, to, address, usize::from(mtu) - family.udp_headers()),
            Self::OverSize => udp(from, to, address, OVER_SIZE),
        }
        .with_context(|| format!("{} → {}: {self} over {family}", from.name(), to.name()))
    }
}

/// Bytes of payload: three fragments at Ethernet's MTU.
const OVER_SIZE: usize = 4000;
/// Bytes each way: more than any one packet holds.
const TCP_BYTES: usize = 32 << 10;

impl Family {
    pub const ALL: [Self; 2] = [Self::V4, Self::V6];

    pub fn of(self, pod: &Pod) -> IpAddr {
        match self {
            Self::V4 => pod.v4().into(),
            Self::V6 => pod.v6().into(),
        }
    }

    /// IP and UDP, without options.
    fn udp_headers(self) -> usize {
        match self {
            Self::V4 => 20 + 8,
            Self::V6 => 40 + 8,
        }
    }
}

fn tcp(from: &Pod, to: &Pod, address: IpAddr) -> anyhow::Result<Duration> {
    let listener = to
        .netns
        .run(|| TcpListener::bind((address, 0)))?
        .context("listen")?;
    let server = listener.local_addr()?;
    let started = Instant::now();
    let asking = from
        .netns
        .run(|| TcpStream::connect_timeout(&server, DEADLINE))?
        .map_err(told)
        .context("connect")?;
    let answering = accept(&listener, DEADLINE).context("accept the connection")?;
    let text = pattern(TCP_BYTES);
    for (mut one, mut other, what) in [
        (&asking, &answering, "there"),
        (&answering, &asking, "back"),
    ] {
        one.set_write_timeout(Some(DEADLINE))?;
        other.set_read_timeout(Some(DEADLINE))?;
        let mut arrived = vec![0; text.len()];
        one.write_all(&text)
            .and_then(|()| other.read_exact(&mut arrived))
            .map_err(told)
            .with_context(|| format!("{TCP_BYTES} B {what}"))?;
        ensure!(arrived == text, "{TCP_BYTES} B {what} arrived changed");
    }
    Ok(started.elapsed())
}

pub(crate) fn accept(listener: &TcpListener, deadline: Duration) -> io::Result<TcpStream> {
    let millis = u16::try_from(deadline.as_millis()).unwrap_or(u16::MAX);
    let mut ready = [PollFd::new(listener.as_fd(), PollFlags::POLLIN)];
    match patiently(|| Ok(poll(&mut ready, PollTimeout::from(millis))?))? {
        0 => Err(told(io::ErrorKind::TimedOut.into())),
        _ => listener.accept().map(|(stream, _)| stream),
    }
}

fn udp(from: &Pod, to: &Pod, address: IpAddr, size: usize) -> anyhow::Result<Duration> {
    let answering = to
        .netns
        .run(|| UdpSocket::bind((address, 0)))?
        .context("bind")?;
    let asking = from
        .netns
        .run(|| datagrams_to(answering.local_addr()?))?
        .context("connect")?;
    for socket in [&asking, &answering] {
        socket.set_read_timeout(Some(DEADLINE))?;
    }
    let text = pattern(size);
    let mut arrived = vec![0; size + 1];
    let started = Instant::now();

    asking
        .send(&text)
        .with_context(|| format!("send {size} B"))?;
    let (len, sender) = patiently(|| answering.recv_from(&mut arrived))
        .map_err(told)
        .with_context(|| format!("{size} B there"))?;
    ensure!(
        arrived[..len] == text,
        "{size} B there arrived changed, as {len} B"
    );

    answering
        .send_to(&text, sender)
        .with_context(|| format!("send {size} B back"))?;
    let len = patiently(|| asking.recv(&mut arrived))
        .map_err(told)
        .with_context(|| format!("{size} B back"))?;
    ensure!(
        arrived[..len] == text,
        "{size} B back arrived changed, as {len} B"
    );
    Ok(started.elapsed())
}

pub(crate) fn datagrams_to(peer: SocketAddr) -> io::Result<UdpSocket> {
    let any: IpAddr = if peer.is_ipv4() {
        [0; 4].into()
    } else {
        [0; 16].into()
    };
    let socket = UdpSocket::bind((any, 0))?;
    socket.connect(peer)?;
    Ok(socket)
}

/// Makes a call again that was interrupted: a socket with a timeout reports
/// it whatever the cause, be it that the machine was suspended (signal(7)).
pub fn patiently<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

fn ping(from: &Pod, address: IpAddr) -> anyhow::Result<Duration> {
    let socket = from
        .netns
        .run(|| echo_socket(address))?
        .context("open a raw socket")?;
    let (ask, answer, header) = match address {
        IpAddr::V4(_) => (8, 0, 20),
        IpAddr::V6(_) => (128, 129, 0),
    };
    // Type, code, checksum, identifier, sequence number (RFC 792, RFC 4443).
    let mut text = vec![ask, 0, 0, 0, b'w', b'f', 0, 1];
    text.extend(pattern(56));
    if address.is_ipv4() {
        let checksum = checksum(&text).to_be_bytes();
        text[2..4].copy_from_slice(&checksum);
    }
    let started = Instant::now();
    socket.send(&text).context("send an echo request")?;
    let mut arrived = [0; 2048];
    loop {
        let left = DEADLINE
            .saturating_sub(started.elapsed())
            .max(Duration::from_millis(1));
        socket.set_read_timeout(Some(left))?;
        let len = patiently(|| socket.recv(&mut arrived))
            .map_err(told)
            .context("echo reply")?;
        let message = arrived.get(header..len).unwrap_or_default();
        // A raw socket hears all of ICMP from this address.
        if message.first() == Some(&answer) && message.get(4..) == Some(&text[4..]) {
            return Ok(started.elapsed());
        }
    }
}

/// A raw ICMP socket, as std's nearest type: it sends and receives alike.
fn echo_socket(address: IpAddr) -> io::Result<UdpSocket> {
    let (family, protocol) = match address {
        IpAddr::V4(_) => (AddressFamily::Inet, SockProtocol::Icmp),
        IpAddr::V6(_) => (AddressFamily::Inet6, SockProtocol::IcmpV6),
    };
    let fd = socket(family, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol)?;
    let socket = UdpSocket::from(fd);
    socket.connect((address, 0))?;
    Ok(socket)
}

/// The Internet checksum (RFC 1071) of an even number of bytes.
pub(crate) fn checksum(bytes: &[u8]) -> u16 {
    let sum: u32 = bytes
        .chunks_exact(2)
        .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])))
        .sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    !u16::try_from((folded & 0xffff) + (folded >> 16)).expect("folded twice")
}

/// Bytes that no two places of a packet share.
fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at ^ at >> 8).to_le_bytes()[0]).collect()
}

/// The error of a read that ran out of time, in words.
fn told(error: io::Error) -> io::Error {
    match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
            let text = format!("nothing came in {} s", DEADLINE.as_secs());
            io::Error::new(io::ErrorKind::TimedOut, text)
        }
        _ => error,
    }
}

impl fmt::Display for Probe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ping => "ping",
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
            Self::FullSize => "full-size datagram",
            Self::OverSize => "over-size datagram",
        })
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_that_of_rfc_1071() {
        // The example of its section 3.
        assert_eq!(
            checksum(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]),
            !0xddf2
        );
    }
}

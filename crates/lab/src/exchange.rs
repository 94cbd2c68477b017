//! Traffic whose content is checked to the byte: TCP both ways at once, and
//! datagrams of chosen sizes there and back.

use std::{
    io::{Read, Write},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    thread,
};

use anyhow::{Context, anyhow, ensure};
use nix::{
    errno::Errno,
    getsockopt_impl, libc, setsockopt_impl, sockopt_impl,
    sys::socket::{getsockopt, setsockopt, sockopt},
};

use crate::{
    lab::Pod,
    probe::{self, DEADLINE, Family, patiently},
};

sockopt_impl!(
    MtuDiscover4,
    Both,
    libc::IPPROTO_IP,
    libc::IP_MTU_DISCOVER,
    libc::c_int
);
sockopt_impl!(
    PathMtu6,
    GetOnly,
    libc::IPPROTO_IPV6,
    libc::IPV6_MTU,
    libc::c_int
);
sockopt_impl!(
    MtuDiscover6,
    Both,
    libc::IPPROTO_IPV6,
    libc::IPV6_MTU_DISCOVER,
    libc::c_int
);

/// Bytes of a write.
const CHUNK: usize = 64 << 10;

/// Sends `bytes` over one TCP connection in each direction at once.
pub fn bulk(from: &Pod, to: &Pod, family: Family, bytes: usize) -> anyhow::Result<()> {
    let stream = connection(from, to, family)?;
    let told = || format!("{} → {}: TCP over {family}", from.name(), to.name());
    thread::scope(|scope| {
        let ways = [
            (&stream.0, &stream.1, Content::new(1)),
            (&stream.1, &stream.0, Content::new(2)),
        ]
        .map(|(out, into, content)| {
            let expected = content.clone();
            let sending = scope.spawn(move || send(out, content, bytes));
            let receiving = scope.spawn(move || receive(into, expected, bytes));
            (sending, receiving)
        });
        for (sending, receiving) in ways {
            let sent = sending.join().map_err(|_| anyhow!("a sender panicked"))?;
            let received = receiving
                .join()
                .map_err(|_| anyhow!("a receiver panicked"))?;
            received.with_context(told)?;
            sent.with_context(told)?;
        }
        Ok(())
    })
}

/// Both ends of a new TCP connection, the asking one first.
pub fn connection(from: &Pod, to: &Pod, family: Family) -> anyhow::Result<(TcpStream, TcpStream)> {
    let address = family.of(to);
    let listener = to.netns.run(|| TcpListener::bind((address, 0)))??;
    let server = listener.local_addr()?;
    let asking = from
        .netns
        .run(|| TcpStream::connect_timeout(&server, DEADLINE))?
        .with_context(|| format!("connect {} to {}", from.name(), to.name()))?;
    let answering = probe::accept(&listener, DEADLINE)?;
    for stream in [&asking, &answering] {
        stream.set_read_timeout(Some(DEADLINE))?;
        stream.set_write_timeout(Some(DEADLINE))?;
    }
    Ok((asking, answering))
}

/// Writes `bytes` bytes of the content.
pub fn send(mut stream: &TcpStream, mut content: Content, bytes: usize) -> anyhow::Result<()> {
    let mut chunk = vec![0; CHUNK];
    let mut left = bytes;
    while left > 0 {
        let len = left.min(CHUNK);
        content.fill(&mut chunk[..len]);
        stream
            .write_all(&chunk[..len])
            .with_context(|| format!("send with {left} B left of {bytes}"))?;
        left -= len;
    }
    Ok(())
}

/// Reads `bytes` bytes and compares them with the content.
pub fn receive(mut stream: &TcpStream, mut content: Content, bytes: usize) -> anyhow::Result<()> {
    let mut arrived = vec![0; CHUNK];
    let mut expected = vec![0; CHUNK];
    let mut left = bytes;
    while left > 0 {
        let len = left.min(CHUNK);
        stream
            .read_exact(&mut arrived[..len])
            .with_context(|| format!("receive with {left} B left of {bytes}"))?;
        content.fill(&mut expected[..len]);
        ensure!(
            arrived[..len] == expected[..len],
            "changed within {len} B after the first {}",
            bytes - left
        );
        left -= len;
    }
    Ok(())
}

/// Bytes without a pattern, the same for the same seed (xorshift64).
#[derive(Debug, Clone)]
pub struct Content(u64);

impl Content {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn fill(&mut self, bytes: &mut [u8]) {
        for piece in bytes.chunks_mut(8) {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            piece.copy_from_slice(&self.0.to_le_bytes()[..piece.len()]);
        }
    }
}

/// Sends datagrams of these payload sizes there and back, each once.
pub fn datagrams(
    from: &Pod,
    to: &Pod,
    family: Family,
    sizes: impl IntoIterator<Item = usize>,
) -> anyhow::Result<()> {
    let (asking, answering) = sockets(from, to, family)?;
    for size in sizes {
        let told = |way| format!("{} → {}: {size} B {way}", from.name(), to.name());
        let mut text = vec![0; size];
        Content::new(size as u64).fill(&mut text);
        let mut arrived = vec![0; 65_536];

        asking.send(&text).with_context(|| told("there"))?;
        let (len, sender) =
            patiently(|| answering.recv_from(&mut arrived)).with_context(|| told("there"))?;
        ensure!(arrived[..len] == text, "{}: changed", told("there"));

        answering
            .send_to(&text, sender)
            .with_context(|| told("back"))?;
        let len = patiently(|| asking.recv(&mut arrived)).with_context(|| told("back"))?;
        ensure!(arrived[..len] == text, "{}: changed", told("back"));
    }
    Ok(())
}

/// Sends `count` datagrams of `size` bytes and a shorter one by one call
/// (UDP_SEGMENT), as QUIC does; they must arrive one by one and in order.
pub fn train(from: &Pod, to: &Pod, family: Family, size: u16, count: usize) -> anyhow::Result<()> {
    let (asking, answering) = sockets(from, to, family)?;
    let told = || format!("{} → {}: train over {family}", from.name(), to.name());
    setsockopt(&asking, sockopt::UdpGsoSegment, &i32::from(size))?;
    let size = usize::from(size);
    let mut text = vec![0; size * count + size / 2];
    Content::new(count as u64).fill(&mut text);
    asking.send(&text).with_context(told)?;
    let mut arrived = vec![0; text.len()];
    for expected in text.chunks(size) {
        let len = patiently(|| answering.recv(&mut arrived)).with_context(told)?;
        ensure!(arrived[..len] == *expected, "{}: changed", told());
    }
    Ok(())
}

/// Checks that a datagram of `size` bytes that must not be fragmented does
/// not leave the sender.
pub fn refused_whole(from: &Pod, to: &Pod, family: Family, size: usize) -> anyhow::Result<()> {
    let (asking, _answering) = sockets(from, to, family)?;
    never_fragment(&asking)?;
    match asking.send(&vec![0; size]) {
        Err(error) if error.raw_os_error() == Some(Errno::EMSGSIZE as i32) => Ok(()),
        other => Err(anyhow!("{size} B unfragmented: {other:?}")),
    }
}

/// Has the kernel refuse what is larger than the path's MTU.
pub fn never_fragment(socket: &UdpSocket) -> anyhow::Result<()> {
    match socket.local_addr()? {
        SocketAddr::V4(_) => setsockopt(socket, MtuDiscover4, &libc::IP_PMTUDISC_DO)?,
        SocketAddr::V6(_) => setsockopt(socket, MtuDiscover6, &libc::IPV6_PMTUDISC_DO)?,
    }
    Ok(())
}

/// Has the kernel let everybody on the way fragment, which only IPv4 knows.
pub fn always_fragment(socket: &UdpSocket) -> anyhow::Result<()> {
    Ok(setsockopt(socket, MtuDiscover4, &libc::IP_PMTUDISC_DONT)?)
}

/// What the kernel holds for the MTU of a connected socket's path.
pub fn path_mtu(socket: &UdpSocket) -> anyhow::Result<i32> {
    Ok(match socket.local_addr()? {
        SocketAddr::V4(_) => getsockopt(socket, sockopt::IpMtu)?,
        SocketAddr::V6(_) => getsockopt(socket, PathMtu6)?,
    })
}

/// An asking socket that is connected, and the one that answers.
pub fn sockets(from: &Pod, to: &Pod, family: Family) -> anyhow::Result<(UdpSocket, UdpSocket)> {
    let address: IpAddr = family.of(to);
    let answering = to.netns.run(|| UdpSocket::bind((address, 0)))??;
    let server = answering.local_addr()?;
    let asking = from.netns.run(|| probe::datagrams_to(server))??;
    for socket in [&asking, &answering] {
        socket.set_read_timeout(Some(DEADLINE))?;
    }
    Ok((asking, answering))
}

//! Loads between two pods, measured where they arrive: a TCP stream, a flood
//! of small datagrams, a question and its answer. Each is bounded in time.

use std::{
    ffi::OsString,
    io::{IoSlice, IoSliceMut, Read, Write},
    net::{IpAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::AsRawFd,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, anyhow, ensure};
use nix::{
    errno::Errno,
    sys::socket::{
        MsgFlags, MultiHeaders, SockaddrStorage, recvmmsg, sendmmsg, setsockopt, sockopt,
    },
};
use serde::Serialize;

use crate::{
    lab::Pod,
    probe::{self, DEADLINE, Family, patiently},
    stop,
};

/// Bytes a write of the TCP stream.
const WRITE: usize = 128 << 10;
/// Bytes of UDP payload of the flood and of the questions.
pub const DATAGRAM: usize = 64;
/// Datagrams a system call.
const BURST: usize = 64;
/// Asked for; the kernel's own limit may be lower.
const RECEIVE_BUFFER: usize = 4 << 20;
/// Silence after which a flood is over.
const QUIET: Duration = Duration::from_millis(200);

#[derive(Debug, Clone, Copy, Serialize)]
pub struct Stream {
    pub bytes: u64,
    pub seconds: f64,
}

#[derive(Debug, Clone, Copy, Serialize)]
pub struct Flood {
    pub sent: u64,
    pub delivered: u64,
    /// From the first datagram that arrived to the last.
    pub seconds: f64,
}

#[derive(Debug, Clone, Copy, Serialize)]
pub struct RoundTrips {
    pub count: usize,
    pub p50_us: f64,
    pub p99_us: f64,
}

impl Stream {
    pub fn gbit_per_second(&self) -> f64 {
        self.bytes as f64 * 8.0 / self.seconds / 1e9
    }
}

impl Flood {
    pub fn kpps(&self) -> f64 {
        self.delivered as f64 / self.seconds / 1e3
    }
}

/// One TCP connection that sends all it can for `duration`, under the
/// sender's `congestion` control or else under the system's.
pub fn stream(
    from: &Pod,
    to: &Pod,
    family: Family,
    congestion: Option<&str>,
    duration: Duration,
) -> anyhow::Result<Stream> {
    let address = family.of(to);
    let listener = to.netns.run(|| TcpListener::bind((address, 0)))??;
    let server = listener.local_addr()?;
    let sender = from
        .netns
        .run(|| TcpStream::connect_timeout(&server, DEADLINE))?
        .with_context(|| format!("connect {} to {}", from.name(), to.name()))?;
    let receiver = probe::accept(&listener, DEADLINE)?;
    if let Some(name) = congestion {
        setsockopt(&sender, sockopt::TcpCongestion, &OsString::from(name)).with_context(|| {
            format!("take the congestion control {name}; the kernel may lack it")
        })?;
    }
    thread::scope(|scope| {
        let receiving = scope.spawn(|| receive_stream(receiver));
        let sent = send_stream(sender, duration);
        let received = receiving
            .join()
            .map_err(|_| anyhow!("the receiver panicked"))?;
        sent.context("send the stream")?;
        received.context("receive the stream")
    })
}

fn send_stream(mut stream: TcpStream, duration: Duration) -> anyhow::Result<()> {
    let bytes = vec![0x77; WRITE];
    stream.set_write_timeout(Some(DEADLINE))?;
    let until = Instant::now() + duration;
    while Instant::now() < until {
        // A write that the deadline cuts short is an error: nothing moved.
        let _sent = patiently(|| stream.write(&bytes))?;
        stop::check()?;
    }
    Ok(())
}

fn receive_stream(mut stream: TcpStream) -> anyhow::Result<Stream> {
    let mut bytes = vec![0; 2 * WRITE];
    stream.set_read_timeout(Some(DEADLINE))?;
    let first = patiently(|| stream.read(&mut bytes))?;
    let started = Instant::now();
    let mut received = 0;
    let mut last = first;
    while last > 0 {
        last = patiently(|| stream.read(&mut bytes))?;
        received += last as u64;
    }
    ensure!(received > 0, "no data after the first read");
    Ok(Stream {
        bytes: received,
        seconds: started.elapsed().as_secs_f64(),
    })
}

/// Datagrams of [`DATAGRAM`] bytes, as many as the sender can for
/// `duration`, whether or not they arrive.
pub fn flood(from: &Pod, to: &Pod, family: Family, duration: Duration) -> anyhow::Result<Flood> {
    let (sender, receiver) = datagram_pair(from, to, family)?;
    // Best effort: a smaller buffer drops more, and is counted.
    let _ = setsockopt(&receiver, sockopt::RcvBuf, &RECEIVE_BUFFER);
    receiver.set_read_timeout(Some(QUIET))?;
    let until = Instant::now() + duration;
    thread::scope(|scope| {
        let receiving = scope.spawn(|| receive_flood(&receiver, until));
        let sent = send_flood(&sender, until);
        let received = receiving
            .join()
            .map_err(|_| anyhow!("the receiver panicked"))?;
        let sent = sent.context("send the flood")?;
        let (delivered, seconds) = received.context("receive the flood")?;
        ensure!(delivered > 1, "of {sent} datagrams {delivered} arrived");
        Ok(Flood {
            sent,
            delivered,
            seconds,
        })
    })
}

fn send_flood(socket: &UdpSocket, until: Instant) -> anyhow::Result<u64> {
    let payload = [0x77; DATAGRAM];
    let slices = [[IoSlice::new(&payload)]; BURST];
    let mut headers = MultiHeaders::<SockaddrStorage>::preallocate(BURST, None);
    let mut sent = 0;
    while Instant::now() < until {
        stop::check()?;
        let burst = sendmmsg(
            socket.as_raw_fd(),
            &mut headers,
            &slices,
            [None; BURST],
            [],
            MsgFlags::empty(),
        );
        match burst {
            Ok(results) => sent += results.count() as u64,
            // A full queue on the way is the flood's purpose.
            Err(Errno::ENOBUFS | Errno::EAGAIN | Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(sent)
}

/// How many came, and in how many seconds.
fn receive_flood(socket: &UdpSocket, until: Instant) -> anyhow::Result<(u64, f64)> {
    let mut buffers = vec![[0; 2 * DATAGRAM]; BURST];
    let mut headers = MultiHeaders::<SockaddrStorage>::preallocate(BURST, None);
    let mut delivered = 0;
    let mut span: Option<(Instant, Instant)> = None;
    loop {
        let mut slices: Vec<_> = buffers.iter_mut().map(|b| [IoSliceMut::new(b)]).collect();
        let waiting = MsgFlags::MSG_WAITFORONE;
        let burst = recvmmsg(socket.as_raw_fd(), &mut headers, &mut slices, waiting, None);
        let now = Instant::now();
        match burst {
            Ok(results) => {
                delivered += results.filter(|message| message.bytes == DATAGRAM).count() as u64;
                span = Some((span.map_or(now, |(first, _)| first), now));
            }
            Err(Errno::EINTR) => {}
            Err(Errno::EAGAIN) if now < until && !stop::requested() => {}
            Err(Errno::EAGAIN) => break,
            Err(errno) => return Err(errno.into()),
        }
        if now > until + DEADLINE {
            break;
        }
    }
    let seconds = span.map_or(0.0, |(first, last)| (last - first).as_secs_f64());
    Ok((delivered, seconds))
}

/// A datagram there and back, one after the other for `duration`.
pub fn round_trips(
    from: &Pod,
    to: &Pod,
    family: Family,
    duration: Duration,
) -> anyhow::Result<RoundTrips> {
    let (asking, answering) = datagram_pair(from, to, family)?;
    for socket in [&asking, &answering] {
        socket.set_read_timeout(Some(DEADLINE))?;
    }
    thread::scope(|scope| {
        let answers = scope.spawn(|| answer(&answering));
        let times = ask(&asking, duration);
        // One byte ends the answering side, also after an error.
        let ended = asking.send(&[0]);
        answers
            .join()
            .map_err(|_| anyhow!("the answering side panicked"))?
            .context("answer")?;
        ended.context("end the questions")?;
        let mut times = times.context("ask")?;
        times.sort_unstable();
        let rank = |part: usize| times[(times.len() - 1) * part / 100].as_secs_f64() * 1e6;
        Ok(RoundTrips {
            count: times.len(),
            p50_us: rank(50),
            p99_us: rank(99),
        })
    })
}

fn ask(socket: &UdpSocket, duration: Duration) -> anyhow::Result<Vec<Duration>> {
    let mut bytes = [0x77; DATAGRAM];
    let mut times = Vec::new();
    let until = Instant::now() + duration;
    loop {
        let asked = Instant::now();
        socket.send(&bytes)?;
        let len = patiently(|| socket.recv(&mut bytes))?;
        ensure!(len == DATAGRAM, "an answer of {len} B");
        times.push(asked.elapsed());
        stop::check()?;
        if asked > until {
            return Ok(times);
        }
    }
}

fn answer(socket: &UdpSocket) -> anyhow::Result<()> {
    let mut bytes = [0; 2 * DATAGRAM];
    loop {
        let (len, sender) = patiently(|| socket.recv_from(&mut bytes))?;
        if len == 1 {
            return Ok(());
        }
        socket.send_to(&bytes[..len], sender)?;
    }
}

fn datagram_pair(from: &Pod, to: &Pod, family: Family) -> anyhow::Result<(UdpSocket, UdpSocket)> {
    let address: IpAddr = family.of(to);
    let receiver = to.netns.run(|| UdpSocket::bind((address, 0)))??;
    let server = receiver.local_addr()?;
    let sender = from.netns.run(|| probe::datagrams_to(server))??;
    Ok((sender, receiver))
}

//! smoltcp's part: one interface, which is every address that pods speak to,
//! and for each TCP connection a socket set with that one socket, so that no
//! connection pays for the others.

use std::{
    net::{IpAddr, SocketAddr},
    num::NonZeroUsize,
    time::Instant,
};

use smoltcp::{
    iface::{Config, Interface, PollResult, SocketHandle, SocketSet, SocketStorage},
    phy::{self, Checksum, ChecksumCapabilities, DeviceCapabilities, Medium},
    socket::tcp,
    time,
    wire::{HardwareAddress, IpCidr, TCP_HEADER_LEN, TcpOption},
};

use crate::link::{Link, Segments};

/// Largest IP packet that a frame holds (RFC 791).
const PACKET_MAX: usize = 65_535;

/// Bytes of each direction that a connection holds at most. On the way to the
/// pod it is what may be under way: 64 super-frames would be more than the
/// link takes.
const BUFFER: usize = 256 << 10;

/// What a sender takes that says nothing (RFC 9293 section 3.7.1), and the
/// least that smoltcp sends.
const MSS_DEFAULT: u16 = 536;
const MSS_MIN: u16 = 48;

/// TCP's SYN (RFC 9293 section 3.1).
const SYN: u8 = 0x02;

/// A pod that is silent for so long, asked every [`KEEP_ALIVE`], is gone.
const SILENCE: time::Duration = time::Duration::from_secs(300);
const KEEP_ALIVE: time::Duration = time::Duration::from_secs(75);

/// Sockets that are kept for the next connection, with their memory.
const SPARE: usize = 32;

pub struct Stack {
    interface: Interface,
    started: Instant,
    address: Option<IpAddr>,
    spare: Vec<End>,
}

/// The end of one connection that the pod speaks to.
pub struct End {
    sockets: SocketSet<'static>,
    handle: SocketHandle,
    mss: u16,
}

/// The largest segment that the sender of a SYN takes (RFC 9293 section 3.7.1),
/// as smoltcp reads it. `header` is the TCP header with its options.
pub fn mss(header: &[u8]) -> u16 {
    let mut options = header.get(TCP_HEADER_LEN..).unwrap_or_default();
    while let Ok((rest, option)) = TcpOption::parse(options)
        && option != TcpOption::EndOfList
    {
        if let TcpOption::MaxSegmentSize(size) = option
            && size > 0
        {
            return size.max(MSS_MIN);
        }
        options = rest;
    }
    MSS_DEFAULT
}

impl End {
    fn new() -> Self {
        let buffer = || tcp::SocketBuffer::new(vec![0; BUFFER]);
        let mut socket = tcp::Socket::new(buffer(), buffer());
        // Frames come in batches, and each batch is answered once.
        socket.set_ack_delay(None);
        socket.set_nagle_enabled(false);
        socket.set_timeout(Some(SILENCE));
        socket.set_keep_alive(Some(KEEP_ALIVE));
        let mut sockets = SocketSet::new(vec![SocketStorage::EMPTY]);
        let handle = sockets.add(socket);
        Self {
            sockets,
            handle,
            mss: MSS_DEFAULT,
        }
    }

    /// Takes note of the largest segment, if that is the header of a SYN.
    pub fn learn(&mut self, header: &[u8]) {
        if header.get(13).is_some_and(|flags| flags & SYN != 0) {
            self.mss = mss(header);
        }
    }

    pub fn socket(&mut self) -> &mut tcp::Socket<'static> {
        self.sockets.get_mut(self.handle)
    }
}

impl std::fmt::Debug for End {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("End")
    }
}

impl std::fmt::Debug for Stack {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Stack")
    }
}

impl Stack {
    /// `seed` is what sequence numbers start from; nobody may guess it.
    pub fn new(link: &mut Link, seed: u64, now: Instant) -> Self {
        let mut config = Config::new(HardwareAddress::Ip);
        config.random_seed = seed;
        let mut device = Device {
            frame: None,
            link,
            mss: MSS_DEFAULT,
        };
        Self {
            interface: Interface::new(config, &mut device, time::Instant::ZERO),
            started: now,
            address: None,
            spare: Vec::new(),
        }
    }

    /// An end that takes the connection which a SYN to this address and port
    /// opens, whose sender takes segments of `mss` bytes.
    pub fn listen(&mut self, address: IpAddr, port: u16, mss: u16) -> Option<End> {
        let mut end = self.spare.pop().unwrap_or_else(End::new);
        end.mss = mss;
        let endpoint = (smoltcp::wire::IpAddress::from(address), port);
        end.socket().listen(endpoint).ok()?;
        Some(end)
    }

    /// An end that calls the pod at `to`, as `from`.
    pub fn call(&mut self, from: SocketAddr, to: SocketAddr) -> Option<End> {
        let mut end = self.spare.pop().unwrap_or_else(End::new);
        end.mss = MSS_DEFAULT;
        let context = self.interface.context();
        end.socket().connect(context, to, from).ok()?;
        Some(end)
    }

    pub fn give_back(&mut self, mut end: End) {
        // The socket says no more of this connection.
        end.socket().abort();
        if self.spare.len() < SPARE && !end.socket().is_open() {
            self.spare.push(end);
        }
    }

    /// Has an end look at a packet that came for `address`. Answers that cannot
    /// wait are sent.
    pub fn feed(
        &mut self,
        link: &mut Link,
        now: Instant,
        address: IpAddr,
        end: &mut End,
        packet: &[u8],
    ) {
        self.take(link, now, address, &mut end.sockets, packet);
    }

    /// Answers a packet of which no connection knows: by a reset, if it is one
    /// of TCP.
    pub fn refuse(&mut self, link: &mut Link, now: Instant, address: IpAddr, packet: &[u8]) {
        let mut nobody = SocketSet::new(Vec::new());
        self.take(link, now, address, &mut nobody, packet);
    }

    fn take(
        &mut self,
        link: &mut Link,
        now: Instant,
        address: IpAddr,
        sockets: &mut SocketSet<'static>,
        packet: &[u8],
    ) {
        let now = self.at(now);
        self.be(address);
        let mut device = Device {
            frame: Some(packet),
            link,
            // Answers that cannot wait bear no data.
            mss: MSS_DEFAULT,
        };
        self.interface
            .poll_ingress_single(now, &mut device, sockets);
    }

    /// Sends what an end has to say, as far as the link takes it.
    pub fn flush(&mut self, link: &mut Link, now: Instant, address: IpAddr, end: &mut End) {
        let now = self.at(now);
        self.be(address);
        let mut device = Device {
            frame: None,
            link,
            mss: end.mss,
        };
        while self
            .interface
            .poll_egress(now, &mut device, &mut end.sockets)
            == PollResult::SocketStateChanged
        {}
    }

    /// When an end wants to be flushed, if nothing happens before.
    pub fn due(&mut self, now: Instant, end: &End) -> Option<Instant> {
        let at = self.at(now);
        let delay = self.interface.poll_delay(at, &end.sockets)?;
        Some(now + std::time::Duration::from(delay))
    }

    fn at(&self, now: Instant) -> time::Instant {
        let passed = now.saturating_duration_since(self.started);
        let micros = i64::try_from(passed.as_micros()).unwrap_or(i64::MAX);
        time::Instant::from_micros(micros)
    }

    /// The interface is the host that the pod speaks to.
    fn be(&mut self, address: IpAddr) {
        if self.address == Some(address) {
            return;
        }
        let length = if address.is_ipv4() { 32 } else { 128 };
        self.interface.update_ip_addrs(|addresses| {
            addresses.clear();
            // The list has room for two.
            let _ = addresses.push(IpCidr::new(address.into(), length));
        });
        self.address = Some(address);
    }
}

struct Device<'a> {
    frame: Option<&'a [u8]>,
    link: &'a mut Link,
    /// What is larger is several packets. smoltcp says so too, but not of
    /// IPv6.
    mss: u16,
}

struct Incoming<'a>(&'a [u8]);

struct Outgoing<'a> {
    link: &'a mut Link,
    segments: Segments,
}

impl phy::Device for Device<'_> {
    type RxToken<'a>
        = Incoming<'a>
    where
        Self: 'a;
    type TxToken<'a>
        = Outgoing<'a>
    where
        Self: 'a;

    fn receive(&mut self, now: time::Instant) -> Option<(Incoming<'_>, Outgoing<'_>)> {
        let _ = now;
        let frame = self.frame.take()?;
        let outgoing = Outgoing {
            link: self.link,
            segments: Segments {
                size: Some(self.mss),
            },
        };
        Some((Incoming(frame), outgoing))
    }

    fn transmit(&mut self, now: time::Instant) -> Option<Outgoing<'_>> {
        let _ = now;
        let free = self.link.is_free();
        free.then_some(Outgoing {
            link: self.link,
            segments: Segments {
                size: Some(self.mss),
            },
        })
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut all = DeviceCapabilities::default();
        all.medium = Medium::Ip;
        all.max_transmission_unit = PACKET_MAX;
        all.checksum = ChecksumCapabilities::ignored();
        all.checksum.ipv4 = Checksum::Tx;
        all.segmentation.tcpv4 = NonZeroUsize::new(PACKET_MAX);
        all.segmentation.tcpv6 = NonZeroUsize::new(PACKET_MAX);
        all
    }
}

impl phy::RxToken for Incoming<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(self.0)
    }
}

impl phy::TxToken for Outgoing<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        // An answer that finds no room is made again when the pod asks again.
        self.link.send(len, self.segments, f).0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_segment_is_what_the_syn_says() {
        let syn = |options: &[u8]| {
            let mut header = vec![0; TCP_HEADER_LEN];
            header.extend_from_slice(options);
            mss(&header)
        };
        assert_eq!(syn(&[1, 1, 2, 4, 0x05, 0xa0, 4, 2]), 1440);
        assert_eq!(syn(&[2, 4, 0, 1]), MSS_MIN);
        for none in [
            &[][..],
            &[0, 2, 4, 5, 0xa0],
            &[2, 4, 5],
            &[2, 4, 0, 0],
            &[9, 0, 1],
        ] {
            assert_eq!(syn(none), MSS_DEFAULT, "{none:?}");
        }
    }
}

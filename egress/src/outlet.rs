//! The loop: frames in, flows to whom something happened, timers.

use std::{
    cmp::Reverse,
    collections::BinaryHeap,
    io::{self, ErrorKind},
    net::SocketAddr,
    os::fd::{AsRawFd, OwnedFd},
    sync::{Arc, atomic::Ordering::Relaxed},
    time::{Duration, Instant},
};

use mio::{Events, Interest, Poll, Token, event::Event, unix::SourceFd};
use nix::{errno::Errno, sys::signal::Signal};
use weft_socket::Signals;
use weft_wire::{
    ETHERNET_LEN, Ethernet, FRAME_MAX, Key, Packet, VnetHeader, checksum, parse, parse::Fragment,
    protocol, vnet,
};

use crate::{
    datagrams::{self, Datagrams, is_ping},
    link::{Came, Link},
    metrics::Counters,
    refusal::{Trouble, tell},
    stack::{Stack, mss},
    table::{Flow, Kind, Limits, Room, Table},
    target::{Dns, target},
    tcp::{self, Tcp, Turn},
};

const LINK: Token = Token(0);
const SIGNALS: Token = Token(1);
const FLOWS: usize = 2;

/// Frames that are read before the flows have their turn: a few super-frames
/// of each of some flows.
const BATCH: usize = 64;

/// TCP's SYN and ACK (RFC 9293 section 3.1).
const SYN: u8 = 0x02;
const ACK: u8 = 0x10;

/// Least time between two looks at a flow that nothing happened to.
const PAUSE: Duration = Duration::from_millis(1);

#[derive(Debug)]
pub struct Outlet {
    poll: Poll,
    link: Link,
    stack: Stack,
    table: Table,
    timers: BinaryHeap<Reverse<(Instant, usize, u64)>>,
    /// Flows that have a turn to come.
    touched: Vec<usize>,
    /// Flows that wait for the link.
    stalled: Vec<usize>,
    buffer: Box<[u8]>,
    dns: Option<Dns>,
    counters: Arc<Counters>,
}

/// Why the loop ended.
#[derive(Debug)]
pub enum End {
    Signal(Signal),
    /// The forwarder has let the port go.
    Gone,
}

impl Outlet {
    pub fn new(
        link: OwnedFd,
        signals: &Signals,
        limits: Limits,
        dns: Option<Dns>,
        counters: Arc<Counters>,
        seed: u64,
    ) -> io::Result<Self> {
        let poll = Poll::new()?;
        let mut link = Link::new(link);
        let both = Interest::READABLE | Interest::WRITABLE;
        let registry = poll.registry();
        registry.register(&mut SourceFd(&link.as_raw_fd()), LINK, both)?;
        registry.register(
            &mut SourceFd(&signals.as_raw_fd()),
            SIGNALS,
            Interest::READABLE,
        )?;
        Ok(Self {
            stack: Stack::new(&mut link, seed, Instant::now()),
            poll,
            link,
            table: Table::new(limits),
            timers: BinaryHeap::new(),
            touched: Vec::new(),
            stalled: Vec::new(),
            buffer: vec![0; vnet::LEN + FRAME_MAX].into(),
            dns,
            counters,
        })
    }

    /// Serves until a signal or the forwarder ends it.
    pub fn run(mut self, signals: &Signals) -> io::Result<End> {
        let mut events = Events::with_capacity(256);
        let mut more = true;
        loop {
            let rest = match more || !self.touched.is_empty() {
                true => Some(Duration::ZERO),
                false => self.rest(),
            };
            match self.poll.poll(&mut events, rest) {
                Err(error) if error.kind() != ErrorKind::Interrupted => return Err(error),
                _ => {}
            }
            for event in &events {
                match event.token() {
                    LINK => {
                        more = true;
                        self.link.drain();
                    }
                    SIGNALS => {
                        if let Some(signal) = signals.next() {
                            return Ok(End::Signal(signal));
                        }
                    }
                    Token(token) => self.hear(token - FLOWS, event),
                }
            }
            let now = Instant::now();
            more = match more.then(|| self.read(now)) {
                Some(Came::Gone) => return Ok(End::Gone),
                Some(Came::Frame(_)) => true,
                Some(Came::Nothing) | None => false,
            };
            self.expire(now);
            if self.link.is_free() {
                for slot in std::mem::take(&mut self.stalled) {
                    self.touch(slot);
                }
            }
            for slot in std::mem::take(&mut self.touched) {
                self.turn(slot, now);
            }
            self.counters.flows.store(self.table.len() as u64, Relaxed);
        }
    }

    fn rest(&self) -> Option<Duration> {
        let Reverse((due, ..)) = self.timers.peek()?;
        Some(due.saturating_duration_since(Instant::now()))
    }

    fn hear(&mut self, slot: usize, event: &Event) {
        let Some(flow) = self.table.flow(slot) else {
            return;
        };
        if let Kind::Tcp(tcp) = &mut flow.kind {
            let over = event.is_error() || event.is_read_closed();
            tcp.readable |= event.is_readable() || over;
            tcp.writable |= event.is_writable() || event.is_write_closed();
        }
        self.touch(slot);
    }

    fn touch(&mut self, slot: usize) {
        if let Some(flow) = self.table.flow(slot)
            && !std::mem::replace(&mut flow.touched, true)
        {
            self.touched.push(slot);
        }
    }

    fn expire(&mut self, now: Instant) {
        while let Some(Reverse((due, slot, serial))) = self.timers.peek().copied()
            && due <= now
        {
            self.timers.pop();
            if let Some(flow) = self.table.flow(slot)
                && (flow.serial, flow.timer) == (serial, Some(due))
            {
                flow.timer = None;
                self.touch(slot);
            }
        }
    }

    /// Wakes the flow then, at the latest.
    fn wake_at(&mut self, slot: usize, due: Option<Instant>) {
        let (Some(due), Some(flow)) = (due, self.table.flow(slot)) else {
            return;
        };
        if flow.timer.is_none_or(|timer| due < timer) {
            flow.timer = Some(due);
            let serial = flow.serial;
            self.timers.push(Reverse((due, slot, serial)));
        }
    }

    fn turn(&mut self, slot: usize, now: Instant) {
        let Some(flow) = self.table.flow(slot) else {
            return;
        };
        flow.touched = false;
        let key = flow.key;
        let turn = match &mut flow.kind {
            Kind::Tcp(tcp) => {
                let mut tools = tcp::Tools {
                    stack: &mut self.stack,
                    link: &mut self.link,
                    counters: &self.counters,
                    now,
                };
                tcp.turn(&mut tools, &key)
            }
            Kind::Datagrams(flow) => {
                let mut tools = datagrams::Tools {
                    link: &mut self.link,
                    counters: &self.counters,
                    now,
                    buffer: &mut self.buffer,
                };
                if flow.turn(&mut tools, &key) {
                    self.touch(slot);
                }
                self.datagrams_end(slot, now)
            }
        };
        match turn {
            Turn::Over => self.remove(slot),
            Turn::Waits(due) => {
                if !self.link.is_free() {
                    self.stalled.push(slot);
                }
                self.wake_at(slot, due.map(|due| due.max(now + PAUSE)));
            }
        }
    }

    fn datagrams_end(&mut self, slot: usize, now: Instant) -> Turn {
        let Some(Flow {
            key,
            kind: Kind::Datagrams(flow),
            ..
        }) = self.table.flow(slot)
        else {
            return Turn::Over;
        };
        let ends = flow.ends(key);
        if ends > now {
            return Turn::Waits(Some(ends));
        }
        self.counters.flows_idle.add(1);
        Turn::Over
    }

    fn remove(&mut self, slot: usize) {
        let Some(flow) = self.table.remove(slot) else {
            return;
        };
        // Closing the socket ends the watch in any case.
        match flow.kind {
            Kind::Tcp(mut tcp) => {
                let _ = self.poll.registry().deregister(&mut tcp.stream);
                tcp.end(&mut self.stack);
            }
            Kind::Datagrams(flow) => {
                let _ = self
                    .poll
                    .registry()
                    .deregister(&mut SourceFd(&flow.as_raw_fd()));
            }
        }
    }

    /// Reads a batch of frames.
    fn read(&mut self, now: Instant) -> Came {
        let mut buffer = std::mem::take(&mut self.buffer);
        let mut came = Came::Nothing;
        for _ in 0..BATCH {
            came = self.link.receive(&mut buffer);
            let Came::Frame(bytes) = came else {
                break;
            };
            self.counters.frames_from_pods.add(1);
            self.frame(&mut buffer[..bytes], now);
        }
        self.buffer = buffer;
        came
    }

    fn frame(&mut self, message: &mut [u8], now: Instant) {
        let Some(header) = VnetHeader::read(message) else {
            return self.counters.dropped_malformed.add(1);
        };
        let frame = &mut message[vnet::LEN..];
        let packet = match parse(frame) {
            Ok(Ethernet::Ip(packet)) => packet,
            _ => return self.counters.dropped_malformed.add(1),
        };
        if packet.fragment != Fragment::Whole {
            return self.counters.dropped_fragments.add(1);
        }
        let vouched = header.needs_checksum() || header.flags & vnet::DATA_VALID != 0;
        if !vouched && !checksum::verify(frame, &packet) {
            return self.counters.dropped_checksum.add(1);
        }
        match packet.key.protocol {
            protocol::TCP => self.tcp_frame(frame, &packet, now),
            protocol::UDP => self.datagram(frame, &packet, header, now),
            protocol::ICMP | protocol::ICMPV6 if is_ping(&packet.key) => {
                self.datagram(frame, &packet, header, now);
            }
            _ => self.counters.dropped_protocol.add(1),
        }
    }

    fn tcp_frame(&mut self, frame: &[u8], packet: &Packet, now: Instant) {
        let key = packet.key;
        let ip = &frame[ETHERNET_LEN..packet.end];
        let mut tools = tcp::Tools {
            stack: &mut self.stack,
            link: &mut self.link,
            counters: &self.counters,
            now,
        };
        if let Some(slot) = self.table.find(&key) {
            if let Some(Flow {
                kind: Kind::Tcp(tcp),
                ..
            }) = self.table.flow(slot)
            {
                tcp.hear(&mut tools, &key, ip);
                self.touch(slot);
            }
            return;
        }
        let Some(to) = target(&key, self.dns) else {
            return self.forbid(&key, ip);
        };
        if frame[packet.transport + 13] & (SYN | ACK) != SYN {
            self.counters.tcp_unknown.add(1);
            return tools.stack.refuse(tools.link, now, key.dst, ip);
        }
        if !self.make_room(&key) {
            return self.stack.refuse(&mut self.link, now, key.dst, ip);
        }
        match Tcp::open(to, ip, mss(&frame[packet.transport..packet.payload]), now) {
            Ok(tcp) => self.admit(key, Kind::Tcp(Box::new(tcp)), now),
            Err(error) => self.refuse_connection(&key, ip, &error, now),
        }
    }

    fn refuse_connection(&mut self, key: &Key, syn: &[u8], error: &io::Error, now: Instant) {
        if is_want_of_descriptors(error.raw_os_error()) {
            self.counters.refused_descriptors.add(1);
            return self.stack.refuse(&mut self.link, now, key.dst, syn);
        }
        let mut tools = tcp::Tools {
            stack: &mut self.stack,
            link: &mut self.link,
            counters: &self.counters,
            now,
        };
        tcp::fail(&mut tools, key, error, syn);
    }

    fn datagram(&mut self, frame: &mut [u8], packet: &Packet, header: VnetHeader, now: Instant) {
        let key = packet.key;
        let slot = match self.table.find(&key) {
            Some(slot) => slot,
            None => {
                let ip = &frame[ETHERNET_LEN..packet.end];
                let Some(to) = target(&key, self.dns) else {
                    return self.forbid(&key, ip);
                };
                if !self.make_room(&key) {
                    return self.forbid_with(&key, ip, Trouble::prohibited(key.src.is_ipv4()));
                }
                match self.open(&key, to, ip, now) {
                    Some(slot) => slot,
                    None => return,
                }
            }
        };
        let payload = match key.protocol {
            protocol::UDP => packet.payload..packet.end,
            _ => packet.transport..packet.end,
        };
        let size = (header.gso_kind() == vnet::GSO_UDP_L4).then_some(header.gso_size);
        if let Some(Flow {
            kind: Kind::Datagrams(flow),
            ..
        }) = self.table.flow(slot)
        {
            let mut tools = datagrams::Tools {
                link: &mut self.link,
                counters: &self.counters,
                now,
                buffer: &mut self.buffer,
            };
            flow.send(&mut tools, &key, packet.hop_limit, &frame[payload], size);
        }
    }

    fn open(&mut self, key: &Key, to: SocketAddr, ip: &[u8], now: Instant) -> Option<usize> {
        let udp = key.protocol == protocol::UDP;
        match Datagrams::open(key, to, now) {
            Ok(flow) => {
                let opened = if udp {
                    &self.counters.udp_opened
                } else {
                    &self.counters.echo_opened
                };
                opened.add(1);
                self.admit(*key, Kind::Datagrams(flow), now);
                self.table.find(key)
            }
            Err(Errno::EACCES | Errno::EPERM) if !udp => {
                self.counters.refused_echo.add(1);
                None
            }
            Err(errno) if is_want_of_descriptors(Some(errno as i32)) => {
                self.counters.refused_descriptors.add(1);
                None
            }
            Err(_) => {
                self.counters.dropped_outside.add(1);
                self.say(key, ip, Trouble::host_unreachable(key.src.is_ipv4()));
                None
            }
        }
    }

    fn admit(&mut self, key: Key, kind: Kind, now: Instant) {
        let slot = self.table.insert(key, kind);
        let Some(flow) = self.table.flow(slot) else {
            return;
        };
        let (registry, token) = (self.poll.registry(), Token(FLOWS + slot));
        let watched = match &mut flow.kind {
            Kind::Tcp(tcp) => registry.register(
                &mut tcp.stream,
                token,
                Interest::READABLE | Interest::WRITABLE,
            ),
            Kind::Datagrams(flow) => {
                registry.register(&mut SourceFd(&flow.as_raw_fd()), token, Interest::READABLE)
            }
        };
        if let Err(error) = watched {
            tracing::warn!("a flow's socket cannot be watched: {error}; the flow is dropped");
            self.counters.refused_descriptors.add(1);
            self.remove(slot);
            return;
        }
        let due = match &flow.kind {
            Kind::Tcp(_) => None,
            Kind::Datagrams(datagrams) => Some(datagrams.ends(&key)),
        };
        self.wake_at(slot, due.map(|due| due.max(now)));
        // A connection may be there at once; else its turn says when to give
        // up.
        self.touch(slot);
    }

    fn make_room(&mut self, key: &Key) -> bool {
        match self.table.room(key.src) {
            Room::Free => true,
            Room::Instead(slot) => {
                self.counters.flows_evicted.add(1);
                self.remove(slot);
                true
            }
            Room::None => {
                self.counters.refused_limit.add(1);
                false
            }
        }
    }

    fn forbid(&mut self, key: &Key, ip: &[u8]) {
        self.counters.refused_forbidden.add(1);
        self.forbid_with(key, ip, Trouble::prohibited(key.src.is_ipv4()));
    }

    fn forbid_with(&mut self, key: &Key, ip: &[u8], trouble: Trouble) {
        self.say(key, ip, trouble);
    }

    fn say(&mut self, key: &Key, ip: &[u8], trouble: Trouble) {
        if tell(&mut self.link, key, key.dst, trouble, ip).is_err() {
            self.counters.dropped_link.add(1);
        }
    }
}

fn is_want_of_descriptors(errno: Option<i32>) -> bool {
    let errno = errno.map(Errno::from_raw);
    matches!(
        errno,
        Some(Errno::EMFILE | Errno::ENFILE | Errno::ENOBUFS | Errno::ENOMEM)
    )
}

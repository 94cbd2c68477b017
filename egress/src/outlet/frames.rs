//! What a frame from a pod does: it goes on in its flow, opens one, or is
//! answered why not.

use std::{
    io,
    net::SocketAddr,
    time::{Duration, Instant},
};

use mio::{Interest, Token, unix::SourceFd};
use nix::errno::Errno;
use weft_wire::{
    ETHERNET_LEN, Ethernet, Key, Packet, VnetHeader, checksum, parse, parse::Fragment, protocol,
    vnet,
};

use super::{FLOWS, Outlet, mtu};
use crate::{
    datagrams::{self, Datagrams, is_ping},
    refusal::{Trouble, tell},
    stack::mss,
    table::{Flow, Kind, Room},
    target::target,
    tcp::{self, Tcp},
};

/// TCP's SYN and ACK (RFC 9293 section 3.1).
const SYN: u8 = 0x02;
const ACK: u8 = 0x10;

/// Between two warnings of the same.
const SILENCE: Duration = Duration::from_secs(60);

impl Outlet {
    pub(super) fn frame(&mut self, message: &mut [u8], now: Instant) {
        let Some(header) = VnetHeader::read(message) else {
            return self.counters.dropped_malformed.add(1);
        };
        let frame = &mut message[vnet::LEN..];
        let packet = match parse(frame) {
            Ok(Ethernet::Ip(packet)) => packet,
            _ => return self.counters.dropped_malformed.add(1),
        };
        if packet.fragment != Fragment::Whole {
            return self.fragment(frame, &packet, now);
        }
        self.whole(frame, &packet, header, now);
    }

    fn fragment(&mut self, frame: &[u8], packet: &Packet, now: Instant) {
        let taken = self.fragments.take(frame, packet, now);
        self.counters.dropped_fragments.add(taken.lost);
        let Some(mut frame) = taken.whole else {
            return;
        };
        self.counters.packets_joined.add(1);
        match parse(&frame) {
            Ok(Ethernet::Ip(packet)) => {
                self.whole(&mut frame, &packet, VnetHeader::default(), now);
            }
            _ => self.counters.dropped_malformed.add(1),
        }
    }

    fn whole(&mut self, frame: &mut [u8], packet: &Packet, header: VnetHeader, now: Instant) {
        let vouched = header.needs_checksum() || header.flags & vnet::DATA_VALID != 0;
        if !vouched && !checksum::verify(frame, packet) {
            return self.counters.dropped_checksum.add(1);
        }
        match packet.key.protocol {
            protocol::TCP => self.tcp_frame(frame, packet, now),
            protocol::UDP => self.datagram(frame, packet, header, now),
            protocol::ICMP | protocol::ICMPV6 if is_ping(&packet.key) => {
                self.datagram(frame, packet, header, now);
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
                tcp.hear(
                    &mut tools,
                    &key,
                    ip,
                    &frame[packet.transport..packet.payload],
                );
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
            self.want_descriptors(now);
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
            None if !self.table.is_paced(key.src, now) => return self.counters.refused_pace.add(1),
            None => {
                let started = Instant::now();
                let slot = self.begin(frame, packet, now);
                self.table.spend(key.src, started.elapsed(), now);
                match slot {
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
        let Some(flow) = self.table.flow(slot) else {
            return;
        };
        let mut tools = datagrams::Tools {
            link: &mut self.link,
            counters: &self.counters,
            now,
            buffer: &mut self.buffer,
            mtu: mtu(&self.mtus, key.src),
        };
        match &mut flow.kind {
            Kind::Datagrams(flow) => {
                flow.send(&mut tools, &key, packet.hop_limit, &frame[payload], size);
            }
            Kind::Caller(caller) => caller.send(&tools, &frame[payload], size),
            Kind::Tcp(_) => {}
        }
    }

    fn begin(&mut self, frame: &[u8], packet: &Packet, now: Instant) -> Option<usize> {
        let key = packet.key;
        let ip = &frame[ETHERNET_LEN..packet.end];
        let Some(to) = target(&key, self.dns) else {
            self.forbid(&key, ip);
            return None;
        };
        if !self.make_room(&key) {
            self.say(&key, ip, Trouble::prohibited(key.src.is_ipv4()));
            return None;
        }
        self.open(&key, to, ip, now)
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
                self.want_descriptors(now);
                None
            }
            Err(_) => {
                self.counters.dropped_outside.add(1);
                self.say(key, ip, Trouble::host_unreachable(key.src.is_ipv4()));
                None
            }
        }
    }

    pub(super) fn admit(&mut self, key: Key, kind: Kind, now: Instant) {
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
            // Its door's socket is.
            Kind::Caller(_) => Ok(()),
        };
        if let Err(error) = watched {
            tracing::warn!("a flow's socket cannot be watched: {error}; the flow is dropped");
            self.counters.refused_descriptors.add(1);
            self.remove(slot);
            return;
        }
        let due = flow.kind.ends(&key);
        self.wake_at(slot, due.map(|due| due.max(now)));
        // A connection may be there at once; else its turn says when to give
        // up.
        self.touch(slot);
    }

    pub(super) fn make_room(&mut self, key: &Key) -> bool {
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

    pub(super) fn want_descriptors(&mut self, now: Instant) {
        self.counters.refused_descriptors.add(1);
        if self.warned.is_none_or(|warned| now >= warned + SILENCE) {
            self.warned = Some(now);
            tracing::warn!(
                "the kernel gives no more sockets, flows are refused (refused_descriptors); \
                 raise the limit of open files (ulimit -n, LimitNOFILE=), or lower --flows"
            );
        }
    }

    fn forbid(&mut self, key: &Key, ip: &[u8]) {
        self.counters.refused_forbidden.add(1);
        self.say(key, ip, Trouble::prohibited(key.src.is_ipv4()));
    }

    fn say(&mut self, key: &Key, ip: &[u8], trouble: Trouble) {
        if tell(&mut self.link, key, key.dst, trouble, ip).is_err() {
            self.counters.dropped_link.add(1);
        }
    }
}

pub(super) fn is_want_of_descriptors(errno: Option<i32>) -> bool {
    let errno = errno.map(Errno::from_raw);
    matches!(
        errno,
        Some(Errno::EMFILE | Errno::ENFILE | Errno::ENOBUFS | Errno::ENOMEM)
    )
}

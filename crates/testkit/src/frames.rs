//! Frames made to measure.
//!
//! ```
//! use weft_testkit::frames::{between, SYN};
//!
//! let syn = between([10, 0, 0, 1], [10, 0, 0, 2]).tcp(40_000, 80).flags(SYN).build();
//! let ping = between([10, 0, 0, 1], [10, 0, 0, 2]).ttl(1).echo_request(7, 1).filled(56).build();
//! let tunnelled = between([192, 0, 2, 1], [192, 0, 2, 2]).vxlan(4096, &ping).build();
//! # assert!(syn.len() < tunnelled.len());
//! ```
//!
//! Lengths and checksums of what is built are right; tests of bad input edit
//! the bytes.

use std::net::IpAddr;

use weft_wire::{
    ETHERNET_LEN, Ethernet, Mac, VnetHeader, checksum, edit, ethertype, parse, protocol, vnet,
    vxlan,
};

pub const FIN: u8 = 0x01;
pub const SYN: u8 = 0x02;
pub const RST: u8 = 0x04;
pub const PSH: u8 = 0x08;
pub const ACK: u8 = 0x10;
pub const CWR: u8 = 0x80;

/// A frame from one address to another of the same family: at first an
/// empty UDP datagram from port 1 to port 2.
pub fn between(src: impl Into<IpAddr>, dst: impl Into<IpAddr>) -> FrameBuilder {
    FrameBuilder {
        src_mac: [2, 0, 0, 0, 0, 1],
        dst_mac: [2, 0, 0, 0, 0, 2],
        src: src.into(),
        dst: dst.into(),
        ttl: 64,
        class: 0,
        id: 0,
        dont_fragment: false,
        options: Vec::new(),
        extensions: Vec::new(),
        transport: Transport::Udp { src: 1, dst: 2 },
        payload: Vec::new(),
    }
}

#[derive(Debug, Clone)]
pub struct FrameBuilder {
    src_mac: Mac,
    dst_mac: Mac,
    src: IpAddr,
    dst: IpAddr,
    ttl: u8,
    class: u8,
    id: u16,
    dont_fragment: bool,
    options: Vec<u8>,
    extensions: Vec<(u8, Vec<u8>)>,
    transport: Transport,
    payload: Vec<u8>,
}

#[derive(Debug, Clone)]
enum Transport {
    Tcp(Tcp),
    Udp { src: u16, dst: u16 },
    Icmp { kind: u8, code: u8, rest: [u8; 4] },
    Raw(u8),
}

#[derive(Debug, Clone)]
struct Tcp {
    src: u16,
    dst: u16,
    seq: u32,
    ack: u32,
    flags: u8,
    window: u16,
    options: Vec<u8>,
}

/// Ethernet and IP.
impl FrameBuilder {
    pub fn macs(mut self, src: Mac, dst: Mac) -> Self {
        (self.src_mac, self.dst_mac) = (src, dst);
        self
    }

    /// TTL or hop limit.
    pub fn ttl(mut self, ttl: u8) -> Self {
        self.ttl = ttl;
        self
    }

    /// The byte of DSCP and ECN.
    pub fn class(mut self, class: u8) -> Self {
        self.class = class;
        self
    }

    /// The identification, of IPv4 packets and of either family's fragments.
    pub fn id(mut self, id: u16) -> Self {
        self.id = id;
        self
    }

    /// Sets IPv4's DF bit.
    pub fn dont_fragment(mut self) -> Self {
        self.dont_fragment = true;
        self
    }

    /// IPv4 options; a whole number of 4 bytes, at most 40.
    pub fn options(mut self, options: &[u8]) -> Self {
        self.options = options.to_vec();
        self
    }

    /// Appends an IPv6 extension header. Its first byte, the next header, is
    /// filled in.
    pub fn extension(mut self, kind: u8, bytes: &[u8]) -> Self {
        self.extensions.push((kind, bytes.to_vec()));
        self
    }
}

/// Transport and payload.
impl FrameBuilder {
    /// TCP; at first a bare ACK.
    pub fn tcp(mut self, src: u16, dst: u16) -> Self {
        self.transport = Transport::Tcp(Tcp {
            src,
            dst,
            seq: 1,
            ack: 1,
            flags: ACK,
            window: 0xffff,
            options: Vec::new(),
        });
        self
    }

    pub fn seq(self, seq: u32) -> Self {
        self.with_tcp(|tcp| tcp.seq = seq)
    }

    pub fn ack(self, ack: u32) -> Self {
        self.with_tcp(|tcp| tcp.ack = ack)
    }

    pub fn flags(self, flags: u8) -> Self {
        self.with_tcp(|tcp| tcp.flags = flags)
    }

    pub fn window(self, window: u16) -> Self {
        self.with_tcp(|tcp| tcp.window = window)
    }

    /// TCP options; a whole number of 4 bytes, at most 40.
    pub fn tcp_options(self, options: &[u8]) -> Self {
        self.with_tcp(|tcp| tcp.options = options.to_vec())
    }

    fn with_tcp(mut self, edit: impl FnOnce(&mut Tcp)) -> Self {
        match &mut self.transport {
            Transport::Tcp(tcp) => edit(tcp),
            other => panic!("{other:?} is not TCP; call tcp() first"),
        }
        self
    }

    pub fn udp(mut self, src: u16, dst: u16) -> Self {
        self.transport = Transport::Udp { src, dst };
        self
    }

    /// A VXLAN datagram around the frame `inner`, to the usual port.
    pub fn vxlan(self, vni: u32, inner: &[u8]) -> Self {
        let datagram = [&vxlan::header(vni)[..], inner].concat();
        self.udp(50_000, 4789).payload(&datagram)
    }

    /// ICMP or ICMPv6; `rest` are the four bytes behind the checksum.
    pub fn icmp(mut self, kind: u8, code: u8, rest: [u8; 4]) -> Self {
        self.transport = Transport::Icmp { kind, code, rest };
        self
    }

    pub fn echo_request(self, id: u16, seq: u16) -> Self {
        let kind = if self.src.is_ipv4() { 8 } else { 128 };
        let [[a, b], [c, d]] = [id, seq].map(u16::to_be_bytes);
        self.icmp(kind, 0, [a, b, c, d])
    }

    /// Any other protocol; the payload is all there is.
    pub fn protocol(mut self, protocol: u8) -> Self {
        self.transport = Transport::Raw(protocol);
        self
    }

    pub fn payload(mut self, payload: &[u8]) -> Self {
        self.payload = payload.to_vec();
        self
    }

    /// A payload of `len` bytes in which neighbours differ.
    pub fn filled(mut self, len: usize) -> Self {
        // 251 is prime, so the pattern is out of step with every header.
        self.payload = (0..=250).cycle().take(len).collect();
        self
    }
}

/// The results.
impl FrameBuilder {
    /// The Ethernet frame.
    pub fn build(&self) -> Vec<u8> {
        let mut frame = self.around(&self.segment(), None);
        if let Ok(Ethernet::Ip(packet)) = parse(&frame) {
            checksum::complete(&mut frame, &packet);
        }
        frame
    }

    /// The packet in fragments that carry up to `size` bytes of it each; a
    /// multiple of 8 (RFC 791 section 3.2).
    pub fn fragments(&self, size: usize) -> Vec<Vec<u8>> {
        assert!(
            size > 0 && size.is_multiple_of(8),
            "{size} is no multiple of 8"
        );
        let whole = self.build();
        let segment = &whole[whole.len() - self.segment().len()..];
        let pieces = segment.chunks(size).enumerate();
        pieces
            .map(|(place, piece)| {
                let more = (place + 1) * size < segment.len();
                self.around(piece, Some((word(place * size), more)))
            })
            .collect()
    }

    /// The TCP or UDP frame as a kernel hands it to a device that segments
    /// and sums: with `size` bytes of payload to a segment, a partial
    /// checksum, and the header that says so.
    pub fn super_frame(&self, size: u16) -> (VnetHeader, Vec<u8>) {
        let (mut header, frame) = self.unsummed();
        header.gso_size = size;
        header.gso_type = match (&self.transport, self.src) {
            (Transport::Tcp(_), IpAddr::V4(_)) => vnet::GSO_TCPV4,
            (Transport::Tcp(_), IpAddr::V6(_)) => vnet::GSO_TCPV6,
            _ => vnet::GSO_UDP_L4,
        };
        (header, frame)
    }

    /// The TCP or UDP frame as a kernel hands it to a device that sums.
    pub fn unsummed(&self) -> (VnetHeader, Vec<u8>) {
        let mut frame = self.build();
        let Ok(Ethernet::Ip(packet)) = parse(&frame) else {
            panic!("{self:?} is no IP packet");
        };
        let offset = match self.transport {
            Transport::Tcp(_) => 16,
            Transport::Udp { .. } => 6,
            _ => panic!("{:?} is neither TCP nor UDP", self.transport),
        };
        let pseudo = checksum::pseudo_header(&packet.key, packet.end - packet.transport);
        let at = packet.transport + offset;
        frame[at..at + 2].copy_from_slice(&pseudo.to_be_bytes());
        let header = VnetHeader {
            flags: vnet::NEEDS_CSUM,
            hdr_len: word(packet.payload),
            csum_start: word(packet.transport),
            csum_offset: word(offset),
            ..VnetHeader::default()
        };
        (header, frame)
    }
}

/// The pieces.
impl FrameBuilder {
    /// Transport header, its checksum zero, and payload.
    fn segment(&self) -> Vec<u8> {
        let mut segment = match &self.transport {
            Transport::Tcp(tcp) => tcp.header(),
            Transport::Udp { src, dst } => {
                let words = [*src, *dst, word(8 + self.payload.len()), 0];
                words.map(u16::to_be_bytes).concat()
            }
            Transport::Icmp { kind, code, rest } => [&[*kind, *code, 0, 0], &rest[..]].concat(),
            Transport::Raw(_) => Vec::new(),
        };
        segment.extend_from_slice(&self.payload);
        segment
    }

    /// The frame around a segment or, given where it starts and whether more
    /// follow, a piece of one.
    fn around(&self, segment: &[u8], piece: Option<(u16, bool)>) -> Vec<u8> {
        let (ethertype, packet) = match (self.src, self.dst) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => {
                let addresses = [src.octets(), dst.octets()].concat();
                (ethertype::IPV4, self.packet_v4(&addresses, segment, piece))
            }
            (IpAddr::V6(src), IpAddr::V6(dst)) => {
                let addresses = [src.octets(), dst.octets()].concat();
                (ethertype::IPV6, self.packet_v6(&addresses, segment, piece))
            }
            (src, dst) => panic!("{src} and {dst} are not of one family"),
        };
        let mut frame = Vec::with_capacity(ETHERNET_LEN + packet.len());
        frame.extend_from_slice(&self.dst_mac);
        frame.extend_from_slice(&self.src_mac);
        frame.extend_from_slice(&ethertype.to_be_bytes());
        frame.extend_from_slice(&packet);
        frame
    }

    fn packet_v4(&self, addresses: &[u8], segment: &[u8], piece: Option<(u16, bool)>) -> Vec<u8> {
        let header_len = 20 + self.options.len();
        let (offset, more) = piece.unwrap_or((0, false));
        let flags = u16::from(self.dont_fragment) << 14 | u16::from(more) << 13;
        let words = [
            0x4000 | word(header_len / 4) << 8 | u16::from(self.class),
            word(header_len + segment.len()),
            self.id,
            flags | (offset / 8),
            u16::from(self.ttl) << 8 | u16::from(self.protocol_number()),
            0,
        ];
        let mut packet = words.map(u16::to_be_bytes).concat();
        packet.extend_from_slice(addresses);
        packet.extend_from_slice(&self.options);
        edit::refresh_ipv4_checksum(&mut packet);
        packet.extend_from_slice(segment);
        packet
    }

    fn packet_v6(&self, addresses: &[u8], segment: &[u8], piece: Option<(u16, bool)>) -> Vec<u8> {
        const FRAGMENT: u8 = 44;
        let mut packet = vec![0x60 | self.class >> 4, self.class << 4, 0, 0];
        packet.extend_from_slice(&[0, 0, 0, self.ttl]);
        packet.extend_from_slice(addresses);
        let mut next_at = 6;
        let mut chain = |packet: &mut Vec<u8>, kind, bytes: &[u8]| {
            packet[next_at] = kind;
            next_at = packet.len();
            packet.extend_from_slice(bytes);
        };
        for (kind, bytes) in &self.extensions {
            chain(&mut packet, *kind, bytes);
        }
        if let Some((offset, more)) = piece {
            let words = [0, offset | u16::from(more), 0, self.id];
            let bytes = words.map(u16::to_be_bytes).concat();
            chain(&mut packet, FRAGMENT, &bytes);
        }
        chain(&mut packet, self.protocol_number(), segment);
        let payload_len = word(packet.len() - 40);
        packet[4..6].copy_from_slice(&payload_len.to_be_bytes());
        packet
    }

    fn protocol_number(&self) -> u8 {
        match (&self.transport, self.src) {
            (Transport::Tcp(_), _) => protocol::TCP,
            (Transport::Udp { .. }, _) => protocol::UDP,
            (Transport::Icmp { .. }, IpAddr::V4(_)) => protocol::ICMP,
            (Transport::Icmp { .. }, IpAddr::V6(_)) => protocol::ICMPV6,
            (Transport::Raw(protocol), _) => *protocol,
        }
    }
}

impl Tcp {
    fn header(&self) -> Vec<u8> {
        let mut header = [self.src, self.dst].map(u16::to_be_bytes).concat();
        header.extend_from_slice(&self.seq.to_be_bytes());
        header.extend_from_slice(&self.ack.to_be_bytes());
        let words = word(5 + self.options.len() / 4);
        let rest = [words << 12 | u16::from(self.flags), self.window, 0, 0];
        header.extend_from_slice(&rest.map(u16::to_be_bytes).concat());
        header.extend_from_slice(&self.options);
        header
    }
}

/// A length as headers hold it.
fn word(len: usize) -> u16 {
    u16::try_from(len).unwrap_or_else(|_| panic!("{len} bytes do not fit an IP packet"))
}

#[cfg(test)]
mod tests;

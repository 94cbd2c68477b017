//! A super-frame into frames of equal size, as the kernel's GSO would: each
//! with its own lengths, IPv4 identification, TCP sequence number, flags and
//! finished checksums (`net/ipv4/tcp_offload.c`, `net/ipv4/udp_offload.c`).

use weft_wire::{ETHERNET_LEN, Packet, VnetHeader, checksum, protocol};

/// Most bytes of headers that a super-frame may have: Ethernet, an IPv6
/// header with extensions or an IPv4 header with options, and TCP with
/// options.
pub const HEADERS_MAX: usize = 256;

const TCP_FIN: u8 = 0x01;
const TCP_PSH: u8 = 0x08;
const TCP_CWR: u8 = 0x80;

/// Checksum fields, from the start of their header.
const TCP_CHECKSUM: usize = 16;
const UDP_CHECKSUM: usize = 6;

/// Calls `emit` with the headers and the payload of each segment, in order.
///
/// `vnet` must have been found true to the frame by
/// [`crate::admit::packets`]. Says false, and emits nothing, if the headers
/// exceed [`HEADERS_MAX`].
pub fn segment(
    frame: &[u8],
    packet: &Packet,
    vnet: &VnetHeader,
    mut emit: impl FnMut(&[u8], std::ops::Range<usize>),
) -> bool {
    let mut buffer = [0; HEADERS_MAX];
    let Some(headers) = buffer.get_mut(..packet.payload) else {
        return false;
    };
    headers.copy_from_slice(&frame[..packet.payload]);
    let size = usize::from(vnet.gso_size);
    let mut template = Template::new(headers, packet);
    let mut start = packet.payload;
    while start < packet.end {
        let end = packet.end.min(start + size);
        template.fill(&frame[start..end], end == packet.end);
        emit(template.headers, start..end);
        start = end;
    }
    true
}

/// The headers of the segment at hand.
///
/// What all segments have in common is summed once, with zeros where they
/// differ; a segment adds its own words.
struct Template<'a> {
    headers: &'a mut [u8],
    packet: &'a Packet,
    tcp: bool,
    /// Over the IP header, if it is IPv4's.
    ip_sum: u16,
    /// Over pseudo-header and transport header.
    transport_sum: u16,
    first: bool,
    /// Of the super-frame: FIN, PSH and CWR are not every segment's.
    tcp_flags: u8,
    identification: u16,
    sequence: u32,
}

/// Fields that differ, from the start of their header.
mod field {
    use std::ops::Range;

    pub const IPV4_LENGTH_AND_ID: Range<usize> = 2..6;
    pub const IPV4_CHECKSUM: Range<usize> = 10..12;
    pub const IPV6_LENGTH: Range<usize> = 4..6;
    pub const TCP_SEQUENCE: Range<usize> = 4..8;
    pub const TCP_FLAGS: usize = 13;
    pub const UDP_LENGTH: Range<usize> = 4..6;
}

impl<'a> Template<'a> {
    fn new(headers: &'a mut [u8], packet: &'a Packet) -> Self {
        let tcp = packet.key.protocol == protocol::TCP;
        let (ip, transport) = headers[ETHERNET_LEN..].split_at_mut(packet.transport - ETHERNET_LEN);
        let identification = u16::from_be_bytes([ip[4], ip[5]]);
        let (mut sequence, mut tcp_flags) = (0, 0);
        if tcp {
            sequence = u32::from_be_bytes([transport[4], transport[5], transport[6], transport[7]]);
            tcp_flags = std::mem::take(&mut transport[field::TCP_FLAGS]);
            transport[field::TCP_SEQUENCE].fill(0);
            transport[TCP_CHECKSUM..TCP_CHECKSUM + 2].fill(0);
        } else {
            transport[field::UDP_LENGTH].fill(0);
            transport[UDP_CHECKSUM..UDP_CHECKSUM + 2].fill(0);
        }
        let mut ip_sum = 0;
        if packet.is_v4() {
            ip[field::IPV4_LENGTH_AND_ID].fill(0);
            ip[field::IPV4_CHECKSUM].fill(0);
            ip_sum = checksum::sum(ip);
        }
        let pseudo = checksum::pseudo_header(&packet.key, 0);
        let transport_sum = checksum::add(&[pseudo, checksum::sum(transport)]);
        Self {
            headers,
            packet,
            tcp,
            ip_sum,
            transport_sum,
            first: true,
            tcp_flags,
            identification,
            sequence,
        }
    }

    fn fill(&mut self, payload: &[u8], last: bool) {
        self.fill_ip(payload.len());
        if self.tcp {
            self.fill_tcp(payload, last);
        } else {
            self.fill_udp(payload);
        }
        self.first = false;
    }

    fn fill_ip(&mut self, payload: usize) {
        let len = self.headers.len() - ETHERNET_LEN + payload;
        let ip = &mut self.headers[ETHERNET_LEN..self.packet.transport];
        if !self.packet.is_v4() {
            ip[field::IPV6_LENGTH].copy_from_slice(&length16(len - 40).to_be_bytes());
            return;
        }
        let [a, b] = length16(len).to_be_bytes();
        let [c, d] = self.identification.to_be_bytes();
        ip[field::IPV4_LENGTH_AND_ID].copy_from_slice(&[a, b, c, d]);
        let sum = checksum::add(&[self.ip_sum, length16(len), self.identification]);
        ip[field::IPV4_CHECKSUM].copy_from_slice(&(!sum).to_be_bytes());
        self.identification = self.identification.wrapping_add(1);
    }

    fn fill_tcp(&mut self, payload: &[u8], last: bool) {
        let mut flags = self.tcp_flags;
        if !last {
            flags &= !(TCP_FIN | TCP_PSH);
        }
        if !self.first {
            flags &= !TCP_CWR;
        }
        let tcp = &mut self.headers[self.packet.transport..];
        let sequence = self.sequence.to_be_bytes();
        tcp[field::TCP_SEQUENCE].copy_from_slice(&sequence);
        tcp[field::TCP_FLAGS] = flags;
        let sum = checksum::add(&[
            self.transport_sum,
            length16(tcp.len() + payload.len()),
            checksum::sum(&sequence),
            flags.into(),
            checksum::sum(payload),
        ]);
        let field = checksum::field(sum, protocol::TCP);
        tcp[TCP_CHECKSUM..TCP_CHECKSUM + 2].copy_from_slice(&field.to_be_bytes());
        self.sequence = self.sequence.wrapping_add(length16(payload.len()).into());
    }

    fn fill_udp(&mut self, payload: &[u8]) {
        let udp = &mut self.headers[self.packet.transport..];
        let len = length16(udp.len() + payload.len());
        udp[field::UDP_LENGTH].copy_from_slice(&len.to_be_bytes());
        // The length stands in the pseudo-header and in the header.
        let sum = checksum::add(&[self.transport_sum, len, len, checksum::sum(payload)]);
        let field = checksum::field(sum, protocol::UDP);
        udp[UDP_CHECKSUM..UDP_CHECKSUM + 2].copy_from_slice(&field.to_be_bytes());
    }
}

/// Lengths here are those of parts of one IP packet: below 65 536.
fn length16(len: usize) -> u16 {
    u16::try_from(len).unwrap_or(u16::MAX)
}

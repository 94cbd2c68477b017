//! A super-frame into frames of equal size, as the kernel's GSO would: each
//! with its own lengths, IPv4 identification, TCP sequence number, flags and
//! finished checksums (`net/ipv4/tcp_offload.c`, `net/ipv4/udp_offload.c`).

use weft_wire::{ETHERNET_LEN, Packet, VnetHeader, checksum, edit, protocol};

/// Most bytes of headers that a super-frame may have: Ethernet, an IPv6
/// header with extensions or an IPv4 header with options, and TCP with
/// options.
pub const HEADERS_MAX: usize = 256;

const TCP_FIN: u8 = 0x01;
const TCP_PSH: u8 = 0x08;
const TCP_CWR: u8 = 0x80;

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
struct Template<'a> {
    headers: &'a mut [u8],
    packet: &'a Packet,
    first: bool,
    /// Of the super-frame: FIN, PSH and CWR are not every segment's.
    tcp_flags: u8,
    identification: u16,
    sequence: u32,
}

impl<'a> Template<'a> {
    fn new(headers: &'a mut [u8], packet: &'a Packet) -> Self {
        let tcp = packet.key.protocol == protocol::TCP;
        let transport = &headers[packet.transport..];
        let tcp_flags = if tcp { transport[13] } else { 0 };
        let sequence = if tcp {
            u32::from_be_bytes([transport[4], transport[5], transport[6], transport[7]])
        } else {
            0
        };
        let identification =
            u16::from_be_bytes([headers[ETHERNET_LEN + 4], headers[ETHERNET_LEN + 5]]);
        Self {
            headers,
            packet,
            first: true,
            tcp_flags,
            identification,
            sequence,
        }
    }

    fn fill(&mut self, payload: &[u8], last: bool) {
        self.fill_ip(payload.len());
        let transport = self.packet.transport;
        if self.packet.key.protocol == protocol::TCP {
            self.fill_tcp(last);
            self.sequence = self.sequence.wrapping_add(length32(payload.len()));
        } else {
            let len = length16(self.headers.len() - transport + payload.len());
            self.headers[transport + 4..transport + 6].copy_from_slice(&len.to_be_bytes());
        }
        self.fill_checksum(payload);
        self.first = false;
    }

    fn fill_ip(&mut self, payload: usize) {
        let ip_len = self.headers.len() - ETHERNET_LEN + payload;
        let ip = &mut self.headers[ETHERNET_LEN..self.packet.transport];
        if self.packet.is_v4() {
            ip[2..4].copy_from_slice(&length16(ip_len).to_be_bytes());
            ip[4..6].copy_from_slice(&self.identification.to_be_bytes());
            edit::refresh_ipv4_checksum(ip);
            self.identification = self.identification.wrapping_add(1);
        } else {
            ip[4..6].copy_from_slice(&length16(ip_len - 40).to_be_bytes());
        }
    }

    fn fill_tcp(&mut self, last: bool) {
        let tcp = &mut self.headers[self.packet.transport..];
        tcp[4..8].copy_from_slice(&self.sequence.to_be_bytes());
        let mut flags = self.tcp_flags;
        if !last {
            flags &= !(TCP_FIN | TCP_PSH);
        }
        if !self.first {
            flags &= !TCP_CWR;
        }
        tcp[13] = flags;
    }

    fn fill_checksum(&mut self, payload: &[u8]) {
        let key = &self.packet.key;
        let Some(offset) = checksum::field_offset(key.protocol) else {
            return;
        };
        let transport = &mut self.headers[self.packet.transport..];
        transport[offset..offset + 2].fill(0);
        let len = transport.len() + payload.len();
        // TCP and UDP headers have an even number of bytes, so sums add up.
        let full = checksum::add(&[
            checksum::pseudo_header(key, len),
            checksum::sum(transport),
            checksum::sum(payload),
        ]);
        let field = checksum::field(full, key.protocol);
        transport[offset..offset + 2].copy_from_slice(&field.to_be_bytes());
    }
}

/// Lengths here are those of parts of one IP packet: below 65 536.
fn length16(len: usize) -> u16 {
    u16::try_from(len).unwrap_or(u16::MAX)
}

fn length32(len: usize) -> u32 {
    u32::from(length16(len))
}

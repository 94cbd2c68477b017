//! Internet checksums (RFC 1071) on top of smoltcp's sum.
//!
//! A *sum* is not complemented; a *checksum field* is. Sums add up by
//! [`add`], whatever the order, as long as each part but the last has an
//! even number of bytes.

use std::net::IpAddr;

use smoltcp::wire::{IpProtocol, checksum};

use crate::{Key, Packet, protocol, read_u16, write_u16};

/// The sum of `bytes`; 0xffff over bytes that hold their own right checksum.
pub fn sum(bytes: &[u8]) -> u16 {
    checksum::data(bytes)
}

pub fn add(sums: &[u16]) -> u16 {
    checksum::combine(sums)
}

/// The pseudo-header's sum (RFC 9293 section 3.1, RFC 8200 section 8.1) for
/// a transport segment of `len` bytes.
pub fn pseudo_header(key: &Key, len: usize) -> u16 {
    let next = IpProtocol::from(key.protocol);
    // Segments are parts of IP packets, so their length fits 16 bits.
    let len = u32::try_from(len).unwrap_or(u32::MAX);
    match (key.src, key.dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => checksum::pseudo_header_v4(&src, &dst, next, len),
        (IpAddr::V6(src), IpAddr::V6(dst)) => checksum::pseudo_header_v6(&src, &dst, next, len),
        // One packet has one family.
        _ => 0,
    }
}

/// Where the checksum field of a transport header is, from its start.
pub fn field_offset(protocol: u8) -> Option<usize> {
    match protocol {
        protocol::TCP => Some(16),
        protocol::UDP => Some(6),
        protocol::ICMPV6 | protocol::ICMP => Some(2),
        _ => None,
    }
}

/// Writes the full transport checksum of a whole TCP, UDP or ICMPv6 packet.
pub fn complete(frame: &mut [u8], packet: &Packet) {
    let Some(offset) = field_offset(packet.key.protocol) else {
        return;
    };
    let at = packet.transport + offset;
    let segment = packet.transport..packet.end;
    if at + 2 > packet.end {
        return;
    }
    write_u16(frame, at, 0);
    let pseudo = match packet.key.protocol {
        protocol::ICMP => 0,
        _ => pseudo_header(&packet.key, segment.len()),
    };
    let full = add(&[pseudo, sum(&frame[segment])]);
    write_u16(frame, at, field(full, packet.key.protocol));
}

/// Completes a checksum of which the pseudo-header is already summed, as
/// `VIRTIO_NET_HDR_F_NEEDS_CSUM` asks. Says whether the places named lie
/// inside the frame.
pub fn complete_partial(frame: &mut [u8], start: usize, offset: usize, udp: bool) -> bool {
    let at = start + offset;
    if at + 2 > frame.len() {
        return false;
    }
    let full = sum(&frame[start..]);
    let protocol = if udp { protocol::UDP } else { protocol::TCP };
    write_u16(frame, at, field(full, protocol));
    true
}

/// Whether a whole packet's transport checksum is right. A UDP checksum of
/// zero over IPv4 means there is none (RFC 768) and passes.
pub fn verify(frame: &[u8], packet: &Packet) -> bool {
    let segment = &frame[packet.transport..packet.end];
    let pseudo = match packet.key.protocol {
        protocol::UDP if packet.is_v4() && read_u16(segment, 6) == 0 => return true,
        protocol::TCP | protocol::UDP | protocol::ICMPV6 => {
            pseudo_header(&packet.key, segment.len())
        }
        protocol::ICMP => 0,
        _ => return true,
    };
    add(&[pseudo, sum(segment)]) == 0xffff
}

/// The checksum field for a full sum. UDP sends 0xffff for zero (RFC 768).
pub fn field(full: u16, protocol: u8) -> u16 {
    match !full {
        0 if protocol == protocol::UDP => 0xffff,
        field => field,
    }
}

/// The checksum field after one 16-bit word it covers went from `old` to
/// `new` (RFC 1624, equation 3).
pub fn update(field: u16, old: u16, new: u16) -> u16 {
    !add(&[!field, !old, new])
}

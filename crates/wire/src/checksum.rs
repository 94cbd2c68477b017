//! Internet checksums (RFC 1071) on top of smoltcp's sum.
//!
//! A *sum* is not complemented; a *checksum field* is. Sums add up by
//! [`add`], whatever the order, as long as each part but the last has an
//! even number of bytes.

use std::net::IpAddr;

use smoltcp::wire::{IpProtocol, checksum};

use crate::{Key, Packet, parse::Fragment, protocol, read_u16, write_u16};

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

/// Writes the full transport checksum of a whole TCP, UDP or ICMP packet.
/// A fragment's lies over bytes that are not here, and stays.
pub fn complete(frame: &mut [u8], packet: &Packet) {
    let Some(offset) = field_offset(packet.key.protocol) else {
        return;
    };
    if packet.fragment != Fragment::Whole {
        return;
    }
    let at = packet.transport + offset;
    write_u16(frame, at, 0);
    let field = field(full(frame, packet), packet.key.protocol);
    write_u16(frame, at, field);
}

/// The sum over a whole packet's transport segment and pseudo-header.
fn full(frame: &[u8], packet: &Packet) -> u16 {
    let segment = &frame[packet.transport..packet.end];
    let covered = match packet.key.protocol {
        // UDP says itself where it ends, at or before the IP packet does.
        protocol::UDP => &segment[..usize::from(read_u16(segment, 4))],
        _ => segment,
    };
    let pseudo = match packet.key.protocol {
        protocol::ICMP => 0,
        _ => pseudo_header(&packet.key, covered.len()),
    };
    add(&[pseudo, sum(covered)])
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

/// Whether a whole packet's transport checksum is right. What has none
/// passes: other protocols, fragments, which must be put together first, and
/// UDP over IPv4 with a field of zero (RFC 768).
pub fn verify(frame: &[u8], packet: &Packet) -> bool {
    let has_none = packet.fragment != Fragment::Whole
        || match packet.key.protocol {
            protocol::TCP | protocol::ICMP | protocol::ICMPV6 => false,
            protocol::UDP => packet.is_v4() && read_u16(frame, packet.transport + 6) == 0,
            _ => true,
        };
    has_none || full(frame, packet) == 0xffff
}

/// Whether a whole TCP or UDP packet's checksum field holds no more than the
/// pseudo-header's sum, as a kernel leaves it to a device that sums. Where
/// that happens to be the finished checksum too, finishing it again changes
/// nothing.
pub fn is_partial(frame: &[u8], packet: &Packet) -> bool {
    let offset = match packet.key.protocol {
        protocol::TCP => 16,
        protocol::UDP => 6,
        _ => return false,
    };
    packet.fragment == Fragment::Whole
        && read_u16(frame, packet.transport + offset)
            == pseudo_header(&packet.key, packet.end - packet.transport)
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

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;
    use crate::{Ethernet, edit, parse};

    /// A ping of 22 bytes, as Linux 6.18 sends it.
    const PING: [u8; 64] = *b"\xee\xee\xee\xee\xee\xee\x02\0\0\0\0\x0a\x08\0\
        \x45\0\0\x32\x01\x86\x40\0\x40\x01\x84\x3c\x0a\0\0\x0a\xa9\xfe\x01\x01\
        \x08\0\xce\x14\x89\x18\0\x01weft pings the gateway";

    fn packet(frame: &[u8]) -> Packet {
        match parse(frame) {
            Ok(Ethernet::Ip(packet)) => packet,
            other => panic!("{other:?} is no IP packet"),
        }
    }

    fn udp_v4(segment: &[u8]) -> Vec<u8> {
        let mut frame = PING[..34].to_vec();
        let total_len = u16::try_from(20 + segment.len()).expect("16 bits");
        write_u16(&mut frame, 16, total_len);
        frame[23] = protocol::UDP;
        edit::refresh_ipv4_checksum(&mut frame[14..]);
        frame.extend_from_slice(segment);
        frame
    }

    /// RFC 1071, word by word.
    fn reference(bytes: &[u8]) -> u16 {
        let word = |pair: &[u8]| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
        let mut total: u32 = bytes.chunks(2).map(word).sum();
        while total > 0xffff {
            total = (total & 0xffff) + (total >> 16);
        }
        u16::try_from(total).expect("folded")
    }

    #[test]
    fn the_kernels_checksums_are_right() {
        let packet = packet(&PING);
        assert!(verify(&PING, &packet));
        let mut damaged = PING;
        damaged[63] ^= 1;
        assert!(!verify(&damaged, &packet));
        complete(&mut damaged, &packet);
        assert!(verify(&damaged, &packet));
    }

    #[test]
    fn udp_ends_where_it_says() {
        // 10 bytes of datagram, then bytes of the IP packet that are none.
        let mut frame = udp_v4(&[0, 1, 0, 2, 0, 10, 0, 0, 5, 6, 7, 8]);
        let whole = packet(&frame);
        complete(&mut frame, &whole);
        assert!(verify(&frame, &whole));
        let field = read_u16(&frame, 40);
        let mut shorter = udp_v4(&[0, 1, 0, 2, 0, 10, 0, 0, 5, 6]);
        let whole = packet(&shorter);
        complete(&mut shorter, &whole);
        assert_eq!(read_u16(&shorter, 40), field);
    }

    #[test]
    fn udp_without_a_checksum_passes_over_ipv4_alone() {
        let frame = udp_v4(&[0, 1, 0, 2, 0, 8, 0, 0]);
        assert!(verify(&frame, &packet(&frame)));

        let mut frame = PING[..14].to_vec();
        write_u16(&mut frame, 12, 0x86dd);
        frame.extend([0x60, 0, 0, 0, 0, 8, 17, 64]);
        frame.extend([0x20; 32]);
        frame.extend([0, 1, 0, 2, 0, 8, 0, 0]);
        assert!(!verify(&frame, &packet(&frame)));
    }

    #[test]
    fn a_udp_checksum_of_zero_is_sent_as_ones() {
        // The sum of pseudo-header and ports is 0xffff by choice of a port.
        let mut frame = udp_v4(&[0, 0, 0, 0, 0, 8, 0, 0]);
        let whole = packet(&frame);
        let port = !full(&frame, &whole);
        write_u16(&mut frame, whole.transport, port);
        complete(&mut frame, &whole);
        assert_eq!(read_u16(&frame, whole.transport + 6), 0xffff);
        assert!(verify(&frame, &whole));
        assert_eq!(field(0xffff, protocol::TCP), 0);
    }

    #[test]
    fn a_fragments_checksum_stays() {
        for (flags_and_offset, len) in [(0x2000, 34 + 8), (1, 34 + 3), (1, 34)] {
            let mut frame = udp_v4(&[7; 8][..len - 34]);
            write_u16(&mut frame, 20, flags_and_offset);
            edit::refresh_ipv4_checksum(&mut frame[14..34]);
            let piece = packet(&frame);
            let before = frame.clone();
            complete(&mut frame, &piece);
            assert_eq!(frame, before);
            assert!(verify(&frame, &piece));
        }
    }

    #[test]
    fn a_partial_checksum_must_lie_in_the_frame() {
        let mut frame = [0; 20];
        assert!(complete_partial(&mut frame, 2, 16, false));
        for (start, offset) in [(2, 17), (19, 0), (0, 19), (20, 0), (65_535, 65_535)] {
            assert!(!complete_partial(&mut frame, start, offset, true));
        }
        assert!(!complete_partial(&mut [], 0, 0, true));
    }

    proptest! {
        #[test]
        fn sums_are_those_of_rfc_1071(bytes in vec(any::<u8>(), 0..3000), cut in 0..1500_usize) {
            prop_assert_eq!(sum(&bytes), reference(&bytes));
            let (head, tail) = bytes.split_at((cut * 2).min(bytes.len() & !1));
            let (whole, parts) = (sum(&bytes), add(&[sum(tail), sum(head)]));
            prop_assert_eq!(whole, parts);
        }

        #[test]
        fn an_updated_checksum_is_the_full_one(
            mut bytes in vec(any::<u8>(), 4..100),
            at: prop::sample::Index,
            new: u16,
        ) {
            // The bytes hold one word that is never zero, as every header does.
            bytes[0] = 0x45;
            let at = (1 + at.index(bytes.len() / 2 - 1)) * 2;
            let (before, old) = (!sum(&bytes), read_u16(&bytes, at));
            write_u16(&mut bytes, at, new);
            prop_assert_eq!(update(before, old, new), !sum(&bytes));
        }

        #[test]
        fn what_is_left_partial_completes_to_the_full_one(
            payload in vec(any::<u8>(), 0..200),
            ports: (u16, u16),
        ) {
            let len = u16::try_from(8 + payload.len()).expect("16 bits");
            let mut segment = vec![0; 8];
            write_u16(&mut segment, 0, ports.0);
            write_u16(&mut segment, 2, ports.1);
            write_u16(&mut segment, 4, len);
            segment.extend_from_slice(&payload);
            let mut full = udp_v4(&segment);
            let mut partial = full.clone();
            let packet = packet(&full);
            complete(&mut full, &packet);
            prop_assert!(verify(&full, &packet));

            let pseudo = pseudo_header(&packet.key, usize::from(len));
            write_u16(&mut partial, packet.transport + 6, pseudo);
            prop_assert!(is_partial(&partial, &packet));
            let mut completed = partial.clone();
            complete(&mut completed, &packet);
            prop_assert_eq!(&completed, &full);
            prop_assert!(complete_partial(&mut partial, packet.transport, 6, true));
            prop_assert_eq!(partial, full);
        }
    }
}

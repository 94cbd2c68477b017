//! Rewrites in place on frames that [`crate::parse()`] has accepted.

use crate::{ETHERNET_LEN, Mac, Packet, checksum, read_u16, write_u16};

pub fn set_macs(frame: &mut [u8], dst: Mac, src: Mac) {
    frame[..6].copy_from_slice(&dst);
    frame[6..12].copy_from_slice(&src);
}

pub fn set_ethertype(frame: &mut [u8], ethertype: u16) {
    write_u16(frame, 12, ethertype);
}

/// Takes one from TTL or hop limit, which must be above zero.
pub fn decrement_hop_limit(frame: &mut [u8], packet: &Packet) {
    if !packet.is_v4() {
        frame[ETHERNET_LEN + 7] -= 1;
        return;
    }
    const TTL_WORD: usize = ETHERNET_LEN + 8;
    const CHECKSUM: usize = ETHERNET_LEN + 10;
    let old = read_u16(frame, TTL_WORD);
    let new = old - 0x0100;
    let field = checksum::update(read_u16(frame, CHECKSUM), old, new);
    write_u16(frame, TTL_WORD, new);
    write_u16(frame, CHECKSUM, field);
}

/// Writes a fresh IPv4 header checksum over `ip`, the header alone.
pub fn refresh_ipv4_checksum(ip: &mut [u8]) {
    write_u16(ip, 10, 0);
    let field = !checksum::sum(ip);
    write_u16(ip, 10, field);
}

/// ECN: congestion experienced (RFC 3168 section 5).
pub const ECN_CE: u8 = 0x03;

/// The ECN bits of an IP frame (RFC 3168 section 5, RFC 8200 section 3);
/// 0 for any other.
pub fn ecn(frame: &[u8]) -> u8 {
    match frame.get(ETHERNET_LEN..) {
        Some([version, tos, ..]) if version >> 4 == 4 => tos & ECN_CE,
        Some([version, class_low, ..]) if version >> 4 == 6 => (class_low >> 4) & ECN_CE,
        _ => 0,
    }
}

/// Carries the outer header's congestion mark over to the inner one. Says
/// false if the inner sender does not understand the mark (RFC 6040
/// section 4.2), in which case the packet must be dropped.
pub fn mark_congestion(frame: &mut [u8], packet: &Packet) -> bool {
    if ecn(frame) == 0 {
        return false;
    }
    if packet.is_v4() {
        let old = read_u16(frame, ETHERNET_LEN);
        let new = old | u16::from(ECN_CE);
        let field = checksum::update(read_u16(frame, ETHERNET_LEN + 10), old, new);
        write_u16(frame, ETHERNET_LEN, new);
        write_u16(frame, ETHERNET_LEN + 10, field);
    } else {
        frame[ETHERNET_LEN + 1] |= ECN_CE << 4;
    }
    true
}
#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{Ethernet, parse};

    fn packet(frame: &[u8]) -> Packet {
        match parse(frame) {
            Ok(Ethernet::Ip(packet)) => packet,
            other => panic!("{other:?} is no IP packet"),
        }
    }

    fn v4(fill: [u8; 16], ttl: u8) -> Vec<u8> {
        let mut frame = vec![0; 12];
        frame.extend([8, 0, 0x45, 0, 0, 20]);
        frame.extend(fill);
        frame[20..22].fill(0);
        frame[22] = ttl;
        frame[23] = 99;
        refresh_ipv4_checksum(&mut frame[14..]);
        frame
    }

    #[test]
    fn macs_are_set_and_nothing_else() {
        let mut frame = v4([7; 16], 9);
        let before = frame.clone();
        set_macs(&mut frame, [1; 6], [2; 6]);
        assert_eq!(frame[..12], [1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2]);
        assert_eq!(frame[12..], before[12..]);
    }

    #[test]
    fn the_hop_limit_of_ipv6_falls_by_one() {
        let mut frame = vec![0; 12];
        frame.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, 0, 59, 1]);
        frame.extend([0x20; 32]);
        let before = packet(&frame);
        decrement_hop_limit(&mut frame, &before);
        assert_eq!(
            packet(&frame),
            Packet {
                hop_limit: 0,
                ..before
            }
        );
    }

    proptest! {
        #[test]
        fn a_lower_ttl_keeps_the_header_checksum_right(fill: [u8; 16], ttl in 1..=255_u8) {
            let mut frame = v4(fill, ttl);
            let before = packet(&frame);
            decrement_hop_limit(&mut frame, &before);
            prop_assert_eq!(packet(&frame), Packet { hop_limit: ttl - 1, ..before });
            let edited = frame.clone();
            refresh_ipv4_checksum(&mut frame[14..34]);
            prop_assert_eq!(frame, edited);
        }
    }
}

//! Rewrites in place on frames that [`crate::parse()`] has accepted.

use crate::{ETHERNET_LEN, Mac, Packet, checksum, read_u16, write_u16};

pub fn set_macs(frame: &mut [u8], dst: Mac, src: Mac) {
    frame[..6].copy_from_slice(&dst);
    frame[6..12].copy_from_slice(&src);
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

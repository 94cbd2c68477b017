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

//! An IPv4 packet too big for its way into fragments (RFC 791 section 3.2),
//! for senders that allow it.

use weft_wire::{ETHERNET_LEN, Packet, edit};

/// Bytes of headers of each fragment.
pub const HEADERS: usize = ETHERNET_LEN + 20;

const DONT_FRAGMENT: u16 = 0x4000;
const MORE_FRAGMENTS: u16 = 0x2000;
const OFFSET: u16 = 0x1fff;

/// Whether the packet may be fragmented on the way. IPv6 never allows it
/// (RFC 8200 section 5), and neither do IPv4 options here: which of them a
/// fragment repeats is theirs to say.
pub fn allowed(frame: &[u8], packet: &Packet) -> bool {
    let plain = frame.get(ETHERNET_LEN) == Some(&0x45);
    packet.is_v4() && plain && flags_and_offset(frame) & DONT_FRAGMENT == 0
}

/// How many fragments [`fragment`] makes.
pub fn count(packet: &Packet, mtu: usize) -> usize {
    (packet.ip_len() - 20).div_ceil(size(mtu))
}

/// Bytes that a fragment carries: all but the last a multiple of eight.
fn size(mtu: usize) -> usize {
    (mtu.max(68) - 20) & !7
}

/// Calls `emit` with each fragment, an Ethernet frame whose IP packet has at
/// most `mtu` bytes, in order. The packet must be [`allowed`], its transport
/// checksum finished, and `mtu` at least 68 (RFC 791).
pub fn fragment(frame: &[u8], packet: &Packet, mtu: usize, mut emit: impl FnMut(&[u8])) {
    let payload = &frame[HEADERS..packet.end];
    let size = size(mtu);
    let original = flags_and_offset(frame);
    let pieces = payload.len().div_ceil(size);
    let mut buffer = Vec::with_capacity(HEADERS + size);
    for (place, piece) in payload.chunks(size).enumerate() {
        let last = place + 1 == pieces;
        let more = if last {
            original & MORE_FRAGMENTS
        } else {
            MORE_FRAGMENTS
        };
        let offset = (original & OFFSET) + length16(place * size / 8);
        buffer.clear();
        buffer.extend_from_slice(&frame[..HEADERS]);
        let ip = &mut buffer[ETHERNET_LEN..];
        ip[2..4].copy_from_slice(&length16(20 + piece.len()).to_be_bytes());
        ip[6..8].copy_from_slice(&(more | offset).to_be_bytes());
        edit::refresh_ipv4_checksum(ip);
        buffer.extend_from_slice(piece);
        emit(&buffer);
    }
}

fn flags_and_offset(frame: &[u8]) -> u16 {
    u16::from_be_bytes([frame[ETHERNET_LEN + 6], frame[ETHERNET_LEN + 7]])
}

/// Lengths here are those of parts of one IP packet: below 65 536.
fn length16(len: usize) -> u16 {
    u16::try_from(len).unwrap_or(u16::MAX)
}

//! IPv4 in IPv4 (RFC 2003): the inner packet stands right behind the outer
//! header.

use std::ops::Range;

use crate::{protocol, read_u16};

/// Bytes of the outer header as it is sent, without options.
pub const OVERHEAD: u16 = 20;

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the outer header is cut short, lies about its length, or holds no IPv4 packet")]
pub struct IpipError;

/// Where the inner packet lies in `packet`, an outer IPv4 packet. What may stand behind
/// the outer packet's end is cut off; the outer checksum is not looked at.
pub fn decap(packet: &[u8]) -> Result<Range<usize>, IpipError> {
    if packet.len() < 20 || packet[0] >> 4 != 4 || packet[9] != protocol::IPIP {
        return Err(IpipError);
    }
    let header_len = usize::from(packet[0] & 0x0f) * 4;
    let total_len = usize::from(read_u16(packet, 2));
    if header_len < 20 || total_len < header_len || total_len > packet.len() {
        return Err(IpipError);
    }
    Ok(header_len..total_len)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outer(header_len: u8, total_len: u8) -> Vec<u8> {
        let mut packet = vec![0; usize::from(total_len)];
        packet[0] = 0x40 | (header_len / 4);
        packet[3] = total_len;
        packet[9] = 4;
        packet
    }

    #[test]
    fn the_inner_packet_stands_behind_header_and_options() {
        for header_len in [20, 24, 60] {
            let mut packet = outer(header_len, header_len + 5);
            packet.extend_from_slice(b"padding");
            let start = usize::from(header_len);
            assert_eq!(decap(&packet), Ok(start..start + 5));
        }
    }

    #[test]
    fn what_lies_about_itself_is_refused() {
        let good = outer(20, 40);
        assert!(decap(&good).is_ok());
        for (at, byte) in [(0, 0x65), (0, 0x44), (0, 0x4f), (3, 19), (3, 41), (9, 41)] {
            let mut packet = good.clone();
            packet[at] = byte;
            assert_eq!(decap(&packet), Err(IpipError), "byte {at} is {byte:#x}");
        }
        for len in 0..40 {
            assert_eq!(decap(&good[..len]), Err(IpipError), "{len} bytes");
        }
    }
}

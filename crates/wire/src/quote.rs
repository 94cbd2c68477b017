//! What an ICMP error is about: the packet that it quotes (RFC 792, RFC 4443
//! section 3).
//!
//! A quote may end anywhere behind its first ports, and its lengths and sums
//! are those that the packet had, so none of them is believed.

use crate::{
    ETHERNET_LEN, Key, Packet,
    parse::{Fragment, addresses_v4, addresses_v6, ports, walk_extensions},
    protocol, read_u16,
};

/// Bytes of an ICMP error before its quote.
const HEADER_LEN: usize = 8;

/// Whether the packet is an ICMP error, a redirect among them.
pub fn is_error(frame: &[u8], packet: &Packet) -> bool {
    match packet.key.protocol {
        _ if packet.fragment == Fragment::Later => false,
        protocol::ICMP => matches!(frame[packet.transport], 3..=5 | 11 | 12),
        protocol::ICMPV6 => matches!(frame[packet.transport], 0..=127 | 137),
        _ => false,
    }
}

/// The key of the packet that an error quotes, as its sender sent it. None
/// for redirects, which are no errors, and where the quote has no ports.
pub fn about(frame: &[u8], packet: &Packet) -> Option<Key> {
    if !is_error(frame, packet) || matches!(frame[packet.transport], 5 | 137) {
        return None;
    }
    // The walk counts from an Ethernet header, for which the error's own
    // headers stand in.
    let start = packet.transport + HEADER_LEN - ETHERNET_LEN;
    let quote = frame.get(start..packet.end)?;
    let ip = quote.get(ETHERNET_LEN..)?;
    let (src, dst, next, transport) = match (packet.is_v4(), ip.first()? >> 4) {
        (true, 4) if ip.len() >= 20 && read_u16(ip, 6) & 0x1fff == 0 => {
            let (src, dst) = addresses_v4(ip);
            let header_len = usize::from(ip[0] & 0x0f) * 4;
            (src, dst, ip[9], ETHERNET_LEN + header_len.max(20))
        }
        (false, 6) if ip.len() >= 40 => {
            let (src, dst) = addresses_v6(ip);
            let extensions = walk_extensions(quote, ip[6]).ok()?;
            if extensions.fragment == Fragment::Later {
                return None;
            }
            (src, dst, extensions.protocol, extensions.end)
        }
        _ => return None,
    };
    let (src_port, dst_port) = ports(next, quote.get(transport..)?)?;
    Some(Key {
        src,
        dst,
        protocol: next,
        src_port,
        dst_port,
    })
}

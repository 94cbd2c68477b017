//! Packets that are made here: IP headers, and ICMP errors to pods (RFC 792,
//! RFC 4443).

use std::net::IpAddr;

use weft_wire::{Key, edit, protocol};

use crate::link::{Full, Link, Segments};

/// Hops that packets to pods may take.
const HOP_LIMIT: u8 = 64;

/// Bytes of an ICMP error before its quote.
const ICMP_HEAD: usize = 8;

/// Bytes of a quote: the error stays within 576 bytes (RFC 1812 section
/// 4.3.2.3), which ICMPv6 allows too.
const QUOTE_MAX: usize = 576 - 40 - ICMP_HEAD;

/// An ICMP error, as the kernel tells it of a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Trouble {
    pub kind: u8,
    pub code: u8,
    /// The second word of its header: of "too big" the MTU.
    pub word: u32,
}

impl Trouble {
    /// No route to the host.
    pub fn host_unreachable(v4: bool) -> Self {
        let (kind, code) = if v4 { (3, 1) } else { (1, 3) };
        Self {
            kind,
            code,
            word: 0,
        }
    }

    /// Forbidden by whoever rules here.
    pub fn prohibited(v4: bool) -> Self {
        let (kind, code) = if v4 { (3, 13) } else { (1, 1) };
        Self {
            kind,
            code,
            word: 0,
        }
    }

    pub fn too_big(v4: bool, mtu: u32) -> Self {
        let (kind, code) = if v4 { (3, 4) } else { (2, 0) };
        Self {
            kind,
            code,
            word: mtu,
        }
    }
}

/// Bytes of the IP header that [`write_ip`] writes.
pub fn ip_len(address: IpAddr) -> usize {
    if address.is_ipv4() { 20 } else { 40 }
}

/// Writes the header of a packet that fills `packet`. IPv4 may be cut on the
/// way.
pub fn write_ip(packet: &mut [u8], src: IpAddr, dst: IpAddr, protocol: u8, id: u16) {
    // A packet's length fits 16 bits.
    let word = |number: usize| u16::try_from(number).unwrap_or(u16::MAX).to_be_bytes();
    match (src, dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            let len = word(packet.len());
            let header = &mut packet[..20];
            header.fill(0);
            header[0] = 0x45;
            header[2..4].copy_from_slice(&len);
            header[4..6].copy_from_slice(&id.to_be_bytes());
            header[8] = HOP_LIMIT;
            header[9] = protocol;
            header[12..16].copy_from_slice(&src.octets());
            header[16..20].copy_from_slice(&dst.octets());
            edit::refresh_ipv4_checksum(header);
        }
        (IpAddr::V6(src), IpAddr::V6(dst)) => {
            let len = word(packet.len() - 40);
            let header = &mut packet[..40];
            header.fill(0);
            header[0] = 0x60;
            header[4..6].copy_from_slice(&len);
            header[6] = protocol;
            header[7] = HOP_LIMIT;
            header[8..24].copy_from_slice(&src.octets());
            header[24..40].copy_from_slice(&dst.octets());
        }
        // One flow has one family: nothing is written, and parses as nothing.
        _ => packet.fill(0),
    }
}

/// Tells `key`'s sender of trouble that `from` has with its packet, of which
/// `packet` is the beginning, IP header first.
pub fn tell(
    link: &mut Link,
    key: &Key,
    from: IpAddr,
    trouble: Trouble,
    packet: &[u8],
) -> Result<(), Full> {
    let quote = &packet[..packet.len().min(QUOTE_MAX)];
    let head = ip_len(key.src);
    let icmp = if key.src.is_ipv4() {
        protocol::ICMP
    } else {
        protocol::ICMPV6
    };
    let sender = if is_told_by(from, key) { from } else { key.dst };
    let write = |out: &mut [u8]| {
        write_ip(out, sender, key.src, icmp, 0);
        let error = &mut out[head..];
        error[..ICMP_HEAD].fill(0);
        error[0] = trouble.kind;
        error[1] = trouble.code;
        error[4..8].copy_from_slice(&trouble.word.to_be_bytes());
        error[ICMP_HEAD..].copy_from_slice(quote);
    };
    link.send(head + ICMP_HEAD + quote.len(), Segments::default(), write)
        .1
}

/// Whether a pod may see that address as a sender.
fn is_told_by(from: IpAddr, key: &Key) -> bool {
    let named = !from.is_loopback() && !from.is_unspecified() && !from.is_multicast();
    let on_link = match from {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    named && !on_link && from.is_ipv4() == key.src.is_ipv4()
}

/// The beginning of the packet that a flow sent last, with what of its
/// transport header an error has to show.
pub fn reminder(key: &Key, sequence: u16, len: usize) -> Vec<u8> {
    let head = ip_len(key.src);
    let mut packet = vec![0; head + 8];
    write_ip(&mut packet, key.src, key.dst, key.protocol, 0);
    let word = |number: u16| number.to_be_bytes();
    let transport = &mut packet[head..];
    if key.protocol == protocol::UDP {
        transport[..2].copy_from_slice(&word(key.src_port));
        transport[2..4].copy_from_slice(&word(key.dst_port));
        let len = u16::try_from(8 + len).unwrap_or(u16::MAX);
        transport[4..6].copy_from_slice(&word(len));
    } else {
        // Of echo, the key's port is type and code.
        transport[..2].copy_from_slice(&word(key.dst_port));
        transport[4..6].copy_from_slice(&word(key.src_port));
        transport[6..8].copy_from_slice(&word(sequence));
    }
    packet
}

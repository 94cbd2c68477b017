//! Bytes and their meaning.
//!
//! [`parse()`] looks at an Ethernet frame once and promises: every offset in
//! the [`Packet`] it yields lies inside the frame, and the lengths the headers
//! claim are there. Whoever holds a `Packet` may index by it without asking
//! again. Nothing here panics on what comes off a wire, and nothing here
//! knows a file descriptor, a clock, a thread or a log.

#![forbid(unsafe_code)]

pub mod checksum;
pub mod describe;
pub mod edit;
pub mod ipip;
pub mod parse;
pub mod piece;
pub mod quote;
pub mod vnet;
pub mod vxlan;

pub use describe::describe;
pub use parse::{Ethernet, Key, Packet, ParseError, parse};
pub use vnet::VnetHeader;

/// Bytes of an Ethernet header without tags (IEEE 802.3).
pub const ETHERNET_LEN: usize = 14;

/// Largest frame anyone may hand us: an IP packet of 65 535 bytes
/// (RFC 791, the 16-bit total length) behind an Ethernet header.
pub const FRAME_MAX: usize = ETHERNET_LEN + 65_535;

/// EtherTypes (IANA).
pub mod ethertype {
    pub const IPV4: u16 = 0x0800;
    pub const ARP: u16 = 0x0806;
    pub const IPV6: u16 = 0x86dd;
}

/// IP protocol numbers (IANA).
pub mod protocol {
    pub const ICMP: u8 = 1;
    pub const IPIP: u8 = 4;
    pub const TCP: u8 = 6;
    pub const UDP: u8 = 17;
    pub const ICMPV6: u8 = 58;
    pub const SCTP: u8 = 132;
}

/// A MAC address as it stands in a frame.
pub type Mac = [u8; 6];

pub(crate) fn read_u16(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

pub(crate) fn write_u16(bytes: &mut [u8], at: usize, value: u16) {
    bytes[at..at + 2].copy_from_slice(&value.to_be_bytes());
}

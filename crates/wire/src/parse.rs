//! One look at an Ethernet frame: what it is, where its parts lie, and the
//! [`Key`] by which all later steps know it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::{ETHERNET_LEN, Mac, checksum, ethertype, protocol, read_u16};

/// The identity of a packet's flow.
///
/// Packets of one flow have equal keys. Fragments, first or not, all bear
/// port 0, so that the pieces of one datagram share a flow. For ICMP and
/// ICMPv6 echo the source port is the identifier, else 0; the destination
/// port is type and code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Key {
    pub src: IpAddr,
    pub dst: IpAddr,
    pub protocol: u8,
    pub src_port: u16,
    pub dst_port: u16,
}

/// An IP packet inside an Ethernet frame. Offsets count from the first
/// Ethernet byte and lie inside the frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packet {
    pub key: Key,
    /// TTL or hop limit.
    pub hop_limit: u8,
    pub fragment: Fragment,
    /// Where the transport header starts, behind IP options and extension
    /// headers.
    pub transport: usize,
    /// Where the transport payload starts. Equal to `transport` for
    /// protocols that are not looked into and for later fragments.
    pub payload: usize,
    /// Where the IP packet ends; Ethernet padding may follow.
    pub end: usize,
}

/// Which piece of a datagram a packet is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fragment {
    Whole,
    First,
    Later,
}

/// What a frame carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ethernet {
    Arp,
    Ip(Packet),
    Other(u16),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    #[error("shorter than an Ethernet header")]
    Ethernet,
    #[error("the IP header is cut short or lies about its length")]
    IpLength,
    #[error("the IP version does not fit the EtherType")]
    IpVersion,
    #[error("the IPv4 header checksum is wrong")]
    IpChecksum,
    #[error("the IPv6 extension headers do not end")]
    Extensions,
    #[error("the transport header is cut short or lies about its length")]
    Transport,
}

/// Most bytes that fragments make together (RFC 791, RFC 8200 section 4.5).
const DATAGRAM_MAX: usize = 65_535;

/// Most IPv6 extension headers walked before a packet is refused.
const EXTENSIONS_MAX: usize = 8;

pub fn parse(frame: &[u8]) -> Result<Ethernet, ParseError> {
    if frame.len() < ETHERNET_LEN {
        return Err(ParseError::Ethernet);
    }
    match read_u16(frame, 12) {
        ethertype::IPV4 => parse_v4(frame).map(Ethernet::Ip),
        ethertype::IPV6 => parse_v6(frame).map(Ethernet::Ip),
        ethertype::ARP => Ok(Ethernet::Arp),
        other => Ok(Ethernet::Other(other)),
    }
}

/// The destination MAC of a frame that [`parse()`] has accepted.
pub fn dst_mac(frame: &[u8]) -> Mac {
    [frame[0], frame[1], frame[2], frame[3], frame[4], frame[5]]
}

/// The source MAC of a frame that [`parse()`] has accepted.
pub fn src_mac(frame: &[u8]) -> Mac {
    [frame[6], frame[7], frame[8], frame[9], frame[10], frame[11]]
}

impl Key {
    /// That of the other direction.
    #[must_use]
    pub fn exchanged(self) -> Self {
        Self {
            src: self.dst,
            dst: self.src,
            src_port: self.dst_port,
            dst_port: self.src_port,
            ..self
        }
    }
}

impl Packet {
    pub fn is_v4(&self) -> bool {
        self.key.src.is_ipv4()
    }

    /// Bytes of the IP packet.
    pub fn ip_len(&self) -> usize {
        self.end - ETHERNET_LEN
    }
}

fn parse_v4(frame: &[u8]) -> Result<Packet, ParseError> {
    let ip = &frame[ETHERNET_LEN..];
    if ip.len() < 20 {
        return Err(ParseError::IpLength);
    }
    if ip[0] >> 4 != 4 {
        return Err(ParseError::IpVersion);
    }
    let header_len = usize::from(ip[0] & 0x0f) * 4;
    let total_len = usize::from(read_u16(ip, 2));
    if header_len < 20 || total_len < header_len || total_len > ip.len() {
        return Err(ParseError::IpLength);
    }
    if checksum::sum(&ip[..header_len]) != 0xffff {
        return Err(ParseError::IpChecksum);
    }
    let flags_and_offset = read_u16(ip, 6);
    let fragment = match (flags_and_offset & 0x1fff, flags_and_offset & 0x2000) {
        (0, 0) => Fragment::Whole,
        (0, _) => Fragment::First,
        _ => Fragment::Later,
    };
    let offset = usize::from(flags_and_offset & 0x1fff) * 8;
    if offset + total_len - header_len > DATAGRAM_MAX {
        return Err(ParseError::IpLength);
    }
    let (src, dst) = addresses_v4(ip);
    let network = Network {
        src,
        dst,
        hop_limit: ip[8],
        fragment,
        protocol: ip[9],
        transport: ETHERNET_LEN + header_len,
        end: ETHERNET_LEN + total_len,
    };
    network.transport(frame)
}

fn parse_v6(frame: &[u8]) -> Result<Packet, ParseError> {
    let ip = &frame[ETHERNET_LEN..];
    if ip.len() < 40 {
        return Err(ParseError::IpLength);
    }
    if ip[0] >> 4 != 6 {
        return Err(ParseError::IpVersion);
    }
    let end = ETHERNET_LEN + 40 + usize::from(read_u16(ip, 4));
    if end > frame.len() {
        return Err(ParseError::IpLength);
    }
    let extensions = walk_extensions(&frame[..end], ip[6])?;
    let (src, dst) = addresses_v6(ip);
    let network = Network {
        src,
        dst,
        hop_limit: ip[7],
        fragment: extensions.fragment,
        protocol: extensions.protocol,
        transport: extensions.end,
        end,
    };
    network.transport(frame)
}

/// Source and destination in an IPv4 header.
pub(crate) fn addresses_v4(ip: &[u8]) -> (IpAddr, IpAddr) {
    let src = Ipv4Addr::new(ip[12], ip[13], ip[14], ip[15]);
    let dst = Ipv4Addr::new(ip[16], ip[17], ip[18], ip[19]);
    (src.into(), dst.into())
}

/// Source and destination in an IPv6 header.
pub(crate) fn addresses_v6(ip: &[u8]) -> (IpAddr, IpAddr) {
    let address = |from: usize| {
        let mut octets = [0; 16];
        octets.copy_from_slice(&ip[from..from + 16]);
        Ipv6Addr::from(octets).into()
    };
    (address(8), address(24))
}

pub(crate) struct Extensions {
    pub protocol: u8,
    pub fragment: Fragment,
    /// Of the fragment header that says so, if it is one.
    pub cut: Option<Cut>,
    pub end: usize,
}

/// What a fragment header says, and where that ends.
pub(crate) struct Cut {
    pub id: u32,
    pub offset: usize,
    pub start: usize,
}

/// Offsets count from an Ethernet header before the IPv6 header.
pub(crate) fn walk_extensions(frame: &[u8], first: u8) -> Result<Extensions, ParseError> {
    const HOP_BY_HOP: u8 = 0;
    const ROUTING: u8 = 43;
    const FRAGMENT: u8 = 44;
    const AUTHENTICATION: u8 = 51;
    const DESTINATION: u8 = 60;

    let mut at = Extensions {
        protocol: first,
        fragment: Fragment::Whole,
        cut: None,
        end: ETHERNET_LEN + 40,
    };
    for _ in 0..=EXTENSIONS_MAX {
        let units = |unit: usize, fixed: usize| {
            let len = frame.get(at.end + 1).ok_or(ParseError::Extensions)?;
            Ok((usize::from(*len) + fixed) * unit)
        };
        let len = match at.protocol {
            HOP_BY_HOP | ROUTING | DESTINATION => units(8, 1)?,
            AUTHENTICATION => units(4, 2)?,
            FRAGMENT => 8,
            _ => return Ok(at),
        };
        if at.end + len > frame.len() {
            return Err(ParseError::Extensions);
        }
        if at.protocol == FRAGMENT {
            let offset_and_more = read_u16(frame, at.end + 2);
            let offset = usize::from(offset_and_more & 0xfff8);
            if offset + (frame.len() - at.end - len) > DATAGRAM_MAX {
                return Err(ParseError::IpLength);
            }
            let [high, low] = [4, 6].map(|from| u32::from(read_u16(frame, at.end + from)));
            let fragment = match (offset, offset_and_more & 1) {
                (0, 0) => Fragment::Whole,
                (0, _) => Fragment::First,
                _ => Fragment::Later,
            };
            // A second fragment header does not undo the first.
            if fragment != Fragment::Whole {
                at.fragment = fragment;
                at.cut = Some(Cut {
                    id: high << 16 | low,
                    offset,
                    start: at.end + len,
                });
            }
        }
        at.protocol = frame[at.end];
        at.end += len;
        if at.fragment == Fragment::Later {
            return Ok(at);
        }
    }
    Err(ParseError::Extensions)
}

/// The network layer's findings, on the way to a [`Packet`].
struct Network {
    src: IpAddr,
    dst: IpAddr,
    hop_limit: u8,
    fragment: Fragment,
    protocol: u8,
    transport: usize,
    end: usize,
}

impl Network {
    fn transport(self, frame: &[u8]) -> Result<Packet, ParseError> {
        let segment = &frame[self.transport..self.end];
        let (header_len, src_port, dst_port) = match self.fragment {
            Fragment::Later => (0, 0, 0),
            _ => self.header(segment).ok_or(ParseError::Transport)?,
        };
        let (src_port, dst_port) = match self.fragment {
            Fragment::Whole => (src_port, dst_port),
            Fragment::First | Fragment::Later => (0, 0),
        };
        Ok(Packet {
            key: Key {
                src: self.src,
                dst: self.dst,
                protocol: self.protocol,
                src_port,
                dst_port,
            },
            hop_limit: self.hop_limit,
            fragment: self.fragment,
            transport: self.transport,
            payload: self.transport + header_len,
            end: self.end,
        })
    }

    /// The transport header's length and ports, or what stands for ports.
    /// None where it is cut off or contradicts itself.
    fn header(&self, segment: &[u8]) -> Option<(usize, u16, u16)> {
        let len = match self.protocol {
            protocol::TCP => {
                let len = usize::from(segment.get(12)? >> 4) * 4;
                (len >= 20).then_some(len)?
            }
            protocol::UDP => {
                let len = usize::from(read_u16(segment.get(4..6)?, 0));
                let fits = (8..=segment.len()).contains(&len);
                // A first fragment holds less than the datagram's length.
                (fits || self.fragment != Fragment::Whole).then_some(8)?
            }
            protocol::SCTP => 12,
            protocol::ICMP | protocol::ICMPV6 => 8,
            _ => 0,
        };
        let (src_port, dst_port) = ports(self.protocol, segment)?;
        (segment.len() >= len).then_some((len, src_port, dst_port))
    }
}

/// The ports, or what stands for ports in a [`Key`], as far as they are there.
pub(crate) fn ports(next: u8, segment: &[u8]) -> Option<(u16, u16)> {
    let has = |len: usize| (segment.len() >= len).then_some(());
    match next {
        protocol::TCP | protocol::UDP | protocol::SCTP => {
            has(4).map(|()| (read_u16(segment, 0), read_u16(segment, 2)))
        }
        protocol::ICMP | protocol::ICMPV6 => {
            has(8)?;
            let echo = match next {
                protocol::ICMP => matches!(segment[0], 0 | 8),
                _ => matches!(segment[0], 128 | 129),
            };
            let identifier = if echo { read_u16(segment, 4) } else { 0 };
            Some((identifier, read_u16(segment, 0)))
        }
        _ => Some((0, 0)),
    }
}

#[cfg(test)]
mod tests;

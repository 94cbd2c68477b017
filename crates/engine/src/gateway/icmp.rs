//! Ping of the gateway, and the ICMP errors it sends (RFC 792, RFC 4443).
//!
//! Checksums are made anew, never updated: a pod may leave an echo request's
//! to be completed by the device.

use std::net::IpAddr;

use smoltcp::wire::{
    Icmpv4DstUnreachable, Icmpv4Message, Icmpv6DstUnreachable, Icmpv6Message, Icmpv6TimeExceeded,
};
use weft_wire::{
    ETHERNET_LEN, Mac, Packet,
    parse::{Fragment, dst_mac, src_mac},
    protocol,
};

use super::envelope::Envelope;
use crate::DropReason;

const HOP_LIMIT: u8 = 64;
/// Bytes before the quote in every error, before the data in every echo.
const HEADER_LEN: usize = 8;
/// Bytes of a quote in ICMP: the error stays within 576 (RFC 1812 section
/// 4.3.2.3).
const QUOTE_MAX_V4: usize = 576 - 20 - HEADER_LEN;
/// Bytes of a quote in ICMPv6: the error stays within the least MTU (RFC
/// 4443 section 2.4 (c)).
const QUOTE_MAX_V6: usize = 1280 - 40 - HEADER_LEN;

/// Answers an echo request whose destination is the gateway.
pub fn echo(frame: &[u8], packet: &Packet, reply: &mut Vec<u8>) -> Result<(), DropReason> {
    reply.clear();
    let request = &frame[packet.transport..packet.end];
    if !is_echo_request(request, packet)
        || is_group(dst_mac(frame))
        || packet.key.dst.is_multicast()
        || !names_one_host(packet.key.src)
    {
        return Err(DropReason::GatewayUnserved);
    }
    let kind = match packet.is_v4() {
        true => u8::from(Icmpv4Message::EchoReply),
        false => u8::from(Icmpv6Message::EchoReply),
    };
    let envelope = Envelope {
        dst_mac: src_mac(frame),
        src_mac: dst_mac(frame),
        src: packet.key.dst,
        dst: packet.key.src,
        hop_limit: HOP_LIMIT,
    };
    let written = envelope.write(request.len(), reply, |message| {
        message[0] = kind;
        message[4..].copy_from_slice(&request[4..]);
    });
    written.then_some(()).ok_or(DropReason::GatewayUnserved)
}

fn is_echo_request(message: &[u8], packet: &Packet) -> bool {
    let kind = match (packet.is_v4(), packet.key.protocol) {
        (true, protocol::ICMP) => u8::from(Icmpv4Message::EchoRequest),
        (false, protocol::ICMPV6) => u8::from(Icmpv6Message::EchoRequest),
        _ => return false,
    };
    packet.fragment == Fragment::Whole && message[..2] == [kind, 0]
}

/// What the gateway has to say about a packet it does not forward.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Complaint {
    /// TTL or hop limit ran out.
    HopLimit,
    /// The packet is larger than the way's MTU.
    TooBig { mtu: usize },
    /// Nobody holds the destination address.
    NoRoute,
    /// The gateway does not listen there.
    PortUnreachable,
}

/// Writes the error about the packet in `frame`, from `source` to its sender.
/// Says whether there is one: errors about errors, fragments behind the
/// first, groups and sources that are no single host are never sent (RFC
/// 1122 section 3.2.2, RFC 1812 section 4.3.2.7, RFC 4443 section 2.4 (e)).
///
/// The quote is the packet as it stands in `frame`. A super-frame's has the
/// lengths of the super-frame; senders know their flow by its ports and
/// sequence number.
pub fn complain(
    complaint: Complaint,
    frame: &[u8],
    packet: &Packet,
    source: IpAddr,
    dst_mac: Mac,
    src_mac: Mac,
    reply: &mut Vec<u8>,
) -> bool {
    reply.clear();
    if source.is_ipv4() != packet.is_v4() || !may_complain(complaint, frame, packet) {
        return false;
    }
    let (header, quote_max) = match packet.is_v4() {
        true => (complaint.header_v4(), QUOTE_MAX_V4),
        false => (complaint.header_v6(), QUOTE_MAX_V6),
    };
    let quote = &frame[ETHERNET_LEN..packet.end];
    let quote = &quote[..quote.len().min(quote_max)];
    let envelope = Envelope {
        dst_mac,
        src_mac,
        src: source,
        dst: packet.key.src,
        hop_limit: HOP_LIMIT,
    };
    envelope.write(HEADER_LEN + quote.len(), reply, |message| {
        message[..HEADER_LEN].copy_from_slice(&header);
        message[HEADER_LEN..].copy_from_slice(quote);
    })
}

impl Complaint {
    fn header_v4(self) -> [u8; HEADER_LEN] {
        let unreachable = Icmpv4Message::DstUnreachable;
        let (kind, code, mtu) = match self {
            Self::HopLimit => (Icmpv4Message::TimeExceeded, 0, 0),
            Self::TooBig { mtu } => (unreachable, Icmpv4DstUnreachable::FragRequired.into(), mtu),
            Self::NoRoute => (unreachable, Icmpv4DstUnreachable::HostUnreachable.into(), 0),
            Self::PortUnreachable => (unreachable, Icmpv4DstUnreachable::PortUnreachable.into(), 0),
        };
        // RFC 1191 section 4: the MTU in the low half of the unused word.
        let [high, low] = u16::try_from(mtu).unwrap_or(u16::MAX).to_be_bytes();
        [kind.into(), code, 0, 0, 0, 0, high, low]
    }

    fn header_v6(self) -> [u8; HEADER_LEN] {
        let unreachable = Icmpv6Message::DstUnreachable;
        let (kind, code, mtu) = match self {
            Self::HopLimit => {
                let code = Icmpv6TimeExceeded::HopLimitExceeded.into();
                (Icmpv6Message::TimeExceeded, code, 0)
            }
            Self::TooBig { mtu } => (Icmpv6Message::PktTooBig, 0, mtu),
            Self::NoRoute => (unreachable, Icmpv6DstUnreachable::AddrUnreachable.into(), 0),
            Self::PortUnreachable => (unreachable, Icmpv6DstUnreachable::PortUnreachable.into(), 0),
        };
        let mtu = u32::try_from(mtu).unwrap_or(u32::MAX).to_be_bytes();
        [kind.into(), code, 0, 0, mtu[0], mtu[1], mtu[2], mtu[3]]
    }
}

fn may_complain(complaint: Complaint, frame: &[u8], packet: &Packet) -> bool {
    // Path MTU discovery of IPv6 works for groups too.
    let may_answer_group = !packet.is_v4() && matches!(complaint, Complaint::TooBig { .. });
    let to_group = is_group(dst_mac(frame)) || is_group_address(packet.key.dst);
    packet.fragment != Fragment::Later
        && names_one_host(packet.key.src)
        && (may_answer_group || !to_group)
        && may_be_complained_about(frame, packet)
}

fn is_group(mac: Mac) -> bool {
    mac[0] & 1 != 0
}

fn is_group_address(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => v4.is_multicast() || v4.is_broadcast(),
        IpAddr::V6(v6) => v6.is_multicast(),
    }
}

/// Whether an answer to `source` reaches exactly one host. For IPv4 the
/// zero net, and class E with the limited broadcast, do not.
fn names_one_host(source: IpAddr) -> bool {
    match source {
        IpAddr::V4(v4) => {
            let [first, ..] = v4.octets();
            first != 0 && first < 224 && !v4.is_loopback()
        }
        IpAddr::V6(v6) => !v6.is_unspecified() && !v6.is_loopback() && !v6.is_multicast(),
    }
}

/// Whether the packet is no ICMP error, redirect or neighbour discovery. Of
/// ICMP for IPv4 only the known queries and their answers pass.
fn may_be_complained_about(frame: &[u8], packet: &Packet) -> bool {
    let kind = || frame[packet.transport];
    match (packet.is_v4(), packet.key.protocol) {
        (true, protocol::ICMP) => matches!(kind(), 0 | 8..=10 | 13..=18 | 42 | 43),
        (false, protocol::ICMPV6) => {
            let message = Icmpv6Message::from(kind());
            !message.is_error() && !message.is_ndisc()
        }
        _ => true,
    }
}

#[cfg(test)]
mod tests;

//! ICMP messages of both families in words, with the packet that an error
//! is about. Callers hand in whole messages, of at least 8 bytes.

use std::{
    fmt::{self, Formatter},
    net::{Ipv4Addr, Ipv6Addr},
};

use super::{Colons, ports, read_u32};
use crate::{protocol, read_u16};

pub(super) fn v4(f: &mut Formatter, message: &[u8]) -> fmt::Result {
    f.write_str("icmp ")?;
    let (kind, code) = (message[0], message[1]);
    match (kind, code) {
        (0, 0) => return echo(f, "echo-reply", message),
        (8, 0) => return echo(f, "echo-request", message),
        (3, 0) => f.write_str("net-unreachable")?,
        (3, 1) => f.write_str("host-unreachable")?,
        (3, 2) => f.write_str("protocol-unreachable")?,
        (3, 3) => f.write_str("port-unreachable")?,
        (3, 4) => write!(f, "fragmentation-needed mtu {}", read_u16(message, 6))?,
        (11, 0) => f.write_str("time-exceeded")?,
        (3 | 5 | 11 | 12, code) => write!(f, "type {kind} code {code}")?,
        _ => return write!(f, "type {kind} code {code} len {}", message.len() - 8),
    }
    about(f, &message[8..])
}

pub(super) fn v6(f: &mut Formatter, message: &[u8]) -> fmt::Result {
    f.write_str("icmp6 ")?;
    let (kind, code) = (message[0], message[1]);
    match (kind, code) {
        (1, 0) => f.write_str("no-route")?,
        (1, 1) => f.write_str("prohibited")?,
        (1, 3) => f.write_str("address-unreachable")?,
        (1, 4) => f.write_str("port-unreachable")?,
        (2, 0) => write!(f, "packet-too-big mtu {}", read_u32(message, 4))?,
        (3, 0) => f.write_str("time-exceeded")?,
        (0..=127, code) => write!(f, "type {kind} code {code}")?,
        (128, 0) => return echo(f, "echo-request", message),
        (129, 0) => return echo(f, "echo-reply", message),
        (133..=136, 0) => return discovery(f, message),
        (131 | 132 | 143, 0) => return f.write_str("listener-report"),
        _ => return write!(f, "type {kind} code {code} len {}", message.len() - 8),
    }
    about(f, &message[8..])
}

fn echo(f: &mut Formatter, name: &str, message: &[u8]) -> fmt::Result {
    let (id, seq) = (read_u16(message, 4), read_u16(message, 6));
    write!(f, "{name} id {id} seq {seq} len {}", message.len() - 8)
}

/// Neighbour and router discovery (RFC 4861 section 4).
fn discovery(f: &mut Formatter, message: &[u8]) -> fmt::Result {
    let target = |f: &mut Formatter| match message.get(8..24) {
        Some(target) => write!(f, " {}", address_v6(target)),
        None => f.write_str(" cut short"),
    };
    let options_at = match message[0] {
        133 => {
            f.write_str("router-solicitation")?;
            8
        }
        134 => {
            let (hop, lifetime) = (message[4], read_u16(message, 6));
            write!(f, "router-advertisement hop {hop} lifetime {lifetime}")?;
            16
        }
        135 => {
            f.write_str("neighbour-solicitation")?;
            target(f)?;
            24
        }
        _ => {
            f.write_str("neighbour-advertisement")?;
            target(f)?;
            for (bit, name) in [(0x80, "router"), (0x40, "solicited"), (0x20, "override")] {
                if message[4] & bit != 0 {
                    write!(f, " {name}")?;
                }
            }
            24
        }
    };
    options(f, message.get(options_at..).unwrap_or_default())
}

fn options(f: &mut Formatter, mut options: &[u8]) -> fmt::Result {
    while options.len() >= 8 {
        let len = usize::from(options[1]) * 8;
        if len == 0 || len > options.len() {
            return f.write_str(" malformed option");
        }
        match options[0] {
            1 => write!(f, " from {}", Colons(&options[2..8]))?,
            2 => write!(f, " at {}", Colons(&options[2..8]))?,
            5 => write!(f, " mtu {}", read_u32(options, 4))?,
            other => write!(f, " option {other}")?,
        }
        options = &options[len..];
    }
    Ok(())
}

/// The packet that an error quotes, which may be cut short anywhere.
fn about(f: &mut Formatter, quote: &[u8]) -> fmt::Result {
    let (protocol, segment) = match quote.first().map(|first| first >> 4) {
        Some(4) if quote.len() >= 20 => {
            let address = |at| Ipv4Addr::from(read_u32(quote, at));
            write!(f, " about {} > {}", address(12), address(16))?;
            (quote[9], quote.get(usize::from(quote[0] & 0x0f) * 4..))
        }
        Some(6) if quote.len() >= 40 => {
            let (src, dst) = (address_v6(&quote[8..24]), address_v6(&quote[24..40]));
            write!(f, " about {src} > {dst}")?;
            (quote[6], quote.get(40..))
        }
        _ => return write!(f, " quoting {} bytes", quote.len()),
    };
    match (protocol, segment.filter(|segment| segment.len() >= 4)) {
        (protocol::TCP, Some(segment)) => ports(f, " tcp", segment)?,
        (protocol::UDP, Some(segment)) => ports(f, " udp", segment)?,
        (protocol::ICMP, _) => f.write_str(" icmp")?,
        (protocol::ICMPV6, _) => f.write_str(" icmp6")?,
        (other, _) => write!(f, " protocol {other}")?,
    }
    write!(f, " quoting {} bytes", quote.len())
}

fn address_v6(bytes: &[u8]) -> Ipv6Addr {
    let mut octets = [0; 16];
    octets.copy_from_slice(bytes);
    octets.into()
}

//! A frame in one line, for traces and golden captures.
//!
//! Layers stand from outside in, parted by ` | `:
//!
//! ```text
//! 00:00:0a > ee:ee:ee | 10.0.0.10 > 10.9.9.9 ttl 64 len 52 id 0x0186 df | tcp 40000 > 80 [S] seq 7 win 64240 len 0
//! ```
//!
//! MACs are their last three bytes, those of groups all six. Lengths are in
//! bytes: of an IP packet with its header, of a transport payload without.
//! VXLAN on its usual ports is looked into.

use std::fmt::{self, Display, Formatter};

use smoltcp::wire::{ArpOperation, ArpPacket, ArpRepr};

use crate::{
    ETHERNET_LEN, Ethernet, Packet, checksum, parse, parse::Fragment, protocol, read_u16, vxlan,
};

mod icmp;

/// IANA's port, and Linux's and flannel's.
const VXLAN_PORTS: [u16; 2] = [4789, 8472];
/// Tunnels inside tunnels that are looked into.
const DEPTH_MAX: usize = 4;

/// Says in one line what an Ethernet frame is, whatever its bytes.
pub fn describe(frame: &[u8]) -> String {
    Dissection { frame, depth: 0 }.to_string()
}

struct Dissection<'a> {
    frame: &'a [u8],
    /// How many tunnels are around.
    depth: usize,
}

impl Display for Dissection<'_> {
    fn fmt(&self, f: &mut Formatter) -> fmt::Result {
        let frame = self.frame;
        if frame.len() < ETHERNET_LEN {
            return write!(f, "{} bytes, no Ethernet frame", frame.len());
        }
        write!(f, "{} > {} | ", short(&frame[6..12]), short(&frame[..6]))?;
        match parse(frame) {
            Ok(Ethernet::Arp) => arp(f, &frame[ETHERNET_LEN..]),
            Ok(Ethernet::Ip(packet)) => {
                ip(f, frame, &packet)?;
                f.write_str(" | ")?;
                self.transport(f, &packet)
            }
            Ok(Ethernet::Other(kind)) => {
                write!(
                    f,
                    "ethertype {kind:#06x} len {}",
                    frame.len() - ETHERNET_LEN
                )
            }
            Err(error) => write!(f, "malformed: {error}"),
        }
    }
}

/// A MAC address, or a part of one.
struct Colons<'a>(&'a [u8]);

impl Display for Colons<'_> {
    fn fmt(&self, f: &mut Formatter) -> fmt::Result {
        for (place, byte) in self.0.iter().enumerate() {
            let colon = if place == 0 { "" } else { ":" };
            write!(f, "{colon}{byte:02x}")?;
        }
        Ok(())
    }
}

fn short(mac: &[u8]) -> Colons<'_> {
    let is_group = mac[0] & 1 != 0;
    Colons(if is_group { mac } else { &mac[3..] })
}

fn arp(f: &mut Formatter, body: &[u8]) -> fmt::Result {
    let parsed = ArpPacket::new_checked(body).and_then(|packet| ArpRepr::parse(&packet));
    let Ok(ArpRepr::EthernetIpv4 {
        operation,
        source_hardware_addr: sender_mac,
        source_protocol_addr: sender,
        target_protocol_addr: target,
        ..
    }) = parsed
    else {
        return f.write_str("arp, not understood");
    };
    let sender_mac = Colons(&sender_mac.0);
    match operation {
        ArpOperation::Request => {
            write!(f, "arp who-has {target} tell {sender} at {sender_mac}")
        }
        ArpOperation::Reply => write!(f, "arp {sender} is-at {sender_mac} tell {target}"),
        ArpOperation::Unknown(code) => write!(f, "arp operation {code}"),
    }
}

fn ip(f: &mut Formatter, frame: &[u8], packet: &Packet) -> fmt::Result {
    let (hops, header_len) = match packet.is_v4() {
        true => ("ttl", 20),
        false => ("hop", 40),
    };
    write!(
        f,
        "{} > {} {hops} {} len {}",
        packet.key.src,
        packet.key.dst,
        packet.hop_limit,
        packet.ip_len()
    )?;
    let ip = &frame[ETHERNET_LEN..];
    let class = match packet.is_v4() {
        true => ip[1],
        false => ip[0] << 4 | ip[1] >> 4,
    };
    if class != 0 {
        write!(f, " class {class:#04x}")?;
    }
    let extra = packet.transport - ETHERNET_LEN - header_len;
    match (packet.is_v4(), extra) {
        (_, 0) => {}
        (true, extra) => write!(f, " options {extra}")?,
        (false, extra) => write!(f, " extensions {extra}")?,
    }
    match packet.is_v4() {
        true => fragment_v4(f, ip),
        false => fragment_v6(f, packet),
    }
}

fn fragment_v4(f: &mut Formatter, ip: &[u8]) -> fmt::Result {
    let flags_and_offset = read_u16(ip, 6);
    write!(f, " id {:#06x}", read_u16(ip, 4))?;
    if flags_and_offset & 0x4000 != 0 {
        f.write_str(" df")?;
    }
    let offset = flags_and_offset & 0x1fff;
    let more = flags_and_offset & 0x2000 != 0;
    match (offset, more) {
        (0, false) => Ok(()),
        (offset, true) => write!(f, " fragment {}+", u32::from(offset) * 8),
        (offset, false) => write!(f, " fragment {}", u32::from(offset) * 8),
    }
}

fn fragment_v6(f: &mut Formatter, packet: &Packet) -> fmt::Result {
    match packet.fragment {
        Fragment::Whole => Ok(()),
        Fragment::First => f.write_str(" fragment first"),
        Fragment::Later => f.write_str(" fragment later"),
    }
}

impl Dissection<'_> {
    fn transport(&self, f: &mut Formatter, packet: &Packet) -> fmt::Result {
        let segment = &self.frame[packet.transport..packet.end];
        let payload = packet.end - packet.payload;
        if packet.fragment == Fragment::Later {
            return write!(f, "protocol {} len {payload}", packet.key.protocol);
        }
        match packet.key.protocol {
            protocol::TCP => tcp(f, segment, payload)?,
            protocol::UDP => {
                ports(f, "udp", segment)?;
                write!(f, " len {payload}")?;
            }
            protocol::SCTP => {
                ports(f, "sctp", segment)?;
                write!(f, " len {payload}")?;
            }
            protocol::ICMP => icmp::v4(f, segment)?,
            protocol::ICMPV6 => icmp::v6(f, segment)?,
            other => return write!(f, "protocol {other} len {payload}"),
        }
        self.checksum(f, packet)?;
        self.tunnel(f, packet)
    }

    /// Says so if the transport checksum is not right, or left to be
    /// completed by a device.
    fn checksum(&self, f: &mut Formatter, packet: &Packet) -> fmt::Result {
        if checksum::verify(self.frame, packet) {
            return Ok(());
        }
        let pseudo = checksum::pseudo_header(&packet.key, packet.end - packet.transport);
        let field = checksum::field_offset(packet.key.protocol)
            .map(|offset| read_u16(self.frame, packet.transport + offset));
        match field == Some(pseudo) {
            true => f.write_str(" checksum partial"),
            false => f.write_str(" checksum bad"),
        }
    }

    fn tunnel(&self, f: &mut Formatter, packet: &Packet) -> fmt::Result {
        let is_vxlan = packet.key.protocol == protocol::UDP
            && packet.fragment == Fragment::Whole
            && VXLAN_PORTS.contains(&packet.key.dst_port);
        if !is_vxlan || self.depth == DEPTH_MAX {
            return Ok(());
        }
        match vxlan::decap(&self.frame[packet.payload..packet.end]) {
            Ok((vni, frame)) => {
                let depth = self.depth + 1;
                write!(f, " | vxlan {vni} | {}", Dissection { frame, depth })
            }
            Err(error) => write!(f, " | malformed vxlan: {error}"),
        }
    }
}

fn ports(f: &mut Formatter, name: &str, segment: &[u8]) -> fmt::Result {
    let (src, dst) = (read_u16(segment, 0), read_u16(segment, 2));
    write!(f, "{name} {src} > {dst}")
}

fn tcp(f: &mut Formatter, segment: &[u8], payload: usize) -> fmt::Result {
    const FLAGS: &[u8; 8] = b"FSRPAUEC";
    ports(f, "tcp", segment)?;
    f.write_str(" [")?;
    for (bit, name) in FLAGS.iter().enumerate() {
        if segment[13] & (1 << bit) != 0 {
            write!(f, "{}", char::from(*name))?;
        }
    }
    write!(f, "] seq {}", read_u32(segment, 4))?;
    if segment[13] & 0x10 != 0 {
        write!(f, " ack {}", read_u32(segment, 8))?;
    }
    write!(f, " win {} len {payload}", read_u16(segment, 14))
}

fn read_u32(bytes: &[u8], at: usize) -> u32 {
    u32::from(read_u16(bytes, at)) << 16 | u32::from(read_u16(bytes, at + 2))
}

#[cfg(test)]
mod tests;

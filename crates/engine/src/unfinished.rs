//! Frames out of the tunnel that their sender left unfinished.
//!
//! A kernel's VXLAN device leaves checksums and segmentation to the device
//! below. Where that is virtual and ends on this machine, as between
//! containers, nobody does the work: a datagram holds a checksum that is only
//! the pseudo-header's, or a whole super-frame. The socket does not say so;
//! the bytes do.

use weft_wire::{
    ETHERNET_LEN, Ethernet, Packet, VnetHeader, checksum, parse, protocol, vnet, vxlan,
};

const TCP_CWR: u8 = 0x80;

/// Where checksum fields are in their headers.
const TCP_CHECKSUM: u16 = 16;
const UDP_CHECKSUM: u16 = 6;

/// Whether what looks like a train of datagrams is a single one around a UDP
/// super-frame: UDP_GRO then tells the size of the inner segments.
pub fn is_one_datagram(train: &[u8], stride: usize) -> bool {
    if train.len() <= stride {
        return false;
    }
    let Ok((_, frame)) = vxlan::decap(train) else {
        return false;
    };
    match parse(frame) {
        Ok(Ethernet::Ip(packet)) => {
            vxlan::LEN + packet.end > stride && udp_super_frame(frame, &packet, stride).is_some()
        }
        _ => false,
    }
}

/// The virtio-net header of a UDP super-frame with segments of `size` bytes;
/// none for other frames.
pub fn udp_super_frame(frame: &[u8], packet: &Packet, size: usize) -> Option<VnetHeader> {
    let is_udp = packet.key.protocol == protocol::UDP;
    (is_udp && may_be_cut(frame, packet, size))
        .then(|| describe(packet, vnet::GSO_UDP_L4, UDP_CHECKSUM, size))
}

/// The virtio-net header of a TCP super-frame for a port with this MTU: what
/// is larger cannot have been one packet. TCP takes its segments in any size.
pub fn tcp_super_frame(frame: &[u8], packet: &Packet, mtu: usize) -> Option<VnetHeader> {
    if packet.key.protocol != protocol::TCP || packet.ip_len() <= mtu {
        return None;
    }
    let size = mtu.checked_sub(packet.payload - ETHERNET_LEN)?;
    if !may_be_cut(frame, packet, size) {
        return None;
    }
    let kind = if packet.is_v4() {
        vnet::GSO_TCPV4
    } else {
        vnet::GSO_TCPV6
    };
    let reduced = frame[packet.transport + 13] & TCP_CWR != 0;
    let ecn = if reduced { vnet::GSO_ECN } else { 0 };
    Some(describe(packet, kind | ecn, TCP_CHECKSUM, size))
}

fn may_be_cut(frame: &[u8], packet: &Packet, size: usize) -> bool {
    (1..packet.end - packet.payload).contains(&size) && checksum::is_partial(frame, packet)
}

/// The virtio-net header of a TCP or UDP frame with a partial checksum.
pub fn needs_checksum(packet: &Packet) -> VnetHeader {
    let tcp = packet.key.protocol == protocol::TCP;
    let offset = if tcp { TCP_CHECKSUM } else { UDP_CHECKSUM };
    describe(packet, vnet::GSO_NONE, offset, 0)
}

fn describe(packet: &Packet, gso_type: u8, csum_offset: u16, size: usize) -> VnetHeader {
    // Places in a frame's headers and sizes of its parts fit 16 bits.
    let word = |number: usize| u16::try_from(number).unwrap_or(u16::MAX);
    VnetHeader {
        flags: vnet::NEEDS_CSUM,
        gso_type,
        hdr_len: word(packet.payload),
        gso_size: word(size),
        csum_start: word(packet.transport),
        csum_offset,
    }
}

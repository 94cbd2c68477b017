//! Is this frame allowed from this port? A pod sends from its own MAC and
//! addresses and into no tunnel, the node from what is behind it, and both say nothing false
//! about their super-frames.

use std::net::{IpAddr, Ipv6Addr};

use weft_wire::{ETHERNET_LEN, Packet, VnetHeader, checksum, parse::Fragment, protocol, vnet};

use crate::{DropReason, Gateway, Holder, Port, Reach, Snapshot};

/// A pod may use a link-local address, which nobody tells us of, but only on
/// its link: towards the gateway, or a group, which goes no further. So may
/// the unspecified address, before it has one of its own.
pub fn source_address(packet: &Packet, port: &Port, gateway: &Gateway) -> Result<(), DropReason> {
    if port.addresses.contains(&packet.key.src) {
        return Ok(());
    }
    let on_link =
        matches!(packet.key.src, IpAddr::V6(src) if is_link_local(src) || src.is_unspecified());
    match packet.key.dst {
        IpAddr::V6(dst) if on_link && dst == gateway.v6 => Ok(()),
        IpAddr::V6(dst) if on_link && dst.is_multicast() => Err(DropReason::Multicast),
        IpAddr::V6(_) if on_link => Err(DropReason::LinkLocal),
        _ => Err(DropReason::SpoofedAddress),
    }
}

/// Behind the host port is the node, and whatever its kernel routes: any
/// sender but those that are reached otherwise, pods of this node and what
/// lives behind a tunnel.
pub fn host_source(tables: &Snapshot, src: IpAddr) -> Result<(), DropReason> {
    let link_local = match src {
        IpAddr::V4(src) => src.is_link_local(),
        IpAddr::V6(src) => is_link_local(src),
    };
    if link_local {
        return Err(DropReason::LinkLocal);
    }
    let host = tables.host().map(|host| host.id);
    let pods_own = tables.port_of(src).is_some_and(|id| Some(id) != host);
    let tunnelled = matches!(
        tables.holder_of(src),
        Some(Holder::Peer(_, Reach::Tunnel(_)))
    );
    if pods_own || tunnelled || src.is_unspecified() || src.is_loopback() || src.is_multicast() {
        return Err(DropReason::SpoofedAddress);
    }
    Ok(())
}

/// What a peer takes from this node's tunnel: senders in this node's blocks,
/// and the node itself.
pub fn tunnel_source(tables: &Snapshot, src: IpAddr) -> Result<(), DropReason> {
    let node = tables.host().map(|host| host.id);
    let is_ours = tables.holder_of(src) == Some(Holder::Here)
        || tables.port_of(src).is_some_and(|id| Some(id) == node);
    is_ours.then_some(()).ok_or(DropReason::OutsideSource)
}

/// A pod may not send a node what that would take for its own tunnel's: once
/// this node masquerades, it comes from a peer's address. Of a datagram in
/// fragments the first says where to, and the others are nothing without it.
pub fn no_tunnel_of_its_own(
    tables: &Snapshot,
    packet: &Packet,
    frame: &[u8],
) -> Result<(), DropReason> {
    let Some(vxlan) = vxlan_port_at(tables, packet.key.dst) else {
        return Ok(());
    };
    let to_vxlan = || match packet.fragment {
        Fragment::Whole => packet.key.dst_port == vxlan,
        Fragment::First => frame[packet.transport + 2..].starts_with(&vxlan.to_be_bytes()),
        Fragment::Later => false,
    };
    match packet.key.protocol {
        protocol::IPIP => Err(DropReason::ForgedTunnel),
        protocol::UDP if to_vxlan() => Err(DropReason::ForgedTunnel),
        _ => Ok(()),
    }
}

/// The UDP port of VXLAN at `address`, if that is a node's in the underlay, or
/// one at which this node is reached by its host port.
fn vxlan_port_at(tables: &Snapshot, address: IpAddr) -> Option<u16> {
    if let Some(peer) = tables.peer_from(address) {
        return tables.peer(peer).remote.map(|remote| remote.port());
    }
    let host = tables.host()?.id;
    (tables.port_of(address) == Some(host)).then_some(tables.vtep.port)
}

/// fe80::/10 (RFC 4291 section 2.5.6).
pub fn is_link_local(address: Ipv6Addr) -> bool {
    address.segments()[0] & 0xffc0 == 0xfe80
}

/// How many packets the frame is on a wire, if its virtio-net header is
/// true to it.
pub fn packets(vnet: &VnetHeader, packet: &Packet) -> Result<u64, DropReason> {
    let whole = packet.fragment == Fragment::Whole;
    if vnet.needs_checksum() {
        // Only the packet's own checksum is finished: any other place could
        // be an address or a port that has been looked at already.
        let own = checksum::field_offset(packet.key.protocol);
        let named = (usize::from(vnet.csum_start), usize::from(vnet.csum_offset));
        if !whole || own.map(|offset| (packet.transport, offset)) != Some(named) {
            return Err(DropReason::MalformedOffload);
        }
    }
    if !vnet.is_super_frame() {
        return Ok(1);
    }
    let true_kind = match (vnet.gso_kind(), packet.key.protocol) {
        (vnet::GSO_TCPV4, protocol::TCP) => packet.is_v4(),
        (vnet::GSO_TCPV6, protocol::TCP) => !packet.is_v4(),
        (vnet::GSO_UDP_L4, protocol::UDP) => true,
        _ => false,
    };
    let payload = packet.end - packet.payload;
    if !true_kind
        || !whole
        || vnet.gso_size == 0
        || payload == 0
        || packet.payload == packet.transport
    {
        return Err(DropReason::MalformedOffload);
    }
    Ok(payload.div_ceil(usize::from(vnet.gso_size)) as u64)
}

/// Bytes of the largest IP packet that a frame is on a wire.
pub fn largest(packet: &Packet, vnet: &VnetHeader) -> usize {
    if vnet.is_super_frame() {
        let segment = packet.payload - ETHERNET_LEN + usize::from(vnet.gso_size);
        segment.min(packet.ip_len())
    } else {
        packet.ip_len()
    }
}

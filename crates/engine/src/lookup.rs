//! Where does this address live?

use std::net::IpAddr;

use crate::{
    DropReason, Holder, Reach, Route, Snapshot, admit::is_link_local, flow::Egress,
    snapshot::PortId,
};

/// The way from a port: a port on this node, a peer, or the host port for
/// whatever the node is the way to. It never leads back to where the packet
/// came from: what the node itself sent would loop.
pub fn from_port(tables: &Snapshot, from: PortId, dst: IpAddr) -> Result<Egress, DropReason> {
    let egress = way_to(tables, dst)?;
    let from_host = tables.host().is_some_and(|host| host.id == from);
    if from_host && egress == Egress::Port(from) {
        return Err(DropReason::HostLoop);
    }
    Ok(egress)
}

fn way_to(tables: &Snapshot, dst: IpAddr) -> Result<Egress, DropReason> {
    carried(dst)?;
    if let Some(port) = tables.port_of(dst) {
        return Ok(Egress::Port(port));
    }
    match tables.holder_of(dst) {
        Some(Holder::Peer(peer, Reach::Tunnel(way))) if tables.peer(peer).has(way) => {
            Ok(Egress::Peer(Route { peer, way }))
        }
        Some(Holder::Peer(_, Reach::Tunnel(_))) => Err(DropReason::NoUplink),
        Some(Holder::Peer(_, Reach::Direct)) => {
            let host = tables.host().ok_or(DropReason::NoHostPort)?;
            Ok(Egress::Port(host.id))
        }
        Some(Holder::Here) => Err(DropReason::NoRoute),
        None => {
            let host = tables.way_out(dst).ok_or(DropReason::NoRoute)?;
            Ok(Egress::Port(host))
        }
    }
}

/// The way from the tunnel ends at a port on this node: nothing that a peer
/// sent goes to a peer, so that nothing can loop.
pub fn from_peer(tables: &Snapshot, dst: IpAddr) -> Result<Egress, DropReason> {
    carried(dst)?;
    tables
        .port_of(dst)
        .map(Egress::Port)
        .ok_or(DropReason::NotHere)
}

fn carried(dst: IpAddr) -> Result<(), DropReason> {
    // An IPv4 address written as one of IPv6 is no less than it was.
    let dst = dst.to_canonical();
    let (link_local, this_host) = match dst {
        IpAddr::V4(v4) => (v4.is_link_local(), v4.is_loopback() || v4.octets()[0] == 0),
        IpAddr::V6(v6) => (is_link_local(v6), v6.is_loopback() || v6.is_unspecified()),
    };
    if dst.is_multicast() || dst == IpAddr::V4(std::net::Ipv4Addr::BROADCAST) {
        Err(DropReason::Multicast)
    } else if link_local {
        Err(DropReason::LinkLocal)
    } else if this_host {
        Err(DropReason::Loopback)
    } else {
        Ok(())
    }
}

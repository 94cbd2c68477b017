//! Where does this address live?

use std::net::IpAddr;

use crate::{DropReason, Snapshot, admit::is_link_local, flow::Egress};

/// The way from a pod: a port on this node, else a peer.
pub fn from_port(tables: &Snapshot, dst: IpAddr) -> Result<Egress, DropReason> {
    carried(dst)?;
    if let Some(port) = tables.port_of(dst) {
        return Ok(Egress::Port(port));
    }
    let route = tables.route_to(dst).ok_or(DropReason::NoRoute)?;
    if tables.peer(route.peer).has(route.way) {
        Ok(Egress::Peer(route))
    } else {
        Err(DropReason::NoUplink)
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
    if dst.is_multicast() || dst == IpAddr::V4(std::net::Ipv4Addr::BROADCAST) {
        return Err(DropReason::Multicast);
    }
    let link_local = match dst {
        IpAddr::V4(dst) => dst.is_link_local(),
        IpAddr::V6(dst) => is_link_local(dst),
    };
    if link_local {
        Err(DropReason::LinkLocal)
    } else {
        Ok(())
    }
}

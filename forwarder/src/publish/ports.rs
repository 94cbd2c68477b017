//! Which ports may come, and which go: no two hold the same, and none holds
//! what the node does, but the host port.

use std::{net::IpAddr, num::NonZeroU32, sync::Arc, time::Instant};

use weft_api::{
    forwarder::{Attach, Code, Error, Limit, Node, PacketLimit, PortMapping},
    names::Name,
};
use weft_conntrack::Account;
use weft_engine::{Host, Port, PortId, Shaper};

use super::{PortRow, State, Takes, checks, refusal};

/// Most ports: as many as a [`PortId`] can tell apart.
const PORTS_MAX: usize = 1 << 16;

impl State {
    /// The place that the port would get, if it may come at all.
    pub fn place_for(&self, spec: &Attach) -> Result<PortId, Error> {
        checks::attach(spec)?;
        let refuse = |code, what: String, hint: &str| {
            let message = format!("attach port {}: {what}", spec.name);
            Err(refusal(code, message, hint))
        };
        match &spec.host {
            None => {
                if let Some(address) = spec.addresses.iter().find(|a| self.is_own(a)) {
                    let what = format!("{address} is the node's own");
                    return refuse(Code::Taken, what, "give the pod another");
                }
            }
            Some(_) => {
                if let Some(address) = spec.addresses.iter().find(|a| !self.is_own(a)) {
                    let what = format!("{address} is not the node's own");
                    let hint = "attach with what `status` tells as `tunnel` by now";
                    return refuse(Code::Invalid, what, hint);
                }
            }
        }
        let mut others = self.ports();
        if let Some((what, hint)) = others.find_map(|other| conflict(spec, other)) {
            return refuse(Code::Taken, what, hint);
        }
        let free = self.ports.iter().position(Option::is_none);
        let lowest = free.unwrap_or(self.ports.len());
        u16::try_from(lowest).map(PortId).or_else(|_| {
            let what = format!("{PORTS_MAX} ports are attached");
            let hint = "detach some, or run another forwarder";
            refuse(Code::Invalid, what, hint)
        })
    }

    /// The ports on a node that is `own` from now on: where its addresses in
    /// the pod network are others, they are the host port's at once, though its
    /// link has the former until it is made anew.
    pub(super) fn ports_of(&self, own: &Node) -> Vec<Option<PortRow>> {
        let mut ports = self.ports.clone();
        if own.tunnel == self.own.tunnel {
            return ports;
        }
        let is_host = |row: &&mut PortRow| row.port.host.is_some();
        for row in ports.iter_mut().flatten().filter(is_host) {
            let stays = |address: &&IpAddr| !self.own.tunnel.contains(address);
            let mut addresses = own.tunnel.clone();
            addresses.extend(row.port.addresses.iter().filter(stays));
            let before = &row.port;
            row.port = Arc::new(Port {
                id: before.id,
                mac: before.mac,
                addresses,
                mtu: before.mtu,
                takes_udp: before.takes_udp,
                takes_tcp: before.takes_tcp,
                host: before.host.clone(),
                // The host port has no capabilities.
                from_pod_shaper: None,
                to_pod_shaper: None,
                from_pod_packets: None,
                to_pod_packets: None,
                connections: Arc::clone(&before.connections),
                from_pod: Arc::clone(&before.from_pod),
                to_pod: Arc::clone(&before.to_pod),
            });
        }
        ports
    }

    fn is_own(&self, address: &IpAddr) -> bool {
        self.own.tunnel.contains(address) || self.uplink.contains(address)
    }

    pub fn with_port(&self, spec: Attach, takes: Takes) -> Result<(Self, PortId), Error> {
        let id = self.place_for(&spec)?;
        let host = spec.host.clone().map(|host| Host { pools: host.pools });
        let connections = spec.capabilities.connections.map(NonZeroU32::get);
        let mut addresses = spec.addresses.clone();
        if host.is_some() {
            let more = self.uplink.iter();
            addresses.extend(more.filter(|own| !spec.addresses.contains(own)));
        }
        let port = Arc::new(Port {
            id,
            mac: spec.mac.0,
            addresses,
            mtu: usize::from(spec.mtu),
            takes_udp: takes.udp,
            takes_tcp: takes.tcp,
            host,
            from_pod_shaper: spec.capabilities.bandwidth.from_pod.map(shaper),
            to_pod_shaper: spec.capabilities.bandwidth.to_pod.map(shaper),
            from_pod_packets: spec.capabilities.packets.from_pod.map(counter),
            to_pod_packets: spec.capabilities.packets.to_pod.map(counter),
            connections: Arc::new(connections.map_or_else(Account::default, Account::new)),
            from_pod: Arc::default(),
            to_pod: Arc::default(),
        });
        let mut state = self.clone();
        let place = usize::from(id.0);
        if place == state.ports.len() {
            state.ports.push(None);
        }
        state.ports[place] = Some(PortRow { spec, port });
        Ok((state, id))
    }

    pub fn without_port(&self, name: &Name) -> Result<(Self, PortId), Error> {
        let named = |row: &Option<PortRow>| row.as_ref().is_some_and(|row| row.spec.name == *name);
        let Some(place) = self.ports.iter().position(named) else {
            let message = format!("detach port {name}: no port has that name");
            return Err(refusal(Code::NotFound, message, "`list` shows the ports"));
        };
        let mut state = self.clone();
        let id = state.ports[place]
            .take()
            .map_or(PortId(0), |row| row.port.id);
        while let Some(None) = state.ports.last() {
            state.ports.pop();
        }
        Ok((state, id))
    }
}

/// What of `other` keeps `spec` away, and what to do about it.
fn conflict(spec: &Attach, row: &PortRow) -> Option<(String, &'static str)> {
    let other = &row.spec;
    if other.name == spec.name {
        let hint = "detach the other, or choose another";
        return Some(("the name is taken".to_owned(), hint));
    }
    if other.mac == spec.mac {
        let what = format!("MAC {} is port {}'s", spec.mac, other.name);
        return Some((what, "give each pod a MAC of its own"));
    }
    if let Some(address) = spec
        .addresses
        .iter()
        .find(|a| row.port.addresses.contains(a))
    {
        let what = format!("address {address} is port {}'s", other.name);
        let hint = "detach the other, or give the pod another address";
        return Some((what, hint));
    }
    if spec.host.is_some() && other.host.is_some() {
        let what = format!("port {} is the host port", other.name);
        return Some((what, "detach it first (weft host down)"));
    }
    let published = &other.capabilities.port_mappings;
    let collides = |mine: &&PortMapping| published.iter().any(|one| one.collides(mine));
    let mine = spec.capabilities.port_mappings.iter().find(collides)?;
    let what = format!("{} is published by port {}", mine.published(), other.name);
    let hint = "detach the other, or publish another port of the node";
    Some((what, hint))
}

fn counter(limit: PacketLimit) -> Shaper {
    Shaper::of_packets(limit.rate.get(), limit.burst.get(), Instant::now())
}

fn shaper(limit: Limit) -> Shaper {
    Shaper::new(limit.rate.get(), limit.burst.get(), Instant::now())
}

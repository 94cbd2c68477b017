//! Which ports may come, and which go: no two hold the same, and none holds
//! what the node does, but the host port.

use std::{sync::Arc, time::Instant};

use weft_api::{
    forwarder::{Attach, Code, Error, Limit, PortMapping},
    names::Name,
};
use weft_engine::{Host, Port, PortId, Shaper};

use super::{PortRow, State, Takes, checks, refusal};

/// Most ports: as many as a [`PortId`] can tell apart.
const PORTS_MAX: usize = 1 << 16;

impl State {
    /// The place that the port would get, if it may come at all.
    pub fn place_for(&self, spec: &Attach) -> Result<PortId, Error> {
        checks::attach(spec)?;
        let taken = |what: String, hint: &str| {
            Err(refusal(
                Code::Taken,
                format!("attach port {}: {what}", spec.name),
                hint,
            ))
        };
        for address in &spec.addresses {
            let own = self.own.tunnel.contains(address) || self.uplink.contains(address);
            if spec.host.is_none() && own {
                return taken(
                    format!("{address} is the node's own"),
                    "give the pod another",
                );
            }
        }
        for other in self.ports().map(|row| &row.spec) {
            if other.name == spec.name {
                return taken(
                    "the name is taken".to_owned(),
                    "detach the other, or choose another",
                );
            }
            if other.mac == spec.mac {
                let what = format!("MAC {} is port {}'s", spec.mac, other.name);
                return taken(what, "give each pod a MAC of its own");
            }
            if let Some(address) = spec.addresses.iter().find(|a| other.addresses.contains(a)) {
                let what = format!("address {address} is port {}'s", other.name);
                return taken(what, "detach the other, or give the pod another address");
            }
            if spec.host.is_some() && other.host.is_some() {
                let what = format!("port {} is the host port", other.name);
                return taken(what, "detach it first (weft host down)");
            }
            let published = &other.capabilities.port_mappings;
            let collides = |mine: &&PortMapping| published.iter().any(|one| one.collides(mine));
            if let Some(mapping) = spec.capabilities.port_mappings.iter().find(collides) {
                let what = format!(
                    "{} is published by port {}",
                    mapping.published(),
                    other.name
                );
                return taken(
                    what,
                    "detach the other, or publish another port of the node",
                );
            }
        }
        let lowest = self
            .ports
            .iter()
            .position(Option::is_none)
            .unwrap_or(self.ports.len());
        u16::try_from(lowest).map(PortId).map_err(|_| {
            let message = format!("attach port {}: {PORTS_MAX} ports are attached", spec.name);
            refusal(
                Code::Invalid,
                message,
                "detach some, or run another forwarder",
            )
        })
    }

    pub fn with_port(&self, spec: Attach, takes: Takes) -> Result<(Self, PortId), Error> {
        let id = self.place_for(&spec)?;
        let host = spec.host.clone().map(|host| Host { pools: host.pools });
        let mut addresses = spec.addresses.clone();
        if host.is_some() {
            addresses.extend(
                self.uplink
                    .iter()
                    .filter(|own| !spec.addresses.contains(own)),
            );
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

fn shaper(limit: Limit) -> Shaper {
    Shaper::new(limit.rate.get(), limit.burst.get(), Instant::now())
}

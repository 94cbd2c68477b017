//! What the forwarder answers about itself: its ports, counters, drops and
//! status.

use std::time::Duration;

use weft_api::forwarder::{self as api, OverBandwidth, PathState, PortState};
use weft_engine::{
    DropReason, Shaper,
    counters::Traffic,
    path::{State, Times},
};

use super::{Forwarder, NodesFile, VERSION};
use crate::{
    metrics::{Probed, Totals},
    paths::Found,
    publish::PeerRow,
};

impl Forwarder {
    pub(super) fn ports(&self) -> Vec<api::Port> {
        let row = |row: &crate::publish::PortRow| {
            let open = self.open[usize::from(row.port.id.0)].as_deref()?;
            let spec = row.spec.clone();
            Some(api::Port {
                name: spec.name,
                driver: spec.driver,
                state: if open.gone() {
                    PortState::Gone
                } else {
                    PortState::Up
                },
                mac: spec.mac,
                addresses: spec.addresses,
                mtu: spec.mtu,
                queues: open.queues(),
                uso: open.takes_udp(),
                capabilities: spec.capabilities,
                host: spec.host,
                over_bandwidth: over_bandwidth(&row.port),
                age_ms: u64::try_from(open.age().as_millis()).unwrap_or(u64::MAX),
                from_pod: traffic(&row.port.from_pod),
                to_pod: traffic(&row.port.to_pod),
            })
        };
        self.state.ports().filter_map(row).collect()
    }

    pub(super) fn peers(&self) -> Vec<api::Peer> {
        let peer = |row: &PeerRow| api::Peer {
            node: row.node.clone(),
            to_peer: traffic(&row.peer.to_peer),
            from_peer: traffic(&row.peer.from_peer),
            path: self.path(row, self.found(row)),
        };
        self.state.peers().iter().map(peer).collect()
    }

    pub(super) fn probed(&self) -> Vec<Probed> {
        let probed = |row: &PeerRow| {
            let found = self.found(row);
            Probed {
                peer: row.node.name.to_string(),
                path: self.path(row, found),
                total: found.map(|found| found.total).unwrap_or_default(),
            }
        };
        self.state.peers().iter().map(probed).collect()
    }

    fn found(&self, row: &PeerRow) -> Option<Found> {
        self.paths.board().peer(&row.node.name)
    }

    /// The MTUs are those in force.
    fn path(&self, row: &PeerRow, found: Option<Found>) -> api::Path {
        let recent = found.map(|found| found.recent).unwrap_or_default();
        api::Path {
            state: found
                .and_then(|found| found.state)
                .map_or(PathState::Unasked, state),
            mtu: self.state.outer_mtu(&row.node),
            inner_mtu: u16::try_from(row.peer.mtu).unwrap_or(u16::MAX),
            round_trip: found.and_then(|found| found.times).map(round_trip),
            asked: recent.asked,
            lost: recent.lost,
        }
    }

    pub(super) fn counters(&self) -> api::Counters {
        let workers = self.workers.counters();
        let totals = Totals::of(workers);
        let values = totals
            .values
            .iter()
            .map(|&(name, _, value)| (name.to_owned(), value));
        let dropped = ("dropped_packets".to_owned(), totals.dropped());
        let (came, went) = workers
            .iter()
            .map(|worker| worker.balance())
            .fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1));
        api::Counters {
            came,
            went,
            values: values.chain([dropped]).collect(),
        }
    }

    pub(super) fn drops(&self) -> Vec<api::Drop> {
        let totals = Totals::of(self.workers.counters());
        let row = |(reason, packets): (&DropReason, u64)| api::Drop {
            reason: reason.name().to_owned(),
            severity: reason.severity().name().to_owned(),
            sentence: reason.sentence().to_owned(),
            packets,
        };
        DropReason::ALL.iter().zip(totals.drops).map(row).collect()
    }

    pub(super) fn status(&self) -> api::Status {
        let own = self.state.own();
        api::Status {
            version: VERSION.to_owned(),
            pid: std::process::id(),
            node: own.name.clone(),
            workers: self.count,
            epoch: self.epoch.0,
            underlay: self.state.uplink().to_vec(),
            mtu: self.state.uplink_mtu(),
            tunnel: own.tunnel.clone(),
            vni: own.vni,
            port: own.port,
            gso: self.workers.gso(),
            gro: self.workers.gro(),
            ipip: self.workers.ipip(),
            ports: self.state.ports().count(),
            peers: self.state.peers().len(),
            ipam: self.source.as_ref().map(|source| api::Ipam {
                socket: source.socket.clone(),
                connected: source.connected,
                revision: source.revision,
            }),
            nodes_file: self.file.as_ref().map(NodesFile::report),
        }
    }
}

fn state(state: State) -> PathState {
    match state {
        State::Unknown => PathState::Unknown,
        State::Searching => PathState::Searching,
        State::Good => PathState::Good,
        State::BlackHole => PathState::BlackHole,
        State::Silent => PathState::Silent,
    }
}

fn round_trip(times: Times) -> api::RoundTrip {
    let micros = |took: Duration| u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
    api::RoundTrip {
        last_us: micros(times.last),
        least_us: micros(times.least),
        mean_us: micros(times.mean),
        jitter_us: micros(times.jitter),
    }
}

fn traffic(counted: &Traffic) -> api::Traffic {
    api::Traffic {
        packets: counted.packets(),
        bytes: counted.bytes(),
    }
}

pub(super) fn over_bandwidth(port: &weft_engine::Port) -> OverBandwidth {
    let refused = |shaper: &Option<Shaper>| shaper.as_ref().map_or(0, Shaper::refused);
    OverBandwidth {
        from_pod: refused(&port.from_pod_shaper),
        to_pod: refused(&port.to_pod_shaper),
    }
}

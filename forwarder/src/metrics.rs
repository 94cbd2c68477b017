//! What a scrape shows: counters summed over the workers when somebody asks,
//! in the OpenMetrics text format. Names carry the prefix `weft_`.

use std::{fmt, sync::Arc};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric, MetricEncoder, text},
    metrics::{MetricType, counter::ConstCounter, gauge::ConstGauge},
    registry::{Registry, Unit},
};
use weft_api::forwarder::Path;
use weft_engine::{Counters, DropReason, counters::Traffic, path::Tally};

mod paths;

pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The sums of every worker's counters, read one after another: exact once
/// traffic rests.
#[derive(Debug, Clone)]
pub struct Totals {
    /// Name, meaning, value.
    pub values: Vec<(&'static str, &'static str, u64)>,
    /// In the order of [`DropReason::ALL`].
    pub drops: Vec<u64>,
}

impl Totals {
    pub fn of(workers: &[Arc<Counters>]) -> Self {
        let mut values: Vec<_> = Counters::default().each().collect();
        for worker in workers {
            for (sum, (_, _, value)) in values.iter_mut().zip(worker.each()) {
                sum.2 += value;
            }
        }
        let dropped = |&reason: &DropReason| workers.iter().map(|w| w.dropped(reason)).sum();
        Self {
            values,
            drops: DropReason::ALL.iter().map(dropped).collect(),
        }
    }

    pub fn dropped(&self) -> u64 {
        self.drops.iter().sum()
    }
}

/// One scrape, complete before it is written.
#[derive(Debug)]
pub struct Scrape {
    pub version: &'static str,
    pub totals: Totals,
    pub ports: Vec<Flow>,
    /// By port with a bandwidth: packets that were too many, from the pod
    /// and to it.
    pub over_bandwidth: Vec<(String, [u64; 2])>,
    pub peers: Vec<Flow>,
    pub paths: Vec<Probed>,
    pub ports_gone: usize,
    pub workers: usize,
    pub epoch: u64,
    pub gso: bool,
    pub gro: bool,
    /// Where an IPAM server is followed: whether it is there, and the
    /// revision of the tables in force.
    pub ipam: Option<(bool, u64)>,
    /// Where the nodes come from a file: whether its newest version is in
    /// force.
    pub nodes_file: Option<bool>,
    /// Where there are policies: how many connections are tracked, and the
    /// edition of the rules.
    pub policy: Option<(u64, u64)>,
}

/// What is known of the path to one peer.
#[derive(Debug)]
pub struct Probed {
    pub peer: String,
    pub path: Path,
    /// All small probes since the beginning.
    pub total: Tally,
}

/// The traffic of one port or peer.
#[derive(Debug)]
pub struct Flow {
    pub name: String,
    /// From the pod, or from the peer.
    pub from: (u64, u64),
    /// To the pod, or to the peer.
    pub to: (u64, u64),
}

impl Flow {
    pub fn new(name: impl ToString, from: &Traffic, to: &Traffic) -> Self {
        let read = |traffic: &Traffic| (traffic.packets(), traffic.bytes());
        Self {
            name: name.to_string(),
            from: read(from),
            to: read(to),
        }
    }
}

impl Scrape {
    pub fn text(self) -> Result<String, fmt::Error> {
        let mut registry = Registry::with_prefix("weft");
        registry.register_collector(Box::new(self));
        let mut out = String::new();
        text::encode(&mut out, &registry)?;
        Ok(out)
    }

    fn gauges(&self) -> Vec<(&'static str, &'static str, u64)> {
        let mut gauges = vec![
            ("ports", "Ports attached.", self.ports.len() as u64),
            (
                "ports_gone",
                "Ports whose link was deleted.",
                self.ports_gone as u64,
            ),
            ("peers", "Other nodes known.", self.peers.len() as u64),
            (
                "workers",
                "Threads that carry packets.",
                self.workers as u64,
            ),
            ("epoch", "Number of the tables in force.", self.epoch),
            (
                "uplink_gso",
                "Whether sends use UDP_SEGMENT.",
                u64::from(self.gso),
            ),
            (
                "uplink_gro",
                "Whether receives use UDP_GRO.",
                u64::from(self.gro),
            ),
        ];
        if let Some((connected, revision)) = self.ipam {
            gauges.push((
                "ipam_connected",
                "Whether the IPAM server is there.",
                u64::from(connected),
            ));
            gauges.push((
                "ipam_revision",
                "The IPAM server's revision that is in force.",
                revision,
            ));
        }
        if let Some(in_force) = self.nodes_file {
            gauges.push((
                "nodes_file_in_force",
                "Whether the nodes file's newest version is in force.",
                u64::from(in_force),
            ));
        }
        if let Some((connections, edition)) = self.policy {
            gauges.push(("connections", "Connections that are tracked.", connections));
            gauges.push(("policy_edition", "Number of the rules in force.", edition));
        }
        gauges
    }
}

impl Collector for Scrape {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let version = [("version", self.version)];
        let help = "The forwarder that answers.";
        encoder
            .encode_descriptor("forwarder", help, None, MetricType::Info)?
            .encode_info(&version.as_slice())?;
        for (name, help, value) in self.gauges() {
            let gauge = ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX));
            gauge.encode(encoder.encode_descriptor(name, help, None, gauge.metric_type())?)?;
        }
        for &(name, help, value) in &self.totals.values {
            let counter = ConstCounter::new(value);
            counter.encode(encoder.encode_descriptor(
                name,
                help,
                None,
                counter.metric_type(),
            )?)?;
        }
        let help = "Packets lost, by reason and how much it should worry.";
        let mut family =
            encoder.encode_descriptor("dropped_packets", help, None, MetricType::Counter)?;
        for (reason, &packets) in DropReason::ALL.iter().zip(&self.totals.drops) {
            let labels = [
                ("reason", reason.name()),
                ("severity", reason.severity().name()),
            ];
            sample(&mut family, &labels, packets)?;
        }
        let help = "Packets of the port beyond its bandwidth, by direction.";
        let mut family =
            encoder.encode_descriptor("port_over_bandwidth", help, None, MetricType::Counter)?;
        for (port, packets) in &self.over_bandwidth {
            for (direction, packets) in ["from_pod", "to_pod"].into_iter().zip(packets) {
                let labels = [("port", port.as_str()), ("direction", direction)];
                sample(&mut family, &labels, *packets)?;
            }
        }
        flows(&mut encoder, "port", ["from_pod", "to_pod"], &self.ports)?;
        flows(&mut encoder, "peer", ["from_peer", "to_peer"], &self.peers)?;
        paths::encode(&mut encoder, &self.paths)
    }
}

fn flows(
    encoder: &mut DescriptorEncoder<'_>,
    what: &str,
    directions: [&str; 2],
    flows: &[Flow],
) -> fmt::Result {
    let name = format!("{what}_packets");
    let help = format!("Packets of the {what} by direction; each segment of a super-frame counts.");
    let mut family = encoder.encode_descriptor(&name, &help, None, MetricType::Counter)?;
    let sides = |flow: &Flow| directions.into_iter().zip([flow.from, flow.to]);
    for flow in flows {
        for (direction, (packets, _)) in sides(flow) {
            let labels = [(what, flow.name.as_str()), ("direction", direction)];
            sample(&mut family, &labels, packets)?;
        }
    }
    let name = format!("{what}_traffic");
    let help = format!("Bytes of the {what}'s inner Ethernet frames by direction.");
    let unit = Some(&Unit::Bytes);
    let mut family = encoder.encode_descriptor(&name, &help, unit, MetricType::Counter)?;
    for flow in flows {
        for (direction, (_, bytes)) in sides(flow) {
            let labels = [(what, flow.name.as_str()), ("direction", direction)];
            sample(&mut family, &labels, bytes)?;
        }
    }
    Ok(())
}

fn sample(family: &mut MetricEncoder<'_>, labels: &[(&str, &str)], value: u64) -> fmt::Result {
    let counter = ConstCounter::new(value);
    counter.encode(family.encode_family(&labels)?)
}

#[cfg(test)]
mod tests {
    use weft_api::forwarder::{PathState, RoundTrip};

    use super::*;

    fn scrape() -> Scrape {
        let workers = [Arc::new(Counters::default()), Arc::new(Counters::default())];
        for (worker, packets) in workers.iter().zip([3, 4]) {
            worker.received_from_ports.add(packets);
            worker.lose(DropReason::NoRoute, 1);
        }
        let (from, to) = (Traffic::default(), Traffic::default());
        from.add(5, 600);
        Scrape {
            version: "9.9.9",
            totals: Totals::of(&workers),
            ports: vec![Flow::new("n1p1", &from, &to)],
            over_bandwidth: vec![("n1p1".to_owned(), [0, 17])],
            peers: vec![Flow::new("n2", &to, &from)],
            paths: vec![Probed {
                peer: "n2".to_owned(),
                path: Path {
                    state: PathState::BlackHole,
                    mtu: 1400,
                    inner_mtu: 1350,
                    round_trip: Some(RoundTrip {
                        mean_us: 1500,
                        ..RoundTrip::default()
                    }),
                    ..Path::default()
                },
                total: Tally { asked: 9, lost: 2 },
            }],
            ports_gone: 0,
            workers: 2,
            epoch: 8,
            gso: true,
            gro: false,
            ipam: Some((true, 17)),
            nodes_file: Some(false),
            policy: Some((12, 3)),
        }
    }

    #[test]
    fn workers_add_up() {
        let totals = scrape().totals;
        let value = |name| {
            totals
                .values
                .iter()
                .find(|(n, _, _)| *n == name)
                .map(|v| v.2)
        };
        assert_eq!(value("received_from_ports"), Some(7));
        assert_eq!(value("sent_to_ports"), Some(0));
        assert_eq!(totals.dropped(), 2);
    }

    #[test]
    fn the_text_holds_every_counter_and_reason() {
        let text = scrape().text().expect("a string takes any text");
        for line in [
            "weft_forwarder_info{version=\"9.9.9\"} 1",
            "weft_connections 12",
            "# TYPE weft_received_from_ports counter",
            "# HELP weft_received_from_ports Packets that pods and the node sent.",
            "weft_received_from_ports_total 7",
            "weft_dropped_packets_total{reason=\"no_route\",severity=\"normal\"} 2",
            "weft_port_packets_total{port=\"n1p1\",direction=\"from_pod\"} 5",
            "weft_port_traffic_bytes_total{port=\"n1p1\",direction=\"from_pod\"} 600",
            "weft_port_over_bandwidth_total{port=\"n1p1\",direction=\"to_pod\"} 17",
            "weft_peer_packets_total{peer=\"n2\",direction=\"to_peer\"} 5",
            "weft_peer_packets_total{peer=\"n2\",direction=\"from_peer\"} 0",
            "weft_peer_path_mtu_bytes{peer=\"n2\"} 1400",
            "weft_peer_path_state{peer=\"n2\",state=\"black_hole\"} 1",
            "weft_peer_path_state{peer=\"n2\",state=\"good\"} 0",
            "weft_peer_round_trip_seconds{peer=\"n2\",statistic=\"mean\"} 0.0015",
            "weft_peer_probes_total{peer=\"n2\",result=\"answered\"} 7",
            "weft_peer_probes_total{peer=\"n2\",result=\"lost\"} 2",
            "weft_epoch 8",
            "weft_uplink_gso 1",
            "weft_uplink_gro 0",
            "weft_ipam_connected 1",
            "weft_ipam_revision 17",
            "weft_nodes_file_in_force 0",
            "# EOF",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is not in:\n{text}");
        }
        for reason in DropReason::ALL {
            assert!(text.contains(&format!("reason=\"{}\"", reason.name())));
        }
    }
}

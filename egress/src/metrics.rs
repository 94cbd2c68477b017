//! Counters, and the page that shows them, in the OpenMetrics text format.

use std::{
    fmt,
    io::{self, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    thread,
    time::Duration,
};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric, text},
    metrics::{counter::ConstCounter, gauge::ConstGauge},
    registry::Registry,
};

macro_rules! counters {
    ($($name:ident: $meaning:literal,)+) => {
        /// What happened, each since the start.
        #[derive(Debug, Default)]
        pub struct Counters {
            /// Flows that are open now.
            pub flows: AtomicU64,
            /// Places on the node that are served for pods' ports,
            pub published: AtomicU64,
            /// and those that cannot be.
            pub unpublished: AtomicU64,
            $(#[doc = $meaning] pub $name: Counter,)+
        }

        impl Counters {
            /// Name, meaning and value of each.
            pub fn each(&self) -> impl Iterator<Item = (&'static str, &'static str, u64)> {
                [$((stringify!($name), $meaning, self.$name.value()),)+].into_iter()
            }
        }
    };
}

counters! {
    frames_from_pods: "Frames that the forwarder handed over.",
    tcp_opened: "TCP connections that were opened outside.",
    tcp_refused: "TCP connections that outside refused.",
    tcp_unreachable: "TCP connections for which there was no way.",
    tcp_timed_out: "TCP connections that outside did not answer in time.",
    tcp_accepted: "TCP connections that came by published ports.",
    tcp_reset_by_pods: "TCP connections that a pod reset.",
    tcp_reset_by_outside: "TCP connections that outside reset.",
    tcp_unknown: "TCP packets of no connection, answered by a reset.",
    tcp_bytes_to_outside: "Bytes that pods' connections carried to outside.",
    tcp_bytes_to_pods: "Bytes that pods' connections carried to pods.",
    udp_opened: "UDP flows that were opened.",
    udp_accepted: "UDP flows that came by published ports.",
    echo_opened: "Flows of ICMP echo that were opened.",
    datagrams_to_outside: "Datagrams and pings that were sent outside.",
    datagrams_to_pods: "Datagrams and answers to pings that went to pods.",
    errors_to_pods: "ICMP errors from outside that pods were told.",
    flows_idle: "Flows of datagrams that ended for want of use.",
    flows_orphaned: "Flows that ended because their pod, or its published port, is gone.",
    flows_evicted: "Flows of datagrams that ended to make room for others.",
    refused_limit: "Flows refused because the pod, or all pods, have as many as they may.",
    refused_pace: "Datagrams lost because opening flows for them took more than their pod's share of time.",
    refused_forbidden: "Flows refused because they lead into the node or to no host.",
    refused_descriptors: "Flows refused because the kernel gave no socket.",
    refused_echo: "Pings lost because this user may open no ping sockets (net.ipv4.ping_group_range).",
    dropped_malformed: "Frames from the forwarder that are no whole packet.",
    dropped_checksum: "Packets with a wrong checksum.",
    packets_joined: "Packets that were put together from fragments.",
    dropped_fragments: "Fragments of packets that did not become whole, or whose parts overlap.",
    dropped_protocol: "Packets of a protocol that sockets do not carry.",
    dropped_outside: "Datagrams that the kernel did not take to send outside.",
    dropped_link: "Datagrams and answers that the forwarder did not take in time.",
}

#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    pub fn add(&self, number: u64) {
        self.0.fetch_add(number, Relaxed);
    }

    pub fn value(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

#[derive(Debug)]
struct Page(Arc<Counters>);

impl Collector for Page {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        for (name, meaning, value) in [
            ("flows", "Flows that are open.", &self.0.flows),
            (
                "published",
                "Addresses and ports of the node that lead to pods.",
                &self.0.published,
            ),
            (
                "unpublished",
                "Addresses and ports of the node that should lead to pods and cannot.",
                &self.0.unpublished,
            ),
        ] {
            let gauge = ConstGauge::new(i64::try_from(value.load(Relaxed)).unwrap_or(i64::MAX));
            let kind = gauge.metric_type();
            gauge.encode(encoder.encode_descriptor(name, meaning, None, kind)?)?;
        }
        for (name, meaning, value) in self.0.each() {
            let counter = ConstCounter::new(value);
            counter.encode(encoder.encode_descriptor(
                name,
                meaning,
                None,
                counter.metric_type(),
            )?)?;
        }
        Ok(())
    }
}

pub fn page(counters: &Arc<Counters>) -> Result<String, fmt::Error> {
    let mut registry = Registry::with_prefix("weft_egress");
    registry.register_collector(Box::new(Page(Arc::clone(counters))));
    let mut out = String::new();
    text::encode(&mut out, &registry)?;
    Ok(out)
}

/// How long a visitor may take for each of its steps.
const PATIENCE: Duration = Duration::from_secs(5);

/// Serves `/metrics` from a thread of its own, one visitor after another.
pub fn serve(address: SocketAddr, counters: Arc<Counters>) -> io::Result<()> {
    let listener = TcpListener::bind(address)?;
    let serve = move || {
        for visitor in listener.incoming() {
            let answered = visitor.and_then(|visitor| answer(visitor, &counters));
            if let Err(error) = answered {
                tracing::debug!("a visitor of the metrics: {error}");
                thread::sleep(Duration::from_millis(1));
            }
        }
    };
    thread::Builder::new()
        .name("weft-metrics".to_owned())
        .spawn(serve)?;
    Ok(())
}

fn answer(mut visitor: TcpStream, counters: &Arc<Counters>) -> io::Result<()> {
    visitor.set_read_timeout(Some(PATIENCE))?;
    visitor.set_write_timeout(Some(PATIENCE))?;
    let mut head = [0; 4096];
    let read = visitor.read(&mut head)?;
    let (status, body) = match &head[..read] {
        asked if asked.starts_with(b"GET /metrics") => {
            ("200 OK", page(counters).map_err(io::Error::other)?)
        }
        asked if asked.starts_with(b"GET /healthz") => ("200 OK", "ok\n".to_owned()),
        _ => (
            "404 Not Found",
            "here are /metrics and /healthz\n".to_owned(),
        ),
    };
    let length = body.len();
    write!(
        visitor,
        "HTTP/1.1 {status}\r\nContent-Type: application/openmetrics-text; version=1.0.0; \
         charset=utf-8\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_shows_every_counter() {
        let counters = Arc::new(Counters::default());
        counters.tcp_opened.add(7);
        let page = page(&counters).expect("a string takes any text");
        assert!(
            page.contains("\nweft_egress_tcp_opened_total 7\n"),
            "{page}"
        );
        for (name, meaning, _) in counters.each() {
            assert!(
                page.contains(&format!("# HELP weft_egress_{name} {meaning}\n")),
                "{name}"
            );
        }
    }
}

//! The flow log in the words of the control protocol.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use weft_api::forwarder::{Code, Error, FlowEnd, Flows, LoggedFlow};
use weft_conntrack::Tracker;
use weft_engine::flow_log::Record;
use weft_policy::object::Pod;
use weft_wire::{Key, protocol};

use super::{Feeds, told};
use crate::publish::refusal;

/// Two clocks, read at one moment.
#[derive(Debug, Clone, Copy)]
pub struct Moment {
    pub steady: Instant,
    pub wall: SystemTime,
}

impl Feeds {
    /// Turns the log on, or goes on with it after the record `after`.
    pub fn flows(&self, after: Option<u64>, now: Moment) -> Result<Flows, Error> {
        self.tracked("flows")?;
        let page = self.log.read(after, now.steady).ok_or_else(|| {
            let message = "flows: the log has ended, since nobody read it";
            refusal(Code::NotFound, message, "begin again, without `after`")
        })?;
        let flow = |record: &Record| logged(record, now);
        Ok(Flows {
            next: page.next,
            lost: page.lost,
            flows: page.records.iter().map(flow).collect(),
        })
    }

    /// The connections, if there are rules; `who` is refused otherwise.
    pub(super) fn tracked(&self, who: &str) -> Result<&Tracker, Error> {
        self.tracker.as_deref().ok_or_else(|| {
            let message = format!("{who}: there are no rules, so no connection is tracked");
            let hint = "give policies, or none by `policies` with no objects";
            refusal(Code::NotFound, message, hint)
        })
    }
}

fn logged(record: &Record, now: Moment) -> LoggedFlow {
    let Record {
        key,
        source,
        destination,
        ..
    } = record;
    let (from, to) = ends(key, source.as_deref(), destination.as_deref());
    let age = now.steady.saturating_duration_since(record.at);
    let since = now.wall.duration_since(UNIX_EPOCH).unwrap_or_default();
    let time = since.saturating_sub(age).as_millis();
    LoggedFlow {
        time_ms: u64::try_from(time).unwrap_or(u64::MAX),
        verdict: if record.allowed() {
            "allowed"
        } else {
            "denied"
        }
        .to_owned(),
        protocol: named(key.protocol),
        from,
        to,
        egress: record.egress.as_ref().map(told::decision),
        ingress: record.ingress.as_ref().map(told::decision),
        edition: record.edition,
        packets: record.packets,
    }
}

pub fn verdict(allowed: bool) -> String {
    if allowed { "allowed" } else { "denied" }.to_owned()
}

pub fn ends(key: &Key, source: Option<&Pod>, destination: Option<&Pod>) -> (FlowEnd, FlowEnd) {
    let has_ports = [protocol::TCP, protocol::UDP, protocol::SCTP].contains(&key.protocol);
    let end = |address, port, pod: Option<&Pod>| FlowEnd {
        address,
        port: has_ports.then_some(port),
        pod: pod.map(|pod| pod.name.to_string()),
    };
    let from = end(key.src, key.src_port, source);
    (from, end(key.dst, key.dst_port, destination))
}

pub fn named(number: u8) -> String {
    match number {
        protocol::TCP => "tcp".to_owned(),
        protocol::UDP => "udp".to_owned(),
        protocol::SCTP => "sctp".to_owned(),
        protocol::ICMP => "icmp".to_owned(),
        protocol::ICMPV6 => "icmpv6".to_owned(),
        other => other.to_string(),
    }
}

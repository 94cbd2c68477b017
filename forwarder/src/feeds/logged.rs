//! The flow log in the words of the control protocol.

use std::{
    net::IpAddr,
    time::{Instant, SystemTime, UNIX_EPOCH},
};

use weft_api::forwarder::{Code, Error, FlowEnd, Flows, LoggedFlow};
use weft_engine::flow_log::Record;
use weft_policy::object::Pod;
use weft_wire::protocol;

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
        if self.tracker.is_none() {
            let message = "flows: there are no rules, so no connection is tracked";
            let hint = "give policies, or none by `policies` with no objects";
            return Err(refusal(Code::NotFound, message, hint));
        }
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
}

fn logged(record: &Record, now: Moment) -> LoggedFlow {
    let Record {
        key,
        source,
        destination,
        ..
    } = record;
    let has_ports = [protocol::TCP, protocol::UDP, protocol::SCTP].contains(&key.protocol);
    let end = |address: IpAddr, port, pod: Option<&Pod>| FlowEnd {
        address,
        port: has_ports.then_some(port),
        pod: pod.map(|pod| pod.name.to_string()),
    };
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
        from: end(key.src, key.src_port, source.as_deref()),
        to: end(key.dst, key.dst_port, destination.as_deref()),
        egress: record.egress.as_ref().map(told::decision),
        ingress: record.ingress.as_ref().map(told::decision),
        edition: record.edition,
        packets: record.packets,
    }
}

fn named(number: u8) -> String {
    match number {
        protocol::TCP => "tcp".to_owned(),
        protocol::UDP => "udp".to_owned(),
        protocol::SCTP => "sctp".to_owned(),
        protocol::ICMP => "icmp".to_owned(),
        protocol::ICMPV6 => "icmpv6".to_owned(),
        other => other.to_string(),
    }
}

//! The paths to peers in a scrape.

use std::fmt;

use prometheus_client::{
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::{MetricType, gauge::ConstGauge},
    registry::Unit,
};
use weft_api::forwarder::PathState;

use super::{Probed, sample};

pub(super) fn encode(encoder: &mut DescriptorEncoder<'_>, paths: &[Probed]) -> fmt::Result {
    mtus(encoder, paths)?;
    states(encoder, paths)?;
    round_trips(encoder, paths)?;
    let help = "Small probes of the peer by what became of them.";
    let mut family = encoder.encode_descriptor("peer_probes", help, None, MetricType::Counter)?;
    for Probed { peer, total, .. } in paths {
        let answered = total.asked.saturating_sub(total.lost);
        for (result, count) in [("answered", answered), ("lost", total.lost)] {
            let labels = [("peer", peer.as_str()), ("result", result)];
            sample(&mut family, &labels, count)?;
        }
    }
    Ok(())
}

fn mtus(encoder: &mut DescriptorEncoder<'_>, paths: &[Probed]) -> fmt::Result {
    let help = "Bytes of the largest outer packet that goes to the peer.";
    let unit = Some(&Unit::Bytes);
    let mut family = encoder.encode_descriptor("peer_path_mtu", help, unit, MetricType::Gauge)?;
    for Probed { peer, path, .. } in paths {
        let gauge = ConstGauge::new(i64::from(path.mtu));
        gauge.encode(family.encode_family(&[("peer", peer.as_str())])?)?;
    }
    Ok(())
}

fn states(encoder: &mut DescriptorEncoder<'_>, paths: &[Probed]) -> fmt::Result {
    let help = "What is known of the path to the peer: 1 for the state that it is in.";
    let mut family = encoder.encode_descriptor("peer_path_state", help, None, MetricType::Gauge)?;
    for Probed { peer, path, .. } in paths {
        for state in PathState::ALL {
            let labels = [("peer", peer.as_str()), ("state", state.name())];
            let gauge = ConstGauge::new(i64::from(path.state == state));
            gauge.encode(family.encode_family(&labels)?)?;
        }
    }
    Ok(())
}

fn round_trips(encoder: &mut DescriptorEncoder<'_>, paths: &[Probed]) -> fmt::Result {
    let help = "How long the peer's last answers took.";
    let unit = Some(&Unit::Seconds);
    let mut family = encoder.encode_descriptor("peer_round_trip", help, unit, MetricType::Gauge)?;
    for Probed { peer, path, .. } in paths {
        let Some(took) = path.round_trip else {
            continue;
        };
        for (statistic, micros) in [
            ("last", took.last_us),
            ("least", took.least_us),
            ("mean", took.mean_us),
            ("jitter", took.jitter_us),
        ] {
            let labels = [("peer", peer.as_str()), ("statistic", statistic)];
            let gauge = ConstGauge::new(micros as f64 / 1e6);
            gauge.encode(family.encode_family(&labels)?)?;
        }
    }
    Ok(())
}

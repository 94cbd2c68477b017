//! Weft beside the kernel: each kind of load on both in turn, so that both
//! meet the same mood of the machine.

use std::time::Duration;

use anyhow::Context;
use serde::Serialize;
use weft_api::forwarder::{Drop, Reply, Request};

use crate::{Kind, Lab, Pod, Spec, probe::Family, stop, traffic};

/// The labs that are compared. A lab that did not come up says why.
#[derive(Debug)]
pub struct Labs {
    spec: Spec,
    /// What TCP loads run under, where it is not the system's.
    congestion: Option<String>,
    with_offload: [anyhow::Result<Lab>; 2],
    /// Where there is an underlay.
    without_offload: Option<[anyhow::Result<Lab>; 2]>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Load {
    Tcp,
    SmallUdp,
    RoundTripP50,
    RoundTripP99,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Way {
    SameNode,
    AcrossNodes,
    AcrossNodesWithoutTunnelOffload,
}

#[derive(Debug, Serialize)]
pub struct Speed {
    pub load: Load,
    pub way: Way,
    pub unit: &'static str,
    pub weft: Side,
    pub kernel: Side,
    /// Weft's figure by the kernel's.
    pub ratio: Option<Ratio>,
}

/// Over the rounds, each of which measures one side right after the other.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Ratio {
    pub median: f64,
    pub low: f64,
    pub high: f64,
}

/// What one side reached, or why it was not measured.
#[derive(Debug, Default, Serialize)]
pub struct Side {
    pub mean: Option<f64>,
    pub rounds: Vec<f64>,
    pub error: Option<String>,
}

impl Labs {
    pub fn new(
        spec: &Spec,
        congestion: Option<String>,
        weft: Lab,
        kernel: anyhow::Result<Lab>,
    ) -> anyhow::Result<Self> {
        let without = |kind| {
            Lab::up(&Spec {
                kind,
                underlay_offload: false,
                ..spec.clone()
            })
        };
        Ok(Self {
            spec: spec.clone(),
            congestion,
            with_offload: [Ok(weft), kernel],
            without_offload: (spec.nodes > 1).then(|| [Kind::Weft, Kind::Kernel].map(without)),
        })
    }

    /// How many steps [`Labs::measure`] takes.
    pub fn steps(&self, rounds: u32) -> u64 {
        self.plan().len() as u64 * u64::from(2 * rounds)
    }

    /// Measures every load on every way, `duration` in all on each side, and
    /// tells of each step before it takes it.
    pub fn measure(
        &self,
        rounds: u32,
        duration: Duration,
        mut step: impl FnMut(String),
    ) -> anyhow::Result<Vec<Speed>> {
        let mut speeds = Vec::new();
        let congestion = self.congestion.as_deref();
        for (load, way) in self.plan() {
            let mut sides = [Side::default(), Side::default()];
            for _ in 0..rounds {
                for ((side, lab), name) in
                    sides.iter_mut().zip(self.of(way)).zip(["weft", "kernel"])
                {
                    step(format!("{} {}: {name}", load.name(), way.name()));
                    side.take(lab.as_ref().map_or_else(
                        |error| Err(anyhow::anyhow!("{error:#}")),
                        |lab| load.run(lab, way, congestion, duration / rounds),
                    ));
                    stop::check()?;
                }
            }
            speeds.push(Speed::new(load, way, sides.map(Side::sum_up)));
        }
        Ok(speeds)
    }

    fn plan(&self) -> Vec<(Load, Way)> {
        let loads = [
            Load::Tcp,
            Load::SmallUdp,
            Load::RoundTripP50,
            Load::RoundTripP99,
        ];
        let ways = [
            Way::SameNode,
            Way::AcrossNodes,
            Way::AcrossNodesWithoutTunnelOffload,
        ];
        let mut plan = Vec::new();
        for load in loads {
            plan.extend(ways.map(|way| (load, way)));
        }
        plan.retain(|(load, way)| match way {
            Way::SameNode => self.spec.pods > 1,
            Way::AcrossNodes => self.spec.nodes > 1,
            // A lone small datagram is not segmented anyway.
            Way::AcrossNodesWithoutTunnelOffload => {
                self.spec.nodes > 1 && !matches!(load, Load::RoundTripP50 | Load::RoundTripP99)
            }
        });
        plan
    }

    fn of(&self, way: Way) -> &[anyhow::Result<Lab>; 2] {
        match (&self.without_offload, way) {
            (Some(labs), Way::AcrossNodesWithoutTunnelOffload) => labs,
            _ => &self.with_offload,
        }
    }

    /// What the forwarders of the lab with all offloads dropped, by node.
    pub fn drops(&self) -> anyhow::Result<Vec<(String, Vec<Drop>)>> {
        let mut drops = Vec::new();
        let nodes = self.with_offload[0]
            .as_ref()
            .map_or(&[][..], |lab| &lab.nodes[..]);
        for node in nodes {
            let Some(forwarder) = &node.forwarder else {
                continue;
            };
            let reply = forwarder.client()?.request(&Request::Drops)?;
            if let Reply::Drops(mut of_node) = reply {
                of_node.retain(|drop| drop.packets > 0);
                drops.push((node.plan.name.clone(), of_node));
            }
        }
        Ok(drops)
    }
}

impl Load {
    fn run(
        self,
        lab: &Lab,
        way: Way,
        congestion: Option<&str>,
        duration: Duration,
    ) -> anyhow::Result<f64> {
        let (from, to) = way.ends(lab)?;
        let family = Family::V4;
        Ok(match self {
            Self::Tcp => traffic::stream(from, to, family, congestion, duration)?.gbit_per_second(),
            Self::SmallUdp => traffic::flood(from, to, family, duration)?.kpps(),
            Self::RoundTripP50 => traffic::round_trips(from, to, family, duration)?.p50_us,
            Self::RoundTripP99 => traffic::round_trips(from, to, family, duration)?.p99_us,
        })
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::Tcp => "TCP",
            Self::SmallUdp => "64 B UDP",
            Self::RoundTripP50 => "round trip p50",
            Self::RoundTripP99 => "round trip p99",
        }
    }

    fn unit(self) -> &'static str {
        match self {
            Self::Tcp => "Gbit/s",
            Self::SmallUdp => "kpps",
            Self::RoundTripP50 | Self::RoundTripP99 => "µs",
        }
    }
}

impl Way {
    fn ends(self, lab: &Lab) -> anyhow::Result<(&Pod, &Pod)> {
        let other = if self == Self::SameNode {
            "n1p2"
        } else {
            "n2p1"
        };
        let pod = |name| {
            lab.pod(name)
                .with_context(|| format!("the lab has no pod {name}"))
        };
        Ok((pod("n1p1")?, pod(other)?))
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::SameNode => "same node",
            Self::AcrossNodes => "across nodes",
            Self::AcrossNodesWithoutTunnelOffload => "across nodes, no tunnel offload",
        }
    }
}

impl Speed {
    fn new(load: Load, way: Way, [weft, kernel]: [Side; 2]) -> Self {
        let ratio = Ratio::of(&weft.rounds, &kernel.rounds);
        Self {
            load,
            way,
            unit: load.unit(),
            weft,
            kernel,
            ratio,
        }
    }
}

impl Ratio {
    fn of(weft: &[f64], kernel: &[f64]) -> Option<Self> {
        let mut ratios: Vec<_> = weft.iter().zip(kernel).map(|(w, k)| w / k).collect();
        ratios.sort_by(f64::total_cmp);
        let (&low, &high) = ratios.first().zip(ratios.last())?;
        let half = ratios.len() / 2;
        let median = (ratios[half] + ratios[(ratios.len() - 1) / 2]) / 2.0;
        Some(Self { median, low, high })
    }
}

impl Side {
    fn take(&mut self, reached: anyhow::Result<f64>) {
        match reached {
            Ok(speed) => self.rounds.push(speed),
            Err(error) => self.error = Some(format!("{error:#}")),
        }
    }

    fn sum_up(self) -> Self {
        let count = self.rounds.len();
        let mean = (count > 0).then(|| self.rounds.iter().sum::<f64>() / count as f64);
        Self { mean, ..self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ratio_is_the_middle_of_its_rounds() {
        let ratio = Ratio::of(&[2.0, 9.0, 4.0], &[1.0, 3.0, 1.0]);
        let expected = Ratio {
            median: 3.0,
            low: 2.0,
            high: 4.0,
        };
        assert_eq!(ratio, Some(expected));
        let even = Ratio::of(&[1.0, 3.0], &[1.0, 1.0]).expect("two rounds");
        assert_eq!(even.median, 2.0);
        assert_eq!(Ratio::of(&[], &[]), None);
    }
}

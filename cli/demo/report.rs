//! What the demo found, for people and for programs.

use std::time::Duration;

use comfy_table::{Cell, CellAlignment, Table};
use nix::sys::utsname::uname;
use serde::Serialize;
use weft_api::forwarder::Drop;
use weft_lab::{
    Pod, Spec,
    compare::{Side, Speed},
    probe::{Family, Probe},
};

use crate::output::{counted, lines, table};

#[derive(Debug, Serialize)]
pub struct Report {
    pub weft: &'static str,
    pub kernel: String,
    pub processors: usize,
    pub lab: Spec,
    pub asked: usize,
    pub answered: usize,
    pub probes: Vec<Asked>,
    pub speeds: Vec<Speed>,
    /// By node: what its forwarder dropped during all of it.
    pub drops: Vec<Dropped>,
}

#[derive(Debug, Serialize)]
pub struct Asked {
    pub from: String,
    pub to: String,
    pub family: Family,
    pub probe: Probe,
    pub micros: Option<f64>,
    pub error: Option<String>,
}

#[derive(Debug, Serialize)]
pub struct Dropped {
    pub node: String,
    pub drops: Vec<Drop>,
}

impl Report {
    pub fn new(
        lab: Spec,
        probes: Vec<Asked>,
        speeds: Vec<Speed>,
        drops: Vec<(String, Vec<Drop>)>,
    ) -> anyhow::Result<Self> {
        let drops = drops
            .into_iter()
            .map(|(node, drops)| Dropped { node, drops });
        Ok(Self {
            weft: env!("CARGO_PKG_VERSION"),
            kernel: uname()?.release().to_string_lossy().into_owned(),
            processors: std::thread::available_parallelism()?.get(),
            lab,
            asked: probes.len(),
            answered: probes.iter().filter(|asked| asked.error.is_none()).count(),
            probes,
            speeds,
            drops: drops.collect(),
        })
    }

    /// Every answer came, and weft was measured at everything.
    pub fn is_good(&self) -> bool {
        self.answered == self.asked && self.speeds.iter().all(|speed| speed.weft.error.is_none())
    }
}

impl Asked {
    pub fn new(
        from: &Pod,
        to: &Pod,
        family: Family,
        probe: Probe,
        answer: anyhow::Result<Duration>,
    ) -> Self {
        Self {
            from: from.name().to_owned(),
            to: to.name().to_owned(),
            family,
            probe,
            micros: answer.as_ref().ok().map(|time| time.as_secs_f64() * 1e6),
            error: answer.err().map(|error| format!("{error:#}")),
        }
    }
}

impl Report {
    pub fn page(&self) -> String {
        let Spec {
            nodes, pods, mtu, ..
        } = self.lab;
        let mut page = format!(
            "weft {} on Linux {}, {}: {} of {}, underlay MTU {mtu}\n{} of {} between pods answered\n",
            self.weft,
            self.kernel,
            counted(self.processors, "processor"),
            counted(nodes, "node"),
            counted(pods, "pod"),
            self.answered,
            counted(self.asked, "question"),
        );
        for error in self.probes.iter().filter_map(|asked| asked.error.as_ref()) {
            page += &format!("  {error}\n");
        }
        if self.answered < self.asked {
            page += &self.losses();
        }
        page += &format!("\n{}", lines(&speeds(&self.speeds)));
        let mut reasons: Vec<_> = self.speeds.iter().flat_map(reasons).collect();
        reasons.dedup();
        reasons
            .iter()
            .fold(page, |page, reason| page + reason + "\n")
    }

    fn losses(&self) -> String {
        let of_node = |Dropped { node, drops }: &Dropped| {
            let line =
                |drop: &Drop| format!("  {node} dropped {}: {}\n", drop.packets, drop.sentence);
            drops.iter().map(line).collect::<String>()
        };
        self.drops.iter().map(of_node).collect()
    }
}

fn speeds(speeds: &[Speed]) -> Table {
    let right = |text: String| Cell::new(text).set_alignment(CellAlignment::Right);
    let heads = ["load", "path", "weft", "kernel", "unit", "weft / kernel"];
    let mut table = table(&heads);
    for speed in speeds {
        let ratio = speed
            .ratio
            .map_or("—".to_owned(), |ratio| format!("{:.2}", ratio.median));
        table.add_row([
            Cell::new(speed.load.name()),
            Cell::new(speed.way.name()),
            right(figure(&speed.weft)),
            right(figure(&speed.kernel)),
            Cell::new(speed.unit),
            right(ratio),
        ]);
    }
    table
}

fn figure(side: &Side) -> String {
    match side.mean {
        Some(mean) if mean < 100.0 => format!("{mean:.2}"),
        Some(mean) => format!("{mean:.0}"),
        None => "—".to_owned(),
    }
}

/// Why a side was not measured, once.
fn reasons(speed: &Speed) -> Vec<String> {
    let told = |(name, side): (&str, &Side)| {
        side.error
            .as_ref()
            .map(|error| format!("{name} not measured: {error}"))
    };
    [("weft", &speed.weft), ("kernel", &speed.kernel)]
        .into_iter()
        .filter_map(told)
        .collect()
}

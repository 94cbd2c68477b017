//! `weft demo`: a lab, every pod asked by every pod, and the speed beside
//! the kernel's own.

mod report;

use std::{io::IsTerminal, process::ExitCode, time::Duration};

use anyhow::ensure;
use indicatif::{ProgressBar, ProgressStyle};
use weft_lab::{
    Kind, Lab, Pod, Spec,
    compare::Labs,
    probe::{Family, Probe},
    stop, userns,
};

use crate::{
    lab::AttachBy,
    output::{show, show_json},
};
use report::{Asked, Report};

/// Weft, kernel, weft, kernel.
const ROUNDS: u32 = 2;

/// Bring up a throw-away lab, check it and measure it.
///
/// Every pod asks every other, by IPv4 and IPv6: ping, TCP, UDP, a datagram
/// that fills the MTU and one that has to be cut. Then TCP, small datagrams
/// and round trips are measured, on weft and on the kernel's own bridge and
/// VXLAN in turn. Exits with 0 only if every answer came.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Nodes of the lab.
    #[arg(long, default_value_t = 2)]
    nodes: usize,
    /// Pods on each node.
    #[arg(long, default_value_t = 2)]
    pods: usize,
    /// How pods are attached.
    #[arg(long, value_enum, default_value_t)]
    attach: AttachBy,
    /// How long each line of the table is measured on each side.
    #[arg(long, default_value_t = 3.0)]
    seconds: f64,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let Args {
        nodes,
        pods,
        attach,
        seconds,
        json,
    } = args;
    ensure!(
        seconds > 0.0 && seconds <= 3600.0,
        "{seconds} seconds: measure for more than 0 and at most 3600"
    );
    ensure!(
        nodes.saturating_mul(pods) != 1,
        "one pod has nobody to ask: give at least 2 pods in all, as --nodes 2 or --pods 2"
    );
    if userns::needed()? {
        userns::enter()?;
    }
    stop::on_signal()?;
    let spec = Spec {
        name: "demo".to_owned(),
        nodes,
        pods,
        attach: attach.into(),
        ..Spec::default()
    };
    let report = match observe(spec, Duration::from_secs_f64(seconds)) {
        Err(_) if stop::requested() => {
            eprintln!("weft: interrupted; the lab is down");
            // As shells count it: 128 + SIGINT.
            return Ok(ExitCode::from(130));
        }
        report => report?,
    };
    if json {
        show_json(&report)?;
    } else {
        show(&report.page())?;
    }
    Ok(if report.is_good() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn observe(spec: Spec, duration: Duration) -> anyhow::Result<Report> {
    let progress = progress_bar();
    progress.set_message("bringing up the lab");
    let weft = Lab::up(&spec)?;
    let kernel = Lab::up(&Spec {
        kind: Kind::Kernel,
        ..spec.clone()
    });
    let probes = ask_all(&weft, &progress)?;
    let labs = Labs::new(&spec, None, weft, kernel)?;
    progress.set_position(0);
    progress.set_length(labs.steps(ROUNDS));
    let speeds = labs.measure(ROUNDS, duration, |step| {
        progress.set_message(step);
        progress.inc(1);
    })?;
    progress.finish_and_clear();
    Report::new(spec, probes, speeds, labs.drops()?)
}

fn ask_all(lab: &Lab, progress: &ProgressBar) -> anyhow::Result<Vec<Asked>> {
    let pairs = pairs(lab);
    let questions = pairs.len() * Family::ALL.len() * Probe::ALL.len();
    progress.set_length(u64::try_from(questions)?);
    let mut asked = Vec::with_capacity(questions);
    for (from, to) in pairs {
        progress.set_message(format!("{} asks {}", from.name(), to.name()));
        for family in Family::ALL {
            for probe in Probe::ALL {
                let answer = probe.run(from, to, family, lab.spec.pod_mtu());
                stop::check()?;
                asked.push(Asked::new(from, to, family, probe, answer));
                progress.inc(1);
            }
        }
    }
    Ok(asked)
}

fn pairs(lab: &Lab) -> Vec<(&Pod, &Pod)> {
    let mut pairs = Vec::new();
    for from in &lab.pods {
        pairs.extend(
            lab.pods
                .iter()
                .filter(|to| to.name() != from.name())
                .map(|to| (from, to)),
        );
    }
    pairs
}

/// Shown on a terminal only.
fn progress_bar() -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{bar:32} {pos}/{len} {msg}");
    let bar = ProgressBar::new(1);
    match style {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

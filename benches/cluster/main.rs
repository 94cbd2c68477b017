//! A large cluster, as its forwarders see it:
//!
//! ```console
//! $ cargo bench --bench cluster -- --nodes 1000 --routes 10000
//! ```
//!
//! `join`: nodes register with IPAM servers on one real etcd, all at once, and
//! claim a block each; real forwarders watch. `routes`: one route after the
//! other of a forwarder changes, by `apply` and by watch, while another flow
//! passes. The tables are Markdown, ready for `docs/numbers.md`.

mod join;
mod routes;

use std::{fs, time::Duration};

use clap::{Parser, ValueEnum};
use weft_lab::use_executable;

#[derive(Debug, Parser)]
pub struct Arguments {
    /// What to measure; without it, both.
    #[arg(long, value_enum)]
    only: Option<Part>,
    /// How many nodes join.
    #[arg(long, default_value_t = 1000)]
    nodes: u16,
    /// How many IPAM servers they join through.
    #[arg(long, default_value_t = 20)]
    servers: usize,
    /// How many forwarders watch.
    #[arg(long, default_value_t = 4)]
    forwarders: u8,
    /// How many routes a forwarder holds.
    #[arg(long, default_value_t = 10_000)]
    routes: u32,
    /// How often a route changes, by each way.
    #[arg(long, default_value_t = 300)]
    changes: usize,
    /// Given by cargo; says nothing.
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    Join,
    Routes,
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    use_executable(env!("CARGO_BIN_EXE_weft"));
    if arguments.only != Some(Part::Routes) {
        join::measure(&arguments)?;
    }
    if arguments.only != Some(Part::Join) {
        routes::measure(&arguments)?;
    }
    Ok(())
}

/// In milliseconds; `times` are put in order.
pub fn percentile(times: &mut [Duration], percent: usize) -> f64 {
    times.sort_unstable();
    let place = (times.len().saturating_sub(1)) * percent / 100;
    times
        .get(place)
        .map_or(0.0, |time| time.as_secs_f64() * 1e3)
}

/// In MiB, what a process has in memory.
pub fn resident(pid: u32) -> anyhow::Result<f64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kilobytes = line.and_then(|line| line.trim().strip_suffix(" kB"));
    Ok(kilobytes.unwrap_or("0").trim().parse::<f64>()? / 1024.0)
}

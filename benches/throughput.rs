//! Weft beside the kernel, interleaved in one run:
//!
//! ```console
//! $ cargo bench --bench throughput -- --rounds 7 --seconds 2
//! ```
//!
//! Each round measures weft and then the kernel. The ratio is the median of
//! the rounds' ratios, its spread from the least to the greatest. The table
//! is Markdown, ready for `docs/numbers.md`.

use std::time::Duration;

use clap::{Parser, ValueEnum};
use weft_lab::{
    Attach, Kind, Lab, Outer, Spec,
    compare::{Labs, Side, Speed},
    use_executable,
};

#[derive(Debug, Parser)]
struct Arguments {
    /// How often each figure is taken on each side.
    #[arg(long, default_value_t = 5)]
    rounds: u32,
    /// How long one figure takes.
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    /// How weft's pods are attached.
    #[arg(long, value_enum, default_value = "tap")]
    attach: AttachBy,
    /// The underlay speaks IPv6.
    #[arg(long)]
    outer_v6: bool,
    /// Workers of each forwarder.
    #[arg(long)]
    workers: Option<usize>,
    /// TCP's congestion control, where it is not to be the system's.
    #[arg(long)]
    congestion: Option<String>,
    /// Given by cargo; says nothing.
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum AttachBy {
    Tap,
    Veth,
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    use_executable(env!("CARGO_BIN_EXE_weft"));
    let spec = Spec {
        name: "bench".to_owned(),
        attach: match arguments.attach {
            AttachBy::Tap => Attach::Tap,
            AttachBy::Veth => Attach::Veth,
        },
        outer: if arguments.outer_v6 {
            Outer::V6
        } else {
            Outer::V4
        },
        workers: arguments.workers,
        ..Spec::default()
    };
    let kernel = Lab::up(&Spec {
        kind: Kind::Kernel,
        ..spec.clone()
    });
    let labs = Labs::new(&spec, arguments.congestion, Lab::up(&spec)?, kernel)?;
    let duration = Duration::from_secs_f64(arguments.seconds) * arguments.rounds;
    let speeds = labs.measure(arguments.rounds, duration, |step| eprintln!("{step}"))?;
    println!("| load | path | weft | kernel | unit | weft / kernel | spread |");
    println!("|---|---|--:|--:|---|--:|---|");
    speeds.iter().for_each(|speed| println!("{}", row(speed)));
    Ok(())
}

fn row(speed: &Speed) -> String {
    let figure = |side: &Side| match (side.mean, &side.error) {
        (Some(mean), _) => format!("{mean:.1}"),
        (None, Some(error)) => error.clone(),
        (None, None) => "—".to_owned(),
    };
    let ratio = speed.ratio.map_or("— | —".to_owned(), |ratio| {
        format!(
            "**{:.2}** | {:.2}–{:.2}",
            ratio.median, ratio.low, ratio.high
        )
    });
    format!(
        "| {} | {} | {} | {} | {} | {ratio} |",
        speed.load.name(),
        speed.way.name(),
        figure(&speed.weft),
        figure(&speed.kernel),
        speed.unit,
    )
}

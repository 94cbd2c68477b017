//! The way out in user space beside its peers, interleaved in one run:
//!
//! ```console
//! $ cargo bench --bench egress -- --rounds 5 --seconds 2
//! ```
//!
//! Each side has a pod with an MTU of 1500 bytes and a node of its own; outside
//! is one host behind a wire. Peers are slirp4netns and pasta (Debian:
//! `slirp4netns`, `passt`). The table is Markdown, ready for `docs/numbers.md`.

mod side;

use std::{
    fs,
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};
use clap::Parser;
use weft_lab::{probe::Family, traffic, use_executable};

use side::{OUTSIDE, Side, each};

#[derive(Debug, Parser)]
struct Arguments {
    /// How often each figure is taken on each side.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// How long one figure takes.
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    /// Idle connections whose memory is told.
    #[arg(long, default_value_t = 1000)]
    idle: usize,
    /// Given by cargo; says nothing.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    use_executable(env!("CARGO_BIN_EXE_weft"));
    let sides = each()?;
    type Measure = fn(&Side, Duration) -> anyhow::Result<f64>;
    let figures: [(&str, Measure); 3] = [
        ("TCP up, Gbit/s", up),
        ("TCP down, Gbit/s", down),
        ("connections per second", connections),
    ];
    let peers = &sides[1..];
    print!("| figure | {}", sides[0].name);
    for peer in peers {
        print!(" | {}", peer.name);
    }
    for peer in peers {
        print!(" | weft / {} | spread", peer.name);
    }
    let columns = sides.len() + 2 * peers.len();
    println!(" |\n|---|{}", "--:|".repeat(columns));
    let time = Duration::from_secs_f64(arguments.seconds);
    for (name, measure) in figures {
        let mut rounds = Vec::new();
        for _ in 0..arguments.rounds {
            let round = sides.iter().map(|side| match measure(side, time) {
                Ok(figure) => Some(figure),
                Err(error) => {
                    eprintln!("{name} of {}: {error:#}", side.name);
                    None
                }
            });
            rounds.push(round.collect::<Vec<_>>());
        }
        println!("| {name} | {} |", row(&rounds, sides.len()));
    }
    let memory: Vec<_> = sides
        .iter()
        .map(|side| match memory(side, arguments.idle) {
            Ok(bytes) => format!("{:.1}", bytes / 1024.0),
            Err(error) => {
                eprintln!("memory of {}: {error:#}", side.name);
                "—".to_owned()
            }
        })
        .collect();
    println!(
        "| memory per idle connection, KiB | {}{} |",
        memory.join(" | "),
        " | ".repeat(2 * peers.len())
    );
    Ok(())
}

/// The sides' medians; then of each peer the rounds' ratios, median and spread.
fn row(rounds: &[Vec<Option<f64>>], sides: usize) -> String {
    let none = || "—".to_owned();
    let medians = (0..sides).map(|side| {
        let figures = rounds.iter().filter_map(|round| round[side]);
        median(figures.collect()).map_or_else(none, |(_, median, _)| format!("{median:.2}"))
    });
    let ratios = (1..sides).flat_map(|side| {
        let ratios = rounds
            .iter()
            .filter_map(|round| Some(round[0]? / round[side]?));
        match median(ratios.collect()) {
            Some((least, median, most)) => {
                [format!("**{median:.2}**"), format!("{least:.2}–{most:.2}")]
            }
            None => [none(), none()],
        }
    });
    medians.chain(ratios).collect::<Vec<_>>().join(" | ")
}

/// Between the least and the greatest.
fn median(mut figures: Vec<f64>) -> Option<(f64, f64, f64)> {
    figures.sort_by(f64::total_cmp);
    let median = *figures.get(figures.len() / 2)?;
    Some((*figures.first()?, median, *figures.last()?))
}

fn up(side: &Side, time: Duration) -> anyhow::Result<f64> {
    Ok(traffic::stream(&side.pod, &side.outside, Family::V4, None, time)?.gbit_per_second())
}

/// The same, by a connection that the pod opened.
fn down(side: &Side, time: Duration) -> anyhow::Result<f64> {
    let listener = side
        .outside
        .netns
        .run(|| TcpListener::bind((OUTSIDE, 0)))??;
    let server = listener.local_addr()?;
    let mut asking = side.pod.netns.run(|| TcpStream::connect(server))??;
    let (mut answering, _) = listener.accept()?;
    let sending = thread::spawn(move || -> anyhow::Result<()> {
        let bytes = vec![7; 128 << 10];
        let until = Instant::now() + time;
        while Instant::now() < until {
            answering.write_all(&bytes)?;
        }
        Ok(())
    });
    let mut buffer = vec![0; 256 << 10];
    let mut received = asking.read(&mut buffer)?;
    let started = Instant::now();
    loop {
        match asking.read(&mut buffer)? {
            0 => break,
            bytes => received += bytes,
        }
    }
    let seconds = started.elapsed().as_secs_f64();
    match sending.join() {
        Ok(sent) => sent?,
        Err(_) => bail!("the sender panicked"),
    }
    Ok(received as f64 * 8.0 / seconds / 1e9)
}

/// Connections with a question and an answer, one after another.
fn connections(side: &Side, time: Duration) -> anyhow::Result<f64> {
    let listener = side
        .outside
        .netns
        .run(|| TcpListener::bind((OUTSIDE, 0)))??;
    let server = listener.local_addr()?;
    let answering = thread::spawn(move || {
        // The last one asks nothing.
        while let Ok((mut stream, _)) = listener.accept() {
            let mut question = [0; 4];
            if stream.read_exact(&mut question).is_err() {
                break;
            }
            let _ = stream.write_all(&question);
        }
    });
    let ask = move || -> anyhow::Result<f64> {
        let started = Instant::now();
        let mut count = 0.0;
        while started.elapsed() < time {
            let mut stream = TcpStream::connect(server)?;
            stream.write_all(b"ping")?;
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer)?;
            ensure!(answer == b"ping", "another answer");
            count += 1.0;
        }
        let rate = count / started.elapsed().as_secs_f64();
        drop(TcpStream::connect(server)?);
        Ok(rate)
    };
    let rate = side.pod.netns.run(ask)??;
    answering
        .join()
        .map_err(|_| anyhow::anyhow!("the server panicked"))?;
    Ok(rate)
}

/// Bytes that the daemon grows by for each connection that has said a word.
fn memory(side: &Side, count: usize) -> anyhow::Result<f64> {
    let listener = side
        .outside
        .netns
        .run(|| TcpListener::bind((OUTSIDE, 0)))??;
    let server = listener.local_addr()?;
    let before = resident(side.daemon.id())?;
    let connect = move || -> anyhow::Result<Vec<_>> {
        (0..count)
            .map(|_| {
                let mut asking = TcpStream::connect(server)?;
                let (mut answering, _) = listener.accept()?;
                asking.write_all(b"ping")?;
                answering.read_exact(&mut [0; 4])?;
                Ok((asking, answering))
            })
            .collect()
    };
    let open = side.pod.netns.run(connect)??;
    let after = resident(side.daemon.id())?;
    drop(open);
    Ok(after.saturating_sub(before) as f64 / count as f64)
}

fn resident(pid: u32) -> anyhow::Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.split_whitespace().next());
    Ok(kib.context("no VmRSS")?.parse::<u64>()? << 10)
}

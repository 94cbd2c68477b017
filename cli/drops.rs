//! `weft drops`: which packets were lost, and why.

use std::{
    collections::HashMap,
    io,
    os::fd::AsFd,
    process::ExitCode,
    time::{Duration, Instant},
};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde::Serialize;
use weft_api::forwarder::{Denied, DeniedFlow, Drop, Reply, Request};
use weft_cni::forwarder::Client;

use crate::{
    output::{grouped, lines, show, show_json, table},
    target::{Target, ask},
};

/// How often --watch looks.
const INTERVAL: Duration = Duration::from_secs(1);

/// Show which packets a running forwarder lost, and why.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    target: Target,
    /// Print every second what moved, until interrupted.
    #[arg(long)]
    watch: bool,
    /// Show reasons that never happened, too.
    #[arg(long, conflicts_with = "watch")]
    all: bool,
    /// Show the flows that policies denied of late, latest first.
    #[arg(long, conflicts_with_all = ["watch", "all"])]
    denied: bool,
    /// Print JSON; with --watch, one object a line.
    #[arg(long)]
    json: bool,
}

pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let mut client = args.target.connect()?;
    if args.watch {
        return watch(&mut client, args.json);
    }
    if args.denied {
        return denied(&mut client, args.json);
    }
    let drops = drops(&mut client)?;
    if args.json {
        show_json(&drops)
    } else {
        show(&page(&drops, args.all))
    }
}

fn drops(client: &mut Client) -> anyhow::Result<Vec<Drop>> {
    ask(client, &Request::Drops, |reply| match reply {
        Reply::Drops(drops) => Some(drops),
        _ => None,
    })
}

fn page(drops: &[Drop], all: bool) -> String {
    let mut rows = table(&["reason", "severity", "packets", "what happened"]);
    let shown: Vec<&Drop> = drops
        .iter()
        .filter(|drop| all || drop.packets > 0)
        .collect();
    if shown.is_empty() {
        return "no packet was dropped\n".to_owned();
    }
    for drop in shown {
        let packets = grouped(drop.packets);
        rows.add_row([&drop.reason, &drop.severity, &packets, &drop.sentence]);
    }
    lines(&rows)
}

fn denied(client: &mut Client, json: bool) -> anyhow::Result<ExitCode> {
    let denied = ask(client, &Request::Denied, |reply| match reply {
        Reply::Denied(denied) => Some(denied),
        _ => None,
    })?;
    if json {
        show_json(&denied)
    } else {
        show(&denied_page(&denied))
    }
}

fn denied_page(denied: &Denied) -> String {
    let mut text = String::new();
    if denied.flows.is_empty() {
        text += "no flow was denied\n";
    } else {
        let headings = [
            "source",
            "destination",
            "port",
            "packets",
            "ago",
            "denied by",
        ];
        let mut rows = table(&headings);
        for flow in &denied.flows {
            rows.add_row([
                flow.source.to_string(),
                flow.destination.to_string(),
                flow.port.clone(),
                grouped(flow.packets),
                format!("{} s", grouped(flow.age_ms / 1000)),
                denied_by(flow),
            ]);
        }
        text += &lines(&rows);
    }
    if denied.forgotten > 0 {
        let packets = grouped(denied.forgotten);
        text += &format!("{packets} more packets, of flows that are not listed\n");
    }
    text
}

fn denied_by(flow: &DeniedFlow) -> String {
    let policies = flow.decision.policies.join(", ");
    let direction = &flow.direction;
    match flow.decision.rule {
        Some(rule) => format!("{policies}, {direction}[{rule}]"),
        None => format!("{policies}: no {direction} rule permits it"),
    }
}

/// What moved between two looks.
#[derive(Debug, PartialEq, Serialize)]
struct Moved {
    reason: String,
    severity: String,
    sentence: String,
    /// Since the look before.
    packets: u64,
    per_second: u64,
    total: u64,
}

fn watch(client: &mut Client, json: bool) -> anyhow::Result<ExitCode> {
    let mut before = drops(client)?;
    let mut looked = Instant::now();
    while reader_stays(INTERVAL)? {
        let now = drops(client)?;
        let moved = moved(&before, &now, looked.elapsed());
        (before, looked) = (now, Instant::now());
        let mut text = String::new();
        for moved in moved {
            text += &if json {
                serde_json::to_string(&moved)?
            } else {
                line(&moved)
            };
            text.push('\n');
        }
        show(&text)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Waits, but no longer than somebody reads what is printed.
fn reader_stays(wait: Duration) -> io::Result<bool> {
    let stdout = io::stdout();
    // No event is asked for: an error, as of a pipe without a reader, is
    // reported always.
    let mut fds = [PollFd::new(stdout.as_fd(), PollFlags::empty())];
    let timeout = PollTimeout::try_from(wait).map_err(io::Error::other)?;
    let gone = PollFlags::POLLERR | PollFlags::POLLHUP | PollFlags::POLLNVAL;
    poll(&mut fds, timeout)?;
    Ok(!fds[0]
        .revents()
        .is_some_and(|events| events.intersects(gone)))
}

fn moved(before: &[Drop], now: &[Drop], elapsed: Duration) -> Vec<Moved> {
    let old: HashMap<&str, u64> = before
        .iter()
        .map(|drop| (drop.reason.as_str(), drop.packets))
        .collect();
    let row = |drop: &Drop| {
        let packets = drop
            .packets
            .saturating_sub(*old.get(drop.reason.as_str()).unwrap_or(&0));
        let millis = u64::try_from(elapsed.as_millis())
            .unwrap_or(u64::MAX)
            .max(1);
        (packets > 0).then(|| Moved {
            reason: drop.reason.clone(),
            severity: drop.severity.clone(),
            sentence: drop.sentence.clone(),
            packets,
            per_second: packets.saturating_mul(1000) / millis,
            total: drop.packets,
        })
    };
    now.iter().filter_map(row).collect()
}

fn line(moved: &Moved) -> String {
    format!(
        "{:<20} {:<8} +{} ({}/s, {} in all)  {}",
        moved.reason,
        moved.severity,
        grouped(moved.packets),
        grouped(moved.per_second),
        grouped(moved.total),
        moved.sentence
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drop(reason: &str, packets: u64) -> Drop {
        Drop {
            reason: reason.to_owned(),
            severity: "normal".to_owned(),
            sentence: "It happened.".to_owned(),
            packets,
        }
    }

    #[test]
    fn only_what_moved_is_told_with_its_rate() {
        let before = [drop("a", 5), drop("b", 7)];
        let now = [drop("a", 5), drop("b", 10), drop("c", 1)];
        let moved = moved(&before, &now, Duration::from_millis(500));
        let told: Vec<(&str, u64, u64, u64)> = moved
            .iter()
            .map(|m| (m.reason.as_str(), m.packets, m.per_second, m.total))
            .collect();
        assert_eq!(told, [("b", 3, 6, 10), ("c", 1, 2, 1)]);
        assert!(line(&moved[0]).ends_with("+3 (6/s, 10 in all)  It happened."));
    }

    #[test]
    fn a_page_leaves_out_what_never_happened() {
        let drops = [drop("a", 0), drop("b", 1000)];
        assert!(!page(&drops, false).contains("a  "));
        assert!(page(&drops, false).contains("1 000"));
        assert!(page(&drops, true).lines().count() == 3);
        assert_eq!(page(&drops[..1], false), "no packet was dropped\n");
    }
}

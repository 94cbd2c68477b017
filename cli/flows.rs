//! `weft flows`: the flow log of a forwarder, a JSON object a line.

use std::{
    process::ExitCode,
    thread,
    time::{Duration, Instant},
};

use serde::Serialize;
use weft_api::{
    forwarder::{Flows, LoggedFlow, Reply, Request},
    names::Name,
};

use crate::{
    output::show,
    target::{Target, ask},
};

/// Between two readings of a log that has no more to tell.
const PAUSE: Duration = Duration::from_millis(200);

/// Log the connections that are opened and the flows that are denied, a JSON
/// object a line, until interrupted.
///
/// The forwarder keeps the log only while it is read. Records that it could
/// not keep are told as {"node":…,"lost":N}.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    target: Target,
    /// Leave out what was allowed.
    #[arg(long)]
    denied: bool,
    /// End after so many seconds.
    #[arg(long = "for", value_name = "SECONDS")]
    seconds: Option<u64>,
}

#[derive(Serialize)]
struct Line<'a> {
    node: &'a Name,
    #[serde(flatten)]
    said: Said<'a>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Said<'a> {
    Flow(&'a LoggedFlow),
    Lost { lost: u64 },
}

pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let mut client = args.target.connect()?;
    let node = client.status()?.node;
    let length = args.seconds.map(Duration::from_secs);
    let (start, mut after) = (Instant::now(), None);
    loop {
        let is_last = length.is_some_and(|length| start.elapsed() >= length);
        let page = ask(
            &mut client,
            &Request::Flows { after },
            |reply| match reply {
                Reply::Flows(page) => Some(page),
                _ => None,
            },
        )?;
        show(&text(&node, &page, args.denied)?)?;
        after = Some(page.next);
        if page.flows.is_empty() {
            if is_last {
                return Ok(ExitCode::SUCCESS);
            }
            thread::sleep(PAUSE);
        }
    }
}

fn text(node: &Name, page: &Flows, denied: bool) -> anyhow::Result<String> {
    let flows = page.flows.iter();
    let shown = flows.filter(|flow| !denied || flow.verdict == "denied");
    let lost = (page.lost > 0).then_some(Said::Lost { lost: page.lost });
    let mut text = String::new();
    for said in lost.into_iter().chain(shown.map(Said::Flow)) {
        text += &serde_json::to_string(&Line { node, said })?;
        text.push('\n');
    }
    Ok(text)
}

//! `weft policy apply --dry-run`: what would the rules of files do to what
//! flows now?

use std::{
    collections::BTreeSet,
    process::ExitCode,
    thread,
    time::{Duration, Instant},
};

use weft_api::forwarder::{Changed, FlowEnd, Reply, Trial};
use weft_cni::forwarder::ClientError;

use super::{Apply, give, objects};
use crate::output::{counted, lines, show, show_json, table};

/// Between two looks: no connection is forgotten sooner than in 3 s.
const PAUSE: Duration = Duration::from_secs(2);

pub fn run(args: &Apply) -> anyhow::Result<ExitCode> {
    let values = objects(args)?;
    let mut client = args.target.connect()?;
    let end = Instant::now() + Duration::from_secs(args.seconds);
    let mut changes = BTreeSet::new();
    let (mut judged, mut unlisted) = (0, 0);
    loop {
        let reply = give(&mut client, &args.source, &values, true)?;
        let Reply::Trial(trial) = reply else {
            return Err(ClientError::Confused.into());
        };
        changes.extend(trial.changes);
        judged = trial.judged.max(judged);
        unlisted = trial.unlisted.max(unlisted);
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            break;
        }
        thread::sleep(left.min(PAUSE));
    }
    let trial = Trial {
        judged,
        unlisted,
        changes: changes.into_iter().collect(),
    };
    if args.json {
        show_json(&trial)?;
    } else {
        show(&page(&trial))?;
    }
    Ok(match trial.changes.is_empty() {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    })
}

fn page(trial: &Trial) -> String {
    let changes = counted(trial.changes.len() + trial.unlisted, "flow");
    let mut text = format!("{changes} of {} would be judged otherwise\n", trial.judged);
    let mut rows = table(&["would be", "from", "to", "protocol", "by"]);
    for change in &trial.changes {
        let (from, to) = (end(&change.from), end(&change.to));
        let (verdict, protocol) = (change.verdict.clone(), change.protocol.clone());
        rows.add_row([verdict, from, to, protocol, by(change)]);
    }
    if !trial.changes.is_empty() {
        text += &lines(&rows);
    }
    if trial.unlisted > 0 {
        text += &format!("{} more are not listed\n", trial.unlisted);
    }
    text
}

fn end(end: &FlowEnd) -> String {
    let pod = end
        .pod
        .as_ref()
        .map(|pod| format!("{pod} "))
        .unwrap_or_default();
    match end.port {
        Some(port) => format!("{pod}{} port {port}", end.address),
        None => format!("{pod}{}", end.address),
    }
}

fn by(change: &Changed) -> String {
    let policies = change.decision.policies.join(", ");
    let direction = &change.direction;
    match change.decision.rule {
        Some(rule) => format!("{policies}: {direction} rule {rule}"),
        None if change.decision.allowed => format!("no policy forbids its {direction}"),
        None => format!("{policies}: no {direction} rule permits it"),
    }
}

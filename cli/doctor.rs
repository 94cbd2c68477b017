//! `weft doctor`: what this kernel and this user may do. It exits 0 unless
//! something that weft cannot do without has failed.

use std::{
    os::unix::process::CommandExt,
    process::{Command, ExitCode, Stdio},
};

use anyhow::{Context, anyhow};
use weft_forwarder::probe::{Check, Probe, State, check_system};

use crate::{
    host,
    output::{show, show_json},
    target::Target,
};

/// Say what this kernel and this user may do, and how to get more.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    target: Target,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    /// Run one probe in this process and print what it found.
    #[arg(long, hide = true, value_name = "NAME")]
    probe: Option<String>,
}

pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    if let Some(name) = args.probe {
        let probe = Probe::ALL.into_iter().find(|probe| probe.name() == name);
        let probe = probe.ok_or_else(|| anyhow!("there is no probe named {name}"))?;
        serde_json::to_writer(std::io::stdout(), &probe.run())?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut checks = check_system();
    checks.push(host::check(&args.target));
    checks.push(host::check_nat());
    for probe in Probe::ALL {
        checks.extend(isolated(probe).unwrap_or_else(|fault| {
            let consequence = "unknown what of weft works here";
            let remedy = "run `weft doctor` where it may start processes";
            vec![Check::fail(
                probe.name(),
                format!("{fault:#}"),
                consequence,
                remedy,
            )]
        }));
    }
    if args.json {
        show_json(&checks)?;
    } else {
        show(&page(&checks))?;
    }
    let failed = checks.iter().any(|check| check.state == State::Fail);
    Ok(if failed {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

/// Runs the probe in a process of its own: what it enters and makes goes
/// with that process.
fn isolated(probe: Probe) -> anyhow::Result<Vec<Check>> {
    let own = std::env::current_exe().context("find this program's own file")?;
    let output = Command::new(own)
        .arg0("weft")
        .args(["doctor", "--probe", probe.name()])
        .stdin(Stdio::null())
        .output()
        .context("start a process for the probe")?;
    serde_json::from_slice(&output.stdout).map_err(|_| {
        let said = String::from_utf8_lossy(&output.stderr);
        anyhow!("the probe ended with {}: {}", output.status, said.trim())
    })
}

fn page(checks: &[Check]) -> String {
    let width = checks
        .iter()
        .map(|check| check.name.len())
        .max()
        .unwrap_or(0);
    let indent = " ".repeat(width + 8);
    let mut page = String::new();
    for check in checks {
        page += &format!(
            "{:<5} {:<width$}  {}\n",
            word(check.state),
            check.name,
            check.finding
        );
        for (what, text) in [("so", &check.consequence), ("do", &check.remedy)] {
            if let Some(text) = text {
                page += &format!("{indent}{what}: {text}\n");
            }
        }
    }
    let count = |state| checks.iter().filter(|check| check.state == state).count();
    let (ok, warned, failed) = (count(State::Ok), count(State::Warn), count(State::Fail));
    page += &format!("\n{ok} ok, {warned} to warn of, {failed} failed\n");
    page
}

fn word(state: State) -> &'static str {
    match state {
        State::Ok => "ok",
        State::Warn => "warn",
        State::Fail => "FAIL",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_tells_each_check_and_counts() {
        let check = |state, consequence: Option<&str>| Check {
            name: "thing".to_owned(),
            state,
            finding: "found".to_owned(),
            consequence: consequence.map(str::to_owned),
            remedy: consequence.map(|_| "mend it".to_owned()),
        };
        let page = page(&[
            check(State::Ok, None),
            check(State::Fail, Some("it is broken")),
        ]);
        assert_eq!(
            page,
            "ok    thing  found\n\
             FAIL  thing  found\n             so: it is broken\n             do: mend it\n\
             \n1 ok, 0 to warn of, 1 failed\n"
        );
    }
}

//! The keeper: the process that holds a lab between commands. It makes the
//! lab, writes down what it made, and waits for the word to end.
//!
//! Its end is the lab's: the namespaces have no other user, and the
//! forwarders die with it.

use std::{
    env,
    fs::{self, File},
    io::{self, Read, Write},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, bail};
use nix::{
    sys::signal::{SigSet, Signal},
    unistd::setsid,
};
use serde::{Deserialize, Serialize};

use crate::{
    lab::Lab,
    role,
    spec::Spec,
    state::{self, State},
    throwaway, userns,
};

/// What a keeper is told, on its standard input.
#[derive(Debug, Serialize, Deserialize)]
struct Order {
    spec: Spec,
    dir: PathBuf,
}

/// Brings a lab up that outlives the caller.
pub fn start(spec: &Spec) -> anyhow::Result<State> {
    spec.check()?;
    throwaway::clear_abandoned();
    let dir = state::make_dir(&spec.name)?;
    let started = hand_over(spec, &dir).and_then(|()| State::load(&dir));
    if started.is_err() {
        // The keeper ended, or nobody started it: the directory is all there
        // is, and a failure to remove it is the lesser one.
        let _ = fs::remove_dir_all(&dir);
    }
    started
}

fn hand_over(spec: &Spec, dir: &Path) -> anyhow::Result<()> {
    use std::os::unix::process::CommandExt;

    let log = dir.join("keeper.log");
    let mut keeper = Command::new(role::executable()?)
        .arg0(role::KEEPER)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(File::create(&log).with_context(|| format!("create {log:?}"))?)
        .spawn()
        .context("start the lab's keeper")?;
    let order = Order {
        spec: spec.clone(),
        dir: dir.to_owned(),
    };
    let mut to_keeper = keeper.stdin.take().context("the keeper has no input")?;
    let mut from_keeper = keeper.stdout.take().context("the keeper has no output")?;
    // A keeper that ended early says why below.
    let _ = to_keeper.write_all(&serde_json::to_vec(&order)?);
    drop(to_keeper);

    let mut words = String::new();
    from_keeper
        .read_to_string(&mut words)
        .context("hear from the keeper")?;
    if words == READY {
        return Ok(());
    }
    let ended = keeper.wait()?;
    let log = fs::read_to_string(&log).unwrap_or_default();
    let said = [words.trim(), log.trim()].join("\n");
    match said.trim() {
        "" => bail!("the lab's keeper ended without a word ({ended})"),
        said => bail!("{said}"),
    }
}

const READY: &str = "ready\n";

/// The body of the keeper's process. To be called before any thread starts.
pub fn run() -> anyhow::Result<()> {
    let order: Order =
        serde_json::from_reader(io::stdin()).context("read the order; use weft lab up")?;
    let mut words = io::stdout();
    match keep(&order, &mut words) {
        Ok(()) => Ok(()),
        Err(error) => {
            writeln!(words, "{error:#}")?;
            Err(error)
        }
    }
}

fn keep(order: &Order, words: &mut impl Write) -> anyhow::Result<()> {
    // No leader of a group yet, so this cannot fail; and a session that
    // stays the terminal's would only end with it.
    let _ = setsid();
    // Before any thread, so that none takes the signal instead.
    let mut ends = SigSet::empty();
    ends.add(Signal::SIGTERM);
    ends.add(Signal::SIGINT);
    ends.thread_block()?;

    // A directory that the keeper stays in could not be unmounted.
    env::set_current_dir("/")?;
    let rootless = userns::needed()?;
    if rootless {
        userns::enter()?;
    }
    let starting = State::starting(&order.spec, rootless)?;
    starting.save(&order.dir)?;
    let lab = Lab::up_in(&order.spec, &order.dir)?;
    starting.up(&lab)?.save(&order.dir)?;
    words.write_all(READY.as_bytes())?;
    words.flush()?;
    // The starter reads until this closes.
    close_output()?;
    ends.wait()?;
    drop(lab);
    Ok(())
}

fn close_output() -> anyhow::Result<()> {
    let null = File::options()
        .write(true)
        .open("/dev/null")
        .context("open /dev/null")?;
    nix::unistd::dup2_stdout(&null)?;
    Ok(())
}

//! What can be done to a lab that is kept: see it, enter it, end it.

use std::{
    convert::Infallible,
    env,
    ffi::OsString,
    fs::{self, File},
    io,
    os::unix::{fs::MetadataExt, process::CommandExt},
    path::Path,
    process::Command,
    time::Duration,
};

use anyhow::{Context, bail, ensure};
use nix::{
    sched::{CloneFlags, setns},
    sys::signal::Signal,
    unistd::geteuid,
};
use serde::Serialize;
use weft_cni::netns::Netns;

use crate::{
    process::{self, Process},
    state::{self, MARK, State},
    traces,
};

/// For each process to end in.
const PATIENCE: Duration = Duration::from_secs(5);

/// What is left of a lab.
#[derive(Debug, Serialize)]
pub struct Status {
    #[serde(flatten)]
    pub state: State,
    pub keeper_runs: bool,
    /// By node; None where the node has no forwarder.
    pub forwarder_runs: Vec<Option<bool>>,
    /// None where the lab has no IPAM server.
    pub ipam_runs: Option<bool>,
}

impl Status {
    pub fn is_whole(&self) -> bool {
        self.keeper_runs
            && !self.state.nodes.is_empty()
            && self.ipam_runs != Some(false)
            && self.forwarder_runs.iter().all(|runs| *runs != Some(false))
    }
}

pub fn status(name: &str) -> anyhow::Result<Status> {
    let state = load(name)?;
    let runs = |node: &state::NodeState| node.forwarder.as_ref().map(|f| f.process.runs());
    Ok(Status {
        keeper_runs: state.keeper.runs(),
        forwarder_runs: state.nodes.iter().map(runs).collect(),
        ipam_runs: state.ipam.as_ref().map(|ipam| ipam.process.runs()),
        state,
    })
}

/// The lab is fine; the command is not.
#[derive(Debug, thiserror::Error)]
#[error("run {program:?}: {error}")]
pub struct NotRun {
    program: OsString,
    pub error: io::Error,
}

/// Becomes `command` inside a pod or node. Returns only what kept it from
/// that. To be called before any thread starts.
pub fn exec(name: &str, place: &str, command: &[OsString]) -> anyhow::Result<Infallible> {
    let state = load(name)?;
    ensure!(
        state.keeper.runs(),
        "lab {name} is dead: its keeper is gone; clean up by weft lab down --name {name}"
    );
    let path = state.netns(place).with_context(|| {
        format!(
            "lab {name} has no pod or node {place}; it has {}",
            state.places().join(", ")
        )
    })?;
    let [program, arguments @ ..] = command else {
        bail!("no command given");
    };
    enter(&state, &path)?;
    let error = Command::new(program)
        .args(arguments)
        .env(MARK, state.mark())
        .exec();
    Err(NotRun {
        program: program.clone(),
        error,
    }
    .into())
}

fn enter(state: &State, netns: &Path) -> anyhow::Result<()> {
    let keeper = state.keeper.pid;
    let here = env::current_dir();
    let open = |kind: &str| {
        let path = format!("/proc/{keeper}/ns/{kind}");
        File::open(&path).with_context(|| format!("open {path}"))
    };
    let netns = Netns::open(netns)?;
    if state.rootless {
        let (user, mount) = (open("user")?, open("mnt")?);
        setns(&user, CloneFlags::CLONE_NEWUSER).context("enter the lab's user namespace")?;
        setns(&mount, CloneFlags::CLONE_NEWNS).context("enter the lab's mount namespace")?;
    }
    netns.enter()?;
    if let Ok(here) = here {
        // A directory that this namespace cannot reach is left.
        let _ = env::set_current_dir(here);
    }
    Ok(())
}

/// Ends a lab and removes its traces, whatever is left of it. Returns what
/// the caller has to know where the lab's state could not be read.
pub fn down(name: &str) -> anyhow::Result<Option<String>> {
    let dir = state::dir_of(name)?;
    ensure!(dir.exists(), "there is no lab {name}");
    let mut caution = None;
    match State::load(&dir) {
        Ok(state) => end_processes(&state)?,
        // Killed before it wrote anything, so before it started anything.
        Err(_) if !dir.join(state::FILE).exists() => {}
        Err(error) => {
            let processes = traces::of(name, &dir)?;
            caution = Some(format!(
                "{error:#}; {} processes of lab {name} were found without it and ended. If \
                 another is left in a namespace of the lab, lsns -t net shows it: end it by kill",
                processes.len()
            ));
            end(processes)?;
        }
    }
    fs::remove_dir_all(&dir).with_context(|| format!("remove {dir:?}"))?;
    Ok(caution)
}

fn end_processes(state: &State) -> anyhow::Result<()> {
    let mut processes = process::with_environment(&format!("{MARK}={}", state.mark()))?;
    processes.extend(inside(state)?);
    // The keeper ends its daemons itself, and the kernel does for a
    // keeper that was killed: they stand here for the case of neither.
    processes.push(state.keeper);
    let forwarders = state
        .nodes
        .iter()
        .filter_map(|node| node.forwarder.as_ref());
    processes.extend(forwarders.map(|forwarder| forwarder.process));
    processes.extend(state.ipam.iter().map(|ipam| ipam.process));
    end(processes)
}

fn end(mut processes: Vec<Process>) -> anyhow::Result<()> {
    let me = Process::current()?;
    processes.retain(|process| *process != me);
    for process in &processes {
        process.signal(Signal::SIGTERM)?;
    }
    for process in processes {
        process
            .end(PATIENCE)
            .with_context(|| format!("end process {}", process.pid))?;
    }
    Ok(())
}

/// The processes in the lab's namespaces that this user may end, also those
/// whose environment no longer tells where they come from.
fn inside(state: &State) -> io::Result<Vec<Process>> {
    // While the keeper holds the namespaces, their inodes are theirs alone.
    let held = state.keeper.runs();
    let user = geteuid();
    process::which(|process| {
        let ours = |owner: u32| user.is_root() || user.as_raw() == owner;
        if !fs::metadata(process).is_ok_and(|process| ours(process.uid())) {
            return false;
        }
        let path = process.join("ns/net");
        let Ok(inode) = fs::metadata(&path).map(|namespace| namespace.ino()) else {
            return false;
        };
        let known = state.namespaces.iter().find(|known| known.inode == inode);
        known.is_some_and(|known| {
            let found = || Netns::open(&path).ok()?.cookie();
            held || (known.cookie.is_some() && found() == known.cookie)
        })
    })
}

fn load(name: &str) -> anyhow::Result<State> {
    let dir = state::dir_of(name)?;
    if !dir.exists() {
        bail!("there is no lab {name}; bring it up by weft lab up --name {name}");
    }
    State::load(&dir)
        .with_context(|| format!("lab {name} is broken; end it by weft lab down --name {name}"))
}

//! The `weft` executable in its other roles: it is many programs in one
//! file, told apart by the name under which it starts.

use std::{
    env,
    ffi::{OsStr, OsString},
    fs,
    os::{fd::AsRawFd, unix::process::CommandExt},
    path::{Path, PathBuf},
    process::{self, Command},
    sync::OnceLock,
};

use anyhow::{Context, ensure};
use nix::{
    sys::{prctl, signal::Signal},
    unistd::getppid,
};
use weft_cni::netns::Netns;

/// The forwarder of a lab's node.
pub const FORWARDER: &str = "weft-lab-forwarder";
/// The IPAM server of a lab.
pub const IPAM: &str = "weft-lab-ipam";
/// The process that holds a lab.
pub const KEEPER: &str = "weft-lab-keeper";

static USED: OnceLock<PathBuf> = OnceLock::new();

/// The environment variable that does what [`use_executable`] does.
const EXECUTABLE: &str = "WEFT_BINARY";

/// A command that runs a forwarder inside `netns`; the forwarder's own
/// arguments are the caller's to add.
pub(crate) fn forwarder(netns: &Netns) -> anyhow::Result<Command> {
    let me = process::id();
    let mut command = Command::new(executable()?);
    command
        .arg0(FORWARDER)
        .arg(format!("/proc/{me}/fd/{}", netns.as_raw_fd()))
        .arg(me.to_string());
    Ok(command)
}

/// A command that runs an IPAM server; its own arguments are the caller's to
/// add.
pub(crate) fn ipam() -> anyhow::Result<Command> {
    let mut command = Command::new(executable()?);
    command.arg0(IPAM).arg(process::id().to_string());
    Ok(command)
}

/// Says where the executable is, for a program that is another one, as tests
/// are. The first word counts.
pub fn use_executable(path: impl Into<PathBuf>) {
    let _ = USED.set(path.into());
}

pub(crate) fn executable() -> anyhow::Result<PathBuf> {
    if let Some(path) = USED.get() {
        return Ok(path.clone());
    }
    match env::var_os(EXECUTABLE) {
        Some(path) => {
            fs::canonicalize(&path).with_context(|| format!("{EXECUTABLE} names {path:?}"))
        }
        None => env::current_exe().context("find weft's own executable"),
    }
}

/// The first steps of a forwarder's process: die with the lab, move to the
/// node. Returns what is left of the arguments, for the forwarder proper.
/// To be called before any thread starts.
pub fn become_forwarder(
    mut arguments: impl Iterator<Item = OsString>,
) -> anyhow::Result<Vec<OsString>> {
    let netns = arguments.next().context("no namespace given")?;
    die_with_the_lab(&mut arguments)?;
    Netns::open(Path::new(&netns))?.enter()?;
    Ok(arguments.collect())
}

/// The same for an IPAM server's process, which stays where it is.
pub fn become_ipam(mut arguments: impl Iterator<Item = OsString>) -> anyhow::Result<Vec<OsString>> {
    die_with_the_lab(&mut arguments)?;
    Ok(arguments.collect())
}

/// The next argument is the process that holds the lab.
fn die_with_the_lab(arguments: &mut impl Iterator<Item = OsString>) -> anyhow::Result<()> {
    let parent = arguments.next().context("no parent given")?;
    prctl::set_pdeathsig(Signal::SIGKILL).context("die with the lab")?;
    // A parent that ended before that line sends no signal any more.
    ensure!(
        parent == OsStr::new(&getppid().to_string()),
        "the lab ended before this part of it began"
    );
    Ok(())
}

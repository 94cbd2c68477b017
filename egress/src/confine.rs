//! What the process gives up, and what it may hold.

use anyhow::Context;
use caps::{CapSet, Capability};
use nix::sys::{
    prctl::set_no_new_privs,
    resource::{Resource, getrlimit, setrlimit},
};

/// Descriptors that are no flow's: the forwarder, the poll, the log, visitors.
const RESERVE: u64 = 64;

/// Drops every capability of the calling thread, for good. Sockets opened
/// afterwards are those that any user may open.
pub fn confine() -> anyhow::Result<()> {
    if caps::has_cap(None, CapSet::Effective, Capability::CAP_SETPCAP)? {
        caps::clear(None, CapSet::Bounding)?;
    }
    for set in [
        CapSet::Ambient,
        CapSet::Effective,
        CapSet::Permitted,
        CapSet::Inheritable,
    ] {
        caps::clear(None, set)?;
    }
    set_no_new_privs().context("set no_new_privs")
}

/// Raises the soft limit of open files to the hard one, and tells how many
/// flows that is good for.
pub fn flows_by_open_files() -> anyhow::Result<usize> {
    let (soft, hard) =
        getrlimit(Resource::RLIMIT_NOFILE).context("read the limit of open files")?;
    if soft < hard {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard).context("raise the limit of open files")?;
    }
    Ok(usize::try_from(hard.saturating_sub(RESERVE)).unwrap_or(usize::MAX))
}

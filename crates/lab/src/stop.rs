//! The word to stop what is going on, for the whole process: long loads look
//! here, end early and let the lab be taken down in order.

use std::{
    io, process,
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

use anyhow::{Context, bail};
use nix::sys::signal::{SigSet, Signal};

static REQUESTED: AtomicBool = AtomicBool::new(false);

/// Turns the first SIGINT or SIGTERM into the word to stop, and the second
/// into the end of the process. To be called before any thread starts.
pub fn on_signal() -> anyhow::Result<()> {
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGINT);
    signals.add(Signal::SIGTERM);
    signals.thread_block().context("block signals")?;
    thread::Builder::new()
        .name("signals".to_owned())
        .spawn(move || {
            while let Ok(signal) = signals.wait() {
                if REQUESTED.swap(true, Ordering::Relaxed) {
                    process::exit(128 + signal as i32);
                }
            }
        })
        .map(drop)
        .context("start a thread to wait for signals")
}

pub fn requested() -> bool {
    REQUESTED.load(Ordering::Relaxed)
}

/// An error once the word was given.
pub fn check() -> anyhow::Result<()> {
    if requested() {
        bail!(io::Error::new(io::ErrorKind::Interrupted, "interrupted"));
    }
    Ok(())
}

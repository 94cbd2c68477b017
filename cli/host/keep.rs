//! `weft host up --keep`: weft0 as it has to be for as long as this runs. At its
//! end weft0 stays, with the forwarder.

use std::{os::fd::AsFd, process::ExitCode};

use anyhow::Context;
use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        signal::{SigSet, Signal},
        signalfd::{SfdFlags, SignalFd},
    },
};

use super::{Up, up};
use crate::output::show;

/// Between two looks, in milliseconds.
const PAUSE: u16 = 2_000;

pub fn keep(args: &Up) -> anyhow::Result<ExitCode> {
    // The first process of a container has no default actions: be told.
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGTERM);
    signals.add(Signal::SIGINT);
    signals.thread_block().context("take signals")?;
    let told = SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC).context("take signals")?;
    let (mut page, mut fault) = (String::new(), String::new());
    let mut kept = None;
    loop {
        match up(args, &mut kept) {
            // What is as before is told once.
            Ok(now) if now != page => {
                show(&now)?;
                (page, fault) = (now, String::new());
            }
            Ok(_) => fault.clear(),
            Err(error) => {
                let now = format!("{error:#}");
                if now != fault {
                    eprintln!("weft host up: {now}");
                }
                (page, fault, kept) = (String::new(), now, None);
            }
        }
        let mut ready = [PollFd::new(told.as_fd(), PollFlags::POLLIN)];
        if poll(&mut ready, PollTimeout::from(PAUSE)).context("wait")? > 0 {
            return Ok(ExitCode::SUCCESS);
        }
    }
}

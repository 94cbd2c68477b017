//! `weft completions`: what a shell must know to complete this command.

use std::process::ExitCode;

use clap_complete::{Shell, generate};

use crate::output::show;

/// Print a shell's completions for this command.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Which shell.
    #[arg(value_enum)]
    shell: Shell,
}

/// `command` is the whole command line that is to be completed.
pub fn run(args: Args, command: &mut clap::Command) -> anyhow::Result<ExitCode> {
    let mut script = Vec::new();
    generate(args.shell, command, "weft", &mut script);
    show(&String::from_utf8(script)?)
}

//! `weft join`: make this node a member of a network of another kind, for as
//! long as the command runs.

mod calico;
mod fabric;
mod flannel;
mod forwarder;
mod inbox;
mod life;

use std::process::ExitCode;

/// Make this node a member of a network of another kind, while it runs.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    Flannel(flannel::Args),
    Calico(calico::Args),
}

pub fn run(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Flannel(args) => flannel::run(&args),
        Command::Calico(args) => calico::run(&args),
    }
}

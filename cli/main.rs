//! The `weft` binary. It is several programs in one file: the name under
//! which it starts says which, as a lab's processes do. A subcommand a file.

mod bird;
mod completions;
mod demo;
mod doctor;
mod drops;
mod explain;
mod flows;
mod host;
mod install;
mod ipam;
mod join;
mod lab;
mod node;
mod output;
mod policy;
mod status;
mod target;

use std::{
    env,
    ffi::{OsStr, OsString},
    path::Path,
    process::ExitCode,
};

use clap::{CommandFactory, Parser, Subcommand};

/// A pod network that lives in user space.
#[derive(Debug, Parser)]
#[command(name = "weft", version, arg_required_else_help = true)]
struct Weft {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Demo(demo::Args),
    #[command(subcommand)]
    Lab(lab::Command),
    Status(status::Args),
    Drops(drops::Args),
    #[command(subcommand)]
    Policy(policy::Command),
    Explain(explain::Args),
    Flows(flows::Args),
    Ipam(ipam::Args),
    #[command(subcommand)]
    Host(host::Command),
    Egress(weft_egress::cli::Arguments),
    #[command(subcommand)]
    Join(join::Command),
    Bird(bird::Args),
    Node(node::Args),
    Install(install::Install),
    Uninstall(install::Uninstall),
    Doctor(doctor::Args),
    Completions(completions::Args),
}

fn main() -> ExitCode {
    let mut arguments = env::args_os();
    let name = arguments.next().unwrap_or_default();
    let ended = match role(&name) {
        "weft-forwarder" => return weft_forwarder::cli::run(env::args_os()),
        "weft-egress" => return weft_egress::cli::run(env::args_os()),
        "weft-cni" => return weft_cni::plugin::run("weft-cni"),
        weft_cni::plugin::IPAM_PLUGIN => {
            return weft_cni::plugin::run(weft_cni::plugin::IPAM_PLUGIN);
        }
        "weft-ipam" => return weft_ipam::cli::run(env::args_os()),
        weft_lab::FORWARDER => match weft_lab::become_forwarder(arguments) {
            Ok(rest) => return weft_forwarder::cli::run([name].into_iter().chain(rest)),
            Err(error) => Err(error),
        },
        weft_lab::IPAM => match weft_lab::become_ipam(arguments) {
            Ok(rest) => return weft_ipam::cli::run([name].into_iter().chain(rest)),
            Err(error) => Err(error),
        },
        weft_lab::KEEPER => weft_lab::keeper::run().map(|()| ExitCode::SUCCESS),
        _ => Weft::parse().command.run(),
    };
    ended.unwrap_or_else(|error| {
        eprintln!("weft: {error:#}");
        ExitCode::FAILURE
    })
}

fn role(name: &OsString) -> &str {
    let file = Path::new(name).file_name();
    file.and_then(OsStr::to_str).unwrap_or_default()
}

impl Command {
    fn run(self) -> anyhow::Result<ExitCode> {
        match self {
            Self::Demo(args) => demo::run(args),
            Self::Lab(command) => lab::run(command),
            Self::Status(args) => status::run(args),
            Self::Drops(args) => drops::run(args),
            Self::Policy(command) => policy::run(command),
            Self::Explain(args) => explain::run(args),
            Self::Flows(args) => flows::run(args),
            Self::Ipam(args) => ipam::run(args),
            Self::Host(command) => host::run(command),
            Self::Bird(args) => bird::run(args),
            Self::Egress(args) => Ok(weft_egress::cli::start(&args)),
            Self::Join(command) => join::run(command),
            Self::Node(args) => node::run(args),
            Self::Install(args) => install::install(args),
            Self::Uninstall(args) => install::uninstall(args),
            Self::Doctor(args) => doctor::run(args),
            Self::Completions(args) => completions::run(args, &mut Weft::command()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_does_not_contradict_itself() {
        Weft::command().debug_assert();
    }
}

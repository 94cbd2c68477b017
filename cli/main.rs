//! The `weft` binary: the operator's command, and by the name it is started
//! under every other program of weft.

mod completions;
mod demo;
mod doctor;
mod drops;
mod lab;
mod output;
mod status;
mod target;

use std::{
    env,
    ffi::{OsStr, OsString},
    path::Path,
    process::ExitCode,
};

use clap::{CommandFactory, Parser, Subcommand};
use output::{show_json as print_json, show_line as print};

/// A pod network that lives in user space.
#[derive(Debug, Parser)]
#[command(
    name = "weft",
    version,
    subcommand_required = true,
    arg_required_else_help = true
)]
struct Weft {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Demo(demo::Demo),
    Lab(lab::Lab),
    Status(status::Args),
    Drops(drops::Args),
    Doctor(doctor::Args),
    Completions(completions::Args),
}

fn main() -> ExitCode {
    let mut arguments = env::args_os();
    let name = arguments.next().unwrap_or_default();
    let ended = match role(&name) {
        "weft-forwarder" => return weft_forwarder::cli::run(env::args_os()),
        weft_lab::FORWARDER => match weft_lab::become_forwarder(arguments) {
            Ok(rest) => return weft_forwarder::cli::run([name].into_iter().chain(rest)),
            Err(error) => Err(error),
        },
        weft_lab::KEEPER => weft_lab::keeper::run().map(|()| ExitCode::SUCCESS),
        _ => match Weft::parse().command {
            Command::Demo(demo) => demo.run(),
            Command::Lab(lab) => lab.run(),
            Command::Status(args) => status::run(args),
            Command::Drops(args) => drops::run(args),
            Command::Doctor(args) => doctor::run(args),
            Command::Completions(args) => completions::run(args, &mut Weft::command()),
        },
    };
    ended.unwrap_or_else(|error| {
        eprintln!("weft: {error:#}");
        ExitCode::FAILURE
    })
}

fn role(name: &OsString) -> &str {
    let file = Path::new(name).file_name().and_then(OsStr::to_str);
    file.unwrap_or_default()
}

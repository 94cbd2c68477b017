//! The `weft` command. One executable, several programs: the name under
//! which it starts says which, as a lab's processes do.

mod demo;
mod lab;

use std::{
    env,
    ffi::{OsStr, OsString},
    io::{self, Write},
    path::Path,
    process::ExitCode,
};

use clap::{Parser, Subcommand};
use serde::Serialize;

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
}

fn main() -> ExitCode {
    let mut arguments = env::args_os();
    let name = arguments.next().unwrap_or_default();
    let ended = match role(&name) {
        "weft-forwarder" => return weft_forwarder::cli::run(env::args_os()),
        weft_lab::FORWARDER => match weft_lab::become_forwarder(arguments) {
            Ok(rest) => {
                return weft_forwarder::cli::run([name].into_iter().chain(rest));
            }
            Err(error) => Err(error),
        },
        weft_lab::KEEPER => weft_lab::keeper::run().map(|()| ExitCode::SUCCESS),
        _ => match Weft::parse().command {
            Command::Demo(demo) => demo.run(),
            Command::Lab(lab) => lab.run(),
        },
    };
    ended.unwrap_or_else(|error| {
        eprintln!("weft: {error:#}");
        ExitCode::FAILURE
    })
}

fn role(name: &OsString) -> &str {
    Path::new(name)
        .file_name()
        .and_then(OsStr::to_str)
        .unwrap_or_default()
}

/// Writes to standard output. A reader that has gone is no error.
fn print(text: &str) -> anyhow::Result<()> {
    match writeln!(io::stdout(), "{text}") {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}

fn print_json(value: &impl Serialize) -> anyhow::Result<()> {
    print(&serde_json::to_string_pretty(value)?)
}

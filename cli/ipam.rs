//! `weft ipam`: the IPAM server's operator. A subject a file.

pub mod age;
mod check;
mod node;
mod pool;
mod release;
mod reservation;
mod settings;
mod show;
mod status;
mod watch;
pub mod words;

use std::{
    env,
    io::ErrorKind,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context, anyhow};
use clap::Subcommand;
use serde::Serialize;
use weft_api::ipam::{Reply, Request};
use weft_socket::{
    ipam::{Client, ClientError},
    line::LineError,
};

use crate::output::{show, show_json};

const DEFAULT: &str = "/run/weft/ipam.sock";
/// An operator may ask for all that there is.
const DEADLINE: Duration = Duration::from_secs(60);

/// See and change who has which address.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    server: Server,
    #[command(subcommand)]
    command: Command,
}

/// Which server is asked, and for whom.
#[derive(Debug, clap::Args)]
pub struct Server {
    /// The IPAM server's socket [default: $WEFT_IPAM, else
    /// /run/weft/ipam.sock].
    #[arg(long, value_name = "PATH", global = true)]
    socket: Option<PathBuf>,
    /// Speak to the IPAM server of this lab.
    #[arg(long, value_name = "NAME", global = true, conflicts_with = "socket")]
    lab: Option<String>,
    /// Print JSON.
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    Show(show::Args),
    Check(check::Args),
    Release(release::Args),
    #[command(subcommand)]
    Pool(pool::Command),
    Reserve(reservation::Reserve),
    Unreserve(reservation::Unreserve),
    /// List what is reserved.
    Reservations,
    #[command(subcommand)]
    Node(node::Command),
    Configure(settings::Args),
    /// Show the settings.
    Config,
    /// Show who answers: version, store, revision, counts.
    Status,
    Watch(watch::Args),
}

pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    if let Command::Check(check) = &args.command
        && let Some(foreign) = check.foreign()
    {
        return check::foreign(check, foreign, args.server.json);
    }
    let mut session = args.server.session()?;
    match args.command {
        Command::Show(args) => show::run(args, &mut session),
        Command::Check(args) => check::run(&args, &mut session),
        Command::Release(args) => release::run(args, &mut session),
        Command::Pool(command) => pool::run(command, &mut session),
        Command::Reserve(args) => reservation::reserve(args, &mut session),
        Command::Unreserve(args) => reservation::unreserve(args, &mut session),
        Command::Reservations => reservation::list(&mut session),
        Command::Node(command) => node::run(command, &mut session),
        Command::Configure(args) => settings::change(args, &mut session),
        Command::Config => settings::show(&mut session),
        Command::Status => status::run(&mut session),
        Command::Watch(args) => watch::run(args, session),
    }
}

impl Server {
    pub fn session(self) -> anyhow::Result<Session> {
        Ok(Session {
            json: self.json,
            ..Session::open(&path(self.socket, self.lab)?)?
        })
    }
}

pub fn path(given: Option<PathBuf>, lab: Option<String>) -> anyhow::Result<PathBuf> {
    if let Some(lab) = lab {
        let ipam = weft_lab::session::status(&lab)?.state.ipam;
        let ipam = ipam.with_context(|| format!("lab {lab} has no IPAM server"))?;
        return Ok(ipam.socket);
    }
    let named = || env::var_os("WEFT_IPAM").filter(|path| !path.is_empty());
    Ok(given
        .or_else(|| named().map(PathBuf::from))
        .unwrap_or_else(|| DEFAULT.into()))
}

pub fn connect(path: &Path) -> anyhow::Result<Client> {
    Client::connect_within(path, DEADLINE).map_err(|error| match error {
        ClientError::Line(LineError::Connect { error, .. })
            if error.kind() != ErrorKind::PermissionDenied =>
        {
            anyhow!(
                "connect to the IPAM server at {path:?}: {error}; is weft-ipam running there? \
                 --socket or --lab names another"
            )
        }
        error => told(error),
    })
}

/// A refusal in the server's own words.
pub fn told(error: ClientError) -> anyhow::Error {
    match error {
        ClientError::Refused(refusal) => refusal.into(),
        error => error.into(),
    }
}

/// One command's conversation with the server.
pub struct Session {
    client: Client,
    json: bool,
}

impl Session {
    pub fn open(socket: &Path) -> anyhow::Result<Self> {
        Ok(Self {
            client: connect(socket)?,
            json: false,
        })
    }

    /// Asks for what only one kind of reply can answer.
    pub fn ask<T>(
        &mut self,
        request: &Request,
        expected: impl FnOnce(Reply) -> Option<T>,
    ) -> anyhow::Result<T> {
        let reply = self.client.request(request).map_err(told)?;
        expected(reply).with_context(|| {
            format!(
                "the server's answer to {request:?} is of another kind; are both of one version?"
            )
        })
    }

    /// Asks for a change, and says that it is made.
    fn change(&mut self, request: &Request, made: &str) -> anyhow::Result<ExitCode> {
        self.ask(request, |reply| (reply == Reply::Done).then_some(()))?;
        if self.json {
            show_json(&serde_json::json!({ "done": true }))
        } else {
            show(&format!("{made}\n"))
        }
    }

    /// Shows what was answered, to a program or to a person.
    pub fn print<T: Serialize>(
        &self,
        value: &T,
        page: impl FnOnce(&T) -> String,
    ) -> anyhow::Result<ExitCode> {
        print(self.json, value, page)
    }
}

fn print<T: Serialize>(
    json: bool,
    value: &T,
    page: impl FnOnce(&T) -> String,
) -> anyhow::Result<ExitCode> {
    if json {
        show_json(value)
    } else {
        show(&page(value))
    }
}

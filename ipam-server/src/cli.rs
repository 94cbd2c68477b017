//! The IPAM server's command line and the order of its start.

use std::{
    ffi::OsString,
    path::PathBuf,
    process::ExitCode,
    thread,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::Context;
use clap::{Parser, ValueEnum};
use crossbeam::channel::bounded;
use tracing::info;
use tracing_subscriber::EnvFilter;
use weft_api::ipam::Time;
use weft_socket::{Signals, guard::Socket};

use crate::{
    config::Config,
    server::Server,
    store::{Store, etcd::Etcd, redb::Redb},
    writer::{FirstError, Writer},
};

/// How long the end waits for the store.
const PARTING: Duration = Duration::from_secs(2);

/// Hand out pods' addresses.
#[derive(Debug, Parser)]
#[command(name = "weft-ipam", version)]
struct Arguments {
    /// Where to listen.
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// Where the rows live: FILE.redb or, of a cluster's etcd,
    /// `etcd://HOST:PORT,…/PREFIX` (`etcds://` for TLS).
    #[arg(long, value_name = "STORE")]
    store: Option<String>,
    /// The configuration, in TOML; every key has a default.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// How to write the log to standard error; RUST_LOG says how much.
    #[arg(long, value_enum, default_value_t)]
    log: LogFormat,
}

#[derive(Debug, Clone, Copy, Default, ValueEnum)]
enum LogFormat {
    #[default]
    Text,
    Json,
}

/// Runs the IPAM server until a signal ends it.
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let arguments = match Arguments::try_parse_from(arguments) {
        Ok(arguments) => arguments,
        Err(error) => {
            // Nobody is left to tell when the terminal has gone.
            let _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
        }
    };
    start_log(arguments.log);
    match serve(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("weft-ipam: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn serve(arguments: &Arguments) -> anyhow::Result<()> {
    let mut config = Config::load(arguments.config.as_deref())?;
    if let Some(socket) = &arguments.socket {
        config.socket.clone_from(socket);
    }
    if let Some(store) = &arguments.store {
        config.store.clone_from(store);
    }
    let signals = Signals::block().context("watch for signals")?;
    // First, so that nobody connects to a server that does not get its store.
    let store = open(&config)?;
    let socket = Socket::bind(&config.socket, &config.access)?;
    let (server, ends) = Server::new(socket, signals, config.limits.clone())?;
    let silenced = ends.silenced.clone();
    let (jobs, tell) = ends.split();
    let (clock, batch) = (Box::new(wall_clock), config.limits.batch);
    // Clients are answered while a store is away that others keep.
    let writer = match store.is_shared() {
        true => Writer::awaiting(store, clock, batch, tell),
        false => Writer::start(store, clock, batch, tell)?,
    };
    let mut writer = writer
        .with_grace(config.gc_grace)
        .with_members(config.node_grace, silenced)
        .with_pools(&config.pools);
    let revision = writer.revision();
    let (running, ended) = bounded::<FirstError>(1);
    thread::Builder::new()
        .name("writer".into())
        .spawn(move || match writer.begin() {
            Ok(()) => {
                writer.run(&jobs);
                drop(running);
            }
            // Received below, once the server has seen that the writer ended.
            Err(error) => drop(running.send(error)),
        })
        .context("start the writer's thread")?;
    info!(socket = %config.socket.display(), store = %config.store, "weft-ipam listens");
    let signal = server.run(revision).map_err(|fault| {
        let first = ended.recv_timeout(PARTING);
        first.map_or_else(|_| fault.into(), anyhow::Error::from)
    })?;
    // The store takes its leave, unless it hangs: it is safe without.
    let _ = ended.recv_timeout(PARTING);
    info!(%signal, "weft-ipam ends");
    Ok(())
}

fn open(config: &Config) -> anyhow::Result<Box<dyn Store>> {
    if config.store.contains("://") {
        return Ok(Box::new(Etcd::new(config.etcd()?)?));
    }
    Ok(Box::new(Redb::open(&config.store)?))
}

/// Milliseconds since 1970; a clock before that counts as then.
fn wall_clock() -> Time {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| {
        Time::try_from(since.as_millis()).unwrap_or(Time::MAX)
    })
}

fn start_log(format: LogFormat) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    // A log that is already there, as in tests, stays.
    let _ = match format {
        LogFormat::Text => log
            .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
            .try_init(),
        LogFormat::Json => log.json().try_init(),
    };
}

//! The IPAM server's command line and the order of its start.

use std::{
    ffi::OsString,
    path::PathBuf,
    process::ExitCode,
    thread,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::Context;
use clap::Parser;
use crossbeam::channel::bounded;
use tracing::info;
use weft_api::ipam::{Pool, Reply, Request, Time};
use weft_socket::{Signals, guard::Socket, log};

use crate::{
    config::Config,
    server::Server,
    store::{Store, etcd::Etcd, redb::Redb},
    writer::Writer,
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
    log: log::Format,
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
    log::start(arguments.log);
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
    let mut writer = Writer::start(store, Box::new(wall_clock), config.limits.batch, tell)?
        .with_grace(config.gc_grace)
        .with_members(config.node_grace, silenced);
    for pool in &config.pools {
        make_pool(&mut writer, pool).with_context(|| format!("pool {}", pool.name))?;
    }
    let revision = writer.revision();
    let (running, ended) = bounded::<()>(0);
    thread::Builder::new()
        .name("writer".into())
        .spawn(move || {
            writer.run(&jobs);
            drop(running);
        })
        .context("start the writer's thread")?;
    info!(socket = %config.socket.display(), store = %config.store, "weft-ipam is ready");
    let signal = server.run(revision)?;
    // The store takes its leave, unless it hangs: it is safe without.
    let _ = ended.recv_timeout(PARTING);
    info!(%signal, "weft-ipam ends");
    Ok(())
}

/// Makes a pool of the configuration, unless it is there: what operators
/// have since changed of it stays.
fn make_pool(writer: &mut Writer, pool: &Pool) -> anyhow::Result<()> {
    if let Reply::Pools(pools) = writer.decide(Request::Pools)?
        && pools
            .iter()
            .any(|old| old.pool.name == pool.name && old.pool.cidr == pool.cidr)
    {
        return Ok(());
    }
    writer.decide(Request::PoolCreate(Box::new(pool.clone())))?;
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

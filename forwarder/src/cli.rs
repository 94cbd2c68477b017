//! The forwarder's command line and the order of its start: what needs a
//! privilege first, then the workers, then nothing is left to lose.

use std::{
    ffi::OsString,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::Context;
use clap::Parser;
use tracing::{info, warn};
use weft_api::names::{Name, NameError};
use weft_socket::{
    confine::{confine, raise_open_files},
    log,
};

use crate::{
    config::{Config, Place},
    control::{ControlSocket, Forwarder, Server, Signals, listen_metrics},
};

/// Carry pods' packets in user space.
#[derive(Debug, Parser)]
#[command(name = "weft-forwarder", version)]
struct Arguments {
    /// Where to listen for orders.
    #[arg(long, value_name = "PATH", default_value = "/run/weft/forwarder.sock")]
    control: PathBuf,
    /// The configuration, in TOML; every key has a default.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// This node's name among its peers [default: the configuration's, else
    /// the host's].
    #[arg(long, value_name = "NAME", value_parser = name)]
    node: Option<Name>,
    /// An address that peers reach this node by, at most one of each family
    /// [default: the configuration's].
    #[arg(long, value_name = "ADDRESS")]
    underlay: Vec<IpAddr>,
    /// Serve /metrics and /healthz here, as 127.0.0.1:9100.
    #[arg(long, value_name = "ADDRESS")]
    metrics: Option<SocketAddr>,
    /// Learn the other nodes from this file, which is the same on all of them.
    #[arg(long, value_name = "FILE")]
    nodes: Option<PathBuf>,
    /// Learn the other nodes from the IPAM server at this socket.
    #[arg(long, value_name = "PATH")]
    ipam: Option<PathBuf>,
    /// Make this node known to that server for as long as it runs.
    #[arg(long)]
    register: bool,
    /// Threads that carry packets.
    #[arg(long, value_name = "COUNT")]
    workers: Option<usize>,
    /// How to write the log to standard error; RUST_LOG says how much.
    #[arg(long, value_enum, default_value_t)]
    log: log::Format,
}

fn name(text: &str) -> Result<Name, NameError> {
    Name::new(text)
}

/// Runs the forwarder until a signal ends it.
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
            eprintln!("weft-forwarder: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn serve(arguments: &Arguments) -> anyhow::Result<()> {
    let config = configure(arguments)?;
    let registration = config.registration()?;
    if let Err(fault) = raise_open_files() {
        warn!("the limit of open files stays as it is: {fault}");
    }
    let signals = Signals::block().context("watch for signals")?;
    let socket = ControlSocket::bind(&arguments.control, config.mode, &config.uids)?;
    let listen = |address| {
        listen_metrics(address).with_context(|| {
            format!("metrics address {address}: choose a free address of this node")
        })
    };
    let metrics = config.metrics.map(listen).transpose()?;
    let forwarder = Forwarder::start(&config)?;
    confine()?;
    let mut server = Server::new(socket, metrics, signals, forwarder)?;
    if let Some(nodes) = &config.nodes {
        server.keep_to_file(nodes)?;
    }
    announce(&arguments.control, &config);
    if let Some(ipam) = &config.ipam {
        server
            .follow(ipam, registration)
            .context("follow the IPAM server")?;
    }
    let signal = server.run()?;
    info!(%signal, "the forwarder ends");
    Ok(())
}

fn configure(arguments: &Arguments) -> anyhow::Result<Config> {
    let place = Place {
        node: arguments.node.clone(),
        underlay: arguments.underlay.clone(),
        nodes: arguments.nodes.clone(),
    };
    let mut config = Config::load(arguments.config.as_deref(), place)?;
    if let Some(workers) = arguments.workers {
        config.set_workers(workers)?;
    }
    config.metrics = arguments.metrics.or(config.metrics);
    config.register |= arguments.register;
    config.ipam = arguments.ipam.clone().or(config.ipam);
    config.check_sources()?;
    Ok(config)
}

fn announce(control: &Path, config: &Config) {
    info!(
        node = %config.node,
        control = %control.display(),
        underlay = ?config.uplink.addresses,
        port = config.uplink.port,
        mtu = config.uplink.mtu,
        workers = config.workers,
        nodes = ?config.nodes,
        ipam = ?config.ipam,
        "the forwarder is ready"
    );
}

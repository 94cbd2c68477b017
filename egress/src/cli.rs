//! The egress's command line, and its life: attach, serve, attach again when
//! the forwarder has started anew.

use std::{
    collections::hash_map::RandomState,
    env,
    ffi::OsString,
    fs,
    hash::{BuildHasher, Hasher},
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    process::ExitCode,
    sync::Arc,
    thread,
    time::Duration,
};

use anyhow::Context;
use clap::Parser;
use ipnet::IpNet;
use tracing::{info, warn};
use weft_socket::{
    Signals,
    confine::{confine, raise_open_files},
    log,
};

use crate::{
    attach::{attach, detach},
    metrics::{self, Counters},
    outlet::{End, Outlet, Rules},
    table::Limits,
    target::Dns,
};

/// Descriptors that are no flow's: the forwarder, the poll, the log, visitors.
const RESERVE: u64 = 64;

/// How long to wait before another try to attach.
const PAUSE: Duration = Duration::from_millis(500);

/// Let pods reach networks outside, and outside their published ports, by
/// sockets of this process, which needs no privilege. It is the forwarder's
/// host port, in place of weft host up.
#[derive(Debug, Parser)]
#[command(name = "weft-egress", version)]
pub struct Arguments {
    /// The forwarder's control socket [default: $WEFT_CONTROL, else
    /// /run/weft/forwarder.sock].
    #[arg(long, value_name = "PATH")]
    control: Option<PathBuf>,
    /// What pods' addresses come from [default: the pools of the IPAM server
    /// that the forwarder follows].
    #[arg(long = "pool", value_name = "CIDR")]
    pools: Vec<IpNet>,
    /// Answer DNS at this address, outside the pools, by asking the resolver.
    #[arg(long, value_name = "ADDRESS")]
    dns: Option<IpAddr>,
    /// The resolver [default: the first of /etc/resolv.conf].
    #[arg(long, value_name = "ADDRESS:PORT", requires = "dns")]
    resolver: Option<SocketAddr>,
    /// Most flows at a time [default: what the limit of open files allows].
    #[arg(long, value_name = "COUNT")]
    flows: Option<usize>,
    /// Most flows of one pod's address [default: half of all].
    #[arg(long, value_name = "COUNT")]
    flows_per_pod: Option<usize>,
    /// Serve /metrics and /healthz here, as 127.0.0.1:9101.
    #[arg(long, value_name = "ADDRESS")]
    metrics: Option<SocketAddr>,
}

/// Runs the egress until a signal ends it.
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    match Arguments::try_parse_from(arguments) {
        Ok(arguments) => start(&arguments),
        Err(error) => {
            // Nobody is left to tell when the terminal has gone.
            let _ = error.print();
            ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2))
        }
    }
}

/// The same, with arguments that have been read.
pub fn start(arguments: &Arguments) -> ExitCode {
    log::start(log::Format::Text);
    match serve(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("weft-egress: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn control(arguments: &Arguments) -> PathBuf {
    let named = || env::var_os("WEFT_CONTROL").filter(|path| !path.is_empty());
    let told = arguments
        .control
        .clone()
        .or_else(|| named().map(PathBuf::from));
    told.unwrap_or_else(|| "/run/weft/forwarder.sock".into())
}

fn serve(arguments: &Arguments) -> anyhow::Result<()> {
    let control = control(arguments);
    let open_files = raise_open_files().context("raise the limit of open files")?;
    let allowed = usize::try_from(open_files.saturating_sub(RESERVE)).unwrap_or(usize::MAX);
    let all = arguments.flows.unwrap_or(allowed).min(allowed);
    let limits = Limits {
        all,
        pod: arguments.flows_per_pod.unwrap_or(all / 2).min(all),
    };
    if arguments.flows.is_some_and(|asked| asked > allowed) {
        warn!("--flows is cut to {allowed}: raise the limit of open files for more");
    }
    let dns = arguments
        .dns
        .map(|address| resolve(address, arguments.resolver))
        .transpose()?;
    let signals = Signals::block().context("watch for signals")?;
    confine()?;
    let counters = Arc::new(Counters::default());
    if let Some(address) = arguments.metrics {
        let served = metrics::serve(address, Arc::clone(&counters));
        served.with_context(|| {
            format!("metrics address {address}: choose a free address of this node")
        })?;
    }
    // What is wrong with the first try is wrong with the command.
    let mut attached = Some(attach(&control, &arguments.pools)?);
    loop {
        if let Some(attached) = attached.take() {
            let seed = RandomState::new().build_hasher().finish();
            let rules = Rules { limits, dns, seed };
            let outlet = Outlet::new(attached, &control, &signals, rules, Arc::clone(&counters))?;
            info!(
                flows = limits.all,
                flows_per_pod = limits.pod,
                ?dns,
                "the egress is ready"
            );
            if let End::Signal(signal) = outlet.run(&signals)? {
                info!(%signal, "the egress ends");
                return Ok(detach(&control)?);
            }
            warn!("the forwarder let the port go, and all flows ended with it; attaching again");
        }
        if let Some(signal) = signals.next() {
            info!(%signal, "the egress ends");
            return Ok(());
        }
        match attach(&control, &arguments.pools) {
            Ok(again) => attached = Some(again),
            Err(error) => {
                tracing::debug!("{error}");
                thread::sleep(PAUSE);
            }
        }
    }
}

fn resolve(address: IpAddr, resolver: Option<SocketAddr>) -> anyhow::Result<Dns> {
    if let Some(resolver) = resolver {
        return Ok(Dns { address, resolver });
    }
    const PATH: &str = "/etc/resolv.conf";
    let text = fs::read_to_string(PATH)
        .with_context(|| format!("read {PATH}; name the resolver by --resolver"))?;
    let resolver = first_resolver(&text)
        .with_context(|| format!("{PATH} names no nameserver; name the resolver by --resolver"))?;
    Ok(Dns {
        address,
        resolver: SocketAddr::new(resolver, 53),
    })
}

/// The first `nameserver` of resolv.conf(5).
fn first_resolver(text: &str) -> Option<IpAddr> {
    text.lines().find_map(|line| {
        let mut words = line.split_whitespace();
        (words.next() == Some("nameserver")).then(|| words.next()?.parse().ok())?
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_nameserver_counts() {
        let text = "# nameserver 192.0.2.9\nsearch example.net\nnameserver fe80::1%eth0\nnameserver 192.0.2.1\nnameserver 192.0.2.2\n";
        assert_eq!(first_resolver(text), "192.0.2.1".parse().ok());
        assert_eq!(first_resolver("options edns0\n"), None);
    }
}

//! `weft bird`: BIRD's configuration from the nodes that there are, once or
//! for as long as the command runs.

mod birdc;
mod output;

use std::{
    fs,
    net::{IpAddr, Ipv4Addr},
    path::{Path, PathBuf},
    process::ExitCode,
    str::FromStr,
    thread,
    time::Duration,
};

use anyhow::{Context, bail};
use ipnet::IpNet;
use weft_api::{
    forwarder::{Nodes, Way},
    ipam::{Event, Route},
    names::Name,
};
use weft_forwarder::{
    ipam::View,
    nodes,
    watched::{self, Stamp, Watched},
};
use weft_interop::bird::{Neighbour, Options, render};

use crate::ipam::{self, Session, words::name};
use output::Output;

/// After the IPAM server was lost.
const PAUSE: Duration = Duration::from_secs(2);

/// Print a configuration for BIRD 2 that announces this node's blocks and
/// takes the others'.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The node's autonomous system.
    #[arg(long = "as", value_name = "NUMBER")]
    asn: u32,
    /// A route reflector, or a router with its own autonomous system; given
    /// once or more, the nodes do not speak with each other.
    #[arg(long, value_name = "ADDRESS[=AS]", value_parser = Given::from_str)]
    neighbor: Vec<Given>,
    /// BGP's identifier of the node [default: its IPv4 address].
    #[arg(long, value_name = "ADDRESS")]
    router_id: Option<Ipv4Addr>,
    /// Where packets to the node's own pods go; without it, blocks are
    /// announced and end here.
    #[arg(long, value_name = "INTERFACE")]
    device: Option<String>,
    /// A file that holds the password of all sessions.
    #[arg(long, value_name = "FILE")]
    password_file: Option<PathBuf>,
    /// This node [default: the host's name].
    #[arg(long, value_name = "NAME", value_parser = name)]
    node: Option<Name>,
    /// Ask the IPAM server at this socket [default: $WEFT_IPAM, else
    /// /run/weft/ipam.sock].
    #[arg(long, value_name = "PATH", conflicts_with = "nodes")]
    socket: Option<PathBuf>,
    /// Take the nodes from this file instead.
    #[arg(long, value_name = "FILE")]
    nodes: Option<PathBuf>,
    /// Write here, whole or not at all, and only what is new.
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Go on, and write again whenever something has changed.
    #[arg(long, requires = "out")]
    watch: bool,
    /// Have BIRD read the new file, by its control socket.
    #[arg(long, value_name = "SOCKET", requires = "out")]
    reload: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy)]
struct Given {
    address: IpAddr,
    asn: Option<u32>,
}

impl FromStr for Given {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let (address, asn) = match text.split_once('=') {
            Some((address, asn)) => (address, Some(asn)),
            None => (text, None),
        };
        let wrong = |_| "give an address, or an address, '=' and a number".to_owned();
        Ok(Self {
            address: address.parse().map_err(|_| wrong(()))?,
            asn: asn.map(str::parse).transpose().map_err(|_| wrong(()))?,
        })
    }
}

pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let own = match &args.node {
        Some(node) => node.clone(),
        None => Name::new(fs::read_to_string("/proc/sys/kernel/hostname")?.trim())
            .context("the host's name is none that a node can have; give --node")?,
    };
    let mut task = Task {
        own,
        options: args.options()?,
        output: Output::new(args.out.clone(), args.reload.clone()),
        told: None,
    };
    match &args.nodes {
        Some(file) => task.keep_to_file(file, args.watch)?,
        None => {
            let socket = ipam::path(args.socket.clone(), None)?;
            while let Err(fault) = task.follow(&socket, args.watch) {
                if !args.watch {
                    return Err(fault);
                }
                task.report(Err(fault));
                thread::sleep(PAUSE);
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

impl Args {
    fn options(&self) -> anyhow::Result<Options> {
        let password = self.password_file.as_ref().map(|path| {
            let text = fs::read_to_string(path);
            text.with_context(|| format!("read the password in {path:?}"))
        });
        let password = password.transpose()?;
        let neighbour = |given: &Given| Neighbour {
            address: given.address,
            asn: given.asn.unwrap_or(self.asn),
        };
        Ok(Options {
            asn: self.asn,
            router_id: self.router_id,
            neighbours: self.neighbor.iter().map(neighbour).collect(),
            device: self.device.clone(),
            password: password.map(|text| text.trim_end_matches(['\r', '\n']).to_owned()),
        })
    }
}

struct Task {
    own: Name,
    options: Options,
    output: Output,
    /// The fault that was told last.
    told: Option<String>,
}

impl Task {
    fn put(&mut self, nodes: &Nodes, pools: &[IpNet]) -> anyhow::Result<()> {
        let text = render(nodes, pools, &self.options)?;
        self.output.put(&text)
    }

    /// The blocks that the file has reached directly are all that may be taken.
    fn take_file(&mut self, path: &Path) -> anyhow::Result<()> {
        let mut nodes = nodes::read_as(path, &self.own)?;
        for node in nodes.peers.iter_mut().chain([&mut nodes.node]) {
            let ways = &node.ways;
            node.blocks
                .retain(|net| ways.get(net) == Some(&Way::Direct));
        }
        let all = nodes.peers.iter().chain([&nodes.node]);
        let pools: Vec<_> = all.flat_map(|node| node.blocks.clone()).collect();
        self.put(&nodes, &pools)
    }

    fn keep_to_file(&mut self, path: &Path, watch: bool) -> anyhow::Result<()> {
        let mut watched = Watched::new(Stamp::of(path));
        self.take_file(path)?;
        if !watch {
            return self.output.reload();
        }
        loop {
            let done = self.output.reload();
            self.report(done);
            thread::sleep(watched::PAUSE);
            if watched.is_new(Stamp::of(path)) {
                let done = self.take_file(path);
                self.report(done);
            }
        }
    }

    /// Tells what is wrong, once.
    fn report(&mut self, done: anyhow::Result<()>) {
        let fault = done.err().map(|fault| format!("{fault:#}"));
        if let Some(fault) = fault.as_ref().filter(|_| fault != self.told) {
            eprintln!("weft bird: {fault}; trying again");
        }
        self.told = fault;
    }

    /// Writes what the IPAM server tells, once or until it is lost.
    fn follow(&mut self, socket: &Path, watch: bool) -> anyhow::Result<()> {
        let (mut events, mut event) = ipam::connect(socket)?.watch(None).map_err(ipam::told)?;
        let mut view = View::default();
        loop {
            let is_news = !matches!(event, Event::Alive { .. });
            view.take(event);
            if is_news {
                let mut pools = Session::open(socket)?.pools()?;
                pools.retain(|usage| usage.pool.encapsulation.leaves_some_plain(usage.pool.when));
                let pools: Vec<_> = pools.iter().map(|usage| usage.pool.cidr).collect();
                // What is tunnelled is none of the fabric's.
                let plain = |route: &Route| route.encapsulation.leaves_some_plain(route.when);
                let Some(nodes) = view.nodes_with(&self.own, plain) else {
                    bail!(
                        "node {} is unknown; start its forwarder with --register, or make it \
                         known by weft ipam node put",
                        self.own
                    );
                };
                self.put(&nodes, &pools)?;
            }
            let done = self.output.reload();
            if !watch {
                return done;
            }
            self.report(done);
            event = events.next_event().map_err(ipam::told)?;
        }
    }
}

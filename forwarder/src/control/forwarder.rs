//! The forwarder behind the socket: requests in, answers out. It alone
//! changes the tables; a change is in force on every worker before its
//! answer leaves.

use std::{
    collections::BTreeMap,
    io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::Arc,
    time::Instant,
};

use mio::Waker;
use tracing::{error, warn};
use weft_api::{
    forwarder::{Answer, Attach, Code, Driver, Error, Node, Nodes, QUEUES_MAX, Reply, Request},
    ipam,
};
use weft_engine::Epoch;

use super::closing::Closing;
use crate::{
    config::Config,
    feeds::{Feeds, gather::Gathering},
    ipam::{Following, Told},
    metrics::{Flow, Scrape, Totals},
    paths::{Paths, Quiet, Underlay},
    port::Port,
    publish::{
        PeerRow, State, Takes, refusal,
        ways::{self, Unserved},
    },
    tables::Tables,
    uplink::{self, UplinkError, question::Questioner},
    workers::{Workers, WorkersError},
};

mod file;
mod policy;
mod report;

use file::NodesFile;
use report::over_bandwidth;

const VERSION: &str = env!("CARGO_PKG_VERSION");

#[derive(Debug)]
pub struct Forwarder {
    state: State,
    /// The open ports, each at its `PortId`.
    open: Vec<Option<Arc<Port>>>,
    epoch: Epoch,
    count: usize,
    paths: Paths,
    workers: Workers,
    closing: Closing,
    source: Option<Source>,
    file: Option<NodesFile>,
    feeds: Feeds,
    gathering: Gathering,
}

/// The IPAM server, where the nodes come from it.
#[derive(Debug)]
struct Source {
    socket: PathBuf,
    following: Following,
    connected: bool,
    /// Of the tables in force.
    revision: Option<u64>,
    /// The newest nodes could not be put in force.
    refused: bool,
}

#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(transparent)]
    Uplink(#[from] UplinkError),
    #[error(transparent)]
    Workers(#[from] WorkersError),
    #[error(transparent)]
    Tables(#[from] Error),
    #[error("start the thread that closes ports: {0}")]
    Closing(io::Error),
    #[error("start the thread that asks peers: {0}")]
    Paths(io::Error),
}

impl Forwarder {
    /// Opens the uplink and starts the workers, with no port and no peer.
    pub fn start(config: &Config) -> Result<Self, StartError> {
        let own = Node {
            name: config.node.clone(),
            underlay: config.uplink.addresses.clone(),
            vtep_mac: config.vtep_mac,
            vni: config.vni,
            port: config.uplink.port,
            blocks: Vec::new(),
            ways: BTreeMap::new(),
            tunnel: Vec::new(),
        };
        let mut state = State::new(own, config.uplink.mtu);
        let epoch = Epoch::default();
        let tables = Tables {
            snapshot: state.snapshot(epoch)?,
            ports: Vec::new(),
        };
        uplink::check_free(&config.uplink)?;
        let quiet = Quiet::new(&config.probes).map_err(StartError::Paths)?;
        let workers = Workers::start(config.workers, &config.uplink, tables, quiet.ears())?;
        state.set_ipip(workers.ipip());
        Ok(Self {
            state,
            paths: start_paths(quiet, config, &workers)?,
            open: Vec::new(),
            epoch,
            count: config.workers,
            workers,
            closing: Closing::start().map_err(StartError::Closing)?,
            source: None,
            file: None,
            feeds: Feeds::default(),
            gathering: Gathering::default(),
        })
    }

    /// Takes the nodes from the IPAM server at `socket`, whose news come with
    /// `waker`, and from nobody else.
    pub fn follow(
        &mut self,
        socket: &Path,
        registration: Option<ipam::Node>,
        waker: Arc<Waker>,
    ) -> io::Result<()> {
        let own = self.state.own().clone();
        self.source = Some(Source {
            socket: socket.to_owned(),
            following: Following::start(socket, own, registration, waker)?,
            connected: false,
            revision: None,
            refused: false,
        });
        Ok(())
    }

    /// Follows no more; a node that registered is withdrawn.
    pub fn leave(&mut self) {
        if let Some(source) = self.source.take() {
            let name = self.state.own().name.clone();
            source.following.leave(&source.socket, name);
        }
    }

    /// Puts in force what the IPAM server has told. What contradicts the
    /// uplink or a port leaves the tables as they are.
    pub fn hear_news(&mut self) {
        let Some(mut source) = self.source.take() else {
            return;
        };
        let Told {
            connected,
            revision,
            nodes,
            ..
        } = source.following.news();
        source.connected = connected;
        if let Some(mut nodes) = nodes {
            if !self.workers.ipip() {
                for Unserved { net, node } in ways::without_ipip(&mut nodes) {
                    warn!(
                        "{net} of node {node} gets no route by ipip: {}",
                        ways::REMEDY
                    );
                }
            }
            let published = self.replace_nodes(nodes);
            if let Err(refusal) = &published {
                error!("the IPAM server's nodes are not put in force: {refusal}");
            }
            source.refused = published.is_err();
        }
        if !source.refused {
            source.revision = revision;
        }
        self.source = Some(source);
    }

    /// Has news of the paths to peers come with `waker`.
    pub fn listen(&self, waker: Arc<Waker>) {
        self.paths.board().tell(waker);
    }

    /// Puts in force what was found out about the paths to peers.
    pub fn hear_paths(&mut self) {
        let Some((uplink_mtu, mtus)) = self.paths.board().news() else {
            return;
        };
        let published = match self.state.with_paths(uplink_mtu, mtus) {
            Ok(Some(state)) => self.publish(state, self.open.clone()).map(drop),
            Ok(None) => Ok(()),
            Err(refusal) => Err(refusal),
        };
        if let Err(refusal) = published {
            error!("the paths' MTUs are not put in force: {refusal}");
        }
    }

    /// `fds` are those that came with the request. `client` tells who asks from
    /// all others, until [`Self::forget`].
    pub fn answer(&mut self, client: usize, request: Request, fds: Vec<OwnedFd>) -> Answer {
        let reply = match request {
            Request::Attach(spec) => self.attach(spec, fds),
            Request::Detach { name } => self.detach(&name),
            Request::Apply(nodes) => self.apply(nodes),
            Request::List => Ok(Reply::Ports(self.ports())),
            Request::Peers => Ok(Reply::Peers(self.peers())),
            Request::Counters => Ok(Reply::Counters(Box::new(self.counters()))),
            Request::Drops => Ok(Reply::Drops(self.drops())),
            Request::Status => Ok(Reply::Status(Box::new(self.status()))),
            Request::Policies(part) => self.policies(client, part),
            Request::PolicyChange(change) => self.policy_change(change),
            Request::PolicyDrop { source } => self.policy_drop(source),
            Request::PolicyList => Ok(Reply::Rules(self.feeds.rules())),
            Request::PolicyShow { policy } => self.policy_show(&policy),
            Request::Explain(asked) => self.explain(&asked),
            Request::Flows { after } => self.flows(after),
            Request::Denied => Ok(Reply::Denied(self.feeds.denied(Instant::now()))),
        };
        reply.map_or_else(Answer::Error, Answer::Ok)
    }

    pub fn scrape(&self) -> Scrape {
        let port = |row: &crate::publish::PortRow| {
            Flow::new(&row.spec.name, &row.port.from_pod, &row.port.to_pod)
        };
        let over = |row: &crate::publish::PortRow| {
            let over = over_bandwidth(&row.port);
            let limited = !row.spec.capabilities.bandwidth.is_unlimited();
            limited.then(|| (row.spec.name.to_string(), [over.from_pod, over.to_pod]))
        };
        let peer =
            |row: &PeerRow| Flow::new(&row.node.name, &row.peer.from_peer, &row.peer.to_peer);
        Scrape {
            version: VERSION,
            totals: Totals::of(self.workers.counters()),
            ports: self.state.ports().map(port).collect(),
            over_bandwidth: self.state.ports().filter_map(over).collect(),
            peers: self.state.peers().iter().map(peer).collect(),
            paths: self.probed(),
            ports_gone: self
                .open
                .iter()
                .flatten()
                .filter(|port| port.gone())
                .count(),
            workers: self.count,
            epoch: self.epoch.0,
            gso: self.workers.gso(),
            gro: self.workers.gro(),
            ipam: self
                .source
                .as_ref()
                .map(|source| (source.connected, source.revision.unwrap_or_default())),
            nodes_file: self.file.as_ref().map(NodesFile::is_in_force),
            policy: self.feeds.gauges(),
        }
    }

    fn apply(&mut self, nodes: Nodes) -> Result<Reply, Error> {
        if let Some(Source { socket, .. }) = &self.source {
            let message = format!(
                "apply: what nodes there are comes from the IPAM server at {}",
                socket.display()
            );
            return Err(refusal(
                Code::Ruled,
                message,
                "change it there, by weft ipam node, or start the forwarder without --ipam",
            ));
        }
        if let Some(file) = &self.file {
            return Err(file.rules());
        }
        self.replace_nodes(nodes)
    }

    fn replace_nodes(&mut self, nodes: Nodes) -> Result<Reply, Error> {
        let state = self.state.with_nodes(nodes)?;
        self.publish(state, self.open.clone())
    }

    fn attach(&mut self, spec: Attach, fds: Vec<OwnedFd>) -> Result<Reply, Error> {
        // Refuse before the fds are touched.
        self.state.place_for(&spec)?;
        check_count(&spec, fds.len())?;
        let port = Port::open(spec.driver, fds).map_err(|fault| {
            let message = format!("attach port {}: {fault}", spec.name);
            refusal(
                Code::Descriptor,
                message,
                "pass the queues of the pod's own device",
            )
        })?;
        let takes = Takes {
            udp: port.takes_udp(),
            tcp: port.takes_tcp(),
        };
        let (state, id) = self.state.with_port(spec, takes)?;
        let mut open = self.open.clone();
        let place = usize::from(id.0);
        open.resize(open.len().max(place + 1), None);
        open[place] = Some(Arc::new(port));
        self.publish(state, open)
    }

    fn detach(&mut self, name: &weft_api::names::Name) -> Result<Reply, Error> {
        let (state, id) = self.state.without_port(name)?;
        let mut open = self.open.clone();
        let gone = open[usize::from(id.0)].take();
        while let Some(None) = open.last() {
            open.pop();
        }
        let reply = self.publish(state, open)?;
        self.closing.close(gone);
        Ok(reply)
    }

    fn publish(&mut self, state: State, open: Vec<Option<Arc<Port>>>) -> Result<Reply, Error> {
        self.publish_in(Epoch(self.epoch.0 + 1), state, open)
    }

    /// An epoch that goes on may not judge or send any packet otherwise.
    fn publish_in(
        &mut self,
        epoch: Epoch,
        state: State,
        open: Vec<Option<Arc<Port>>>,
    ) -> Result<Reply, Error> {
        let mut snapshot = state.snapshot(epoch)?;
        if !state.has_same_nodes(&self.state) {
            self.paths.follow(state.targets(&snapshot));
        }
        snapshot.policy = self.feeds.policy();
        self.workers.publish(Tables {
            snapshot,
            ports: open.clone(),
        });
        (self.state, self.open, self.epoch) = (state, open, epoch);
        Ok(Reply::Done { epoch: epoch.0 })
    }
}

fn start_paths(quiet: Quiet, config: &Config, workers: &Workers) -> Result<Paths, StartError> {
    let questioner = Questioner::open(&config.uplink, Arc::clone(workers.sender()))?;
    let underlay = Underlay {
        addresses: config.uplink.addresses.clone(),
        mtu: config.uplink.mtu,
        follow_links: config.uplink.mtu_of_links,
    };
    let counters = workers.counters().last().cloned().unwrap_or_default();
    let started = quiet.start(&config.probes, underlay, questioner, counters);
    started.map_err(StartError::Paths)
}

fn check_count(spec: &Attach, fds: usize) -> Result<(), Error> {
    let (most, hint) = match spec.driver {
        Driver::Basic => (1, "a basic port has exactly one queue"),
        Driver::Tap | Driver::Veth | Driver::Packets => (
            QUEUES_MAX,
            "pass each queue's fd beside the line (SCM_RIGHTS)",
        ),
    };
    if fds == 0 || fds > most {
        let message = format!("attach port {}: {fds} fds came with the request", spec.name);
        return Err(refusal(Code::Descriptor, message, hint));
    }
    Ok(())
}

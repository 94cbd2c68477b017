//! A member's life: it holds a lease, watches the others', and keeps the
//! forwarder's nodes as they are.
//!
//! Invariant: what etcd or the forwarder do not answer changes nothing; the
//! forwarder goes on with the nodes that it was told last.

use std::{
    collections::BTreeMap,
    fs, io,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Context;
use crossbeam::channel::{Receiver, RecvTimeoutError, Sender};
use weft_api::forwarder::{Node, Nodes, Request};
use weft_cni::forwarder::Client;
use weft_etcd::{
    Cluster, Told, Watch, below,
    message::{Bytes, Event, EventKind, KeyValue},
};
use weft_interop::flannel::{
    Config, Lease, Range, Record, SubnetEnv, SubnetKey, Vxlan, peers, record,
};

use super::lease::{self, Held};

/// How often the forwarder is asked whether it is still the one that was told.
const PULSE: Duration = Duration::from_secs(2);

/// Between two tries of what failed.
const PAUSE: Duration = Duration::from_secs(1);

/// Of VXLAN over IPv4 and over IPv6 with its Ethernet header.
const OVERHEADS: [u16; 2] = [20 + 8 + 8 + 14, 40 + 8 + 8 + 14];

/// An underlay whose MTU nobody named.
const USUAL_MTU: u16 = 1500;

#[derive(Debug)]
pub struct Member {
    pub cluster: Arc<Cluster>,
    pub prefix: String,
    pub config: Config,
    pub vxlan: Vxlan,
    /// But for its subnets.
    pub node: Node,
    pub control: PathBuf,
    pub subnet_env: Option<PathBuf>,
}

#[derive(Debug)]
pub enum Message {
    Told(Told),
    Stop,
}

/// Why a term of membership is over.
enum End {
    Stopped,
    /// The lease or the watch is lost.
    Again,
}

/// One lease's time.
struct Term<'a> {
    member: &'a Member,
    own: Lease,
    held: Held,
    /// Up to this revision all is known.
    since: u64,
    /// By key: each row, with its revision.
    rows: BTreeMap<Bytes, (u64, Result<Lease, weft_interop::Error>)>,
    /// What was told of rows that are left out.
    complaints: Vec<String>,
    /// Of the forwarder that has the nodes as they are.
    told: Option<u32>,
}

impl Member {
    /// Until a signal.
    pub fn run(
        &self,
        sender: &Sender<Message>,
        messages: &Receiver<Message>,
    ) -> anyhow::Result<()> {
        let mut term = self.term()?;
        loop {
            let end = term.live(sender, messages);
            // Its row is under it until another lease has the row.
            let old = term.held.lease.take();
            if let End::Stopped = end {
                old.into_iter().for_each(weft_etcd::Lease::leave);
                return Ok(());
            }
            term = loop {
                match self.term() {
                    Ok(term) => break term,
                    Err(error) => tracing::error!("no lease: {error:#}; trying again"),
                }
                if stopped_within(messages, PAUSE) {
                    old.into_iter().for_each(weft_etcd::Lease::leave);
                    return Ok(());
                }
            };
        }
    }

    fn term(&self) -> anyhow::Result<Term<'_>> {
        let families = SubnetKey {
            v4: self.config.v4.map(|_| ipnet::Ipv4Net::default()),
            v6: self.config.v6.map(|_| ipnet::Ipv6Net::default()),
        };
        let record = record(&self.node, &families);
        let wanted = self.subnet_of_before();
        let held = lease::acquire(&self.cluster, &self.prefix, &self.config, &record, wanted)?;
        let key = held.key;
        self.write_subnet_env(&key)?;
        Ok(Term {
            member: self,
            own: Lease { key, record },
            held,
            since: 0,
            rows: BTreeMap::new(),
            complaints: Vec::new(),
            told: None,
        })
    }

    fn subnet_of_before(&self) -> Option<SubnetKey> {
        let path = self.subnet_env.as_ref()?;
        let text = fs::read_to_string(path).ok()?;
        match SubnetEnv::parse(&path.display().to_string(), &text) {
            Ok(env) => Some(SubnetKey {
                v4: env.v4.map(|(_, subnet)| subnet),
                v6: env.v6.map(|(_, subnet)| subnet),
            }),
            Err(error) => {
                tracing::warn!(%error, "the subnet of before is not known");
                None
            }
        }
    }

    fn write_subnet_env(&self, key: &SubnetKey) -> anyhow::Result<()> {
        let Some(path) = &self.subnet_env else {
            return Ok(());
        };
        let overhead = OVERHEADS[usize::from(self.config.v6.is_some())];
        let outer = self.vxlan.mtu.unwrap_or(USUAL_MTU);
        let v4 = |range: Range| match range.network {
            ipnet::IpNet::V4(net) => Some(net),
            ipnet::IpNet::V6(_) => None,
        };
        let v6 = |range: Range| match range.network {
            ipnet::IpNet::V6(net) => Some(net),
            ipnet::IpNet::V4(_) => None,
        };
        let env = SubnetEnv {
            v4: self.config.v4.and_then(v4).zip(key.v4),
            v6: self.config.v6.and_then(v6).zip(key.v6),
            mtu: outer.saturating_sub(overhead),
            masquerade: false,
        };
        replace(path, &env.to_string()).with_context(|| format!("write {}", path.display()))
    }
}

/// Whole or not at all.
fn replace(path: &std::path::Path, text: &str) -> io::Result<()> {
    let new = path.with_extension("new");
    fs::write(&new, text)?;
    fs::rename(&new, path)
}

impl Term<'_> {
    fn live(&mut self, sender: &Sender<Message>, messages: &Receiver<Message>) -> End {
        let member = self.member;
        let listing = match lease::list(&member.cluster, &member.prefix) {
            Ok(listing) => listing,
            Err(error) => {
                tracing::error!("the leases are not known: {error:#}; trying again");
                return match stopped_within(messages, PAUSE) {
                    true => End::Stopped,
                    false => End::Again,
                };
            }
        };
        self.since = listing.revision;
        listing.rows.iter().for_each(|row| self.put(row));
        let own = self.own_row();
        if !listing.rows.iter().any(|row| row.key == own) {
            tracing::error!(key = %self.own.key, "this node's lease was deleted; taking one again");
            return End::Again;
        }
        let sender = sender.clone();
        let tell = Box::new(move |told| sender.send(Message::Told(told)).is_ok());
        let _watch = Watch::start(Arc::clone(&member.cluster), listing.revision, tell);
        self.apply();
        let mut next_pulse = Instant::now() + PULSE;
        loop {
            match messages.recv_deadline(next_pulse) {
                Ok(Message::Told(told)) => match self.take(told) {
                    Ok(true) => self.apply(),
                    Ok(false) => {}
                    Err(end) => return end,
                },
                Err(RecvTimeoutError::Timeout) => {
                    self.pulse();
                    next_pulse = Instant::now() + PULSE;
                }
                Ok(Message::Stop) | Err(RecvTimeoutError::Disconnected) => return End::Stopped,
            }
        }
    }

    /// Whether the nodes may have changed.
    fn take(&mut self, told: Told) -> Result<bool, End> {
        let Told::Events { revision, events } = told else {
            tracing::info!("etcd compacted what was not seen yet; reading all leases anew");
            return Err(End::Again);
        };
        // Of a watch of before.
        if revision <= self.since {
            return Ok(false);
        }
        let subnets = format!("{}/", lease::subnets(&self.member.prefix));
        let mut changed = false;
        for Event { kind, kv } in events {
            let name = String::from_utf8_lossy(&kv.key.0).into_owned();
            let Some(short) = name.strip_prefix(&subnets) else {
                tracing::warn!(key = name, "it changed; start again to take it up");
                continue;
            };
            let own = short == self.own.key.to_string();
            changed |= !own;
            match kind {
                EventKind::Put if own => self.check_own(&kv),
                EventKind::Put => self.put(&kv),
                EventKind::Delete if own => {
                    tracing::error!(
                        key = name,
                        "this node's lease was deleted; taking one again"
                    );
                    return Err(End::Again);
                }
                EventKind::Delete => {
                    self.rows.remove(&kv.key);
                }
            }
        }
        Ok(changed)
    }

    fn own_row(&self) -> Bytes {
        let subnets = lease::subnets(&self.member.prefix);
        below(&subnets, &self.own.key.to_string())
    }

    fn check_own(&self, row: &KeyValue) {
        let key = String::from_utf8_lossy(&row.key.0);
        if Record::parse(&key, &row.value.0).as_ref() != Ok(&self.own.record) {
            tracing::error!(
                %key,
                "another node writes this node's lease; give each a --public-ip of its own, \
                 and start again"
            );
        }
    }

    fn put(&mut self, row: &KeyValue) {
        let name = String::from_utf8_lossy(&row.key.0);
        let lease = SubnetKey::parse(&name).and_then(|key| {
            let record = Record::parse(&name, &row.value.0)?;
            Ok(Lease { key, record })
        });
        self.rows.insert(row.key.clone(), (row.mod_revision, lease));
    }

    /// Tells the forwarder all nodes.
    fn apply(&mut self) {
        let nodes = self.nodes();
        match tell(&self.member.control, nodes) {
            Ok(pid) => self.told = Some(pid),
            Err(error) => {
                tracing::error!("the forwarder does not take the nodes: {error:#}; trying again");
                self.told = None;
            }
        }
    }

    /// A forwarder that started anew knows nothing.
    fn pulse(&mut self) {
        let status = Client::connect(&self.member.control).and_then(|mut client| client.status());
        let pid = status.ok().map(|status| status.pid);
        if self.told.is_none() || pid != self.told {
            self.apply();
        }
    }

    /// Of two leases that want the same the newer has it: its node came later.
    fn nodes(&mut self) -> Nodes {
        let mut rows: Vec<_> = self.rows.values().collect();
        rows.sort_by_key(|(revision, _)| std::cmp::Reverse(*revision));
        let leases = rows.iter().filter_map(|(_, lease)| lease.as_ref().ok());
        let found = peers(&self.own, leases, self.member.vxlan.port);
        let unread = rows.iter().filter_map(|(_, lease)| lease.as_ref().err());
        let complaints: Vec<_> = unread
            .chain(&found.errors)
            .map(ToString::to_string)
            .collect();
        for error in complaints.iter().filter(|c| !self.complaints.contains(*c)) {
            tracing::warn!(error, "a lease is left out");
        }
        self.complaints = complaints;
        let blocks: Vec<_> = self.own.key.subnets().collect();
        Nodes {
            node: Node {
                tunnel: blocks.iter().map(ipnet::IpNet::addr).collect(),
                blocks,
                ..self.member.node.clone()
            },
            peers: found.nodes,
        }
    }
}

/// Returns which process was told.
fn tell(control: &std::path::Path, nodes: Nodes) -> anyhow::Result<u32> {
    let mut client = Client::connect(control)?;
    let count = nodes.peers.len();
    let pid = client.status()?.pid;
    client.request(&Request::Apply(nodes))?;
    tracing::info!(peers = count, "the forwarder was told");
    Ok(pid)
}

/// Whether a signal came while waiting.
fn stopped_within(messages: &Receiver<Message>, time: Duration) -> bool {
    let end = Instant::now() + time;
    loop {
        match messages.recv_deadline(end) {
            Ok(Message::Told(_)) => {}
            Err(RecvTimeoutError::Timeout) => return false,
            Ok(Message::Stop) | Err(RecvTimeoutError::Disconnected) => return true,
        }
    }
}

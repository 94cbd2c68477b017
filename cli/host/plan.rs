//! What weft0 is to be, from what the forwarder and its IPAM server know.

use std::{
    fmt,
    fs::File,
    io::Read,
    net::IpAddr,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};
use ipnet::IpNet;
use weft_api::{
    forwarder::{HOST_LINK, Ipam, Peer, QUEUES_MAX, Status, Way},
    ipam::{PoolUsage, Use},
    names::{Mac, Name},
};
use weft_cni::{
    forwarder::Client,
    gso::Gso,
    link::{Attach, Role, Wiring},
};
use weft_wire::vxlan::{OVERHEAD_V4, OVERHEAD_V6};

use crate::{ipam::Session, target::Target};

/// For the forwarder to start, and to hear first from the IPAM server; for a
/// link to leave with its port.
pub const PATIENCE: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(50);

/// What lies behind weft0.
#[derive(Debug, Default)]
pub struct Behind {
    pools: Vec<IpNet>,
    /// By the operator, not by the IPAM server.
    named: bool,
    /// Those of them whose pods take the node's address outside of all.
    masqueraded: Vec<IpNet>,
    /// Some of it may be reached without a tunnel.
    direct: bool,
}

/// These pools, or those of the IPAM server.
pub fn behind(status: &Status, named: &[IpNet], nat_outgoing: bool) -> anyhow::Result<Behind> {
    let mut behind = match named.is_empty() {
        true => told(status)?,
        false => Behind {
            pools: named.to_vec(),
            named: true,
            masqueraded: match nat_outgoing {
                true => named.to_vec(),
                false => Vec::new(),
            },
            direct: false,
        },
    };
    if let Some(pool) = behind.pools.iter().find(|pool| **pool != pool.trunc()) {
        let canonical = pool.trunc();
        bail!("pool {pool} has bits set behind its length; write {canonical}");
    }
    for pools in [&mut behind.pools, &mut behind.masqueraded] {
        pools.sort_unstable();
        pools.dedup();
    }
    Ok(behind)
}

#[derive(Debug)]
pub struct Plan {
    pub wiring: Wiring,
    pub masqueraded: Vec<IpNet>,
    pub around: Vec<Around>,
}

/// The link. Where the node has no address of its own in the pod network, it
/// speaks from `underlay`.
///
/// A pool around this node's underlay address would lead the tunnel's datagrams
/// into weft0: one that was named is refused, one of the IPAM server is left
/// out. A peer's address in a pool costs that peer alone: no other's record may
/// take this node's way to all pods.
pub fn wiring(
    forwarder: &mut Client,
    status: &Status,
    underlay: &[IpAddr],
    mut behind: Behind,
    mtu: Option<u16>,
    mac: Mac,
) -> anyhow::Result<Plan> {
    let peers = forwarder.peers()?;
    let around = around_underlay(&behind.pools, status, &peers);
    let left_out = || around.iter().filter(|held| held.is_own);
    for pools in [&mut behind.pools, &mut behind.masqueraded] {
        pools.retain(|pool| left_out().all(|held| held.pool != *pool));
    }
    if let Some(held) = left_out().next()
        && (behind.named || behind.pools.is_empty())
    {
        bail!("{held}, which would no longer be reached; give pods addresses of their own");
    }
    let direct = behind.direct || peers.iter().any(has_direct);
    let mtu = mtu.unwrap_or_else(|| width(status, direct));
    let wiring = Wiring {
        interface: HOST_LINK.to_owned(),
        mac,
        addresses: status.tunnel.clone(),
        mtu,
        attach: Attach::Tap {
            queues: status.workers.clamp(1, QUEUES_MAX),
        },
        gso: Some(Gso::one_send(mtu)),
        role: Role::Host {
            pools: behind.pools,
            sources: underlay.to_vec(),
        },
    };
    Ok(Plan {
        wiring,
        masqueraded: behind.masqueraded,
        around,
    })
}

/// A unicast address of nobody's making (IEEE 802, locally administered). It
/// tells this weft0 from another forwarder's.
pub fn any_mac() -> anyhow::Result<Mac> {
    let mut bytes = [0; 6];
    File::open("/dev/urandom")
        .and_then(|mut random| random.read_exact(&mut bytes))
        .context("choose a MAC for the link: read /dev/urandom")?;
    bytes[0] = bytes[0] & 0xfc | 2;
    Ok(Mac(bytes))
}

/// A connection to the forwarder, which may just be starting.
pub fn connect(target: &Target) -> anyhow::Result<Client> {
    let path = target.path()?;
    let until = Instant::now() + PATIENCE;
    loop {
        match Client::connect(&path) {
            Err(_) if Instant::now() < until => thread::sleep(PAUSE),
            done => return Ok(done?),
        }
    }
}

/// The forwarder's status once it knows its node.
pub fn settled(forwarder: &mut Client) -> anyhow::Result<Status> {
    let until = Instant::now() + PATIENCE;
    loop {
        let status = forwarder.status()?;
        let waits = |ipam: &Ipam| ipam.revision.is_none();
        if !status.ipam.as_ref().is_some_and(waits) {
            return Ok(status);
        }
        ensure!(
            Instant::now() < until,
            "the forwarder has heard nothing from its IPAM server, and does not know its node: \
             see weft status"
        );
        thread::sleep(PAUSE);
    }
}

fn told(status: &Status) -> anyhow::Result<Behind> {
    let follows = status.ipam.as_ref();
    let ipam = follows.context(
        "the forwarder follows no IPAM server that knows the pools; name them by --pool",
    )?;
    let mut pools = Session::open(&ipam.socket)?.pools()?;
    pools.retain(|PoolUsage { pool, .. }| pool.uses.iter().any(|use_| *use_ != Use::LoadBalancer));
    ensure!(
        !pools.is_empty(),
        "the IPAM server has no pool; make one by weft ipam pool create, or name some by --pool"
    );
    let direct =
        |PoolUsage { pool, .. }: &PoolUsage| pool.encapsulation.leaves_some_plain(pool.when);
    let leaves = |PoolUsage { pool, .. }: &&PoolUsage| pool.nat_outgoing;
    Ok(Behind {
        direct: pools.iter().any(direct),
        named: false,
        masqueraded: pools
            .iter()
            .filter(leaves)
            .map(|pool| pool.pool.cidr)
            .collect(),
        pools: pools.iter().map(|pool| pool.pool.cidr).collect(),
    })
}

fn has_direct(peer: &Peer) -> bool {
    peer.node.ways.values().any(|way| *way == Way::Direct)
}

/// A pool that holds an underlay address of a node.
#[derive(Debug)]
pub struct Around {
    pool: IpNet,
    address: IpAddr,
    node: Name,
    is_own: bool,
}

impl fmt::Display for Around {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            pool,
            address,
            node,
            is_own: _,
        } = self;
        write!(
            f,
            "pool {pool} holds {address}, the underlay address of node {node}"
        )
    }
}

impl Around {
    pub fn warning(&self) -> String {
        let (so, remedy) = match self.is_own {
            true => (
                format!(
                    "the pool has no route by {HOST_LINK}, and this node does not reach its pods"
                ),
                "give pods addresses of their own, by another pool".to_owned(),
            ),
            false => (self.unreached(), self.peers_remedy()),
        };
        format!("warn: {self}\n  so: {so}\n  do: {remedy}\n")
    }

    /// Of a pool that has a route by the link.
    pub fn line(&self) -> String {
        let (so, remedy) = match self.is_own {
            true => (
                "its tunnel ends in itself".to_owned(),
                "give pods addresses of their own, by another pool, and run weft host up"
                    .to_owned(),
            ),
            false => (self.unreached(), self.peers_remedy()),
        };
        format!("warn    {self}: {so}; {remedy}\n")
    }

    fn unreached(&self) -> String {
        let Self { address, node, .. } = self;
        format!(
            "without another route to {address} the tunnel to {node} leads into {HOST_LINK}, and \
             {node}'s pods are not reached"
        )
    }

    fn peers_remedy(&self) -> String {
        let Self { address, node, .. } = self;
        format!(
            "give {node} an underlay address outside the pools, or {address} a route of its own"
        )
    }
}

/// Of each pool that holds any, this node's own such address, else the first.
pub fn around_underlay(pools: &[IpNet], status: &Status, peers: &[Peer]) -> Vec<Around> {
    let own = status
        .underlay
        .iter()
        .map(|address| (address, &status.node, true));
    let theirs = peers.iter().flat_map(|peer| {
        let addresses = peer.node.underlay.iter();
        addresses.map(|address| (address, &peer.node.name, false))
    });
    let all: Vec<_> = own.chain(theirs).collect();
    let held = |pool: &IpNet| {
        let mut all = all.iter();
        let (address, node, is_own) = all.find(|(address, ..)| pool.contains(*address))?;
        Some(Around {
            pool: *pool,
            address: **address,
            node: (*node).clone(),
            is_own: *is_own,
        })
    };
    pools.iter().filter_map(held).collect()
}

/// As wide as the underlay where there is no tunnel. Else what weft0 takes
/// fits the tunnel, and nobody has to be told that it does not.
fn width(status: &Status, direct: bool) -> u16 {
    let overhead = match status.underlay.first() {
        _ if direct => 0,
        Some(IpAddr::V6(_)) => OVERHEAD_V6,
        Some(IpAddr::V4(_)) => OVERHEAD_V4,
        None => 0,
    };
    status.mtu.saturating_sub(overhead)
}

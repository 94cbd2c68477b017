//! What weft0 is to be, from what the forwarder and its IPAM server know.

use std::{
    net::IpAddr,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};
use ipnet::IpNet;
use weft_api::{
    forwarder::{HOST_LINK, Ipam, QUEUES_MAX, Reply, Request, Status, Way},
    ipam::{self, Encapsulation, PoolUsage, Use, When},
    names::Mac,
};
use weft_cni::{
    forwarder::Client,
    gso::Gso,
    link::{Attach, Role, Wiring},
};

use crate::target::ask;

/// The node's end of a link of two ends, of which the gateway's is the other.
const MAC: Mac = Mac([0x02, b'w', b'e', b'f', b't', 0]);

/// For the forwarder to hear first from the IPAM server.
const PATIENCE: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(50);

/// What VXLAN costs of an outer packet: IP + 8 (UDP) + 8 (VXLAN) + 14 (inner
/// Ethernet).
const OVERHEAD_V4: u16 = 20 + 8 + 8 + 14;
const OVERHEAD_V6: u16 = 40 + 8 + 8 + 14;

/// What lies behind weft0.
#[derive(Debug, Default)]
struct Behind {
    pools: Vec<IpNet>,
    /// Some of it may be reached without a tunnel.
    direct: bool,
}

/// The link, for these pools or for those of the IPAM server.
pub fn wiring(
    forwarder: &mut Client,
    status: &Status,
    pools: Vec<IpNet>,
    mtu: Option<u16>,
) -> anyhow::Result<Wiring> {
    let mut behind = match pools.is_empty() {
        true => told(status)?,
        false => Behind {
            pools,
            direct: false,
        },
    };
    if let Some(pool) = behind.pools.iter().find(|pool| **pool != pool.trunc()) {
        let canonical = pool.trunc();
        bail!("pool {pool} has bits set behind its length; write {canonical}");
    }
    behind.pools.sort_unstable();
    behind.pools.dedup();
    let direct = behind.direct || has_direct_peers(forwarder)?;
    let mtu = mtu.unwrap_or_else(|| width(status, direct));
    Ok(Wiring {
        interface: HOST_LINK.to_owned(),
        mac: MAC,
        addresses: status.tunnel.clone(),
        mtu,
        attach: Attach::Tap {
            queues: status.workers.clamp(1, QUEUES_MAX),
        },
        gso: Some(Gso::one_send(mtu)),
        role: Role::Host {
            pools: behind.pools,
        },
    })
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
    let mut pools = ask_pools(&ipam.socket)
        .with_context(|| format!("ask {} for the pools", ipam.socket.display()))?;
    pools.retain(|PoolUsage { pool, .. }| pool.uses.iter().any(|use_| *use_ != Use::LoadBalancer));
    ensure!(
        !pools.is_empty(),
        "the IPAM server has no pool; make one by weft ipam pool create, or name some by --pool"
    );
    let direct = |PoolUsage { pool, .. }: &PoolUsage| {
        pool.encapsulation == Encapsulation::None || pool.when == When::CrossSubnet
    };
    Ok(Behind {
        direct: pools.iter().any(direct),
        pools: pools.iter().map(|pool| pool.pool.cidr).collect(),
    })
}

fn ask_pools(socket: &Path) -> anyhow::Result<Vec<PoolUsage>> {
    let mut server = weft_socket::ipam::Client::connect(socket)?;
    match server.request(&ipam::Request::Pools)? {
        ipam::Reply::Pools(pools) => Ok(pools),
        _ => bail!("its answer is of another kind; are both of one version?"),
    }
}

fn has_direct_peers(forwarder: &mut Client) -> anyhow::Result<bool> {
    let peers = ask(forwarder, &Request::Peers, |reply| match reply {
        Reply::Peers(peers) => Some(peers),
        _ => None,
    })?;
    let mut ways = peers.iter().flat_map(|peer| peer.node.ways.values());
    Ok(ways.any(|way| *way == Way::Direct))
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

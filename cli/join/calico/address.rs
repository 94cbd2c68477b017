//! A node's tunnel address: found, or taken from a block of the node's, by the
//! handle that Calico has for it.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use anyhow::{bail, ensure};
use ipnet::IpNet;
use weft_etcd::Cluster;
use weft_interop::calico::{
    Affinity, Block, Encapsulation, Handle, Holder, Pool, State, affinities, block_of, handle_key,
    parse_rfc3339, rfc3339,
};
use weft_ipam::selector::Selector;

use super::{
    claim::{self, TRIES, now},
    records::Records,
    store,
};

/// How long a block that is empty is its node's.
const RECLAIM_AFTER: u64 = 60;

/// Of a pool's blocks so many are looked at, at most.
const BLOCKS_MOST: u128 = 1 << 17;

/// The node's tunnel address of a family; none: no pool wants one.
pub fn ensure_tunnel(cluster: &Cluster, node: &str, v6: bool) -> anyhow::Result<Option<IpAddr>> {
    let holder = Holder::tunnel(node, v6);
    for _ in 0..TRIES {
        let records = Records::load(cluster)?;
        let pools = pools(&records, node, v6)?;
        let Some(first) = pools.first() else {
            return Ok(None);
        };
        let fits = |address: IpAddr| pools.iter().any(|pool| pool.cidr.contains(&address));
        let held = held(&records, node, &holder);
        if let Some((address, _)) = held.iter().find(|(address, _)| fits(*address)) {
            return Ok(Some(*address));
        }
        // What it has in pools that are no more for it.
        for (_, cidr) in held {
            release(cluster, &holder.handle, cidr, records.ipam().cooldown)?;
        }
        settle(cluster, node, first.cidr, &records)?;
        if let Some(address) = take(cluster, node, &records, &pools, &holder)? {
            return Ok(Some(address));
        }
    }
    bail!("others took {TRIES} addresses first; try again")
}

/// Those with VXLAN that are for this node.
fn pools(records: &Records, node: &str, v6: bool) -> anyhow::Result<Vec<Pool>> {
    let labels = records.labels(node);
    let (pools, _) = records.pools();
    let mut fitting = Vec::new();
    for pool in pools.iter() {
        let vxlan = pool.encapsulation == Encapsulation::Vxlan && pool.for_tunnels;
        if !vxlan || pool.cidr.addr().is_ipv6() != v6 {
            continue;
        }
        let selector = Selector::parse(&pool.node_selector)
            .map_err(|error| anyhow::anyhow!("{}: spec.nodeSelector: {error}", pool.key))?;
        if selector.matches(&labels) {
            fitting.push(pool.clone());
        }
    }
    Ok(fitting)
}

/// The addresses that the node has by its handle, each with its block.
fn held(records: &Records, node: &str, holder: &Holder) -> Vec<(IpAddr, IpNet)> {
    let blocks = records.blocks().map(|(_, block)| block);
    blocks
        .flat_map(|block| {
            let held = block.held_by(&holder.handle).filter(|(_, attribute)| {
                let secondary = attribute.secondary.as_ref();
                secondary
                    .and_then(|all| all.get("node"))
                    .map(String::as_str)
                    == Some(node)
            });
            held.map(|(address, _)| (address, block.cidr))
        })
        .collect()
}

/// Goes on with what was begun with the node's blocks and not ended.
fn settle(cluster: &Cluster, node: &str, family: IpNet, records: &Records) -> anyhow::Result<()> {
    let (pools, _) = records.pools();
    let (_, rows) = store::list(cluster, &affinities(node, family), 0)?;
    for row in rows {
        let key = String::from_utf8_lossy(&row.key.0);
        let Some(cidr) = block_of(&key) else { continue };
        let affinity = Affinity::parse(&key, &row.value.0);
        let confirmed = affinity.is_ok_and(|one| one.state == State::Confirmed);
        let mut blocks = records.blocks().map(|(_, block)| block);
        let exists = blocks.any(|block| block.cidr == cidr && block.node() == Some(node));
        let cut = |pool: &Pool| pool.block_size == cidr.prefix_len();
        if confirmed && exists {
            continue;
        }
        match exists || pools.of(&cidr).is_some_and(cut) {
            true => drop(claim::claim(cluster, node, cidr)?),
            false => drop(store::delete(cluster, &key, row.mod_revision)?),
        }
    }
    Ok(())
}

/// From a block of the node's, or of one that it claims. None: another was
/// faster.
fn take(
    cluster: &Cluster,
    node: &str,
    records: &Records,
    pools: &[Pool],
    holder: &Holder,
) -> anyhow::Result<Option<IpAddr>> {
    let inside = |cidr: &IpNet| pools.iter().any(|pool| pool.cidr.contains(cidr));
    let free = |address| !records.is_reserved(address);
    let own = records
        .blocks()
        .filter(|(_, block)| block.node() == Some(node) && inside(&block.cidr));
    for (revision, block) in own {
        if block.clone().assign(holder, free).is_some() {
            return assign(cluster, block.clone(), revision, holder, free);
        }
    }
    // The next look at the records finds it.
    make_room(cluster, node, records, pools)?;
    Ok(None)
}

/// The handle counts first: a crash in between leaves one that counts too
/// many, which nobody takes for an address.
fn assign(
    cluster: &Cluster,
    mut block: Block,
    revision: u64,
    holder: &Holder,
    free: impl Fn(IpAddr) -> bool,
) -> anyhow::Result<Option<IpAddr>> {
    let cidr = block.cidr;
    let address = block.assign(holder, free);
    count(cluster, &holder.handle, cidr, 1)?;
    if claim::update(cluster, block, revision)?.is_some() {
        return Ok(address);
    }
    count(cluster, &holder.handle, cidr, -1)?;
    Ok(None)
}

/// Adds to a handle's count of a block's addresses; a handle of none goes.
fn count(cluster: &Cluster, handle: &str, cidr: IpNet, by: i64) -> anyhow::Result<()> {
    let key = handle_key(handle);
    for _ in 0..TRIES {
        let row = store::read(cluster, &key)?;
        let seen = row.as_ref().map_or(0, |row| row.mod_revision);
        let read = row.as_ref().map(|row| Handle::parse(&key, &row.value.0));
        let mut counts = read.transpose()?.unwrap_or_default();
        let done = match counts.count(cidr, by) {
            true => store::write(cluster, &key, seen, counts.to_json())?.is_some(),
            false => seen == 0 || store::delete(cluster, &key, seen)?,
        };
        if done {
            return Ok(());
        }
    }
    bail!("{key}: others wrote it {TRIES} times in between; try again")
}

/// Gives back what the handle has in a block.
pub fn release(cluster: &Cluster, handle: &str, cidr: IpNet, rest: u32) -> anyhow::Result<()> {
    for _ in 0..TRIES {
        let Some((mut block, revision)) = claim::block(cluster, cidr)? else {
            return Ok(());
        };
        let since = (rest > 0).then(|| rfc3339(now().as_secs()));
        let released = block.release(handle, since.as_deref());
        if released == 0 {
            return Ok(());
        }
        if claim::update(cluster, block, revision)?.is_some() {
            return count(cluster, handle, cidr, -released);
        }
    }
    bail!("block {cidr}: others wrote it {TRIES} times in between; try again")
}

/// Gets the node one more block, unless another takes it first.
fn make_room(
    cluster: &Cluster,
    node: &str,
    records: &Records,
    pools: &[Pool],
) -> anyhow::Result<()> {
    let names: Vec<_> = pools.iter().map(|pool| pool.cidr.to_string()).collect();
    let names = names.join(", ");
    let ipam = records.ipam();
    ensure!(
        ipam.claim_blocks,
        "this node has no free address in {names}, and auto_allocate_blocks is off: claim a \
         block for it, or set it"
    );
    let v6 = pools.iter().any(|pool| pool.cidr.addr().is_ipv6());
    let own = records
        .blocks()
        .filter(|(_, block)| block.node() == Some(node) && block.cidr.addr().is_ipv6() == v6)
        .count();
    ensure!(
        own < ipam.most_blocks(),
        "this node's {own} blocks are full, and maxBlocksPerHost is {}: raise it",
        ipam.most_blocks()
    );
    if let Some(cidr) = unclaimed(node, records, pools) {
        return claim::claim(cluster, node, cidr).map(drop);
    }
    for (_, block) in records.blocks().filter(|(_, block)| is_idle(block, pools)) {
        let Some(owner) = block.node().filter(|owner| *owner != node) else {
            continue;
        };
        if claim::release(cluster, owner, block.cidr, Some(block.sequence))? {
            return claim::claim(cluster, node, block.cidr).map(drop);
        }
    }
    bail!("every block of {names} is another node's, and none is empty: make a pool larger")
}

/// The first block that does not exist, from a place on that the node's name
/// says: so nodes that start together seldom want the same.
fn unclaimed(node: &str, records: &Records, pools: &[Pool]) -> Option<IpNet> {
    let taken: BTreeSet<_> = records.blocks().map(|(_, block)| block.cidr).collect();
    pools.iter().find_map(|pool| {
        let of_other_size = |cidr: &&IpNet| cidr.prefix_len() != pool.block_size;
        let odd: Vec<_> = taken.iter().filter(of_other_size).collect();
        let is_free = |cidr: &IpNet| {
            let overlaps = |other: &&IpNet| other.contains(cidr) || cidr.contains(*other);
            let reserved = cidr.hosts().all(|address| records.is_reserved(address));
            !reserved && !taken.contains(cidr) && !odd.iter().any(overlaps)
        };
        let blocks = 1u128 << (pool.block_size - pool.cidr.prefix_len()).min(127);
        let start = u128::from(fnv(node));
        (0..blocks.min(BLOCKS_MOST))
            .filter_map(|step| nth(pool, (start + step) % blocks))
            .find(is_free)
    })
}

fn nth(pool: &Pool, nth: u128) -> Option<IpNet> {
    let offset = nth.checked_shl((pool.cidr.max_prefix_len() - pool.block_size).into())?;
    let address: IpAddr = match pool.cidr.addr() {
        IpAddr::V4(first) => {
            let offset = u32::try_from(offset).ok()?;
            Ipv4Addr::from(u32::from(first).checked_add(offset)?).into()
        }
        IpAddr::V6(first) => Ipv6Addr::from(u128::from(first).checked_add(offset)?).into(),
    };
    IpNet::new(address, pool.block_size).ok()
}

/// FNV-1 of 32 bits.
fn fnv(text: &str) -> u32 {
    let step = |hash: u32, byte| hash.wrapping_mul(0x0100_0193) ^ u32::from(byte);
    text.bytes().fold(0x811c_9dc5, step)
}

fn is_idle(block: &Block, pools: &[Pool]) -> bool {
    let claimed = block.affinity_claim_time.as_deref().and_then(parse_rfc3339);
    block.is_empty()
        && pools.iter().any(|pool| pool.cidr.contains(&block.cidr))
        && claimed.unwrap_or(0) + RECLAIM_AFTER <= now().as_secs()
}

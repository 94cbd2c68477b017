//! How a block becomes a node's, and how it ceases to be: by Calico's own
//! steps, each of which compares before it writes, so that nodes of both kinds
//! may want the same block at once.
//!
//! An affinity goes none → pending → confirmed → pending deletion → none, and
//! the block changes between two of these. Whoever finds it in between goes on
//! from there.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::bail;
use ipnet::IpNet;
use weft_etcd::Cluster;
use weft_interop::calico::{Affinity, Block, State, affinity_key, block_key, rfc3339};

use super::store;

/// How often a race may be lost.
pub const TRIES: usize = 20;

/// Makes the block this node's. None: another node has it.
pub fn claim(cluster: &Cluster, node: &str, cidr: IpNet) -> anyhow::Result<Option<Block>> {
    let key = affinity_key(node, cidr);
    for _ in 0..TRIES {
        let Some((affinity, revision)) = pend(cluster, &key)? else {
            continue;
        };
        let new = Block::new(cidr, node, rfc3339(now().as_secs()), nanoseconds());
        let row = block_key(cidr);
        let block = match store::write(cluster, &row, 0, new.to_json())? {
            Some(_) => new,
            None => match block(cluster, cidr)? {
                Some((block, _)) if block.node() == Some(node) => block,
                Some(_) => {
                    store::delete(cluster, &key, revision)?;
                    return Ok(None);
                }
                None => continue,
            },
        };
        if affinity.state == State::Confirmed {
            return Ok(Some(block));
        }
        let confirmed = Affinity::of(State::Confirmed).to_json();
        if store::write(cluster, &key, revision, confirmed)?.is_some() {
            tracing::info!(block = %cidr, "claimed");
            return Ok(Some(block));
        }
    }
    bail!("{key}: others wrote it {TRIES} times in between; is this node's name another's too?")
}

/// The affinity, confirmed or pending, with its revision. None: it was
/// written in between.
fn pend(cluster: &Cluster, key: &str) -> anyhow::Result<Option<(Affinity, u64)>> {
    let row = store::read(cluster, key)?;
    let found = row.as_ref().map(|row| Affinity::parse(key, &row.value.0));
    let seen = row.as_ref().map_or(0, |row| row.mod_revision);
    match found {
        Some(Ok(affinity)) if affinity.state == State::Confirmed => Ok(Some((affinity, seen))),
        // What cannot be read confirms nothing.
        _ => {
            let pending = Affinity::of(State::Pending);
            let written = store::write(cluster, key, seen, pending.to_json())?;
            Ok(written.map(|revision| (pending, revision)))
        }
    }
}

/// Ends a node's ownership: an empty block goes, of another all but the owner
/// stays. With `seen`, only while the block has this number and is empty;
/// false where it is not.
pub fn release(
    cluster: &Cluster,
    node: &str,
    cidr: IpNet,
    seen: Option<u64>,
) -> anyhow::Result<bool> {
    let key = affinity_key(node, cidr);
    for _ in 0..TRIES {
        let affinity = store::read(cluster, &key)?;
        let found = block(cluster, cidr)?;
        let (mut block, revision) = match found {
            Some((block, revision)) if block.node() == Some(node) => (block, revision),
            // It is not the node's any more.
            _ => match affinity {
                Some(row) if !store::delete(cluster, &key, row.mod_revision)? => continue,
                _ => return Ok(seen.is_none()),
            },
        };
        if seen.is_some_and(|seen| seen != block.sequence || !block.is_empty()) {
            return Ok(false);
        }
        let at = affinity.map_or(0, |row| row.mod_revision);
        let deleting = Affinity::of(State::PendingDeletion).to_json();
        let Some(at) = store::write(cluster, &key, at, deleting)? else {
            continue;
        };
        let gone = if block.is_empty() {
            store::delete(cluster, &block_key(cidr), revision)?
        } else {
            block.affinity = None;
            block.affinity_claim_time = None;
            update(cluster, block, revision)?.is_some()
        };
        if gone {
            store::delete(cluster, &key, at)?;
            tracing::info!(block = %cidr, node, "given back");
            return Ok(true);
        }
    }
    bail!("{key}: others wrote the block {TRIES} times in between; try again")
}

pub fn block(cluster: &Cluster, cidr: IpNet) -> anyhow::Result<Option<(Block, u64)>> {
    let key = block_key(cidr);
    let row = store::read(cluster, &key)?;
    let block = row.map(|row| Ok((Block::parse(&key, &row.value.0)?, row.mod_revision)));
    block.transpose()
}

/// None: somebody else wrote it.
pub fn update(cluster: &Cluster, mut block: Block, seen: u64) -> anyhow::Result<Option<u64>> {
    block.sequence = block.sequence.wrapping_add(1);
    let key = block_key(block.cidr);
    Ok(store::write(cluster, &key, seen, block.to_json())?)
}

/// Since 1970; a clock before that counts as then.
pub fn now() -> Duration {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.unwrap_or_default()
}

fn nanoseconds() -> u64 {
    u64::try_from(now().as_nanos()).unwrap_or(u64::MAX)
}

//! Each block for itself and in its pool.

use std::collections::BTreeSet;

use ipnet::IpNet;
use weft_api::{
    ipam::{ProblemKind, Time},
    names::Name,
};

use super::{Found, HOST_BITS_MAX, Rows, address, block_size, host_bits, settings::overlapping};
use crate::{
    model::{Allocation, Block},
    tunnel,
};

pub(super) fn check(rows: &Rows, now: Time, found: &mut Found) {
    if rows.pools.is_empty() && !rows.blocks.is_empty() {
        let message = format!("there are no pools, but {} blocks", rows.blocks.len());
        found.structure(
            "pools",
            message,
            "create the pools anew, or delete the blocks",
        );
    }
    for block in rows.blocks.values() {
        placed(rows, block, found);
        owned(rows, block, now, found);
        if host_bits(&block.cidr) <= HOST_BITS_MAX {
            ordinals(block, found);
        }
        for (ordinal, allocation) in &block.allocations {
            sound(block, *ordinal, allocation, now, found);
        }
    }
    let mut sorted: Vec<_> = rows
        .blocks
        .values()
        .map(|block| (block.cidr.trunc(), *block))
        .collect();
    sorted.sort_by_key(|(cidr, _)| *cidr);
    for (outer, inner) in overlapping(sorted.into_iter()) {
        let message = format!("it overlaps block {}", outer.cidr);
        let hint = "release what one of them holds, then delete it";
        found.structure(named(inner.cidr), message, hint);
    }
}

fn named(cidr: IpNet) -> String {
    format!("block {cidr}")
}

fn placed(rows: &Rows, block: &Block, found: &mut Found) {
    const HINT: &str = "release what it holds, then delete it";
    let object = named(block.cidr);
    if block.cidr != block.cidr.trunc() {
        let message = format!(
            "it is misaligned: /{} begins at {}",
            block.cidr.prefix_len(),
            block.cidr.network()
        );
        found.structure(&object, message, HINT);
    }
    let bits = host_bits(&block.cidr);
    let size_of_pool = rows
        .pool_of(block.cidr)
        .map(|pool| (pool, block_size(pool)));
    match size_of_pool {
        Some((pool, size)) if size != block.cidr.prefix_len() => {
            let message = format!("pool {} is cut into blocks of /{size}", pool.name);
            found.structure(&object, message, HINT);
        }
        Some(_) => {}
        None if rows.pools.is_empty() => {}
        None => {
            let hint = "create its pool anew, or release what it holds and delete it";
            found.structure(&object, "it lies in no pool".into(), hint);
        }
    }
    if bits > HOST_BITS_MAX && size_of_pool.is_none() {
        found.structure(
            &object,
            format!("it has {bits} address bits, of at most {HOST_BITS_MAX}"),
            HINT,
        );
    }
}

fn owned(rows: &Rows, block: &Block, now: Time, found: &mut Found) {
    let object = named(block.cidr);
    if block.claimed > now {
        ahead(&object, "claimed", block.claimed - now, found);
    }
    // A server without any node row serves one machine and routes nothing.
    let unknown = |owner: &Name| !rows.nodes.is_empty() && !rows.nodes.contains_key(owner);
    // Then the note on that address tells of it.
    let is_kept = |owner: &Name| {
        let mut held = block.allocations.values().filter(|one| one.is_held());
        held.clone().next().is_some() && held.all(|one| tunnel::is_own(one) && one.node == *owner)
    };
    let lost = |owner: &&Name| unknown(owner) && !is_kept(owner);
    if let Some(owner) = block.owner.as_ref().filter(lost) {
        let message = format!("its owner, node {owner}, is not known: nothing routes to it");
        let hint = "register the node, or release what the block holds";
        found.add(ProblemKind::Unfinished, &object, message, hint);
    }
}

fn ahead(object: &str, what: &str, by: Time, found: &mut Found) {
    let message = format!("it was {what} {by} ms ahead of the clock");
    let hint = "set the clocks of the servers right";
    found.add(ProblemKind::Clock, object, message, hint);
}

/// Each ordinal is either free, once, or allocated.
fn ordinals(block: &Block, found: &mut Found) {
    const HINT: &str = "rewrite the block's list of free ordinals from its allocations";
    let object = named(block.cidr);
    let size = 1u32 << host_bits(&block.cidr);
    let mut free = BTreeSet::new();
    for ordinal in &block.free {
        if !free.insert(*ordinal) {
            found.structure(&object, format!("ordinal {ordinal} is free twice"), HINT);
        } else if *ordinal >= size {
            let message = format!("free ordinal {ordinal} is out of its {size} addresses");
            found.structure(&object, message, HINT);
        } else if block.allocations.contains_key(ordinal) {
            let message = format!("ordinal {ordinal} is both free and allocated");
            found.structure(&object, message, HINT);
        }
    }
    for ordinal in block.allocations.range(size..).map(|(ordinal, _)| ordinal) {
        let message = format!("allocated ordinal {ordinal} is out of its {size} addresses");
        found.structure(&object, message, "release its handle");
    }
    let lost = |ordinal: &u32| !free.contains(ordinal) && !block.allocations.contains_key(ordinal);
    let mut lost = (0..size).filter(lost);
    if let Some(first) = lost.next() {
        let count = 1 + lost.count();
        let message =
            format!("{count} of its ordinals are neither free nor allocated, the first is {first}");
        found.structure(&object, message, HINT);
    }
}

fn sound(block: &Block, ordinal: u32, allocation: &Allocation, now: Time, found: &mut Found) {
    let object = address(block.cidr, ordinal).to_string();
    match (&allocation.handle, allocation.released) {
        (None, None) => {
            let message = "it is allocated, but neither held nor released".into();
            found.structure(&object, message, "release the address");
        }
        (Some(handle), Some(_)) => {
            let message = format!("handle {handle} holds it, and yet it was released");
            found.structure(&object, message, "release the handle if it is gone");
        }
        _ => {}
    }
    if allocation.sequence > block.sequence {
        let message = format!(
            "its sequence number {} is above its block's, {}",
            allocation.sequence, block.sequence
        );
        found.structure(
            &object,
            message,
            "restart its container, so that it is allocated anew",
        );
    }
    if allocation.since > now {
        ahead(&object, "allocated", allocation.since - now, found);
    }
    if let Some(released) = allocation.released.filter(|released| *released > now) {
        ahead(&object, "released", released - now, found);
    }
}

//! How a block becomes a node's, and how it ceases to be.
//!
//! An affinity goes none → pending → confirmed → pending deletion → none, and
//! the block changes between two of these steps. Invariant: a plan that stops
//! after any of its rows leaves what [`settle`] finishes, and until then no
//! affinity is confirmed of a block that is not the node's.

use std::collections::BTreeMap;

use ipnet::IpNet;
use weft_api::{
    ipam::{AffinityState, Time},
    names::Name,
};

use crate::{
    draft::Draft,
    model::{Block, Key},
    pool::Range,
    range::Span,
};

/// How long a claimed block is its owner's even while it is empty.
pub const RECLAIM_AFTER: Time = 60_000;

/// Makes a block that does not exist, owned by the node.
pub fn claim(draft: &mut Draft<'_>, node: &Name, cidr: IpNet) {
    draft.put_affinity(node, cidr, Some(AffinityState::Pending));
    cut(draft, Some(node), cidr);
    draft.put_affinity(node, cidr, Some(AffinityState::Confirmed));
}

/// Makes a block that does not exist. Its pool must stay while it is made.
pub fn cut(draft: &mut Draft<'_>, owner: Option<&Name>, cidr: IpNet) {
    if let Some(pool) = draft.book.pool_of(&cidr) {
        draft.guard(Key::Pool(pool.name().clone()));
    }
    let sequence = draft.book.fresh_sequence(draft.now);
    draft.put_block(Block::new(cidr, owner.cloned(), draft.now, sequence));
}

/// Ends a node's ownership: of the block nothing is left if it is empty, else
/// all but the owner.
pub fn disown(draft: &mut Draft<'_>, node: &Name, cidr: IpNet) {
    draft.put_affinity(node, cidr, Some(AffinityState::PendingDeletion));
    if let Some(mut block) = draft.open(&cidr) {
        if block.allocations.is_empty() {
            draft.put(Key::Block(cidr), None);
        } else if block.owner.as_ref() == Some(node) {
            block.owner = None;
            block.claimed = 0;
            draft.put_block(block);
        }
    }
    draft.put_affinity(node, cidr, None);
}

/// Takes an empty block from whoever owns it.
pub fn reclaim(draft: &mut Draft<'_>, node: &Name, cidr: IpNet) {
    match draft.block(&cidr).and_then(|block| block.owner.clone()) {
        Some(owner) => disown(draft, &owner, cidr),
        None => draft.put(Key::Block(cidr), None),
    }
    claim(draft, node, cidr);
}

/// Whether another node may take the block.
pub fn is_reclaimable(draft: &Draft<'_>, node: &Name, cidr: &IpNet) -> bool {
    let book = draft.book;
    let Some(block) = book.block(cidr).filter(|_| !draft.is_written(cidr)) else {
        return false;
    };
    block.owner.as_ref() != Some(node)
        && !book.is_contested(cidr)
        && block.claimed.saturating_add(RECLAIM_AFTER) <= draft.now
        && block.is_empty_at(draft.now, book.cooldown())
        && book.reserved().cover(block.span()).is_none()
}

/// Finishes what was begun with the node's blocks and not ended.
pub fn settle(draft: &mut Draft<'_>, node: &Name) {
    let Some(share) = draft.book.share(node) else {
        return;
    };
    for &cidr in &share.unsettled {
        // Whose it is, is not known.
        if draft.book.is_aside(&Key::Block(cidr)) {
            continue;
        }
        let state = draft.affinity(node, &cidr);
        match draft.block(&cidr).cloned() {
            // Writing the block makes every plan void that read it before.
            Some(block) if block.owner.as_ref() == Some(node) => {
                draft.put_affinity(node, cidr, Some(AffinityState::Pending));
                draft.put_block(block);
                draft.put_affinity(node, cidr, Some(AffinityState::Confirmed));
            }
            None if state != Some(AffinityState::PendingDeletion) && may_cut(draft, &cidr) => {
                claim(draft, node, cidr);
            }
            // Somebody else was faster, or it was being given up.
            _ => draft.put_affinity(node, cidr, None),
        }
    }
}

/// Gives up the node's empty blocks in pools that no longer select it.
pub fn leave_unselected(draft: &mut Draft<'_>, node: &Name) {
    let Some(share) = draft.book.share(node) else {
        return;
    };
    for pool in draft.book.pools() {
        if selects(draft, pool, node) {
            continue;
        }
        for cidr in share.idle.range(crate::book::within(&pool.pool.cidr)) {
            give_up_if_empty(draft, node, *cidr);
        }
    }
}

/// After addresses were given back: an empty block goes if nobody owns it, or
/// if its pool no longer selects its owner.
pub fn tidy(draft: &mut Draft<'_>, cidr: &IpNet) {
    let Some(block) = draft.block(cidr) else {
        return;
    };
    if !block.allocations.is_empty() {
        return;
    }
    let Some(owner) = block.owner.clone() else {
        return draft.put(Key::Block(*cidr), None);
    };
    let pool = draft.book.pool_of(cidr);
    if pool.is_none_or(|pool| !selects(draft, pool, &owner)) {
        disown(draft, &owner, *cidr);
    }
}

pub fn selects(draft: &Draft<'_>, pool: &Range, node: &Name) -> bool {
    pool.selects_node(labels(draft, node))
}

/// A node that is not known has no labels.
pub fn labels<'a>(draft: &'a Draft<'_>, node: &Name) -> &'a BTreeMap<String, String> {
    static NONE: BTreeMap<String, String> = BTreeMap::new();
    draft.node(node).map_or(&NONE, |node| &node.labels)
}

/// Whether the node has reached the limit of blocks of a pool's family.
pub fn at_limit(draft: &Draft<'_>, node: &Name, pool: &Range) -> bool {
    let limit = draft.book.config().blocks_per_node;
    limit.is_some_and(|limit| draft.claims(node, &pool.pool.cidr) >= limit as usize)
}

fn give_up_if_empty(draft: &mut Draft<'_>, node: &Name, cidr: IpNet) {
    let cooldown = draft.book.cooldown();
    let empty = (draft.block(&cidr)).is_some_and(|block| block.is_empty_at(draft.now, cooldown));
    if empty {
        disown(draft, node, cidr);
    }
}

fn may_cut(draft: &Draft<'_>, cidr: &IpNet) -> bool {
    let pool = draft.book.pool_of(cidr);
    pool.is_some_and(|pool| pool.block_size == cidr.prefix_len() && !pool.pool.disabled)
        && draft.book.cut().overlap(Span::of(cidr)).is_none()
}

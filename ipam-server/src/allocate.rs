//! Gives an attachment its addresses: what it has, what is kept for it, what
//! it asks for, or what is free, in this order. All families or none.

use std::net::IpAddr;

use ipnet::IpNet;
use weft_api::{
    ipam::{Allocate, Allocated, Assigned, Code, Error, Family, Reply, Time},
    names::{Handle, Name},
};

use crate::{
    book::{self, Book},
    claim,
    draft::Draft,
    model::{Allocation, Key},
    plan::Plan,
    pool::Range,
};

pub use choose::serves;

mod choose;
mod refusal;
mod specific;

pub fn allocate(book: &Book, ask: &Allocate, now: Time) -> Result<Plan, Error> {
    validate(ask)?;
    let handle = ask.attachment.handle();
    let mut draft = Draft::new(book, now);
    claim::settle(&mut draft, &ask.node);
    let mut existing = true;
    let mut addresses = Vec::with_capacity(ask.families.len());
    for &family in &ask.families {
        let asked = book::first_of(&ask.addresses, family);
        let address = match book::first_of(book.held_by(&handle), family) {
            Some(held) if asked.is_none_or(|asked| asked == held) => {
                // Else a book that is behind could answer with an address
                // that another server has given to somebody else.
                if let Some(block) = book.block_with(held) {
                    draft.guard(Key::Block(block.cidr));
                }
                specific::renew(&mut draft, held);
                held
            }
            Some(held) => return Err(refusal::holds_another(&handle, held, asked)),
            None => {
                existing = false;
                fresh(&mut draft, ask, &handle, family, asked)?
            }
        };
        addresses.push(address);
    }
    let assigned = |address: &IpAddr| assigned(&draft, &ask.node, *address);
    let addresses = addresses.iter().map(assigned).collect::<Result<_, _>>()?;
    Ok(draft.plan(Reply::Allocated(Allocated {
        addresses,
        existing,
    })))
}

/// An address for the node's own use, from the pools that select it; none
/// where they have no room for it.
pub fn for_node(
    draft: &mut Draft<'_>,
    node: &Name,
    family: Family,
    allocation: Allocation,
) -> Option<IpAddr> {
    let (pools, _) = choose::selecting(draft, node, family, allocation.purpose, None);
    automatic(draft, node, &pools, allocation)
}

fn fresh(
    draft: &mut Draft<'_>,
    ask: &Allocate,
    handle: &Handle,
    family: Family,
    asked: Option<IpAddr>,
) -> Result<IpAddr, Error> {
    let allocation = Allocation {
        handle: Some(handle.clone()),
        sequence: 0,
        node: ask.node.clone(),
        purpose: ask.purpose,
        pod: ask.pod.clone(),
        identity: ask.identity.clone(),
        place: ask.identity.as_ref().map(|_| ask.attachment.place()),
        since: draft.now,
        mark: draft.mark(),
        released: None,
    };
    if let Some(identity) = &ask.identity
        && let Some(address) = specific::identified(draft, ask, identity, family)?
    {
        if let Some(asked) = asked.filter(|asked| *asked != address) {
            return Err(refusal::identity_has_another(identity, address, asked));
        }
        return specific::hand_over(draft, address, allocation);
    }
    if let Some(asked) = asked {
        return specific::take(draft, ask, asked, allocation);
    }
    let pools = choose::pools(draft, ask, family)?;
    claim::leave_unselected(draft, &ask.node);
    automatic(draft, &ask.node, &pools, allocation)
        .ok_or_else(|| refusal::no_room(draft, &ask.node, family, &pools))
}

/// From the node's own blocks, from a new one, from an empty one of somebody
/// else, or on loan.
fn automatic(
    draft: &mut Draft<'_>,
    node: &Name,
    pools: &[&Range],
    allocation: Allocation,
) -> Option<IpAddr> {
    if let Some(cidr) = own(draft, node, pools) {
        return draft.take(&cidr, None, allocation);
    }
    let config = draft.book.config();
    let may_claim = |pool: &&&Range| config.claim_blocks && !claim::at_limit(draft, node, pool);
    let claimable: Vec<_> = pools.iter().filter(may_claim).copied().collect();
    if let Some(cidr) = uncut(draft, node, &claimable) {
        claim::claim(draft, node, cidr);
        return draft.take(&cidr, None, allocation);
    }
    if let Some(cidr) = reclaimable(draft, node, &claimable) {
        claim::reclaim(draft, node, cidr);
        return draft.take(&cidr, None, allocation);
    }
    if config.strict_affinity {
        return None;
    }
    let cidr = lendable(draft, node, pools)?;
    draft.take(&cidr, None, allocation)
}

fn own(draft: &Draft<'_>, node: &Name, pools: &[&Range]) -> Option<IpNet> {
    let book = draft.book;
    let is_own = |cidr: &IpNet| {
        draft
            .block(cidr)
            .is_some_and(|block| block.owner.as_ref() == Some(node))
            && pools.iter().any(|pool| pool.pool.cidr.contains(cidr))
    };
    let has_room = |cidr: &IpNet| is_own(cidr) && draft.has_room(cidr);
    if let Some(share) = book.share(node) {
        for pool in pools {
            let mut room = share.room.range(book::within(&pool.pool.cidr));
            if let Some(cidr) = room.find(|cidr| is_own(cidr)) {
                return Some(*cidr);
            }
        }
        let rested = (share.resting.iter())
            .take_while(|(released, _)| released.saturating_add(book.cooldown()) <= draft.now);
        if let Some((_, cidr)) = rested.into_iter().find(|(_, cidr)| has_room(cidr)) {
            return Some(*cidr);
        }
    }
    // What was settled just now is in no index yet.
    draft.written().into_iter().find(has_room)
}

fn uncut(draft: &Draft<'_>, node: &Name, pools: &[&Range]) -> Option<IpNet> {
    let book = draft.book;
    // What this very plan cut is no longer free.
    let mut cut = None;
    for cidr in draft.written() {
        cut.get_or_insert_with(|| book.cut().clone())
            .insert(crate::range::Span::of(&cidr));
    }
    let cut = cut.as_ref().unwrap_or(book.cut());
    (pools.iter()).find_map(|pool| pool.uncut(node, cut, book.reserved()))
}

fn reclaimable(draft: &Draft<'_>, node: &Name, pools: &[&Range]) -> Option<IpNet> {
    pools.iter().find_map(|pool| {
        let mut idle = draft.book.idle_from(pool, pool.seed(node));
        idle.find(|cidr| claim::is_reclaimable(draft, node, cidr))
            .copied()
    })
}

fn lendable(draft: &Draft<'_>, node: &Name, pools: &[&Range]) -> Option<IpNet> {
    let book = draft.book;
    let has_room = |cidr: &IpNet| draft.has_room(cidr);
    let at_once = pools.iter().find_map(|pool| {
        let mut room = book.room_from(pool, pool.seed(node));
        room.find(|cidr| has_room(cidr)).copied()
    });
    at_once.or_else(|| {
        let within = |cidr: &IpNet| pools.iter().any(|pool| pool.pool.cidr.contains(cidr));
        let mut rested = book.rested(draft.now);
        rested.find(|cidr| within(cidr) && has_room(cidr)).copied()
    })
}

fn assigned(draft: &Draft<'_>, node: &Name, address: IpAddr) -> Result<Assigned, Error> {
    let net = IpNet::from(address);
    let Some(pool) = draft.book.pool_of(&net) else {
        return Err(refusal::outside(address));
    };
    let mut block = pool.block_at(address);
    if let Some(other) = draft.book.block_with(address)
        && draft.block(&block).is_none()
    {
        // A foreign hand has cut it in another size.
        block = other.cidr;
    }
    let owner = draft.block(&block).and_then(|block| block.owner.as_ref());
    Ok(Assigned {
        address,
        block,
        pool: pool.name().clone(),
        borrowed: owner != Some(node),
    })
}

fn validate(ask: &Allocate) -> Result<(), Error> {
    let wrong = |message: String, hint: &str| Err(Error::new(Code::Invalid, message, hint));
    let Allocate {
        families,
        addresses,
        attachment,
        ..
    } = ask;
    let count = |family: Family| families.iter().filter(|one| **one == family).count();
    if families.is_empty() || families.iter().any(|family| count(*family) > 1) {
        return wrong(
            format!(
                "{} asks for no family, or for one twice",
                attachment.handle()
            ),
            "ask for v4, v6, or both, each once",
        );
    }
    for address in addresses {
        let family = Family::of(*address);
        let same = addresses
            .iter()
            .filter(|one| Family::of(**one) == family)
            .count();
        if count(family) == 0 || same > 1 {
            return wrong(
                format!("{address} is asked for beside another of its family, or without it"),
                "ask for at most one address of each family asked for",
            );
        }
    }
    // Else two attachments could share a handle.
    for name in [
        &attachment.network,
        &attachment.container,
        &attachment.interface,
    ] {
        if name.as_str().contains('/') {
            return wrong(
                format!("{name} of an attachment holds a '/'"),
                "use names without '/' for network, container and interface, as CNI does",
            );
        }
    }
    Ok(())
}

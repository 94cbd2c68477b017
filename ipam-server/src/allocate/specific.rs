//! Addresses that are decided before anything is looked for: an identity's,
//! and those asked for by number.

use std::{net::IpAddr, sync::Arc};

use ipnet::IpNet;
use weft_api::{
    ipam::{Allocate, Code, Error, Family},
    names::Name,
};

use super::{choose, refusal};
use crate::{
    claim,
    draft::Draft,
    model::Allocation,
    range::{self, Span},
};

/// The identity's address of a family in the attachment's place, if it has one
/// that the attachment may have: it is kept, or held by a former attachment on
/// the same node. What has no place serves whoever asks first.
pub fn identified(
    draft: &Draft<'_>,
    ask: &Allocate,
    identity: &Name,
    family: Family,
) -> Result<Option<IpAddr>, Error> {
    let wanted = ask.attachment.place();
    let of_family = |address: &&IpAddr| Family::of(**address) == family;
    let addresses = draft.book.identified(identity).iter().filter(of_family);
    let here = addresses.filter_map(|address| {
        let held = draft.book.allocation(*address)?;
        let place = held.place();
        let fits = place.as_ref().is_none_or(|place| *place == wanted);
        fits.then_some((place.is_none(), *address, held))
    });
    let mut here: Vec<_> = here.collect();
    here.sort_unstable_by_key(|(anywhere, address, _)| (*anywhere, *address));
    let mut refused = None;
    let mut held_here = None;
    for (_, address, held) in here {
        if held.is_kept() {
            let pools = choose::named(draft.book, ask)?;
            if !pools.is_empty() && !pools.iter().any(|p| p.pool.cidr.contains(&address)) {
                return Err(refusal::identity_outside(identity, address));
            }
            return Ok(Some(address));
        }
        if held.node == ask.node {
            held_here = held_here.or(Some(address));
        } else {
            refused = refused.or_else(|| Some(refusal::identity_in_use(identity, address, held)));
        }
    }
    match (held_here, refused) {
        (Some(address), _) => Ok(Some(address)),
        (None, Some(refused)) => Err(refused),
        (None, None) => Ok(None),
    }
}

/// What is asked for again is as young as what is given out now.
pub fn renew(draft: &mut Draft<'_>, address: IpAddr) {
    let mark = draft.mark();
    let held = draft.book.allocation(address);
    if held.is_none_or(|held| held.mark == mark) {
        return;
    }
    let cidr = draft.block_with(address).map(|block| block.cidr);
    let Some(mut block) = cidr.and_then(|cidr| draft.open(&cidr)) else {
        return;
    };
    let held = block.ordinal(address);
    if let Some(held) = held.and_then(|ordinal| block.allocations.get_mut(&ordinal)) {
        Arc::make_mut(held).mark = mark;
        draft.put_block(block);
    }
}

/// Gives an address that is kept or held to the attachment.
pub fn hand_over(
    draft: &mut Draft<'_>,
    address: IpAddr,
    allocation: Allocation,
) -> Result<IpAddr, Error> {
    let cidr = draft.block_with(address).map(|block| block.cidr);
    let Some(mut block) = cidr.and_then(|cidr| draft.open(&cidr)) else {
        return Err(refusal::outside(address));
    };
    if draft.book.is_contested(&block.cidr) {
        return Err(refusal::contested(address));
    }
    let ordinal = block
        .ordinal(address)
        .ok_or_else(|| refusal::outside(address))?;
    block.hand_over(ordinal, allocation);
    draft.put_block(block);
    Ok(address)
}

/// Gives this very address, and cuts its block if need be.
pub fn take(
    draft: &mut Draft<'_>,
    ask: &Allocate,
    address: IpAddr,
    allocation: Allocation,
) -> Result<IpAddr, Error> {
    let book = draft.book;
    let net = IpNet::from(address);
    let pool = book
        .pool_of(&net)
        .ok_or_else(|| refusal::outside(address))?;
    let named = choose::named(book, ask)?;
    let wrong = |reason: &str, hint: &str| {
        let message = format!("{address} lies in pool {}, which {reason}", pool.name());
        Err(Error::new(Code::NoPool, message, hint))
    };
    if !ask.pools.is_empty() && named.iter().all(|one| one.name() != pool.name()) {
        return wrong("is not asked for", "ask for its pool too, or for no pool");
    }
    if pool.pool.disabled {
        return wrong("is disabled", "enable it, or ask for another address");
    }
    if !pool.allows(ask.purpose) {
        return wrong("does not allow the use", "ask for another address");
    }
    if book
        .reserved()
        .contains(pool.family(), range::number(address))
    {
        let by = (book.reservations())
            .find(|reservation| reservation.cidrs.iter().any(|cidr| cidr.contains(&address)));
        let by = by.map_or("a reservation", |reservation| reservation.name.as_str());
        return Err(refusal::reserved(address, by));
    }
    let cidr = pool.block_at(address);
    let strict = book.config().strict_affinity;
    let unknown = draft.block(&cidr).is_none() && book.cut().overlap(Span::of(&cidr)).is_some();
    if unknown || book.is_contested(&cidr) {
        return Err(refusal::contested(address));
    }
    match draft.block(&cidr) {
        Some(block) if strict && block.owner.as_ref() != Some(&ask.node) => {
            return Err(refusal::foreign(address, block.owner.as_ref()));
        }
        Some(_) => {}
        None if book.config().claim_blocks && !claim::at_limit(draft, &ask.node, pool) => {
            claim::claim(draft, &ask.node, cidr);
        }
        None if strict => return Err(refusal::no_block(draft, address, &ask.node)),
        None => claim::cut(draft, None, cidr),
    }
    let block = draft.open(&cidr);
    let ordinal = block.as_ref().and_then(|block| block.ordinal(address));
    if let Some(held) = ordinal.and_then(|ordinal| block.as_ref()?.allocations.get(&ordinal)) {
        return Err(refusal::taken(address, held));
    }
    draft
        .take(&cidr, ordinal, allocation)
        .ok_or_else(|| refusal::outside(address))
}

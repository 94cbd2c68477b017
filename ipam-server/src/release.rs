//! Gives addresses back. Membership of a handle is what the blocks say, so
//! nothing can drift; all addresses of a request go, or none.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use ipnet::IpNet;
use weft_api::{
    ipam::{Code, Error, Held, Release, Released, Reply, Time},
    names::Name,
};

use crate::{block::Given, book::Book, claim, draft::Draft, plan::Plan, tunnel};

pub fn release(book: &Book, release: &Release, now: Time) -> Result<Plan, Error> {
    let mut draft = Draft::new(book, now);
    let mut released = Released::default();
    match release {
        Release::Attachment(attachment) => {
            let held = book.held_by(&attachment.handle());
            give_back(&mut draft, held, false, &mut released);
        }
        Release::Handle { handle } => {
            let held = book.held_by(handle).iter();
            held.copied()
                .try_for_each(|address| tunnel::refuse_in_use(&mut draft, address))?;
            give_back(&mut draft, book.held_by(handle), false, &mut released);
        }
        Release::Addresses { addresses } => {
            let held = held(&mut draft, addresses, &mut released)?;
            give_back(&mut draft, &held, false, &mut released);
        }
        Release::Identity { identity } => {
            let kept = kept(book, identity)?;
            give_back(&mut draft, kept, true, &mut released);
        }
    }
    Ok(draft.plan(Reply::Released(released)))
}

/// Frees held addresses, each once; `forgotten` frees kept ones too.
pub fn give_back(
    draft: &mut Draft<'_>,
    addresses: &[IpAddr],
    forgotten: bool,
    released: &mut Released,
) {
    let mut by_block: BTreeMap<IpNet, BTreeSet<u32>> = BTreeMap::new();
    for address in addresses {
        let Some(block) = draft.block_with(*address) else {
            continue;
        };
        if let Some(ordinal) = block.ordinal(*address) {
            by_block.entry(block.cidr).or_default().insert(ordinal);
        }
    }
    let cooldown = draft.book.cooldown();
    for (cidr, ordinals) in by_block {
        let Some(mut block) = draft.open(&cidr) else {
            continue;
        };
        for ordinal in ordinals {
            match block.give(ordinal, forgotten, draft.now, cooldown) {
                Some(Given::Back) => released.released.push(block.address(ordinal)),
                Some(Given::Kept) => released.kept.push(block.address(ordinal)),
                None => {}
            }
        }
        draft.put_block(block);
        claim::tidy(draft, &cidr);
    }
}

/// Those of the addresses that are held, all as the request says.
fn held(
    draft: &mut Draft<'_>,
    asked: &[Held],
    released: &mut Released,
) -> Result<Vec<IpAddr>, Error> {
    let book = draft.book;
    let mut held = BTreeSet::new();
    for ask in asked {
        let Some(allocation) = book.allocation(ask.address).filter(|held| held.is_held()) else {
            released.unallocated.push(ask.address);
            continue;
        };
        let same_handle = ask.handle.is_none() || ask.handle == allocation.handle;
        let same_sequence = ask
            .sequence
            .is_none_or(|number| number == allocation.sequence);
        if !same_handle || !same_sequence {
            let holder = (allocation.handle.as_ref()).map_or("nobody", |handle| handle.as_str());
            return Err(Error::new(
                Code::Changed,
                format!(
                    "{} is held by {holder} with sequence number {}, not as the request says; \
                     nothing was released",
                    ask.address, allocation.sequence
                ),
                "look at the address again and ask with what it is now",
            ));
        }
        tunnel::refuse_in_use(draft, ask.address)?;
        held.insert(ask.address);
    }
    Ok(held.into_iter().collect())
}

fn kept<'a>(book: &'a Book, identity: &Name) -> Result<&'a [IpAddr], Error> {
    let addresses = book.identified(identity);
    for address in addresses {
        let held = book.allocation(*address);
        if let Some(handle) = held.and_then(|held| held.handle.as_ref()) {
            return Err(Error::new(
                Code::InUse,
                format!("{address} of {identity} is held by {handle}"),
                "release that attachment first",
            ));
        }
    }
    Ok(addresses)
}

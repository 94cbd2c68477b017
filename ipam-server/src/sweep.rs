//! What frees addresses that nobody gave back: the list of what is valid on a
//! node, and the end of a cooldown.

use std::{collections::HashSet, net::IpAddr};

use weft_api::ipam::{Error, Gc, Released, Reply, Time, Use};

use crate::{
    book::Book,
    claim,
    draft::Draft,
    model::{Allocation, Changes},
    plan::Plan,
    release,
};

/// Gives back what the node's workloads hold in the network and no listed
/// attachment does. Tunnel addresses live as long as the node.
pub fn gc(book: &Book, gc: &Gc, now: Time) -> Result<Plan, Error> {
    let valid: HashSet<_> = gc.valid.iter().map(|one| one.handle()).collect();
    let network = format!("{}/", gc.network);
    let is_leaked = |held: &Allocation| {
        held.purpose == Use::Workload
            && held.since < gc.before
            && (held.handle.as_ref()).is_some_and(|handle| {
                handle.as_str().starts_with(&network) && !valid.contains(handle)
            })
    };
    let mut draft = Draft::new(book, now);
    claim::settle(&mut draft, &gc.node);
    let leaked: Vec<IpAddr> = (book.share(&gc.node).into_iter())
        .flat_map(|share| &share.addresses)
        .filter(|address| {
            book.allocation(**address)
                .is_some_and(|held| is_leaked(held))
        })
        .copied()
        .collect();
    let mut released = Released::default();
    release::give_back(&mut draft, &leaked, false, &mut released);
    Ok(draft.plan(Reply::Released(released)))
}

/// Frees what has rested, in at most `most` blocks. Every plan does so in the
/// blocks it touches; this is for those that no request touches.
pub fn rested(book: &Book, now: Time, most: usize) -> Changes {
    let mut draft = Draft::new(book, now);
    for cidr in book.rested(now).take(most) {
        if let Some(block) = draft.open(cidr) {
            draft.put_block(block);
            claim::tidy(&mut draft, cidr);
        }
    }
    draft.plan(Reply::Done).changes
}

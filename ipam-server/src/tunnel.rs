//! The own addresses in the pod network of nodes that register: one of each
//! family that has a pool for them, by a handle of the node.
//!
//! Invariant: they are given and taken in the commit that writes the node's
//! record. A record that is withdrawn leaves them where they are, as it leaves
//! the node's blocks: who comes back has the same.

use std::net::IpAddr;

use ipnet::IpNet;
use weft_api::{
    ipam::{Code, Error, Family, Released, Use},
    names::{Handle, Name},
};

use crate::{
    allocate,
    book::{self, Book},
    claim,
    draft::Draft,
    model::{Allocation, Key},
    release,
};

/// No name holds a ':', so it is no attachment's.
const PREFIX: &str = "tunnel:";

pub fn handle(node: &Name) -> Option<Handle> {
    Handle::new(format!("{PREFIX}{node}")).ok()
}

pub fn is_own(allocation: &Allocation) -> bool {
    let handle = allocation.handle.as_ref();
    allocation.purpose == Use::Tunnel
        && handle.is_some_and(|handle| handle.as_str().starts_with(PREFIX))
}

/// What the node has, and what more there is for it. A family without room
/// gives none: nodes without an address of their own work too.
pub fn give(draft: &mut Draft<'_>, node: &Name) -> Vec<IpAddr> {
    let Some(handle) = handle(node) else {
        return Vec::new();
    };
    claim::settle(draft, node);
    let families = [Family::V4, Family::V6].into_iter();
    families
        .filter_map(|family| of_family(draft, node, &handle, family))
        .collect()
}

fn of_family(
    draft: &mut Draft<'_>,
    node: &Name,
    handle: &Handle,
    family: Family,
) -> Option<IpAddr> {
    if let Some(held) = book::first_of(draft.book.held_by(handle), family) {
        if !is_to_go(draft.book, held) {
            // Another server may have taken it away with its pool.
            let block = draft.book.block_with(held)?.cidr;
            draft.guard(Key::Block(block));
            return Some(held);
        }
        release::give_back(draft, &[held], false, &mut Released::default());
    }
    let allocation = Allocation {
        handle: Some(handle.clone()),
        sequence: 0,
        node: node.clone(),
        purpose: Use::Tunnel,
        pod: None,
        identity: None,
        place: None,
        since: draft.now,
        mark: draft.mark(),
        released: None,
    };
    allocate::for_node(draft, node, family, allocation)
}

/// Its pool is disabled: a pool that is to be deleted must not wait for nodes.
fn is_to_go(book: &Book, address: IpAddr) -> bool {
    let pool = book.pool_of(&IpNet::from(address));
    pool.is_none_or(|pool| pool.pool.disabled)
}

/// Whether a node with these may get others: one has to go, or there is none
/// of a family that has pools for them.
pub fn may_lack(book: &Book, has: &[IpAddr]) -> bool {
    let serves = |family| {
        let mut pools = book.pools().filter(|pool| pool.family() == family);
        pools.any(|pool| !pool.pool.disabled && !pool.pool.manual && pool.allows(Use::Tunnel))
    };
    let families = [Family::V4, Family::V6].into_iter();
    let goes = has.iter().any(|address| is_to_go(book, *address));
    let mut missing =
        families.filter(|family| !has.iter().any(|address| Family::of(*address) == *family));
    goes || missing.any(serves)
}

/// Whether a node says of an address that it is its own.
pub fn refuse_in_use(book: &Book, address: IpAddr) -> Result<(), Error> {
    let held = book.allocation(address).filter(|held| is_own(held));
    let user = held.and_then(|held| book.node(&held.node));
    match user.filter(|node| node.tunnel.contains(&address)) {
        None => Ok(()),
        Some(node) => Err(Error::new(
            Code::InUse,
            format!("{address} is node {}'s own in the pod network", node.name),
            "delete the node first (weft ipam node delete)",
        )),
    }
}

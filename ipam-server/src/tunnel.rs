//! The own addresses in the pod network of nodes that register: one of each
//! family that has a pool for them, by a handle of the node.
//!
//! Invariant: they are given and taken in the commit that writes the node's
//! record. A record that is withdrawn leaves them where they are, as it leaves
//! the node's blocks: who comes back has the same.

use std::net::IpAddr;

use ipnet::IpNet;
use weft_api::{
    ipam::{Code, Error, Family, Node, Released, Use},
    names::{Handle, Name},
};

use crate::{
    allocate,
    book::{self, Book},
    claim,
    draft::Draft,
    model::{Allocation, Key, Revision},
    pool::Range,
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
            rewrite(draft, held)?;
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

/// Gives back what the node has and its record does not name.
pub fn keep_named(draft: &mut Draft<'_>, node: &Node) {
    let held = handle(&node.name).map_or(&[][..], |handle| draft.book.held_by(&handle));
    for address in held {
        if node.tunnel.contains(address) {
            rewrite(draft, *address);
        } else {
            release::give_back(draft, &[*address], false, &mut Released::default());
        }
    }
}

/// Writes the address's block as it is: of a record that names the address and
/// a plan of another server that frees it, one is void.
fn rewrite(draft: &mut Draft<'_>, address: IpAddr) -> Option<()> {
    let block = draft.block_with(address)?.clone();
    draft.put_block(block);
    Some(())
}

/// Its pool is disabled: a pool that is to be deleted must not wait for nodes.
fn is_to_go(book: &Book, address: IpAddr) -> bool {
    let pool = book.pool_of(&IpNet::from(address));
    pool.is_none_or(|pool| pool.pool.disabled)
}

/// Whether the node may get other addresses than its record names: one has to
/// go or is not the node's, or there is none of a family that has pools for
/// it. If so, when the pools of these families were last changed: they may be
/// full, and until one is another there is little use in asking again.
pub fn may_lack(book: &Book, node: &Node) -> Option<Revision> {
    let (stand, fall): (Vec<IpAddr>, Vec<_>) =
        (node.tunnel.iter().copied()).partition(|address| stands(book, node, *address));
    let missing = |pool: &&Range| !stand.iter().any(|one| Family::of(*one) == pool.family());
    let pools: Vec<_> = book.pools().filter(missing).collect();
    let serves = |pool: &&Range| allocate::serves(pool, &node.labels, Use::Tunnel);
    if fall.is_empty() && !pools.iter().any(serves) {
        return None;
    }
    let keys = pools.iter().map(|pool| Key::Pool(pool.name().clone()));
    Some(
        keys.filter_map(|key| book.revision_of(&key))
            .max()
            .unwrap_or(0),
    )
}

/// Whether the node may keep the address: it is its own, and its pool stays.
pub fn stands(book: &Book, node: &Node, address: IpAddr) -> bool {
    let held = book.allocation(address).filter(|held| is_own(held));
    held.is_some_and(|held| held.is_held() && held.node == node.name) && !is_to_go(book, address)
}

/// Whether a node says of an address that it is its own. The plan that frees
/// it holds only while the node says no other.
pub fn refuse_in_use(draft: &mut Draft<'_>, address: IpAddr) -> Result<(), Error> {
    let Some(held) = draft.book.allocation(address).filter(|held| is_own(held)) else {
        return Ok(());
    };
    draft.guard(Key::Node(held.node.clone()));
    match user(draft.book, address) {
        None => Ok(()),
        Some(node) => Err(Error::new(
            Code::InUse,
            format!("{address} is node {}'s own in the pod network", node.name),
            "delete the node first (weft ipam node delete)",
        )),
    }
}

/// The node that has the address as its own, and says so.
pub fn user(book: &Book, address: IpAddr) -> Option<&Node> {
    let held = book.allocation(address).filter(|held| is_own(held))?;
    (book.node(&held.node)).filter(|node| node.tunnel.contains(&address))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::{
        model::Value,
        store::{Row, Update},
    };

    fn pool(revision: Revision, name: &str, cidr: &str, selector: &str) -> Update {
        let row = json!({"name": name, "cidr": cidr, "node_selector": selector});
        let value = Value::Pool(serde_json::from_value(row).expect("a pool"));
        let key = Key::Pool(Name::new(name).expect("a name"));
        let row = Some(Row { value, revision });
        Update { key, row }
    }

    #[test]
    fn a_node_lacks_nothing_of_pools_that_are_not_for_it() {
        let row = json!({"name": "n1", "underlay": ["192.0.2.1/24"],
            "vtep_mac": "02:00:00:00:00:01", "labels": {"rack": "a"}});
        let mut node: Node = serde_json::from_value(row).expect("a node");
        let mut book = Book::default();
        assert_eq!(may_lack(&book, &node), None);
        book.apply(&pool(1, "b", "10.2.0.0/24", "rack == 'b'"));
        assert_eq!(may_lack(&book, &node), None, "it does not select the node");
        book.apply(&pool(2, "a", "10.1.0.0/24", "rack == 'a'"));
        assert_eq!(may_lack(&book, &node), Some(2));
        book.apply(&pool(3, "six", "fd00::/64", "rack == 'b'"));
        assert_eq!(may_lack(&book, &node), Some(3));
        // Nobody holds what its record names.
        node.tunnel = vec![[10, 1, 0, 1].into()];
        assert_eq!(may_lack(&book, &node), Some(3));
    }
}

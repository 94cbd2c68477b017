//! Why a request cannot be granted, and what helps.

use std::net::IpAddr;

use weft_api::{
    ipam::{Allocate, Code, Error, Family, Use},
    names::{Handle, Name},
};

use crate::{claim, draft::Draft, model::Allocation, pool::Range};

/// Pools named in a message.
const NAMED_MOST: usize = 8;

pub fn holds_another(handle: &Handle, held: IpAddr, asked: Option<IpAddr>) -> Error {
    let asked = asked.map(|asked| asked.to_string()).unwrap_or_default();
    Error::new(
        Code::Changed,
        format!("{handle} asks for {asked} and holds {held}"),
        "release the attachment first",
    )
}

pub fn identity_has_another(identity: &Name, address: IpAddr, asked: IpAddr) -> Error {
    Error::new(
        Code::Invalid,
        format!("{asked} is asked for, and {address} is kept for {identity}"),
        format!("ask for {address}, or release identity {identity} first"),
    )
}

pub fn identity_outside(identity: &Name, address: IpAddr) -> Error {
    Error::new(
        Code::Invalid,
        format!("{address}, which is kept for {identity}, is in none of the pools asked for"),
        format!("ask for no pool, or release identity {identity} first"),
    )
}

pub fn identity_in_use(identity: &Name, address: IpAddr, held: &Allocation) -> Error {
    Error::new(
        Code::Taken,
        format!("{address} of {identity} is {}", holder(held)),
        "release that attachment first",
    )
}

pub fn taken(address: IpAddr, held: &Allocation) -> Error {
    let hint = if held.is_held() {
        "ask for another address, or release it first"
    } else if held.is_kept() {
        "ask for another address, or release the identity"
    } else {
        "ask for another address, or wait until its cooldown ends"
    };
    Error::new(Code::Taken, format!("{address} is {}", holder(held)), hint)
}

pub fn reserved(address: IpAddr, by: &str) -> Error {
    Error::new(
        Code::Taken,
        format!("{address} is reserved by {by}"),
        "ask for another address, or remove the reservation",
    )
}

pub fn outside(address: IpAddr) -> Error {
    Error::new(
        Code::NotFound,
        format!("{address} lies in no pool"),
        "ask for an address of a pool, or create one around it",
    )
}

/// The address may be held in another block, or in one that is set aside.
pub fn contested(address: IpAddr) -> Error {
    Error::new(
        Code::Taken,
        format!("{address} lies in blocks that contradict each other"),
        "look at `weft ipam check`, and ask for another address until that is mended",
    )
}

pub fn foreign(address: IpAddr, owner: Option<&Name>) -> Error {
    let owner = owner.map_or_else(|| "nobody".to_owned(), |owner| format!("node {owner}"));
    Error::new(
        Code::Taken,
        format!("{address} lies in a block of {owner}, and affinity is strict"),
        "ask for an address of the node's own blocks, or configure strict_affinity to false",
    )
}

pub fn no_named_pool(ask: &Allocate, family: Family) -> Error {
    Error::new(
        Code::NoPool,
        format!(
            "none of the pools {} has {} addresses for {}",
            ask.pools.join(", "),
            family_name(family),
            use_name(ask.purpose)
        ),
        "name a pool of that family and use",
    )
}

pub fn no_pool(ask: &Allocate, family: Family, reasons: &[String]) -> Error {
    let mut why = match reasons.len() {
        0 => "there is none of that family".to_owned(),
        _ => reasons[..reasons.len().min(NAMED_MOST)].join(", "),
    };
    if reasons.len() > NAMED_MOST {
        why.push_str(&format!(", and {} more", reasons.len() - NAMED_MOST));
    }
    Error::new(
        Code::NoPool,
        format!(
            "no pool may give node {} an {} address for {}: {why}",
            ask.node,
            family_name(family),
            use_name(ask.purpose)
        ),
        "create a pool, enable one, or change its selectors",
    )
}

/// The pools may serve the node, but nothing was found in them.
pub fn no_room(draft: &Draft<'_>, node: &Name, family: Family, pools: &[&Range]) -> Error {
    let config = draft.book.config();
    let names: Vec<_> = (pools.iter().take(NAMED_MOST))
        .map(|pool| pool.name().as_str())
        .collect();
    let names = names.join(", ");
    let family = family_name(family);
    let limit = (config.blocks_per_node)
        .filter(|_| pools.iter().any(|pool| claim::at_limit(draft, node, pool)));
    match limit {
        Some(limit) if config.strict_affinity => Error::new(
            Code::BlockLimit,
            format!(
                "node {node} owns {limit} {family} blocks, as many as blocks_per_node allows, \
                 they have no free address, and strict_affinity forbids to borrow"
            ),
            "raise blocks_per_node, or configure strict_affinity to false",
        ),
        Some(limit) => Error::new(
            Code::Exhausted,
            format!(
                "node {node} may own no more than {limit} {family} blocks (blocks_per_node), and \
                 no block of {names} has a free address to lend"
            ),
            "raise blocks_per_node, or add a pool",
        ),
        None => Error::new(
            Code::Exhausted,
            format!("pools {names} have no free {family} address for node {node}"),
            "add a pool, release addresses, or look for leaks with `weft ipam check`",
        ),
    }
}

/// No block may be claimed for an address that lies in none yet.
pub fn no_block(draft: &Draft<'_>, address: IpAddr, node: &Name) -> Error {
    let limit = draft.book.config().blocks_per_node.unwrap_or_default();
    Error::new(
        Code::BlockLimit,
        format!(
            "{address} needs a new block, node {node} owns {limit} already, as many as \
             blocks_per_node allows, and affinity is strict"
        ),
        "raise blocks_per_node, or configure strict_affinity to false",
    )
}

fn holder(held: &Allocation) -> String {
    match (&held.handle, &held.identity) {
        (Some(handle), _) => format!("held by {handle} on node {}", held.node),
        (None, Some(identity)) => format!("kept for {identity}"),
        (None, None) => "resting since it was released".to_owned(),
    }
}

fn family_name(family: Family) -> &'static str {
    match family {
        Family::V4 => "IPv4",
        Family::V6 => "IPv6",
    }
}

fn use_name(purpose: Use) -> &'static str {
    match purpose {
        Use::Workload => "workloads",
        Use::Tunnel => "tunnels",
        Use::LoadBalancer => "load balancers",
    }
}

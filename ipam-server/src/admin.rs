//! Pools, reservations and settings.

use weft_api::{
    ipam::{COOLDOWN_MAX, Code, ConfigChange, Error, Pool, Reply, Reservation, Time},
    names::Name,
};

use crate::{
    book::Book,
    claim,
    draft::Draft,
    model::{Key, Value},
    plan::Plan,
    pool, tunnel,
};

/// The pool is stored with its block size, whatever the default becomes.
pub fn pool_create(book: &Book, pool: &Pool, now: Time) -> Result<Plan, Error> {
    pool::validate(pool)?;
    let mut pool = pool.clone();
    pool.block_size = Some(pool::block_size(&pool));
    if let Some(same) = book.pool(&pool.name) {
        if same.pool == pool {
            return Ok(Plan::answer(Reply::Done));
        }
        return Err(Error::new(
            Code::Taken,
            format!("pool {} exists and is not as asked for", pool.name),
            "choose another name, or delete it first",
        ));
    }
    let overlaps = |cidr: &ipnet::IpNet| cidr.contains(&pool.cidr) || pool.cidr.contains(cidr);
    if let Some(other) = book.pools().find(|other| overlaps(&other.pool.cidr)) {
        return Err(Error::new(
            Code::Taken,
            format!(
                "pool {}: {} overlaps pool {}, {}",
                pool.name,
                pool.cidr,
                other.name(),
                other.pool.cidr
            ),
            "choose a range that no pool has",
        ));
    }
    let fits = |cidr: &ipnet::IpNet| Some(cidr.prefix_len()) == pool.block_size;
    let mut blocks = book.blocks().map(|block| block.cidr);
    if let Some(left) = blocks.find(|cidr| overlaps(cidr) && !fits(cidr)) {
        return Err(Error::new(
            Code::InUse,
            format!("pool {}: block {left} of a former pool is left", pool.name),
            "release its addresses, or choose its block size",
        ));
    }
    apart_from_nodes(book, &pool)?;
    let mut draft = Draft::new(book, now);
    draft.put(Key::Pool(pool.name.clone()), Some(Value::Pool(pool)));
    draft.one_at_a_time();
    Ok(draft.plan(Reply::Done))
}

/// Else the nodes would look for each other among their pods.
fn apart_from_nodes(book: &Book, pool: &Pool) -> Result<(), Error> {
    for node in book.nodes() {
        if let Some(net) = node
            .underlay
            .iter()
            .find(|net| pool.cidr.contains(&net.addr()))
        {
            return Err(Error::new(
                Code::Taken,
                format!(
                    "pool {}: {} holds {}, the underlay address of node {}",
                    pool.name,
                    pool.cidr,
                    net.addr(),
                    node.name
                ),
                "choose a range apart from the nodes' network",
            ));
        }
    }
    Ok(())
}

pub fn pool_disable(book: &Book, name: &Name, disabled: bool, now: Time) -> Result<Plan, Error> {
    let known = book.pool(name).ok_or_else(|| no_pool(name))?;
    if known.pool.disabled == disabled {
        return Ok(Plan::answer(Reply::Done));
    }
    let pool = Pool {
        disabled,
        ..known.pool.clone()
    };
    let mut draft = Draft::new(book, now);
    draft.put(Key::Pool(name.clone()), Some(Value::Pool(pool)));
    Ok(draft.plan(Reply::Done))
}

pub fn pool_delete(book: &Book, name: &Name, now: Time) -> Result<Plan, Error> {
    let pool = &book.pool(name).ok_or_else(|| no_pool(name))?.pool;
    if !pool.disabled {
        // Else a server that has not heard of it could cut a block in it.
        return Err(Error::new(
            Code::InUse,
            format!("pool {name} is enabled"),
            "disable it first",
        ));
    }
    let cidr = pool.cidr;
    let live = || {
        book.blocks_within(&cidr).flat_map(|block| {
            let held = block.allocations.iter();
            let live = held.filter(|(_, held)| !held.is_resting());
            let live = live.map(|(ordinal, held)| (block.address(*ordinal), held));
            // A node that is withdrawn is given another when it comes back.
            let of_use = live.filter(|(address, held)| {
                !tunnel::is_own(held) || tunnel::user(book, *address).is_some()
            });
            of_use.map(|(address, _)| address)
        })
    };
    if let Some(first) = live().next() {
        return Err(Error::new(
            Code::InUse,
            format!(
                "pool {name} has {} live addresses, {first} first",
                live().count()
            ),
            "delete it when its addresses and identities are released",
        ));
    }
    let mut draft = Draft::new(book, now);
    for (node, block) in book.claims_within(&cidr) {
        claim::disown(&mut draft, &node, block);
    }
    for block in book.blocks_within(&cidr) {
        if draft.block(&block.cidr).is_some() {
            draft.put(Key::Block(block.cidr), None);
        }
    }
    draft.put(Key::Pool(name.clone()), None);
    draft.one_at_a_time();
    Ok(draft.plan(Reply::Done))
}

pub fn reserve(book: &Book, reservation: &Reservation, now: Time) -> Result<Plan, Error> {
    let name = &reservation.name;
    let crooked = reservation.cidrs.iter().find(|cidr| cidr.trunc() != **cidr);
    if let Some(cidr) = crooked {
        return Err(Error::new(
            Code::Invalid,
            format!("reservation {name}: {cidr} has bits behind its prefix"),
            format!("write {}", cidr.trunc()),
        ));
    }
    if reservation.cidrs.is_empty() {
        return Err(Error::new(
            Code::Invalid,
            format!("reservation {name} names no range"),
            "give at least one range",
        ));
    }
    match book.reservation(name) {
        Some(same) if same == reservation => return Ok(Plan::answer(Reply::Done)),
        Some(_) => {
            return Err(Error::new(
                Code::Taken,
                format!("reservation {name} exists with other ranges"),
                "choose another name, or remove it first",
            ));
        }
        None => {}
    }
    let mut draft = Draft::new(book, now);
    let key = Key::Reservation(name.clone());
    draft.put(key, Some(Value::Reservation(reservation.clone())));
    Ok(draft.plan(Reply::Done))
}

pub fn unreserve(book: &Book, name: &Name, now: Time) -> Result<Plan, Error> {
    if book.reservation(name).is_none() {
        return Err(Error::new(
            Code::NotFound,
            format!("there is no reservation {name}"),
            "name one that `weft ipam reserve` lists",
        ));
    }
    let mut draft = Draft::new(book, now);
    draft.put(Key::Reservation(name.clone()), None);
    Ok(draft.plan(Reply::Done))
}

pub fn configure(book: &Book, change: &ConfigChange, now: Time) -> Result<Plan, Error> {
    let mut config = book.config().clone();
    if let Some(strict) = change.strict_affinity {
        config.strict_affinity = strict;
    }
    if let Some(claim) = change.claim_blocks {
        config.claim_blocks = claim;
    }
    if let Some(limit) = change.blocks_per_node {
        config.blocks_per_node = (limit > 0).then_some(limit);
    }
    if let Some(cooldown) = change.cooldown_seconds {
        config.cooldown_seconds = cooldown;
    }
    if config.strict_affinity && !config.claim_blocks {
        return Err(Error::new(
            Code::Invalid,
            "strict_affinity without claim_blocks leaves nodes without addresses",
            "configure strict_affinity to false, or claim_blocks to true",
        ));
    }
    if config.cooldown_seconds > COOLDOWN_MAX {
        return Err(Error::new(
            Code::Invalid,
            format!(
                "cooldown_seconds {} is above {COOLDOWN_MAX}",
                config.cooldown_seconds
            ),
            format!("choose 0 to {COOLDOWN_MAX}"),
        ));
    }
    if config == *book.config() && !book.is_aside(&Key::Config) {
        return Ok(Plan::answer(Reply::Done));
    }
    let mut draft = Draft::new(book, now);
    draft.put(Key::Config, Some(Value::Config(config)));
    Ok(draft.plan(Reply::Done))
}

fn no_pool(name: &Name) -> Error {
    Error::new(
        Code::NotFound,
        format!("there is no pool {name}"),
        "name one that `weft ipam pool list` shows",
    )
}

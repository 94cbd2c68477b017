//! What is wrong with a snapshot of rows: every contradiction within a row,
//! between rows, and between the rows and what runs.
//!
//! Pure, and asks nothing of how the rows came about: they may be another
//! program's. A sound snapshot gives no problem.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnet::IpNet;
use weft_api::{
    ipam::{Config, Family, InUse, Node, Pool, Problem, ProblemKind, Report, Time},
    names::Name,
};

use crate::model::{Affinity, Block, HOST_BITS_MAX, Key, Value, host_bits};

mod affinities;
mod blocks;
mod holders;
mod settings;
#[cfg(test)]
mod tests;

/// `in_use` is all that runs, where it is known.
pub fn check<'a>(
    rows: impl IntoIterator<Item = (&'a Key, &'a Value)>,
    in_use: Option<&[InUse]>,
    now: Time,
) -> Report {
    let mut found = Found::default();
    let rows = sort(rows, &mut found);
    settings::check(&rows, &mut found);
    blocks::check(&rows, now, &mut found);
    affinities::check(&rows, &mut found);
    holders::check(&rows, in_use, &mut found);
    let held = |block: &&Block| {
        block
            .allocations
            .values()
            .filter(|a| a.handle.is_some())
            .count()
    };
    Report {
        pools: rows.pools.len(),
        blocks: rows.blocks.len(),
        allocations: rows.blocks.values().map(held).sum(),
        problems: found.problems,
        notes: found.notes,
    }
}

/// The rows by kind, of which each key is there once.
#[derive(Default)]
struct Rows<'a> {
    config: Option<&'a Config>,
    pools: BTreeMap<&'a Name, &'a Pool>,
    nodes: BTreeMap<&'a Name, &'a Node>,
    blocks: BTreeMap<IpNet, &'a Block>,
    affinities: BTreeMap<(IpNet, &'a Name), &'a Affinity>,
}

fn sort<'a>(all: impl IntoIterator<Item = (&'a Key, &'a Value)>, found: &mut Found) -> Rows<'a> {
    let mut rows = Rows::default();
    for (key, value) in all {
        let (content, twice) = match (key, value) {
            (Key::Config, Value::Config(row)) => (None, rows.config.replace(row).is_some()),
            (Key::Mark, Value::Mark(_)) => (None, false),
            (Key::Pool(name), Value::Pool(row)) => (
                (*name != row.name).then(|| row.name.to_string()),
                rows.pools.insert(name, row).is_some(),
            ),
            (Key::Node(name), Value::Node(row)) => (
                (*name != row.name).then(|| row.name.to_string()),
                rows.nodes.insert(name, row).is_some(),
            ),
            (Key::Reservation(name), Value::Reservation(row)) => {
                ((*name != row.name).then(|| row.name.to_string()), false)
            }
            (Key::Block(cidr), Value::Block(row)) => (
                (*cidr != row.cidr).then(|| row.cidr.to_string()),
                rows.blocks.insert(*cidr, row).is_some(),
            ),
            (Key::Affinity(node, cidr), Value::Affinity(row)) => {
                (None, rows.affinities.insert((*cidr, node), row).is_some())
            }
            (Key::Underlay(_) | Key::Vtep(_), Value::Taken(_)) => (None, false),
            (_, Value::Aside(row)) => {
                let hint = "correct the row or delete it; until then it is as if it were not there";
                found.structure(key, row.reason.clone(), hint);
                continue;
            }
            _ => (Some("a row of another kind".to_owned()), false),
        };
        if let Some(content) = content {
            let message = format!("holds {content}, which is not what its key says");
            found.structure(key, message, "write the row anew under its own key");
        }
        if twice {
            found.structure(key, "is there twice".into(), "delete one of the two");
        }
    }
    rows
}

#[derive(Default)]
struct Found {
    problems: Vec<Problem>,
    /// What is as it should be, and perhaps not as it is wanted.
    notes: Vec<Problem>,
}

impl Found {
    fn add(&mut self, kind: ProblemKind, object: impl ToString, message: String, hint: &str) {
        self.problems.push(problem(kind, object, message, hint));
    }

    fn note(&mut self, kind: ProblemKind, object: impl ToString, message: String, hint: &str) {
        self.notes.push(problem(kind, object, message, hint));
    }

    fn structure(&mut self, object: impl ToString, message: String, hint: &str) {
        self.add(ProblemKind::Structure, object, message, hint);
    }
}

fn problem(kind: ProblemKind, object: impl ToString, message: String, hint: &str) -> Problem {
    Problem {
        kind,
        object: object.to_string(),
        message,
        hint: hint.to_owned(),
    }
}

impl<'a> Rows<'a> {
    fn pool_of(&self, net: IpNet) -> Option<&'a Pool> {
        let mut pools = self.pools.values();
        pools.find(|pool| pool.cidr.contains(&net)).copied()
    }
}

/// Prefix length of the pool's blocks.
fn block_size(pool: &Pool) -> u8 {
    pool.block_size.unwrap_or(match family(pool.cidr) {
        Family::V4 => 26,
        Family::V6 => 122,
    })
}

fn family(net: IpNet) -> Family {
    Family::of(net.addr())
}

/// The address at this distance from the block's first.
pub(crate) fn address(block: IpNet, ordinal: u32) -> IpAddr {
    match block.network() {
        IpAddr::V4(first) => Ipv4Addr::from(u32::from(first).wrapping_add(ordinal)).into(),
        IpAddr::V6(first) => Ipv6Addr::from(u128::from(first).wrapping_add(ordinal.into())).into(),
    }
}

//! Config, pools and nodes, each for itself and against its like.

use std::collections::BTreeMap;

use ipnet::IpNet;
use weft_api::ipam::{COOLDOWN_MAX, Config, Encapsulation, Family, Pool, Use};

use super::{Found, HOST_BITS_MAX, Rows, family};
use crate::{model::Key, selector::Selector};

pub(super) fn check(rows: &Rows, found: &mut Found) {
    if let Some(row) = rows.config {
        config(row, found);
    }
    for row in rows.pools.values() {
        pool(row, found);
    }
    overlaps(rows, found);
    nodes(rows, found);
}

fn config(config: &Config, found: &mut Found) {
    if config.strict_affinity && !config.claim_blocks {
        let message = "nodes may neither claim blocks nor borrow from others".into();
        found.structure(
            Key::Config,
            message,
            "set claim-blocks, or unset strict-affinity",
        );
    }
    if config.cooldown_seconds > COOLDOWN_MAX {
        let message = format!("a cooldown of {} s", config.cooldown_seconds);
        let hint = format!("set it to at most {COOLDOWN_MAX} s");
        found.structure(Key::Config, message, &hint);
    }
    if config.blocks_per_node == Some(0) {
        let message = "no node may own a block".into();
        found.structure(
            Key::Config,
            message,
            "set blocks-per-node above 0, or to none",
        );
    }
}

fn pool(pool: &Pool, found: &mut Found) {
    let mut wrong = |message: String, hint: &str| {
        found.structure(format!("pool {}", pool.name), message, hint);
    };
    let cidr = pool.cidr;
    if cidr != cidr.trunc() {
        let message = format!("{cidr} has bits set beyond its prefix");
        wrong(message, &format!("make it {}", cidr.trunc()));
    }
    if link_local().iter().any(|local| overlap(*local, cidr)) {
        wrong(
            format!("{cidr} holds link-local addresses"),
            "choose another range",
        );
    }
    let size = super::block_size(pool);
    let (fewest, most) = (cidr.max_prefix_len() - HOST_BITS_MAX, cidr.max_prefix_len());
    if size < fewest.max(cidr.prefix_len()) || size > most {
        let message = format!("{cidr} cannot be cut into blocks of /{size}");
        let fewest = fewest.max(cidr.prefix_len());
        wrong(message, &format!("use a block size of {fewest} to {most}"));
    }
    for (what, text) in [
        ("node", &pool.node_selector),
        ("namespace", &pool.namespace_selector),
    ] {
        if let Err(error) = Selector::parse(text) {
            wrong(
                format!("its {what} {error}"),
                "correct the selector; the pool selects nothing",
            );
        }
    }
    if pool.uses.is_empty() {
        wrong(
            "nothing may use it".into(),
            "allow a use, or delete the pool",
        );
    }
    if pool.uses.contains(&Use::LoadBalancer) && pool.uses.iter().any(|u| *u != Use::LoadBalancer) {
        let message = "it serves load balancers and others".into();
        wrong(message, "make a pool of its own for load balancers");
    }
    if pool.encapsulation == Encapsulation::Ipip && family(cidr) == Family::V6 {
        wrong("IPIP does not carry IPv6".into(), "use vxlan or none");
    }
}

fn link_local() -> [IpNet; 2] {
    let net = |address: [u16; 8], bits| IpNet::new_assert(address.into(), bits);
    [
        IpNet::new_assert([169, 254, 0, 0].into(), 16),
        net([0xfe80, 0, 0, 0, 0, 0, 0, 0], 10),
    ]
}

fn overlap(one: IpNet, other: IpNet) -> bool {
    one.contains(&other) || other.contains(&one)
}

/// In order of their addresses, a range that overlaps an earlier one lies in
/// the last that reaches furthest, as CIDRs nest or are apart.
pub(super) fn overlapping<T>(sorted: impl Iterator<Item = (IpNet, T)>) -> Vec<(T, T)>
where
    T: Copy,
{
    let mut pairs = Vec::new();
    let mut around: Vec<(IpNet, T)> = Vec::new();
    for (net, what) in sorted {
        while around
            .last()
            .is_some_and(|(outer, _)| !outer.contains(&net))
        {
            around.pop();
        }
        pairs.extend(around.last().map(|(_, outer)| (*outer, what)));
        around.push((net, what));
    }
    pairs
}

fn overlaps(rows: &Rows, found: &mut Found) {
    let mut pools: Vec<_> = rows
        .pools
        .values()
        .map(|pool| (pool.cidr.trunc(), *pool))
        .collect();
    pools.sort_by_key(|(cidr, _)| *cidr);
    for (outer, inner) in overlapping(pools.into_iter()) {
        let message = format!(
            "{} overlaps {} of pool {}",
            inner.cidr, outer.cidr, outer.name
        );
        let hint = "disable and drain one of the pools, then delete it";
        found.structure(format!("pool {}", inner.name), message, hint);
    }
}

fn nodes(rows: &Rows, found: &mut Found) {
    let mut underlays = BTreeMap::new();
    let mut macs = BTreeMap::new();
    for node in rows.nodes.values() {
        let object = format!("node {}", node.name);
        for family in [Family::V4, Family::V6] {
            let of_family = node
                .underlay
                .iter()
                .filter(|net| super::family(**net) == family);
            if of_family.count() > 1 {
                let message = "it has two underlay addresses of one family".into();
                found.structure(&object, message, "keep the one that the others can reach");
            }
        }
        for net in &node.underlay {
            if let Some(pool) = rows.pool_of(net.addr().into()) {
                let message = format!("underlay address {} lies in pool {}", net.addr(), pool.name);
                let hint = "give the node an address outside the pods' network, or delete the pool";
                found.structure(&object, message, hint);
            }
            if let Some(other) = underlays
                .insert(net.addr(), &node.name)
                .filter(|o| **o != node.name)
            {
                let message = format!("underlay address {} is node {other}'s too", net.addr());
                found.structure(&object, message, "delete the node that is gone");
            }
        }
        if let Some(other) = macs.insert((node.vni, node.vtep_mac), &node.name) {
            let message = format!("VTEP MAC {} is node {other}'s too", node.vtep_mac);
            found.structure(&object, message, "give one of them another MAC");
        }
    }
}

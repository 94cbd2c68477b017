//! Who holds which address, over all blocks, and what runs against it.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use weft_api::{
    ipam::{Family, InUse, Place, ProblemKind, Use},
    names::Handle,
};

use super::{Found, Rows, address};
use crate::{model::Allocation, tunnel};

/// By address; several where blocks overlap.
type Held<'a> = BTreeMap<IpAddr, Vec<&'a Allocation>>;

pub(super) fn check(rows: &Rows, in_use: Option<&[InUse]>, found: &mut Found) {
    let mut held = Held::new();
    for block in rows.blocks.values() {
        for (ordinal, allocation) in &block.allocations {
            let address = address(block.cidr, *ordinal);
            held.entry(address).or_default().push(allocation);
        }
    }
    doubles(&held, found);
    one_of_a_family(&held, found);
    tunnels(rows, &held, found);
    if let Some(in_use) = in_use {
        against(rows, &held, in_use, found);
    }
}

fn handles<'a>(allocations: &'a [&'a Allocation]) -> impl Iterator<Item = &'a Handle> {
    allocations.iter().filter_map(|one| one.handle.as_ref())
}

fn doubles(held: &Held, found: &mut Found) {
    for (address, allocations) in held.iter().filter(|(_, all)| all.len() > 1) {
        let owners: Vec<_> = handles(allocations).map(Handle::as_str).collect();
        if owners.len() > 1 {
            let message = format!("it is allocated in two blocks, to {}", owners.join(" and "));
            let hint = "release the handle that does not run, or restart both containers";
            found.add(ProblemKind::DoubleOwner, address, message, hint);
        }
    }
}

/// A handle has one address of a family, and so has an identity in one place.
fn one_of_a_family(held: &Held, found: &mut Found) {
    let mut seen: BTreeMap<(String, Family), IpAddr> = BTreeMap::new();
    for (address, allocation) in held
        .iter()
        .flat_map(|(a, all)| all.iter().map(move |one| (*a, *one)))
    {
        let handle = allocation
            .handle
            .as_ref()
            .map(|handle| format!("handle {handle}"));
        let identity = (allocation.identity.as_ref()).map(|name| match allocation.place() {
            Some(Place { network, interface }) => {
                format!("identity {name} at {interface} of {network}")
            }
            None => format!("identity {name}"),
        });
        for who in handle.into_iter().chain(identity) {
            let other = *seen
                .entry((who.clone(), Family::of(address)))
                .or_insert(address);
            if other != address {
                let message = format!("it has two addresses of one family, {other} and {address}");
                let hint = "release the address that its container does not use";
                found.add(ProblemKind::DoubleOwner, who, message, hint);
            }
        }
    }
}

/// A node's own address lives as long as the node is known, or as its blocks
/// do if it registers.
fn tunnels(rows: &Rows, held: &Held, found: &mut Found) {
    let all = held
        .iter()
        .flat_map(|(a, all)| all.iter().map(move |one| (a, one)));
    let tunnels = all.filter(|(_, one)| one.purpose == Use::Tunnel && one.handle.is_some());
    for (address, allocation) in tunnels {
        let name = &allocation.node;
        match (rows.nodes.get(name), tunnel::is_own(allocation)) {
            (None, true) => {
                let message = format!("it is kept for node {name}, which is withdrawn");
                let hint = format!("if it will not come back: weft ipam node delete {name}");
                found.note(ProblemKind::Kept, address, message, &hint);
            }
            (None, false) if !rows.nodes.is_empty() => {
                let message =
                    format!("it is the tunnel address of node {name}, which is not known");
                found.add(ProblemKind::Leak, address, message, "release the address");
            }
            (Some(node), true) if !node.tunnel.contains(address) => {
                let message = format!("it is kept for node {name}, whose record does not name it");
                found.add(ProblemKind::Leak, address, message, "release the address");
            }
            _ => {}
        }
    }
}

fn against(rows: &Rows, held: &Held, in_use: &[InUse], found: &mut Found) {
    let mut users: BTreeMap<IpAddr, BTreeSet<Option<&Handle>>> = BTreeMap::new();
    for one in in_use {
        users
            .entry(one.address)
            .or_default()
            .insert(one.handle.as_ref());
    }
    for (address, of_address) in &users {
        let named: Vec<_> = of_address
            .iter()
            .flatten()
            .map(|handle| handle.as_str())
            .collect();
        if named.len() > 1 {
            let message = format!("it is in use by {}", named.join(" and "));
            let hint = "restart all but one of the containers";
            found.add(ProblemKind::DoubleOwner, address, message, hint);
        }
        match held.get(address).and_then(|all| handles(all).next()) {
            Some(holder) if !named.is_empty() && !named.contains(&holder.as_str()) => {
                let message = format!("{} uses it, but it is allocated to {holder}", named[0]);
                let hint = "restart the container that uses it";
                found.add(ProblemKind::DoubleOwner, address, message, hint);
            }
            Some(_) => {}
            None if rows.pool_of((*address).into()).is_none() => {
                let message = "it is in use, and lies in no pool".into();
                let hint = "create a pool for it, or restart the container that uses it";
                found.add(ProblemKind::OutsidePools, address, message, hint);
            }
            None => {
                let message = "it is in use, but not allocated: it may be given to another".into();
                let hint = "restart the container that uses it";
                found.add(ProblemKind::NotAllocated, address, message, hint);
            }
        }
    }
    // What runs is a list of pods: other addresses are not in it.
    for (address, allocations) in held
        .iter()
        .filter(|(address, _)| !users.contains_key(address))
    {
        let of_pods = allocations
            .iter()
            .filter(|one| one.purpose == Use::Workload);
        for handle in of_pods.filter_map(|one| one.handle.as_ref()) {
            let message = format!("it is allocated to {handle}, but nothing that runs uses it");
            let hint = "release the handle once its container is gone for certain";
            found.add(ProblemKind::Leak, address, message, hint);
        }
    }
}

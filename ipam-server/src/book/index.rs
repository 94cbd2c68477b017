//! Keeps the book's indexes when a row changes.

use std::{
    collections::{BTreeSet, HashMap, hash_map::Entry},
    hash::Hash,
    net::IpAddr,
    sync::Arc,
};

use ipnet::IpNet;
use weft_api::{
    ipam::{AffinityState, Node},
    names::Name,
};

use super::{Book, Share, Standing, within};
use crate::{
    model::{Allocation, Block, HOST_BITS_MAX, Key, Value},
    pool::Range,
    range::{Ranges, Span},
};

impl Book {
    /// The row stands in the book already.
    pub(super) fn index(&mut self, key: &Key, old: Option<Value>, new: Option<&Value>) {
        match key {
            Key::Config => {
                self.config = match new {
                    Some(Value::Config(config)) => config.clone(),
                    _ => Default::default(),
                };
            }
            Key::Mark => {
                self.mark = match new {
                    Some(Value::Mark(mark)) => Some(mark.number),
                    _ => None,
                };
            }
            Key::Pool(name) => self.index_pool(name, new),
            Key::Reservation(name) => self.index_reservation(name, new.is_some()),
            Key::Node(name) => self.index_node(name, old, new),
            Key::Block(cidr) => {
                let (was, is) = (old.is_some(), new.is_some());
                if is && !was {
                    self.index_cut(*cidr);
                }
                let others = self.contesting(cidr);
                for other in &others {
                    self.index_allocations(Some(other), None);
                }
                let old = old.as_ref().and_then(as_block);
                self.index_block(*cidr, old, new.and_then(as_block));
                for other in &others {
                    self.index_allocations(None, Some(other));
                }
                if was && !is {
                    self.index_uncut(*cidr);
                }
            }
            Key::Affinity(node, cidr) => {
                let claimants = self.claimants.entry(*cidr).or_default();
                if new.is_some() {
                    claimants.insert(node.clone());
                }
                self.index_claim(node, cidr);
            }
            // They are compared, and not asked.
            Key::Underlay(_) | Key::Vtep(_) => {}
        }
    }

    fn index_pool(&mut self, name: &Name, new: Option<&Value>) {
        if let Some(old) = self.pools.remove(name)
            && self.pool_names.get(&old.pool.cidr) == Some(name)
        {
            self.pool_names.remove(&old.pool.cidr);
        }
        if let Some(Value::Pool(pool)) = new {
            self.pool_names.insert(pool.cidr, name.clone());
            self.pools.insert(name.clone(), Range::new(pool.clone()));
        }
    }

    fn index_reservation(&mut self, name: &Name, exists: bool) {
        if exists {
            self.reservations.insert(name.clone());
        } else {
            self.reservations.remove(name);
        }
        let mut reserved = Ranges::default();
        for cidr in self
            .reservations()
            .flat_map(|reservation| &reservation.cidrs)
        {
            reserved.insert(Span::of(cidr));
        }
        self.reserved = reserved;
        let all: Vec<_> = self.blocks.keys().copied().collect();
        for cidr in all {
            self.index_standing(cidr);
        }
    }

    fn index_node(&mut self, name: &Name, old: Option<Value>, new: Option<&Value>) {
        if let Some(Value::Node(old)) = old {
            for net in &old.underlay {
                forget_name(&mut self.underlays, &net.addr(), name);
            }
            forget_name(&mut self.macs, &old.vtep_mac, name);
        }
        self.nodes.remove(name);
        if let Some(Value::Node(Node {
            underlay, vtep_mac, ..
        })) = new
        {
            self.nodes.insert(name.clone());
            for net in underlay {
                self.underlays.insert(net.addr(), name.clone());
            }
            self.macs.insert(*vtep_mac, name.clone());
        }
    }

    fn index_cut(&mut self, cidr: IpNet) {
        let span = Span::of(&cidr);
        if self.cut.overlap(span).is_some() {
            let others = self.overlapping(&cidr);
            self.contested.insert(cidr);
            self.contested.extend(&others);
            others.iter().for_each(|other| self.index_standing(*other));
        }
        self.cuts.insert(cidr);
        self.cut.insert(span);
    }

    fn index_uncut(&mut self, cidr: IpNet) {
        self.cuts.remove(&cidr);
        self.cut.remove(Span::of(&cidr));
        if !self.contested.remove(&cidr) {
            return;
        }
        for other in self.overlapping(&cidr) {
            self.cut.insert(Span::of(&other));
            if self.overlapping(&other).is_empty() {
                self.contested.remove(&other);
                self.index_standing(other);
            }
        }
    }

    /// Blocks that may say of the same addresses who has them: what one says
    /// no longer, another may.
    fn contesting(&self, cidr: &IpNet) -> Vec<Arc<Block>> {
        if !self.contested.contains(cidr) {
            return Vec::new();
        }
        let others = self.overlapping(cidr).into_iter();
        let blocks = others.filter_map(|other| match self.value(&Key::Block(other))? {
            Value::Block(block) => Some(Arc::clone(block)),
            _ => None,
        });
        blocks.collect()
    }

    /// Other blocks within this one, and around it.
    fn overlapping(&self, cidr: &IpNet) -> Vec<IpNet> {
        let within = self.cuts.range(within(cidr)).copied();
        let around = std::iter::successors(cidr.supernet(), IpNet::supernet)
            .take(HOST_BITS_MAX.into())
            .filter(|net| self.cuts.contains(net));
        within.chain(around).filter(|net| net != cidr).collect()
    }

    fn index_block(&mut self, cidr: IpNet, old: Option<&Block>, new: Option<&Block>) {
        self.index_allocations(old, new);
        if let Some(block) = new {
            self.highest_sequence = self.highest_sequence.max(block.sequence);
        }
        let existence = old.is_some() != new.is_some();
        let former = old.and_then(|block| block.owner.clone());
        let owner = new.and_then(|block| block.owner.clone());
        self.index_standing(cidr);
        if existence || former != owner {
            let mut claimants = self.claimants.remove(&cidr).unwrap_or_default();
            claimants.extend(former);
            claimants.extend(owner);
            self.claimants.insert(cidr, claimants.clone());
            for node in claimants {
                self.index_claim(&node, &cidr);
            }
        }
    }

    fn index_standing(&mut self, cidr: IpNet) {
        let standing = |block: &Block| Standing {
            owner: block.owner.clone(),
            room: !self.contested.contains(&cidr) && block.has_room(&self.reserved),
            idle: !block.is_live(),
            first_released: block.first_released(),
        };
        let new = self.block(&cidr).map(standing);
        let old = match &new {
            Some(new) => self.blocks.insert(cidr, new.clone()),
            None => self.blocks.remove(&cidr),
        };
        if old == new {
            return;
        }
        let (old, new) = (old.unwrap_or_default(), new.unwrap_or_default());
        change(&mut self.room, cidr, old.room, new.room);
        change(&mut self.idle, cidr, old.idle, new.idle);
        change_time(
            &mut self.resting,
            cidr,
            old.first_released,
            new.first_released,
        );
        if old.owner != new.owner
            && let Some(owner) = &old.owner
        {
            self.index_share(owner, cidr, &old, &Standing::default());
        }
        if let Some(owner) = new.owner.clone() {
            let before = if old.owner == new.owner {
                old
            } else {
                Standing::default()
            };
            self.index_share(&owner, cidr, &before, &new);
        }
    }

    fn index_share(&mut self, owner: &Name, cidr: IpNet, old: &Standing, new: &Standing) {
        self.with_share(owner, |share| {
            change(&mut share.room, cidr, old.room, new.room);
            change(&mut share.idle, cidr, old.idle, new.idle);
            change_time(
                &mut share.resting,
                cidr,
                old.first_released,
                new.first_released,
            );
        });
    }

    fn index_claim(&mut self, node: &Name, cidr: &IpNet) {
        let owns = self
            .block(cidr)
            .is_some_and(|block| block.owner.as_ref() == Some(node));
        let affinity = self.affinity(node, cidr);
        let claims = owns || affinity.is_some();
        let settled = owns && affinity == Some(AffinityState::Confirmed);
        self.with_share(node, |share| {
            let before = share.claims.contains(cidr);
            set(&mut share.claims, *cidr, claims);
            if cidr.addr().is_ipv4() && before != claims {
                share.claims_v4 = share.claims_v4 + usize::from(claims) - usize::from(before);
            }
            set(&mut share.unsettled, *cidr, claims && !settled);
        });
        if !claims && let Entry::Occupied(mut claimants) = self.claimants.entry(*cidr) {
            claimants.get_mut().remove(node);
            if claimants.get().is_empty() {
                claimants.remove();
            }
        }
    }

    /// Only what differs costs.
    fn index_allocations(&mut self, old: Option<&Block>, new: Option<&Block>) {
        let none = Default::default();
        let before = old.map_or(&none, |block| &block.allocations);
        let after = new.map_or(&none, |block| &block.allocations);
        let (mut gone, mut come) = (before.iter().peekable(), after.iter().peekable());
        loop {
            let order = match (gone.peek(), come.peek()) {
                (None, None) => break,
                (Some(_), None) => std::cmp::Ordering::Less,
                (None, Some(_)) => std::cmp::Ordering::Greater,
                (Some((left, _)), Some((right, _))) => left.cmp(right),
            };
            let left = if order.is_le() { gone.next() } else { None };
            let right = if order.is_ge() { come.next() } else { None };
            if left == right {
                continue;
            }
            if let (Some(block), Some((ordinal, held))) = (old, left) {
                self.forget_allocation(block.address(*ordinal), held);
            }
            if let (Some(block), Some((ordinal, held))) = (new, right) {
                self.note_allocation(block.address(*ordinal), held);
            }
        }
    }

    fn note_allocation(&mut self, address: IpAddr, held: &Arc<Allocation>) {
        self.allocations += 1;
        self.newest = self.newest.max(held.mark);
        self.with_share(&held.node, |share| {
            share.addresses.insert(address);
        });
        if let Some(handle) = &held.handle {
            self.handles
                .entry(handle.clone())
                .or_default()
                .push(address);
        }
        if let Some(identity) = &held.identity {
            self.identities
                .entry(identity.clone())
                .or_default()
                .push(address);
        }
    }

    fn forget_allocation(&mut self, address: IpAddr, held: &Arc<Allocation>) {
        self.allocations -= 1;
        self.with_share(&held.node, |share| {
            share.addresses.remove(&address);
        });
        if let Some(handle) = &held.handle {
            forget_address(&mut self.handles, handle, address);
        }
        if let Some(identity) = &held.identity {
            forget_address(&mut self.identities, identity, address);
        }
    }

    /// Shares in which nothing is are not kept.
    fn with_share(&mut self, node: &Name, edit: impl FnOnce(&mut Share)) {
        if let Some(share) = self.shares.get_mut(node) {
            edit(share);
            if *share == Share::default() {
                self.shares.remove(node);
            }
            return;
        }
        let mut share = Share::default();
        edit(&mut share);
        if share != Share::default() {
            self.shares.insert(node.clone(), share);
        }
    }
}

fn as_block(value: &Value) -> Option<&Block> {
    match value {
        Value::Block(block) => Some(block),
        _ => None,
    }
}

fn set(set: &mut BTreeSet<IpNet>, cidr: IpNet, member: bool) {
    if member {
        set.insert(cidr);
    } else {
        set.remove(&cidr);
    }
}

fn change(members: &mut BTreeSet<IpNet>, cidr: IpNet, old: bool, new: bool) {
    if old != new {
        set(members, cidr, new);
    }
}

fn change_time(
    members: &mut BTreeSet<(u64, IpNet)>,
    cidr: IpNet,
    old: Option<u64>,
    new: Option<u64>,
) {
    if old == new {
        return;
    }
    if let Some(old) = old {
        members.remove(&(old, cidr));
    }
    if let Some(new) = new {
        members.insert((new, cidr));
    }
}

fn forget_address<K: Eq + Hash>(index: &mut HashMap<K, Vec<IpAddr>>, key: &K, address: IpAddr) {
    if let Some(addresses) = index.get_mut(key) {
        addresses.retain(|held| *held != address);
        if addresses.is_empty() {
            index.remove(key);
        }
    }
}

fn forget_name<K: Eq + Hash>(index: &mut HashMap<K, Name>, key: &K, name: &Name) {
    if index.get(key) == Some(name) {
        index.remove(key);
    }
}

//! One block: its ordinals, who has them, and what comes back.
//!
//! Invariant: each ordinal is either free, once, or allocated.

use std::{net::IpAddr, sync::Arc};

use ipnet::IpNet;
use weft_api::{
    ipam::{Family, Place, Time, Usage},
    names::Name,
};

use crate::{
    model::{Allocation, Block},
    range::{self, Ranges, Span},
};

/// What became of an ordinal that was given back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Given {
    /// Free, or resting.
    Back,
    Kept,
}

impl Allocation {
    /// An attachment holds it.
    pub fn is_held(&self) -> bool {
        self.handle.is_some()
    }

    /// Nobody holds it, and an identity has a right to it.
    pub fn is_kept(&self) -> bool {
        self.handle.is_none() && self.identity.is_some()
    }

    /// Nobody has a right to it, and it is not free yet.
    pub fn is_resting(&self) -> bool {
        self.handle.is_none() && self.identity.is_none()
    }

    /// Where its identity has it. Of rows that do not say, the handle does;
    /// where there is none any more, nobody knows.
    pub fn place(&self) -> Option<Place> {
        if self.place.is_some() {
            return self.place.clone();
        }
        let mut names = self.handle.as_ref()?.as_str().split('/');
        let network = Name::new(names.next()?).ok()?;
        let interface = Name::new(names.nth(1)?).ok()?;
        Some(Place { network, interface })
    }

    /// When it is free again.
    fn rests_until(&self, cooldown: Time) -> Time {
        self.released.unwrap_or(0).saturating_add(cooldown)
    }
}

impl Block {
    pub fn new(cidr: IpNet, owner: Option<Name>, now: Time, sequence: u64) -> Self {
        let size = Span::of(&cidr).size();
        Self {
            cidr,
            owner,
            claimed: now,
            sequence,
            allocations: Default::default(),
            free: (0..u32::try_from(size).unwrap_or(u32::MAX)).collect(),
        }
    }

    pub fn span(&self) -> Span {
        Span::of(&self.cidr)
    }

    pub fn address(&self, ordinal: u32) -> IpAddr {
        let span = self.span();
        range::address(span.family, span.first + u128::from(ordinal))
    }

    /// None if the address lies elsewhere.
    pub fn ordinal(&self, address: IpAddr) -> Option<u32> {
        let span = self.span();
        if Family::of(address) != span.family {
            return None;
        }
        let distance = range::number(address).checked_sub(span.first)?;
        u32::try_from(distance)
            .ok()
            .filter(|_| distance <= span.last - span.first)
    }

    /// Something in it is held or kept.
    pub fn is_live(&self) -> bool {
        self.allocations.values().any(|held| !held.is_resting())
    }

    pub fn has_room(&self, reserved: &Ranges) -> bool {
        self.next_free(reserved).is_some()
    }

    /// Allocates the next free ordinal, or this one; `allocation` gets its
    /// sequence number here. None if it is not free. Reserved ordinals are
    /// passed over where they stand.
    pub fn take(
        &mut self,
        ordinal: Option<u32>,
        mut allocation: Allocation,
        reserved: &Ranges,
    ) -> Option<u32> {
        let place = match ordinal {
            Some(ordinal) => self.free.iter().position(|free| *free == ordinal),
            None => self.next_free(reserved),
        }?;
        let ordinal = self.free.remove(place)?;
        allocation.sequence = self.next_sequence();
        self.allocations.insert(ordinal, Arc::new(allocation));
        Some(ordinal)
    }

    /// Takes an ordinal from who holds it. An identity keeps its address,
    /// unless it is to be `forgotten`; others' rest for `cooldown`
    /// milliseconds. None if there is no allocation.
    pub fn give(
        &mut self,
        ordinal: u32,
        forgotten: bool,
        now: Time,
        cooldown: Time,
    ) -> Option<Given> {
        let held = self.allocations.get(&ordinal)?.clone();
        let sequence = self.next_sequence();
        let kept = held.identity.is_some() && !forgotten;
        if !kept && cooldown == 0 {
            self.allocations.remove(&ordinal);
            self.free.push_back(ordinal);
            return Some(Given::Back);
        }
        let left = Allocation {
            handle: None,
            identity: held.identity.clone().filter(|_| kept),
            place: held.place().filter(|_| kept),
            sequence,
            released: Some(now),
            ..Allocation::clone(&held)
        };
        self.allocations.insert(ordinal, Arc::new(left));
        Some(if kept { Given::Kept } else { Given::Back })
    }

    /// Gives a held or kept ordinal to somebody else without it being free in
    /// between.
    pub fn hand_over(&mut self, ordinal: u32, mut allocation: Allocation) {
        allocation.sequence = self.next_sequence();
        self.allocations.insert(ordinal, Arc::new(allocation));
    }

    /// Frees what has rested for `cooldown` milliseconds, first released
    /// first.
    pub fn sweep(&mut self, now: Time, cooldown: Time) {
        let mut rested: Vec<_> = (self.allocations.iter())
            .filter(|(_, held)| held.is_resting() && held.rests_until(cooldown) <= now)
            .map(|(ordinal, held)| (held.released, *ordinal))
            .collect();
        if rested.is_empty() {
            return;
        }
        rested.sort_unstable();
        self.next_sequence();
        for (_, ordinal) in rested {
            self.allocations.remove(&ordinal);
            self.free.push_back(ordinal);
        }
    }

    /// When the first of the resting was released.
    pub fn first_released(&self) -> Option<Time> {
        (self.allocations.values())
            .filter(|held| held.is_resting())
            .map(|held| held.released.unwrap_or(0))
            .min()
    }

    /// Empty, or will be when all that rests has rested.
    pub fn is_empty_at(&self, now: Time, cooldown: Time) -> bool {
        (self.allocations.values())
            .all(|held| held.is_resting() && held.rests_until(cooldown) <= now)
    }

    pub fn usage(&self, reserved: &Ranges) -> Usage {
        let mut usage = Usage {
            total: self.span().size(),
            ..Usage::default()
        };
        for held in self.allocations.values() {
            let count = if held.is_held() {
                &mut usage.used
            } else if held.is_kept() {
                &mut usage.kept
            } else {
                &mut usage.resting
            };
            *count += 1;
        }
        usage.reserved = self.free.iter().fold(0, |sum, ordinal| {
            sum + u64::from(self.is_reserved(*ordinal, reserved))
        });
        usage.free = self.free.len() as u64 - usage.reserved;
        usage
    }

    fn next_free(&self, reserved: &Ranges) -> Option<usize> {
        if reserved.overlap(self.span()).is_none() {
            return (!self.free.is_empty()).then_some(0);
        }
        (self.free.iter()).position(|ordinal| !self.is_reserved(*ordinal, reserved))
    }

    fn is_reserved(&self, ordinal: u32, reserved: &Ranges) -> bool {
        let span = self.span();
        reserved.contains(span.family, span.first + u128::from(ordinal))
    }

    fn next_sequence(&mut self) -> u64 {
        self.sequence = self.sequence.saturating_add(1);
        self.sequence
    }
}

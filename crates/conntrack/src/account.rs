//! How many connections a pod has, and how many it may have.

use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering::Relaxed},
};

use crate::Direction;

/// A pod's connections: those that it opened, and apart from them those that
/// others opened to it from elsewhere. So strangers cannot keep it from
/// opening its own, and nobody fills the account of a neighbour.
#[derive(Debug)]
pub struct Account {
    limit: Limit,
    opened: AtomicU32,
    accepted: AtomicU32,
}

#[derive(Debug, PartialEq, Eq)]
enum Limit {
    /// A share of the table.
    Share,
    Fixed(u32),
    /// Nothing is counted.
    None,
}

/// The accounts of a packet's ends, as far as they are on this node: a pod's
/// own, or that of the node ([`crate::Tracker::node`]).
#[derive(Debug, Clone, Copy, Default)]
pub struct Owners<'a> {
    pub source: Option<&'a Arc<Account>>,
    pub destination: Option<&'a Arc<Account>>,
}

/// Whose the ends of a connection are, and its place in the account of one of
/// them, given back when dropped.
#[derive(Debug)]
pub(crate) struct Parties {
    opener: Option<Arc<Account>>,
    other: Option<Arc<Account>>,
    counted: bool,
}

impl Account {
    /// With so many connections of either kind at most.
    pub fn new(limit: u32) -> Self {
        Self::limited(Limit::Fixed(limit))
    }

    pub(crate) fn uncounted() -> Self {
        Self::limited(Limit::None)
    }

    fn limited(limit: Limit) -> Self {
        Self {
            limit,
            opened: AtomicU32::new(0),
            accepted: AtomicU32::new(0),
        }
    }

    /// How many connections are tracked that it opened.
    pub fn opened(&self) -> u32 {
        self.opened.load(Relaxed)
    }

    /// How many are tracked that others opened to it.
    pub fn accepted(&self) -> u32 {
        self.accepted.load(Relaxed)
    }
}

/// With a share of the table for either kind ([`crate::SHARES`]).
impl Default for Account {
    fn default() -> Self {
        Self::limited(Limit::Share)
    }
}

impl Owners<'_> {
    /// Whether a connection that the packet opened would count for nobody.
    pub(crate) fn open_uncounted(self) -> bool {
        self.source
            .is_some_and(|source| source.limit == Limit::None)
    }
}

impl Parties {
    /// Of a connection that a packet between `owners` opens; it is not counted
    /// yet.
    pub fn of(owners: Owners<'_>) -> Self {
        Self {
            opener: owners.source.cloned(),
            other: owners.destination.cloned(),
            counted: false,
        }
    }

    /// Whether these are the ends of a packet that goes in `direction`.
    pub fn are(&self, owners: Owners<'_>, direction: Direction) -> bool {
        let (opener, other) = match direction {
            Direction::Original => (owners.source, owners.destination),
            Direction::Reply => (owners.destination, owners.source),
        };
        is_same(self.opener.as_ref(), opener) && is_same(self.other.as_ref(), other)
    }

    /// Whether a pod here opened it, and whether it was opened to one by
    /// anybody but the node.
    pub fn pods(&self, node: &Arc<Account>) -> (bool, bool) {
        let is_node = |party: &Option<Arc<Account>>| is_same(party.as_ref(), Some(node));
        let leaves = self.opener.is_some() && !is_node(&self.opener);
        let comes = self.other.is_some() && !is_node(&self.other) && !is_node(&self.opener);
        (leaves, comes)
    }

    /// Takes a place, if the connection is to be counted; false if the account
    /// is full. `share` is the limit of those that have none of their own.
    pub fn count(&mut self, share: u32) -> bool {
        let Some((account, count)) = self.payer() else {
            return true;
        };
        let limit = match account.limit {
            Limit::Share => share,
            Limit::Fixed(limit) => limit,
            Limit::None => u32::MAX,
        };
        let more = |open| (open < limit).then_some(open + 1);
        self.counted = count.fetch_update(Relaxed, Relaxed, more).is_ok();
        self.counted
    }

    /// Whether the place of one would do for the other.
    pub fn count_like(&self, other: &Self) -> bool {
        match (self.payer(), other.payer()) {
            (Some((_, one)), Some((_, other))) => std::ptr::eq(one, other),
            _ => false,
        }
    }

    /// Takes the place of a connection that counts like this one and makes
    /// room for it.
    pub fn succeed(&mut self, other: &mut Self) {
        self.counted = std::mem::take(&mut other.counted);
    }

    /// Where the connection counts.
    fn payer(&self) -> Option<(&Account, &AtomicU32)> {
        let (account, count) = match (&self.opener, &self.other) {
            (Some(opener), _) => (opener, &opener.opened),
            (None, Some(other)) => (other, &other.accepted),
            (None, None) => return None,
        };
        (account.limit != Limit::None).then_some((account, count))
    }
}

impl Drop for Parties {
    fn drop(&mut self) {
        if let Some((_, count)) = self.payer().filter(|_| self.counted) {
            count.fetch_sub(1, Relaxed);
        }
    }
}

fn is_same(one: Option<&Arc<Account>>, other: Option<&Arc<Account>>) -> bool {
    match (one, other) {
        (Some(one), Some(other)) => Arc::ptr_eq(one, other),
        (one, other) => one.is_none() && other.is_none(),
    }
}

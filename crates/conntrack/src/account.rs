//! How many connections a pod has, and how many it may have.

use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering::Relaxed},
};

use crate::Direction;

/// A pod's connections: those that it opened, and those that others opened to
/// it from other nodes. So nobody fills the account of a neighbour.
#[derive(Debug)]
pub struct Account {
    limit: u32,
    open: AtomicU32,
}

/// The accounts of a packet's ends, as far as they are on this node: a pod's
/// own, or that of the node ([`crate::Tracker::node`]).
#[derive(Debug, Clone, Copy, Default)]
pub struct Owners<'a> {
    pub source: Option<&'a Arc<Account>>,
    pub destination: Option<&'a Arc<Account>>,
}

/// A connection's place in an account, given back when dropped.
#[derive(Debug)]
pub(crate) struct Place(Arc<Account>);

impl Account {
    pub fn new(limit: u32) -> Self {
        Self {
            limit,
            open: AtomicU32::new(0),
        }
    }

    /// How many connections are tracked for it.
    pub fn open(&self) -> u32 {
        self.open.load(Relaxed)
    }

    pub(crate) fn is_full(&self) -> bool {
        self.open() >= self.limit
    }
}

/// Without a limit.
impl Default for Account {
    fn default() -> Self {
        Self::new(u32::MAX)
    }
}

impl<'a> Owners<'a> {
    /// The account in which the connection counts where the packet goes this
    /// way. What the node opens counts for nobody.
    pub(crate) fn charged(
        self,
        direction: Direction,
        node: &Arc<Account>,
    ) -> Option<&'a Arc<Account>> {
        let charged = match direction {
            Direction::Original => self.source.or(self.destination),
            Direction::Reply => self.destination.or(self.source),
        };
        charged.filter(|account| !Arc::ptr_eq(account, node))
    }

    pub(crate) fn opens_for(self, node: &Arc<Account>) -> bool {
        self.source.is_some_and(|source| Arc::ptr_eq(source, node))
    }
}

impl Place {
    /// None if the account is full.
    pub fn take(account: &Arc<Account>) -> Option<Self> {
        let more = |open| (open < account.limit).then_some(open + 1);
        let taken = account.open.fetch_update(Relaxed, Relaxed, more);
        taken.ok().map(|_| Self(Arc::clone(account)))
    }

    pub fn is_in(&self, account: &Arc<Account>) -> bool {
        Arc::ptr_eq(&self.0, account)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Relaxed);
    }
}

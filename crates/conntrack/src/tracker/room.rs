//! Room for a new connection: in the table, and in its pod's account. Where
//! there is none, one that nobody answered or that is over gives up its own.
//!
//! A search is bounded: it looks at some leases of the new connection's shard,
//! and then, without that lock, at some of the others, going on where the
//! search before it ended.

use std::sync::{PoisonError, atomic::Ordering::Relaxed};

use super::{Passed, Refused, Tracker, Visit};
use crate::{account::Parties, connection::Connection, shard::Shard};

/// Leases that are looked at, at most, in the shard: any, or for one of the
/// same account.
const SCAN_ANY: usize = 128;
const SCAN_OWN: usize = 1024;

/// In all other shards together.
const SCAN_OTHERS: usize = 2048;

impl Tracker {
    /// Puts the connection that the packet opens into its shard, where one
    /// with its key may stand that is no more. Nothing gives up its place
    /// before it is certain that the new one has one.
    pub(super) fn open<D>(
        &self,
        shard: &mut Shard,
        visit: &Visit<'_>,
        known: Option<usize>,
    ) -> Result<Passed, Refused<D>> {
        let (owners, second) = (visit.owners, visit.second);
        let opened = Connection::new(visit.seen, owners, visit.flipped, visit.edition);
        let Some(mut connection) = opened else {
            return Ok(Passed::default());
        };
        let mut victim = None;
        if !connection.parties.count(self.share()) {
            let may = |other: &Connection| other.parties.count_like(&connection.parties);
            let own = known.filter(|&place| may(shard.at(place)));
            let own = own.or_else(|| shard.dispensable(second, SCAN_OWN, may));
            victim = Some(own.ok_or(Refused::AccountFull)?);
        }
        if known.or(victim).is_none() && !self.has_room() {
            let any = shard.dispensable(second, SCAN_ANY, |_| true);
            victim = Some(any.ok_or(Refused::Full)?);
        } else if let Some(own) = victim {
            connection.parties.succeed(&mut shard.at_mut(own).parties);
        }
        let settled = connection.is_settled();
        let place = match known {
            Some(place) => {
                *shard.at_mut(place) = connection;
                place
            }
            None => shard.insert(visit.key, connection),
        };
        shard.renew(place, &self.config.timeouts, second);
        if let Some(victim) = victim.filter(|&victim| victim != place) {
            shard.remove(victim);
            if known.is_some() {
                self.count.fetch_sub(1, Relaxed);
            }
        }
        Ok(Passed {
            settled,
            opened: true,
        })
    }

    /// Gives up a connection of another shard: any, or one that counts as that
    /// which the packet opens would.
    pub(super) fn make_room(&self, visit: &Visit<'_>, any: bool) {
        let parties = Parties::of(visit.owners);
        let may = |other: &Connection| any || other.parties.count_like(&parties);
        let mut left = SCAN_OTHERS;
        for _ in 0..self.shards.len() {
            let place = self.search.fetch_add(1, Relaxed) % self.shards.len();
            let mut shard = self.shards[place]
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            let most = left.min(shard.len());
            if let Some(victim) = shard.dispensable(visit.second, most, may) {
                shard.remove(victim);
                self.count.fetch_sub(1, Relaxed);
                return;
            }
            left -= most;
            if left == 0 {
                return;
            }
        }
    }

    /// Takes a place in the table, if there is one.
    fn has_room(&self) -> bool {
        let capacity = self.config.capacity;
        let more = |count| (count < capacity).then_some(count + 1);
        self.count.fetch_update(Relaxed, Relaxed, more).is_ok()
    }

    fn share(&self) -> u32 {
        let share = self.config.capacity.div_ceil(super::SHARES);
        u32::try_from(share).unwrap_or(u32::MAX)
    }
}

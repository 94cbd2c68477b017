//! The sweep of blocks with rested addresses that no request touches: one
//! commit a second at most, between two batches, however busy the server is.
//!
//! Servers on one store see the same blocks. Each waits another while before
//! its turn, so that most often one sweeps and the others hear of it; where
//! two do it at once, the store lets one, and the other waits for its next
//! turn.

use std::{
    collections::hash_map::RandomState,
    hash::{BuildHasher, Hasher},
    time::{Duration, Instant},
};

use weft_api::ipam::{Reply, Time};

use super::{Writer, batch::Batch, commit::Ended};
use crate::{plan::Plan, sweep};

/// Between two sweeps, in milliseconds.
const SWEEP_EVERY: Time = 1000;
/// After one that the store refused.
const RETRY_AFTER: Time = 30_000;
/// Blocks in one sweep.
const SWEPT_MAX: usize = 32;
/// How long servers on one store wait at most, in milliseconds: longer than
/// news take from one of some thousand servers to all.
const SPREAD: Time = 10_000;
/// Where nothing rests.
const IDLE: Duration = Duration::from_secs(60);
/// After a load that failed, where nobody asks for anything.
const RELOAD_EVERY: Duration = Duration::from_secs(2);

/// When it is this server's turn.
#[derive(Debug)]
pub(super) struct Turn {
    swept: Option<Time>,
    /// From then to the next.
    pause: Time,
    /// How long it lets others do what is due.
    patience: Time,
}

impl Turn {
    pub fn new(shared: bool) -> Self {
        Self {
            swept: None,
            pause: 0,
            patience: patience(shared, SPREAD),
        }
    }

    fn after(swept: Time, pause: Time, shared: bool) -> Self {
        Self {
            swept: Some(swept),
            pause,
            ..Self::new(shared)
        }
    }

    /// When the next sweep is due; a clock that was set back forgets the last.
    fn due(&self, rested: Time, now: Time) -> Time {
        let due = rested.saturating_add(self.patience);
        let last = self.swept.filter(|swept| *swept <= now);
        due.max(last.map_or(0, |last| last.saturating_add(self.pause)))
    }
}

/// How long one of the servers on a store lets the others go first, in
/// milliseconds: another time for each, below `most`.
pub(super) fn patience(shared: bool, most: Time) -> Time {
    // Hashers have random keys.
    let random = || RandomState::new().build_hasher().finish();
    if shared { random() % most.max(1) } else { 0 }
}

impl Writer {
    /// How long there will be nothing to sweep, no mark to raise and no load
    /// to try again.
    pub(super) fn until_due(&self) -> Duration {
        if self.stale {
            return RELOAD_EVERY;
        }
        let now = (self.clock)();
        let left = self.book.next_rested().map_or(IDLE, |rested| {
            let left = self.turn.due(rested, now).saturating_sub(now);
            Duration::from_millis(left.max(1)).min(IDLE)
        });
        left.min(self.pace.left(&self.book, Instant::now()))
    }

    /// Frees what has rested, if it is this server's turn.
    pub(super) fn sweep(&mut self) {
        let now = (self.clock)();
        let next = self.book.next_rested();
        if self.stale || next.is_none_or(|rested| self.turn.due(rested, now) > now) {
            return;
        }
        let mut pause = SWEEP_EVERY;
        for most in [SWEPT_MAX, 1] {
            let mut plan = Plan::answer(Reply::Done);
            plan.changes = sweep::rested(&self.book, now, most);
            let mut batch = Batch::new(self.known + 1);
            batch.take(&mut self.book, &mut plan);
            // What is not swept now is swept the next time, or by who needs it.
            match self.commit(batch) {
                Ended::TooLarge => {}
                Ended::Durable | Ended::Again => break,
                Ended::Refused(_) | Ended::Untold(_) => {
                    pause = RETRY_AFTER;
                    break;
                }
            }
        }
        self.turn = Turn::after(now, pause, self.store.is_shared());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_turn_comes_after_the_last_and_after_what_rests() {
        assert_eq!(Turn::new(false).due(500, 700), 500);
        let turn = Turn::after(700, SWEEP_EVERY, false);
        assert_eq!(turn.due(500, 700), 700 + SWEEP_EVERY);
        assert_eq!(turn.due(9000, 700), 9000);
        // The clock was set back.
        assert_eq!(turn.due(500, 600), 500);
        assert_eq!(turn.due(Time::MAX, Time::MAX), Time::MAX);
    }

    #[test]
    fn servers_on_one_store_wait_differently() {
        let patience = || {
            let turn = Turn::new(true);
            assert!(turn.patience < SPREAD);
            turn.patience
        };
        let all: std::collections::BTreeSet<_> = (0..100).map(|_| patience()).collect();
        assert!(all.len() > 50, "{all:?}");
    }
}

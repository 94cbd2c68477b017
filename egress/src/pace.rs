//! How much of the loop's time goes into opening flows of datagrams: a pod that
//! opens them without end must not keep others from being served. What is
//! refused costs next to nothing.

use std::time::{Duration, Instant};

/// What may be spent at once after a rest.
const BURST: Duration = Duration::from_millis(200);

/// Of one purse, a pod's or all pods'.
#[derive(Debug, Clone, Copy, Default)]
pub struct Pace {
    /// Until when the time that was spent is earned.
    earned: Option<Instant>,
}

impl Pace {
    pub fn may_spend(&self, now: Instant) -> bool {
        self.earned.is_none_or(|earned| earned <= now + BURST)
    }

    /// One part in `parts` of all time may be spent.
    pub fn spend(&mut self, time: Duration, parts: u32, now: Instant) {
        let from = self.earned.map_or(now, |earned| earned.max(now));
        self.earned = Some(from + time * parts);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_than_the_share_is_spent() {
        const PIECE: Duration = Duration::from_micros(50);
        let start = Instant::now();
        let mut pace = Pace::default();
        let mut spent = Duration::ZERO;
        for step in 0..100_000 {
            // As one that is always ready to spend.
            let now = start + step * PIECE;
            if pace.may_spend(now) {
                pace.spend(PIECE, 4, now);
                spent += PIECE;
            }
        }
        let share = (100_000 * PIECE + BURST) / 4;
        assert!(
            spent >= share - PIECE && spent <= share + PIECE,
            "{spent:?}"
        );
        assert!(pace.may_spend(start + 200_000 * PIECE), "after a rest");
    }
}

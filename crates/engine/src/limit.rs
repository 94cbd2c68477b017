//! A token bucket; the time is handed in.

use std::time::{Duration, Instant};

#[derive(Debug)]
pub struct Bucket {
    burst: u32,
    /// Time in which one token grows.
    interval: Duration,
    /// When the bucket would have been empty: `burst` intervals before now
    /// when it is full.
    empty_at: Option<Instant>,
}

impl Bucket {
    pub fn new(per_second: u32, burst: u32) -> Self {
        Self {
            burst,
            interval: Duration::from_secs(1) / per_second.max(1),
            empty_at: None,
        }
    }

    /// Takes a token if there is one.
    pub fn take(&mut self, now: Instant) -> bool {
        let full = now.checked_sub(self.interval * self.burst).unwrap_or(now);
        let empty_at = self.empty_at.map_or(full, |at| at.max(full));
        let taken = empty_at + self.interval;
        let allowed = taken <= now;
        self.empty_at = Some(if allowed { taken } else { empty_at });
        allowed
    }
}

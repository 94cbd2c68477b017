//! The search for the largest packet that passes (RFC 8899 section 5).
//!
//! ```text
//! searching ─bracket closed─► complete ─lost, or time to raise─► searching
//!     └──not even the least passes──► error ─the least passes──► searching
//! ```
//!
//! The largest packet that the underlay promises is tried first, for on most
//! paths it passes; until something was found out it is what counts. What the
//! RFC does first, to go down to its base, would tell pods of a small MTU for
//! nothing, and they remember it for ten minutes.

use std::time::{Duration, Instant};

/// Passes nearly everywhere: `BASE_PLPMTU` (RFC 8899 section 5.1.2), here of
/// the outer packet, and so what IPv6 asks of every link.
pub const BASE: usize = 1280;

/// A size is given up after so many losses (`MAX_PROBES`, section 5.1.2).
const LOSSES_MAX: u32 = 3;

/// Between what the path lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// Carried by every link of the outer family.
    pub floor: usize,
    /// What the underlay says.
    pub ceiling: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    Searching,
    Complete,
    Error,
}

#[derive(Debug)]
pub(super) struct Search {
    bounds: Bounds,
    phase: Phase,
    /// What was found last; nothing yet, and the ceiling counts.
    found: Option<usize>,
    /// The largest that passed in this search.
    low: Option<usize>,
    /// The least that did not.
    high: usize,
    asking: usize,
    losses: u32,
    raise_at: Option<Instant>,
    is_black_hole: bool,
}

impl Search {
    pub fn new(bounds: Bounds) -> Self {
        let ceiling = bounds.ceiling;
        Self {
            bounds,
            phase: Phase::Searching,
            found: None,
            low: None,
            high: ceiling + 1,
            asking: ceiling,
            losses: 0,
            raise_at: None,
            is_black_hole: false,
        }
    }

    pub fn phase(&self) -> Phase {
        self.phase
    }

    pub fn mtu(&self) -> usize {
        let ceiling = self.bounds.ceiling;
        self.found.map_or(ceiling, |found| found.min(ceiling))
    }

    pub fn is_black_hole(&self) -> bool {
        self.is_black_hole
    }

    /// Whether the next question should not wait.
    pub fn is_urgent(&self) -> bool {
        self.phase == Phase::Searching || self.losses > 0
    }

    /// The size to ask about. What was found is confirmed again and again,
    /// and after `raise` more is tried.
    pub fn ask(&mut self, now: Instant, raise: Duration) -> usize {
        if self.phase != Phase::Searching && self.is_black_hole {
            let raise_at = *self.raise_at.get_or_insert(now + raise);
            if raise_at <= now {
                let low = self.found.filter(|_| self.phase == Phase::Complete);
                self.start(low, self.bounds.ceiling);
            }
        }
        self.asking
    }

    pub fn passed(&mut self, size: usize) {
        if size == self.asking {
            self.losses = 0;
        }
        match self.phase {
            Phase::Complete => {}
            Phase::Error => self.start(Some(size), self.bounds.ceiling),
            // An answer may come after its question was given up.
            Phase::Searching => {
                self.low = self.low.max(Some(size));
                self.high = self.high.max(size + 1);
                self.narrow();
            }
        }
    }

    pub fn lost(&mut self, size: usize) {
        if size != self.asking || self.phase == Phase::Error {
            return;
        }
        self.losses += 1;
        if self.losses < LOSSES_MAX {
            return;
        }
        match self.phase {
            // Bad luck loses three in a row, too: all is asked anew.
            Phase::Complete => self.start(None, size),
            _ => {
                self.high = self.high.min(size);
                self.narrow();
            }
        }
    }

    /// Whether that is news.
    pub fn set_ceiling(&mut self, ceiling: usize) -> bool {
        if ceiling == self.bounds.ceiling {
            return false;
        }
        self.bounds.ceiling = ceiling;
        self.is_black_hole = false;
        self.found = self.found.map(|found| found.min(ceiling));
        self.start(None, ceiling);
        true
    }

    /// Searches from `low`, which is known to pass, with `asking` first.
    fn start(&mut self, low: Option<usize>, asking: usize) {
        self.phase = Phase::Searching;
        (self.low, self.high, self.asking) = (low, asking + 1, asking);
        (self.losses, self.raise_at) = (0, None);
    }

    /// Goes on to the next size, or ends.
    fn narrow(&mut self) {
        let least = |size: usize| size.min(self.bounds.ceiling);
        let (base, floor) = (least(BASE), least(self.bounds.floor));
        self.losses = 0;
        match self.low {
            Some(low) if low + 1 >= self.high => self.end(Phase::Complete, low),
            Some(low) => self.asking = low.midpoint(self.high),
            None if base < self.high => self.asking = base,
            None if floor < self.high => self.asking = floor,
            None => self.end(Phase::Error, floor),
        }
    }

    fn end(&mut self, phase: Phase, found: usize) {
        self.phase = phase;
        self.found = Some(found);
        self.asking = found;
        self.is_black_hole = phase == Phase::Error || found < self.bounds.ceiling;
        self.raise_at = None;
    }
}

//! What policies denied of late: a ring that holds the latest flows and counts
//! what it forgets. Who carries packets never waits for it.

use std::{
    collections::VecDeque,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Instant,
};

use weft_policy::{Decision, Flow, object::Direction};

const FLOWS_MAX: usize = 256;

#[derive(Debug, Default)]
pub struct Denied {
    /// Latest last, each once.
    flows: Mutex<VecDeque<Denial>>,
    forgotten: AtomicU64,
}

/// A flow, and who denied it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Denial {
    pub flow: Flow,
    pub direction: Direction,
    pub decision: Decision,
    pub edition: u32,
    pub packets: u64,
    /// When the last of them came.
    pub at: Instant,
}

impl Denied {
    /// Latest first.
    pub fn flows(&self) -> Vec<Denial> {
        let flows = self.flows.lock().unwrap_or_else(PoisonError::into_inner);
        flows.iter().rev().cloned().collect()
    }

    /// Packets whose denial is not among the flows any more, or never was.
    pub fn forgotten(&self) -> u64 {
        self.forgotten.load(Relaxed)
    }

    /// Adds to the flow if it is known; counts what it cannot note at once.
    pub fn note(&self, mut denial: Denial) {
        let Ok(mut flows) = self.flows.try_lock() else {
            self.forgotten.fetch_add(denial.packets, Relaxed);
            return;
        };
        let same = |other: &Denial| {
            other.flow == denial.flow
                && other.direction == denial.direction
                && other.edition == denial.edition
        };
        // What is denied often is near the end.
        let known = flows.iter().rposition(same);
        if let Some(known) = known.and_then(|place| flows.remove(place)) {
            denial.packets += known.packets;
        } else if flows.len() == FLOWS_MAX
            && let Some(oldest) = flows.pop_front()
        {
            self.forgotten.fetch_add(oldest.packets, Relaxed);
        }
        flows.push_back(denial);
    }
}

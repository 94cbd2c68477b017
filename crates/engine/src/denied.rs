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

/// Entries among which a flow is looked for that was denied before.
const RECENT: usize = 16;

#[derive(Debug, Default)]
pub struct Denied {
    /// Latest last.
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

    pub(crate) fn note(&self, denial: Denial) {
        let Ok(mut flows) = self.flows.try_lock() else {
            self.forgotten.fetch_add(denial.packets, Relaxed);
            return;
        };
        let same = |other: &&mut Denial| {
            other.flow == denial.flow
                && other.direction == denial.direction
                && other.edition == denial.edition
        };
        if let Some(known) = flows.iter_mut().rev().take(RECENT).find(same) {
            known.packets += denial.packets;
            known.at = denial.at;
            return;
        }
        if flows.len() == FLOWS_MAX
            && let Some(oldest) = flows.pop_front()
        {
            self.forgotten.fetch_add(oldest.packets, Relaxed);
        }
        flows.push_back(denial);
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use weft_policy::{Reason, Transport};

    use super::*;

    fn denial(port: u16) -> Denial {
        let at = |last| IpAddr::from([10, 1, 0, last]);
        Denial {
            flow: Flow {
                source: at(1),
                destination: at(2),
                transport: Transport::Tcp(port),
            },
            direction: Direction::Ingress,
            decision: Decision::deny(Reason::Unruled),
            edition: 1,
            packets: 1,
            at: Instant::now(),
        }
    }

    #[test]
    fn the_latest_are_kept_and_no_packet_is_uncounted() {
        let denied = Denied::default();
        for port in 0..300 {
            denied.note(denial(port));
            denied.note(denial(port));
        }
        let flows = denied.flows();
        assert_eq!(flows.len(), FLOWS_MAX);
        assert_eq!(flows[0].flow, denial(299).flow);
        assert_eq!(flows.iter().map(|one| one.packets).sum::<u64>(), 512);
        assert_eq!(denied.forgotten(), 88);
    }

    #[test]
    fn who_would_have_to_wait_counts_and_goes_on() {
        let denied = Denied::default();
        let held = denied.flows.lock().expect("nobody panicked");
        denied.note(denial(1));
        drop(held);
        assert_eq!((denied.flows().len(), denied.forgotten()), (0, 1));
    }
}

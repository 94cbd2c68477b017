//! Which worker reads which queue, and so through which it writes.
//!
//! The kernel sends a flow to the queue of its tap through which it last came
//! (drivers/net/tun.c, `tun_flow_update`). A worker that writes to the queue
//! that it reads therefore keeps both ways of a flow to itself. Under any
//! other rule flows wander from queue to queue, and packets in the one
//! overtake those in the other.

/// One worker's share of the queues.
#[derive(Debug, Clone, Copy)]
pub struct Steering {
    /// Which of the workers it is.
    pub index: usize,
    pub workers: usize,
}

impl Steering {
    /// Whether the worker reads this queue of the port at `place`.
    pub fn reads(self, place: usize, queue: usize) -> bool {
        (place + queue) % self.workers == self.index
    }

    /// The queue that it writes to, of a port with `queues`: one that it
    /// reads, if there is one.
    pub fn writes(self, place: usize, queues: usize) -> usize {
        let own = (self.index + self.workers - place % self.workers) % self.workers;
        own % queues.max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_queue_has_one_reader_who_writes_to_it() {
        for workers in 1..=5 {
            for (place, queues) in (0..7).flat_map(|place| (1..=8).map(move |q| (place, q))) {
                let all = (0..workers).map(|index| Steering { index, workers });
                for queue in 0..queues {
                    let readers = all.clone().filter(|one| one.reads(place, queue));
                    assert_eq!(readers.count(), 1);
                }
                for one in all {
                    let queue = one.writes(place, queues);
                    assert!(queue < queues);
                    assert!(queues < workers || one.reads(place, queue));
                }
            }
        }
    }
}

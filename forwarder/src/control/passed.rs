//! Which request the fds belong to that came beside the bytes.
//!
//! A read ends where the message ends that fds came with, but it may begin
//! in an earlier one. So of the lines that begin within a read, the fds are
//! the last one's: that holds for whoever sends each `attach` as a message
//! of its own.

use std::{collections::VecDeque, os::fd::OwnedFd};

use weft_api::forwarder::{Code, Error, QUEUES_MAX};

use crate::{publish::refusal, sys::passing::Received};

/// Most reads with fds that may await the end of their line. More come only
/// from somebody who cuts one line into many messages with fds.
const WAITING_MAX: usize = 64;

#[derive(Debug, Default)]
pub struct Passed {
    waiting: VecDeque<Batch>,
}

/// What came with the bytes `from..to` of the stream.
#[derive(Debug)]
struct Batch {
    from: u64,
    to: u64,
    fds: Vec<OwnedFd>,
    fault: Option<&'static str>,
}

impl Passed {
    /// Takes in what a read brought whose first byte is the stream's `from`th.
    pub fn push(&mut self, from: u64, received: Received) {
        let Received {
            bytes,
            mut fds,
            cut,
        } = received;
        if fds.is_empty() && !cut {
            return;
        }
        let mut fault = cut.then_some("the kernel passed on only some of the fds");
        let held: usize = self.waiting.iter().map(|batch| batch.fds.len()).sum();
        if held + fds.len() > QUEUES_MAX {
            fault = Some("more fds came than a port has queues");
        }
        if fault.is_some() {
            fds.clear();
        }
        let to = from + bytes as u64;
        if self.waiting.len() == WAITING_MAX
            && let Some(last) = self.waiting.back_mut()
        {
            *last = Batch {
                from: last.from,
                to,
                fds: Vec::new(),
                fault: Some("the fds came in pieces"),
            };
            return;
        }
        self.waiting.push_back(Batch {
            from,
            to,
            fds,
            fault,
        });
    }

    /// The fds of the line at `start..end` of the stream. Those that can
    /// belong to no line are closed, and are this line's fault.
    pub fn take(&mut self, start: u64, end: u64) -> Result<Vec<OwnedFd>, Error> {
        let mut own = Vec::new();
        let mut fault = None;
        while let Some(batch) = self.waiting.pop_front_if(|batch| batch.to <= end) {
            if batch.to <= start {
                // Came with a line that has had its answer already.
                continue;
            }
            fault = fault.or(batch.fault);
            if batch.from > start {
                fault = fault.or(Some("fds came in the middle of the line"));
            } else {
                own = batch.fds;
            }
        }
        match fault {
            None => Ok(own),
            Some(fault) => {
                let hint = format!(
                    "pass at most {QUEUES_MAX} fds, all beside the line's first byte (SCM_RIGHTS)"
                );
                Err(refusal(Code::Descriptor, fault, hint))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    fn received(bytes: usize, count: usize) -> Received {
        let fd = || OwnedFd::from(File::open("/dev/null").expect("open"));
        Received {
            bytes,
            fds: (0..count).map(|_| fd()).collect(),
            cut: false,
        }
    }

    fn count(taken: Result<Vec<OwnedFd>, Error>) -> Option<usize> {
        taken.ok().map(|fds| fds.len())
    }

    #[test]
    fn fds_go_to_the_last_line_that_begins_within_their_read() {
        let mut passed = Passed::default();
        passed.push(0, received(0, 0));
        // Lines 0..10 and 10..30; the second message's first 15 bytes were
        // read together with the first.
        passed.push(0, received(25, 2));
        assert_eq!(count(passed.take(0, 10)), Some(0));
        assert_eq!(count(passed.take(10, 30)), Some(2));
        assert_eq!(count(passed.take(30, 40)), Some(0));
    }

    #[test]
    fn fds_of_no_line_are_a_fault_once() {
        let mut passed = Passed::default();
        passed.push(5, received(5, 1));
        let error = passed.take(0, 10).expect_err("fds in mid-line");
        assert_eq!(error.code, Code::Descriptor);
        assert_eq!(count(passed.take(10, 20)), Some(0));
        // Swallowed with a line that was too long and is answered.
        passed.push(20, received(5, 1));
        assert_eq!(count(passed.take(25, 30)), Some(0));
    }

    #[test]
    fn too_many_are_closed_at_once() {
        let mut passed = Passed::default();
        passed.push(0, received(4, QUEUES_MAX));
        passed.push(4, received(4, 1));
        assert_eq!(
            passed.waiting.iter().map(|b| b.fds.len()).sum::<usize>(),
            QUEUES_MAX
        );
        assert!(passed.take(0, 8).is_err());
        passed.push(8, received(4, QUEUES_MAX + 1));
        assert!(passed.take(8, 12).is_err());
        passed.push(
            12,
            Received {
                cut: true,
                ..received(4, 1)
            },
        );
        assert!(passed.take(12, 16).is_err());
    }

    #[test]
    fn a_line_cut_into_countless_messages_takes_bounded_room() {
        let mut passed = Passed::default();
        for byte in 0..1000 {
            passed.push(byte, received(1, 1));
        }
        assert_eq!(passed.waiting.len(), WAITING_MAX);
        assert!(passed.take(0, 1000).is_err());
        assert!(passed.waiting.is_empty());
    }
}

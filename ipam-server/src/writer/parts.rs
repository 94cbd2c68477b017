//! A request for which one commit is too small. Each beginning of its changes
//! leaves rows to go on from; what its parts did is told as one answer.

use std::{collections::HashSet, net::IpAddr};

use weft_api::ipam::{Code, Error, Released, Reply, Request};

use super::{
    TRIES, Writer,
    answers::{contended, deaf, is_unsafe_deaf, needs_all, unavailable},
    batch::Batch,
    commit::Ended,
};
use crate::{book::Book, plan::Plan};

/// What the parts did so far.
#[derive(Debug, Default)]
struct Done {
    parts: usize,
    released: Released,
}

impl Writer {
    pub(super) fn in_parts(&mut self, request: &Request) -> Result<Reply, Error> {
        let mut done = Done::default();
        for _ in 0..TRIES {
            self.hear();
            let answer = match self.plan(request, (self.clock)()) {
                Ok(plan) => self.commit_parts(plan, &mut done),
                Err(refusal) => Some(Err(refusal)),
            };
            match answer {
                Some(Err(error)) => return done.despite(error, request),
                Some(Ok(reply)) => return Ok(done.with(reply)),
                None if needs_all(request) && !self.catch_up() && is_unsafe_deaf(request) => {
                    return done.despite(deaf(), request);
                }
                None => {}
            }
        }
        done.despite(contended(), request)
    }

    /// None where rows were not as planned: what is left is to be planned
    /// again.
    fn commit_parts(&mut self, plan: Plan, done: &mut Done) -> Option<Result<Reply, Error>> {
        let Plan {
            mut changes,
            guards,
            mut reply,
        } = plan;
        let mut most = changes.len();
        while !changes.is_empty() {
            most = most.min(changes.len());
            let mut part = Plan {
                changes: changes[..most].to_vec(),
                guards: guards.clone(),
                reply: Reply::Done,
            };
            let mut batch = Batch::new(self.known + 1);
            batch.take(&mut self.book, &mut part);
            match self.commit(batch) {
                Ended::Durable => {
                    changes.drain(..most);
                    done.take(&mut reply, &self.book);
                }
                Ended::TooLarge if most > 1 => most = most.div_ceil(2),
                Ended::TooLarge => {
                    return Some(Err(unavailable(
                        "one row is too large for the store".into(),
                    )));
                }
                Ended::Again => return None,
                Ended::Refused(error) | Ended::Untold(error) => return Some(Err(error)),
            }
        }
        Some(Ok(reply))
    }
}

impl Done {
    /// Counts one more part: of what the whole plan promises, what the book
    /// says now.
    fn take(&mut self, reply: &mut Reply, book: &Book) {
        self.parts += 1;
        if let Reply::Released(promised) = reply {
            let held = |address: &IpAddr| book.allocation(*address);
            let is_free = |address: &IpAddr| held(address).is_none_or(|one| one.is_resting());
            let is_kept = |address: &IpAddr| held(address).is_some_and(|one| !one.is_held());
            let released = promised.released.extract_if(.., |address| is_free(address));
            self.released.released.extend(released);
            let kept = promised.kept.extract_if(.., |address| is_kept(address));
            self.released.kept.extend(kept);
        }
    }

    /// The answer to all parts; `last` is what the last plan had left.
    fn with(mut self, last: Reply) -> Reply {
        let Reply::Released(last) = last else {
            return last;
        };
        let all = &mut self.released;
        all.released.extend(last.released);
        all.kept.extend(last.kept);
        // What an earlier part freed is not held when the rest is planned.
        let own: HashSet<_> = all.released.iter().chain(&all.kept).copied().collect();
        let others = last
            .unallocated
            .into_iter()
            .filter(|one| !own.contains(one));
        all.unallocated.extend(others);
        Reply::Released(self.released)
    }

    /// The answer when the rest was refused.
    fn despite(self, error: Error, request: &Request) -> Result<Reply, Error> {
        use Request::{NodeDelete, PoolDelete};
        if self.parts == 0 {
            return Err(error);
        }
        // Another server did the rest.
        if error.code == Code::NotFound && matches!(request, NodeDelete { .. } | PoolDelete { .. })
        {
            return Ok(Reply::Done);
        }
        let code = match error.code {
            // It promises that nothing was changed.
            Code::Unavailable => Code::Deadline,
            code => code,
        };
        let freed = self.released.released.len() + self.released.kept.len();
        let message = format!(
            "{}; before that, {freed} addresses were released",
            error.message
        );
        Err(Error::new(code, message, error.hint))
    }
}

//! What clients are told.

use weft_api::ipam::{Code, Error, Reply, Request};

use super::{Job, Note, TRIES, Writer};
use crate::plan::Plan;

impl Writer {
    /// What only asks is answered; what was to change something is refused.
    pub(super) fn settle_without_store(&mut self, jobs: &[Job], error: &Error) {
        let now = (self.clock)();
        for job in jobs {
            let answer = match self.plan(&job.request, now) {
                Ok(plan) if self.holds_unwritten(&plan) => Ok(plan.reply),
                Err(refusal) if !self.stale => Err(refusal),
                _ => Err(error.clone()),
            };
            self.answer(job, answer);
        }
    }

    /// An answer that writes nothing; its guards hold where nobody else writes.
    fn holds_unwritten(&self, plan: &Plan) -> bool {
        let holds = plan.guards.is_empty() || !self.store.is_shared();
        plan.changes.is_empty() && holds && !self.stale
    }

    /// As without a store; but what the book, loaded anew, calls done or in
    /// vain may have been these jobs' own doing.
    pub(super) fn settle_untold(&mut self, jobs: &[Job], error: &Error) {
        for job in jobs {
            if only_asks(&job.request) {
                self.settle_without_store(std::slice::from_ref(job), error);
            } else {
                self.refuse(std::slice::from_ref(job), error);
            }
        }
    }

    /// The news of other servers did not come.
    pub(super) fn refuse_deaf(&mut self, jobs: &mut Vec<Job>) {
        let is_unsafe = |job: &mut Job| is_unsafe_deaf(&job.request);
        let refused: Vec<Job> = jobs.extract_if(.., is_unsafe).collect();
        self.refuse(&refused, &deaf());
    }

    pub(super) fn answer(&mut self, job: &Job, answer: Result<Reply, Error>) {
        self.note_member(job, &answer);
        let note = match (&job.request, answer) {
            (Request::Watch { .. }, Ok(_)) => Note::Snapshot(job.ticket, self.snapshot()),
            (_, answer) => Note::Answer(job.ticket, answer),
        };
        self.notes.push(note);
    }

    pub(super) fn refuse(&mut self, jobs: &[Job], error: &Error) {
        let refusals = jobs
            .iter()
            .map(|job| Note::Answer(job.ticket, Err(error.clone())));
        self.notes.extend(refusals);
    }
}

pub(super) fn contended() -> Error {
    let message = format!("other servers changed the same rows {TRIES} times");
    Error::new(Code::Contended, message, "ask again")
}

pub(super) fn unavailable(reason: String) -> Error {
    Error::new(Code::Unavailable, reason, "see to the store, and ask again")
}

pub(super) fn deaf() -> Error {
    unavailable("news of other servers are late".into())
}

/// Whether rows that this server has not heard of could make it wrong, and no
/// comparison of rows would tell: pools that overlap, two nodes with one
/// underlay address, a pool or node that goes while it has addresses.
pub(super) fn is_unsafe_deaf(request: &Request) -> bool {
    use Request::{NodeDelete, NodePut, NodeRegister, PoolCreate, PoolDelete};
    matches!(
        request,
        NodeDelete { .. } | NodePut(_) | NodeRegister(_) | PoolCreate(_) | PoolDelete { .. }
    )
}

fn only_asks(request: &Request) -> bool {
    use Request::{
        Address, Allocations, Blocks, Check, Config, Nodes, Pools, Reservations, Status, Watch,
    };
    matches!(
        request,
        Address { .. } | Allocations { .. } | Check { .. } | Watch { .. }
    ) || matches!(
        request,
        Blocks | Config | Nodes | Pools | Reservations | Status
    )
}

/// Whether what others wrote and this server has not heard of would be lost
/// to the request.
pub(super) fn needs_all(request: &Request) -> bool {
    use Request::{
        Allocate, Check, Gc, NodeDelete, NodePut, NodeRegister, PoolCreate, PoolDelete, Probe,
    };
    match request {
        Allocate(ask) | Probe(ask) => ask.identity.is_some(),
        Check { .. } | Gc(_) | NodePut(_) | NodeRegister(_) | NodeDelete { .. } => true,
        PoolCreate(_) | PoolDelete { .. } => true,
        _ => false,
    }
}

/// Whether what others wrote may let the request be granted after all.
pub(super) fn is_doubtful(answer: &Result<Reply, Error>) -> bool {
    match answer {
        Ok(Reply::Released(released)) => released.released.is_empty() && released.kept.is_empty(),
        Ok(_) => false,
        Err(_) => true,
    }
}

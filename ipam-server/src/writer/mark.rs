//! The mark, raised in time.

use std::time::{Duration, Instant};

use weft_api::ipam::Reply;

use super::{Writer, batch::Batch, sweep::patience};
use crate::{book::Book, plan::Plan, sweep::Pace};

/// How old what `gc` frees is at least: more than an attachment takes from its
/// address to its place on a list, and than a list takes to get here.
pub const GRACE: Duration = Duration::from_secs(600);

/// Servers on one store see a mark stand from the same moment on: each lets
/// the others go first for up to a tenth of the interval.
pub(super) fn pace(book: &Book, grace: Duration, shared: bool) -> Pace {
    let most = u64::try_from(grace.as_millis()).unwrap_or(u64::MAX) / 10;
    let patience = Duration::from_millis(patience(shared, most));
    Pace::new(book, grace + patience, Instant::now())
}

impl Writer {
    /// Of several servers the least counts.
    #[must_use]
    pub fn with_grace(mut self, grace: Duration) -> Self {
        self.pace = pace(&self.book, grace, self.store.is_shared());
        self
    }

    pub(super) fn raise_mark(&mut self) {
        if self.stale {
            return;
        }
        let mut plan = Plan::answer(Reply::Done);
        plan.changes = self.pace.raise(&self.book, Instant::now());
        let mut batch = Batch::new(self.known + 1);
        batch.take(&mut self.book, &mut plan);
        // Where another server was faster, the mark is raised all the same.
        self.commit(batch);
    }
}

//! One batch, one commit: what the store says of it, and what follows for the
//! book.

use tracing::warn;
use weft_api::ipam::{Code, Error};

use super::{Writer, answers::unavailable, batch::Batch};
use crate::{
    model::Revision,
    store::{Change, CommitError, Guard, Outcome, StoreError, Update},
};

/// How a commit ended.
pub(super) enum Ended {
    Durable,
    /// Nothing was tried: one commit does not hold it.
    TooLarge,
    /// Plan again.
    Again,
    Refused(Error),
    /// Nobody can tell whether it was done.
    Untold(Error),
}

impl Writer {
    pub(super) fn commit(&mut self, batch: Batch) -> Ended {
        if batch.is_empty() {
            return Ended::Durable;
        }
        let (changes, guards) = (batch.changes(&self.book), batch.guards());
        if self.store.fitting(&changes, &guards) < changes.len() {
            batch.roll_back(&mut self.book);
            return Ended::TooLarge;
        }
        match self.store_all(&changes, &guards) {
            Ok(revision) => {
                for change in changes.into_iter().filter(|change| change.value.is_none()) {
                    self.forget(change.key, revision);
                }
                self.durable(batch, revision);
                Ended::Durable
            }
            Err(CommitError::Conflict(rows)) => {
                batch.roll_back(&mut self.book);
                self.take_in(&rows);
                Ended::Again
            }
            Err(CommitError::Failed(fault)) => {
                batch.roll_back(&mut self.book);
                if matches!(fault, StoreError::TooLarge { .. }) {
                    return Ended::TooLarge;
                }
                warn!("a commit failed: {fault}");
                Ended::Refused(unavailable(fault.to_string()))
            }
            Err(CommitError::Unknown(fault)) => {
                batch.roll_back(&mut self.book);
                self.stale = true;
                if let Err(fault) = self.reload() {
                    warn!("{fault}");
                }
                Ended::Untold(Error::new(
                    Code::Deadline,
                    format!("{fault}; whether it was done is not known"),
                    "ask again to learn",
                ))
            }
        }
    }

    /// Asks the store what became of a commit that was not answered: what it
    /// made is not planned again, and would not be found as it was.
    fn store_all(&mut self, changes: &[Change], guards: &[Guard]) -> Result<Revision, CommitError> {
        let fault = match self.store.commit(changes, guards) {
            Err(CommitError::Unknown(fault)) => fault,
            ended => return ended,
        };
        warn!("a commit may have failed: {fault}");
        match self.store.settle() {
            Ok(Outcome::Made(revision)) => Ok(revision),
            Ok(Outcome::NotMade) => Err(CommitError::Conflict(Vec::new())),
            Ok(Outcome::Unknown) => Err(CommitError::Unknown(fault)),
            Err(deaf) => {
                warn!("{deaf}");
                Err(CommitError::Unknown(fault))
            }
        }
    }

    /// Rows that were not as the book had them.
    fn take_in(&mut self, rows: &[Update]) {
        let revisions = rows.iter().filter_map(|update| update.row.as_ref());
        let newest = revisions.map(|row| row.revision).max();
        let revision = newest.unwrap_or(self.known).max(self.known);
        for gone in rows.iter().filter(|update| update.row.is_none()) {
            self.forget(gone.key.clone(), revision);
        }
        self.publish(rows, revision);
    }
}

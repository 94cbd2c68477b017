//! Where rows live: a contract and its backends. A store knows keys, values
//! and revisions, and nothing of what they mean.

pub mod etcd;

use crate::model::{Key, Revision, RowError, Value};

pub mod memory;
pub mod redb;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    pub value: Value,
    /// Of the commit that wrote it last.
    pub revision: Revision,
}

/// A row as it is now; none where it is gone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Update {
    pub key: Key,
    pub row: Option<Row>,
}

/// A row to write or, without a value, to delete.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    pub key: Key,
    pub value: Option<Value>,
    /// The revision the row must have; none: it must not exist.
    pub expected: Option<Revision>,
}

/// A row that must be as it was read, though it is not written. None: it must
/// not exist.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Guard {
    pub key: Key,
    pub expected: Option<Revision>,
}

/// All rows at one revision.
#[derive(Debug, Clone, Default)]
pub struct Loaded {
    pub revision: Revision,
    pub rows: Vec<(Key, Row)>,
}

pub trait Store: Send {
    /// `redb`, `etcd` or `memory`.
    fn name(&self) -> &'static str;

    /// Whether other servers may write the same rows.
    fn is_shared(&self) -> bool {
        false
    }

    fn load(&mut self) -> Result<Loaded, StoreError>;

    /// Makes all changes or none, while all guards hold. They are durable when
    /// it returns, and all changed rows have the revision that it returns.
    /// Keys do not repeat, also not between changes and guards.
    fn commit(&mut self, changes: &[Change], guards: &[Guard]) -> Result<Revision, CommitError>;

    /// How many of the changes, from the first on, one commit can hold beside
    /// the guards; at least one where there are any. More than that fails as
    /// too large.
    fn fitting(&self, changes: &[Change], guards: &[Guard]) -> usize {
        let _ = guards;
        changes.len()
    }

    /// What became of the last commit, whose outcome was not known. Once this
    /// returned, it cannot be made any more.
    fn settle(&mut self) -> Result<Outcome, StoreError> {
        Ok(Outcome::Unknown)
    }

    /// A revision that the watch tells after all that was committed before
    /// this call; none where there are no other writers.
    fn frontier(&mut self) -> Result<Option<Revision>, StoreError> {
        Ok(None)
    }

    /// Calls `tell` with what others write from after `revision` on, in
    /// order, until the store is dropped; from any thread. What the store
    /// itself commits may come too. A store that has no other writers keeps
    /// silent.
    fn watch(&mut self, revision: Revision, tell: Box<dyn FnMut(News) + Send>) {
        let _ = (revision, tell);
    }
}

/// What must be true of which row for a commit.
pub fn expectations<'a>(
    changes: &'a [Change],
    guards: &'a [Guard],
) -> impl Iterator<Item = (&'a Key, Option<Revision>)> {
    let written = changes.iter().map(|change| (&change.key, change.expected));
    written.chain(guards.iter().map(|guard| (&guard.key, guard.expected)))
}

#[derive(Debug)]
pub enum News {
    /// One commit's rows, or none where it only marks how far the watch is.
    Updates {
        revision: Revision,
        updates: Vec<Update>,
    },
    /// Some news were missed: what is known must be loaded anew. The watch
    /// ends here.
    Missed,
}

#[derive(Debug, thiserror::Error)]
pub enum CommitError {
    /// Nothing was changed: these rows are not as expected. They are told as
    /// they are now.
    #[error("{} rows were changed by another server", .0.len())]
    Conflict(Vec<Update>),
    /// Nothing was changed.
    #[error(transparent)]
    Failed(StoreError),
    /// It may have been done or not: settle to learn.
    #[error("{0}; whether it was done is not known")]
    Unknown(StoreError),
}

/// What became of a commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    Made(Revision),
    NotMade,
    /// Nobody can tell: load to see the rows as they are.
    Unknown,
}

#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error(transparent)]
    Row(#[from] RowError),
    #[error(
        "{object} cannot take {changes} changes with {bytes} bytes in one commit, \
         only the first {fitting}; commit less at once, or raise its limits"
    )]
    TooLarge {
        object: String,
        changes: usize,
        bytes: usize,
        /// What `Store::fitting` says of them.
        fitting: usize,
    },
    /// The same may succeed later.
    #[error(transparent)]
    Away(weft_etcd::Error),
    /// Names the file or endpoint, what happened, and what to do.
    #[error("{object}: {reason}; {hint}")]
    Backend {
        object: String,
        reason: String,
        hint: String,
    },
}

impl From<weft_etcd::Error> for StoreError {
    fn from(error: weft_etcd::Error) -> Self {
        if error.away {
            return Self::Away(error);
        }
        Self::Backend {
            object: error.object,
            reason: error.reason,
            hint: error.hint,
        }
    }
}

//! Rows in memory, for tests and simulations. Clones are several servers on
//! one set of rows: they meet each other's conflicts and hear each other's
//! news.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use super::{
    Change, CommitError, Guard, Loaded, News, Row, Store, StoreError, Update, expectations,
};
use crate::model::{Key, Revision};

#[derive(Debug, Clone, Default)]
pub struct Memory(Arc<Mutex<Rows>>);

#[derive(Default)]
struct Rows {
    revision: Revision,
    rows: BTreeMap<Key, Row>,
    watchers: Vec<Box<dyn FnMut(News) + Send>>,
}

impl Memory {
    fn rows(&self) -> MutexGuard<'_, Rows> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Store for Memory {
    fn name(&self) -> &'static str {
        "memory"
    }

    fn is_shared(&self) -> bool {
        true
    }

    fn load(&mut self) -> Result<Loaded, StoreError> {
        let rows = self.rows();
        Ok(Loaded {
            revision: rows.revision,
            rows: rows
                .rows
                .iter()
                .map(|(key, row)| (key.clone(), row.clone()))
                .collect(),
        })
    }

    fn commit(&mut self, changes: &[Change], guards: &[Guard]) -> Result<Revision, CommitError> {
        let mut all = self.rows();
        let differing: Vec<_> = expectations(changes, guards)
            .filter(|(key, expected)| all.revision_of(key) != *expected)
            .map(|(key, _)| all.update(key))
            .collect();
        if !differing.is_empty() {
            return Err(CommitError::Conflict(differing));
        }
        if changes.is_empty() {
            return Ok(all.revision);
        }
        all.revision += 1;
        let revision = all.revision;
        for Change { key, value, .. } in changes {
            match value.clone() {
                Some(value) => all.rows.insert(key.clone(), Row { value, revision }),
                None => all.rows.remove(key),
            };
        }
        let updates: Vec<_> = changes.iter().map(|c| all.update(&c.key)).collect();
        for tell in &mut all.watchers {
            tell(News::Updates {
                revision,
                updates: updates.clone(),
            });
        }
        Ok(revision)
    }

    fn frontier(&mut self) -> Result<Option<Revision>, StoreError> {
        Ok(Some(self.rows().revision))
    }

    /// History is not kept: from an older revision than the last, all that is
    /// told is that news were missed.
    fn watch(&mut self, revision: Revision, mut tell: Box<dyn FnMut(News) + Send>) {
        let mut all = self.rows();
        if revision < all.revision {
            tell(News::Missed);
        } else {
            all.watchers.push(tell);
        }
    }
}

impl Rows {
    fn revision_of(&self, key: &Key) -> Option<Revision> {
        self.rows.get(key).map(|row| row.revision)
    }

    fn update(&self, key: &Key) -> Update {
        Update {
            key: key.clone(),
            row: self.rows.get(key).cloned(),
        }
    }
}

impl fmt::Debug for Rows {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rows")
            .field("revision", &self.revision)
            .field("rows", &self.rows)
            .finish_non_exhaustive()
    }
}

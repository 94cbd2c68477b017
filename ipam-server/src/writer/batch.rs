//! Changes that the book shows and the store does not have yet: what each
//! row was before is remembered, until they are durable or taken back.

use std::collections::BTreeMap;

use crate::{
    book::Book,
    model::{Key, Revision},
    plan::Plan,
    store::{Change, Guard, Row, Update},
};

#[derive(Debug)]
pub struct Batch {
    /// What its rows are given as their revision.
    revision: Revision,
    rows: BTreeMap<Key, Touched>,
}

#[derive(Debug)]
struct Touched {
    before: Option<Row>,
    /// Else it is only compared.
    written: bool,
}

impl Touched {
    fn expected(&self) -> Option<Revision> {
        self.before.as_ref().map(|row| row.revision)
    }
}

impl Batch {
    /// For a commit that is expected to have `revision`.
    pub fn new(revision: Revision) -> Self {
        Self {
            revision,
            rows: BTreeMap::new(),
        }
    }

    pub fn revision(&self) -> Revision {
        self.revision
    }

    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Makes the book say what the plan changes.
    pub fn take(&mut self, book: &mut Book, plan: &mut Plan) {
        let revision = self.revision;
        for key in plan.guards.drain(..) {
            self.touch(book, &key);
        }
        for (key, value) in plan.changes.drain(..) {
            self.touch(book, &key).written = true;
            let row = value.map(|value| Row { value, revision });
            book.apply(&Update { key, row });
        }
    }

    fn touch(&mut self, book: &Book, key: &Key) -> &mut Touched {
        self.rows.entry(key.clone()).or_insert_with(|| Touched {
            before: row(book, key),
            written: false,
        })
    }

    pub fn changes(&self, book: &Book) -> Vec<Change> {
        let written = self.rows.iter().filter(|(_, touched)| touched.written);
        written
            .map(|(key, touched)| Change {
                key: key.clone(),
                value: book.value(key).cloned(),
                expected: touched.expected(),
            })
            .collect()
    }

    pub fn guards(&self) -> Vec<Guard> {
        let guarded = self.rows.iter().filter(|(_, touched)| !touched.written);
        guarded
            .map(|(key, touched)| Guard {
                key: key.clone(),
                expected: touched.expected(),
            })
            .collect()
    }

    /// Makes the book say again what it said before.
    pub fn roll_back(self, book: &mut Book) {
        let written = self.rows.into_iter().filter(|(_, touched)| touched.written);
        let before: Vec<_> = written
            .map(|(key, touched)| Update {
                key,
                row: touched.before,
            })
            .collect();
        book.apply_all(&before);
    }

    /// The commit is durable and has `revision`: takes the rows back for a
    /// moment and hands them to `publish`, which makes the book say them.
    pub fn settle(
        self,
        book: &mut Book,
        revision: Revision,
        mut publish: impl FnMut(&mut Book, &[Update]),
    ) {
        let written = self.rows.iter().filter(|(_, touched)| touched.written);
        let updates: Vec<Update> = written
            .map(|(key, _)| Update {
                key: key.clone(),
                row: book
                    .value(key)
                    .cloned()
                    .map(|value| Row { value, revision }),
            })
            .collect();
        self.roll_back(book);
        publish(book, &updates);
    }

    /// Whether the rows may change what forwarders know: anything but an
    /// allocation in a block that stays as it is.
    pub fn moves_routes(&self, book: &Book) -> bool {
        use crate::model::Value::Block;
        self.rows.iter().any(|(key, touched)| {
            match (
                touched.before.as_ref().map(|row| &row.value),
                book.value(key),
            ) {
                (Some(Block(before)), Some(Block(after))) => {
                    before.owner != after.owner
                        || is_lent(before) != is_lent(after)
                        || (is_lent(after) && before.allocations != after.allocations)
                }
                (None, None) => false,
                _ => touched.written,
            }
        })
    }
}

/// Whether another node than its owner uses an address of the block.
fn is_lent(block: &crate::model::Block) -> bool {
    let owner = block.owner.as_ref();
    block.allocations.values().any(|a| Some(&a.node) != owner)
}

fn row(book: &Book, key: &Key) -> Option<Row> {
    Some(Row {
        value: book.value(key)?.clone(),
        revision: book.revision_of(key)?,
    })
}

//! Rows in one file, for one server: the embedded store. redb holds the file
//! locked while it is open.
//!
//! A commit is one redb transaction, durable by one `fsync`: redb's
//! checksummed commit, which finds a half-written transaction at the next
//! open and falls back to the one before it.

use std::{
    fs,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition, backends::FileBackend};

use super::{Change, CommitError, Guard, Loaded, Row, Store, StoreError, Update, expectations};
use crate::model::{Key, Revision, RowError, Value};

mod failure;

use failure::Failure;

/// By key: the revision that wrote the row, and the row as JSON.
const ROWS: TableDefinition<'_, &str, (u64, &[u8])> = TableDefinition::new("rows");

/// What the file is: its format, and the last revision.
const META: TableDefinition<'_, &str, u64> = TableDefinition::new("weft-ipam");
const FORMAT: &str = "format";
const REVISION: &str = "revision";

/// Of the tables above and the rows in them.
const FORMAT_VERSION: u64 = 1;

/// redb's page cache, in bytes. Rows are read once, at the start.
const CACHE: usize = 64 << 20;

#[derive(Debug)]
pub struct Redb {
    path: PathBuf,
    /// None after a failure of which redb recovers only by opening anew.
    database: Option<Database>,
}

impl Redb {
    /// Opens the file, or makes it.
    pub fn open(path: impl Into<PathBuf>) -> Result<Self, StoreError> {
        let path = path.into();
        let database = open(&path)?;
        Ok(Self {
            path,
            database: Some(database),
        })
    }

    fn database(&mut self) -> Result<&Database, StoreError> {
        if self.database.is_none() {
            self.database = Some(open(&self.path)?);
        }
        Ok(self.database.as_ref().expect("opened above"))
    }

    /// Runs `work`; after a failure the file is opened anew for the next.
    fn run<T>(
        &mut self,
        work: impl FnOnce(&Database) -> Result<T, Failure>,
    ) -> Result<Result<T, Failure>, StoreError> {
        let database = self.database()?;
        let result = work(database);
        if let Err(Failure::Redb(_)) = result {
            self.database = None;
        }
        Ok(result)
    }
}

impl Store for Redb {
    fn name(&self) -> &'static str {
        "redb"
    }

    fn load(&mut self) -> Result<Loaded, StoreError> {
        self.run(load)?
            .map_err(|failure| failure.explain(&self.path))
    }

    fn commit(&mut self, changes: &[Change], guards: &[Guard]) -> Result<Revision, CommitError> {
        let prepared = self
            .run(|database| prepare(database, changes, guards))
            .map_err(CommitError::Failed)?;
        let (transaction, revision) = match prepared {
            Ok(prepared) => prepared,
            Err(Failure::Conflict(updates)) => return Err(CommitError::Conflict(updates)),
            Err(failure) => return Err(CommitError::Failed(failure.explain(&self.path))),
        };
        transaction.commit().map_err(|error| {
            self.database = None;
            // Its last write may have reached the disk before the failure.
            CommitError::Unknown(Failure::from(error).explain(&self.path))
        })?;
        Ok(revision)
    }
}

fn open(path: &Path) -> Result<Database, StoreError> {
    let file = fs::OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
        .map_err(|error| Failure::from(error).explain(path))?;
    let database = FileBackend::new(file)
        .and_then(|file| {
            let mut builder = Database::builder();
            builder
                .set_cache_size(CACHE)
                .set_check_integrity_on_open(true)
                .create_with_backend(file)
        })
        .map_err(|error| Failure::from(error).explain(path))?;
    recognise(&database).map_err(|failure| failure.explain(path))?;
    Ok(database)
}

/// Makes a new file ours, and refuses what is not ours.
fn recognise(database: &Database) -> Result<(), Failure> {
    let transaction = database.begin_write()?;
    let tables = transaction.list_tables()?.count();
    {
        let mut meta = transaction.open_table(META)?;
        let format = meta.get(FORMAT)?.map(|format| format.value());
        match format {
            Some(FORMAT_VERSION) => return Ok(()),
            Some(other) => return Err(Failure::Format(other)),
            None if tables > 0 => return Err(Failure::Foreign),
            None => {}
        }
        meta.insert(FORMAT, FORMAT_VERSION)?;
        meta.insert(REVISION, 0)?;
        transaction.open_table(ROWS)?;
    }
    transaction.commit()?;
    Ok(())
}

fn load(database: &Database) -> Result<Loaded, Failure> {
    let transaction = database.begin_read()?;
    let revision = transaction.open_table(META)?.get(REVISION)?;
    let mut loaded = Loaded {
        revision: revision.map_or(0, |revision| revision.value()),
        rows: Vec::new(),
    };
    for entry in transaction.open_table(ROWS)?.iter()? {
        let (key, row) = entry?;
        let key = Key::parse(key.value())?;
        let row = decode(&key, row.value())?;
        loaded.rows.push((key, row));
    }
    Ok(loaded)
}

/// Writes all changes into a transaction that waits for its commit.
fn prepare(
    database: &Database,
    changes: &[Change],
    guards: &[Guard],
) -> Result<(redb::WriteTransaction, Revision), Failure> {
    let transaction = database.begin_write()?;
    let revision;
    {
        let mut meta = transaction.open_table(META)?;
        let last = meta.get(REVISION)?.map_or(0, |last| last.value());
        revision = last + 1;
        meta.insert(REVISION, revision)?;
        let mut rows = transaction.open_table(ROWS)?;
        let mut differing = Vec::new();
        for (key, expected) in expectations(changes, guards) {
            let row = rows.get(key.to_string().as_str())?;
            if row.as_ref().map(|row| row.value().0) != expected {
                let row = row.map(|row| decode(key, row.value())).transpose()?;
                let key = key.clone();
                differing.push(Update { key, row });
            }
        }
        if !differing.is_empty() {
            return Err(Failure::Conflict(differing));
        }
        for Change { key, value, .. } in changes {
            let key = key.to_string();
            match value {
                Some(value) => rows.insert(key.as_str(), (revision, &value.encode()[..]))?,
                None => rows.remove(key.as_str())?,
            };
        }
    }
    Ok((transaction, revision))
}

fn decode(key: &Key, (revision, bytes): (u64, &[u8])) -> Result<Row, RowError> {
    let value = Value::decode(key, bytes)?;
    Ok(Row { value, revision })
}

//! Rows in one file, for one server: the embedded store. redb holds the file
//! locked while it is open.
//!
//! A commit is one redb transaction, durable by one `fsync`: redb's
//! checksummed commit, which finds a half-written transaction at the next
//! open and falls back to the one before it.

use std::{
    fs, io,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    process,
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
    state: State,
}

#[derive(Debug)]
enum State {
    Open(Database),
    /// After a failure of which redb recovers only by opening anew.
    Closed,
    /// After a failed `fsync` the kernel may hold for written what the disk
    /// does not have: what is read again proves nothing.
    Broken(String),
}

impl Redb {
    /// Opens the file, or makes it.
    pub fn open(path: impl Into<PathBuf>) -> Result<Self, StoreError> {
        let path = path.into();
        if !path.exists() {
            create(&path).map_err(|failure| failure.explain(&path))?;
        }
        let database = open(&path).map_err(|failure| failure.explain(&path))?;
        Ok(Self {
            path,
            state: State::Open(database),
        })
    }

    fn run<T>(&mut self, work: impl FnOnce(&Database) -> Result<T, Failure>) -> Result<T, Failure> {
        if matches!(self.state, State::Closed) {
            self.state = State::Open(open(&self.path)?);
        }
        let result = match &self.state {
            State::Open(database) => work(database),
            State::Closed => unreachable!("opened above"),
            State::Broken(reason) => return Err(Failure::Broken(reason.clone())),
        };
        if let Err(Failure::Redb(_)) = result {
            self.state = State::Closed;
        }
        result
    }

    /// After a commit that may have reached the disk or not.
    fn doubt(&mut self, failure: Failure, revision: Revision) -> CommitError {
        self.state = if failure.is_for_want_of_room() {
            State::Closed
        } else {
            State::Broken(failure.to_string())
        };
        let last = self.run(last_revision);
        let told = failure.explain(&self.path);
        match last {
            Ok(last) if last < revision => CommitError::Failed(told),
            _ => CommitError::Unknown(told),
        }
    }
}

impl Store for Redb {
    fn name(&self) -> &'static str {
        "redb"
    }

    fn load(&mut self) -> Result<Loaded, StoreError> {
        self.run(load)
            .map_err(|failure| failure.explain(&self.path))
    }

    fn commit(&mut self, changes: &[Change], guards: &[Guard]) -> Result<Revision, CommitError> {
        match self.run(|database| prepare(database, changes, guards)) {
            // Only guards, and they hold.
            Ok((_, revision)) if changes.is_empty() => Ok(revision - 1),
            Ok((transaction, revision)) => match transaction.commit() {
                Ok(()) => Ok(revision),
                Err(error) => Err(self.doubt(error.into(), revision)),
            },
            Err(Failure::Conflict(updates)) => Err(CommitError::Conflict(updates)),
            Err(failure) => Err(CommitError::Failed(failure.explain(&self.path))),
        }
    }
}

/// Makes an empty store under another name first: a file of the right name
/// is whole.
fn create(path: &Path) -> Result<(), Failure> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".new-{}", process::id()));
    let new = path.with_file_name(name);
    let made = make(&new).and_then(|()| match fs::hard_link(&new, path) {
        // Another server made it meanwhile.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        result => Ok(result?),
    });
    let removed = fs::remove_file(&new);
    made?;
    removed?;
    let directory = path.parent().filter(|parent| *parent != Path::new(""));
    fs::File::open(directory.unwrap_or(Path::new(".")))?.sync_all()?;
    Ok(())
}

fn make(path: &Path) -> Result<(), Failure> {
    let file = fs::OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)?;
    let database = Database::builder().create_with_backend(FileBackend::new(file)?)?;
    let transaction = database.begin_write()?;
    {
        let mut meta = transaction.open_table(META)?;
        meta.insert(FORMAT, FORMAT_VERSION)?;
        meta.insert(REVISION, 0)?;
        transaction.open_table(ROWS)?;
    }
    transaction.commit()?;
    Ok(())
}

/// Opens what is ours, after a look at every page.
fn open(path: &Path) -> Result<Database, Failure> {
    let file = fs::OpenOptions::new().read(true).write(true).open(path)?;
    if file.metadata()?.len() == 0 {
        return Err(Failure::Foreign);
    }
    let database = Database::builder()
        .set_cache_size(CACHE)
        .set_check_integrity_on_open(true)
        .create_with_backend(FileBackend::new(file)?)?;
    let transaction = database.begin_read()?;
    let meta = match transaction.open_table(META) {
        Err(redb::TableError::TableDoesNotExist(_)) => return Err(Failure::Foreign),
        meta => meta?,
    };
    match meta.get(FORMAT)?.map(|format| format.value()) {
        Some(FORMAT_VERSION) => Ok(database),
        Some(other) => Err(Failure::Format(other)),
        None => Err(Failure::Foreign),
    }
}

fn last_revision(database: &Database) -> Result<Revision, Failure> {
    let meta = database.begin_read()?.open_table(META)?;
    Ok(meta.get(REVISION)?.map_or(0, |revision| revision.value()))
}

fn load(database: &Database) -> Result<Loaded, Failure> {
    let transaction = database.begin_read()?;
    let mut loaded = Loaded {
        revision: last_revision(database)?,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_that_failed_is_not_written_on() {
        let directory = tempfile::tempdir().expect("a directory");
        let mut store = Redb::open(directory.path().join("ipam.redb")).expect("it opens");
        let failure = Failure::from(io::Error::from(nix::errno::Errno::EIO));
        let told = store.doubt(failure, 1);
        assert!(matches!(told, CommitError::Unknown(_)), "{told}");
        let refused = store.load().expect_err("what is read proves nothing");
        assert!(
            refused.to_string().contains("restart weft-ipam"),
            "{refused}"
        );
        let refused = store.commit(&[], &[]).expect_err("nor is it written");
        assert!(matches!(refused, CommitError::Failed(_)), "{refused}");
    }

    #[test]
    fn a_full_disk_is_forgiven() {
        let directory = tempfile::tempdir().expect("a directory");
        let mut store = Redb::open(directory.path().join("ipam.redb")).expect("it opens");
        let told = store.doubt(io::Error::from(io::ErrorKind::StorageFull).into(), 1);
        assert!(matches!(told, CommitError::Failed(_)), "{told}");
        store.commit(&[], &[]).expect("there is room");
    }
}

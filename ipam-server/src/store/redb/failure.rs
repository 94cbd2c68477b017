//! What goes wrong with the file, and what to do about it.

use std::{fmt, io, path::Path};

use crate::{
    model::RowError,
    store::{StoreError, Update},
};

/// Before it is told with the file's name.
#[derive(Debug)]
pub(super) enum Failure {
    Conflict(Vec<Update>),
    Row(RowError),
    /// The file has another format version.
    Format(u64),
    /// The file is somebody else's.
    Foreign,
    /// The file was given up after this.
    Broken(String),
    Redb(Box<redb::Error>),
}

impl Failure {
    pub(super) fn is_for_want_of_room(&self) -> bool {
        matches!(self, Self::Redb(error) if matches!(&**error, redb::Error::Io(error) if is_full(error.kind())))
    }

    pub(super) fn explain(self, path: &Path) -> StoreError {
        let (reason, hint) = match self {
            Self::Row(error) => (
                error.to_string(),
                "put a copy of the file in its place".to_owned(),
            ),
            Self::Conflict(updates) => (
                format!("{} rows changed under the only server", updates.len()),
                "this is a fault of weft-ipam; report it".to_owned(),
            ),
            Self::Format(version) => (
                format!("its format is version {version}"),
                "start the weft-ipam that wrote it, or name another file".to_owned(),
            ),
            Self::Foreign => (
                "it is another program's file".to_owned(),
                "name another file".to_owned(),
            ),
            Self::Broken(reason) => (
                format!("it was not written on after: {reason}"),
                "look at the disk and the kernel's log, then restart weft-ipam".to_owned(),
            ),
            Self::Redb(error) => (error.to_string(), remedy(&error, path)),
        };
        StoreError::Backend {
            object: path.display().to_string(),
            reason,
            hint,
        }
    }
}

fn remedy(error: &redb::Error, path: &Path) -> String {
    let directory = path.parent().unwrap_or(path).display();
    match error {
        redb::Error::DatabaseAlreadyOpen => "stop the other weft-ipam that has it open".to_owned(),
        redb::Error::Io(error) => match error.kind() {
            io::ErrorKind::NotFound => format!("make the directory {directory}"),
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
                "let weft-ipam read and write it, or name another file".to_owned()
            }
            kind if is_full(kind) => {
                format!("make room in {directory}; all that was answered is kept")
            }
            io::ErrorKind::InvalidData => {
                "it is damaged or no weft-ipam file: put a copy in its place, or name another"
                    .to_owned()
            }
            _ => "look at the disk and the kernel's log".to_owned(),
        },
        redb::Error::Corrupted(_) | redb::Error::RepairAborted => {
            "it is damaged: put a copy in its place".to_owned()
        }
        redb::Error::UpgradeRequired(_) => {
            "an older redb wrote it: start the weft-ipam that did".to_owned()
        }
        _ => "restart weft-ipam; if it stays so, put a copy in its place".to_owned(),
    }
}

fn is_full(kind: io::ErrorKind) -> bool {
    matches!(
        kind,
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge
    )
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Redb(error) => error.fmt(f),
            other => write!(f, "{other:?}"),
        }
    }
}

impl From<RowError> for Failure {
    fn from(error: RowError) -> Self {
        Self::Row(error)
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        redb::StorageError::from(error).into()
    }
}

macro_rules! from_redb {
    ($($error:ident)*) => {$(
        impl From<redb::$error> for Failure {
            fn from(error: redb::$error) -> Self {
                Self::Redb(Box::new(error.into()))
            }
        }
    )*};
}

from_redb! { CommitError DatabaseError StorageError TableError TransactionError }

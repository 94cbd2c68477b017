//! Rows in an etcd cluster that many servers share, over etcd's v3 JSON
//! gateway: plain HTTP, no gRPC.
//!
//! A row's key is the prefix, a slash and the row's name; its revision is
//! etcd's `mod_revision`. Beside the rows each store has a marker
//! (`.writer/ID`) that every commit compares and writes: it makes a commit
//! that is asked again count once, and tells what became of one whose answer
//! was lost.
//!
//! Invariant: a commit that was not answered cannot be made any more once
//! a later commit or load returned.

mod commit;
mod load;
mod marker;
mod news;

use std::{sync::Arc, time::Duration};

pub use weft_etcd::{ClientFiles, Config, ConfigError, Endpoint, Lease, Limits, Login, Times, Tls};
use weft_etcd::{
    Cluster, Watch,
    message::{Bytes, KeyValue},
};

use self::{commit::Ended, marker::Writer};
use super::{Change, CommitError, Guard, Loaded, News, Outcome, Row, Store, StoreError};
use crate::model::{Key, Revision, RowError, Value};

/// Rows are below it when the URL names no other.
pub const PREFIX: &str = "/weft/ipam/v1";

/// Dropping it ends its watch and interrupts what is asked.
#[derive(Debug)]
pub struct Etcd {
    cluster: Arc<Cluster>,
    writer: Writer,
    /// Of the rows that are to go when this store is not heard any more.
    tenure: Option<Lease>,
    watch: Option<Watch>,
}

impl Etcd {
    /// Asks nothing yet: a cluster that cannot be reached is told by `load`.
    pub fn new(config: Config) -> Result<Self, ConfigError> {
        let writer = Writer::new(&config.prefix);
        Ok(Self {
            cluster: Arc::new(Cluster::new(config)?),
            writer,
            tenure: None,
            watch: None,
        })
    }

    /// A lease that lives as long as it is kept and etcd hears of it.
    pub fn lease(&self, time: Duration) -> Result<Lease, StoreError> {
        Ok(Lease::grant(&self.cluster, time)?)
    }

    /// The lease for those of the changes that need one; 0 is none.
    fn tenure(&mut self, changes: &[Change]) -> Result<u64, StoreError> {
        let is_mortal = |change: &Change| change.value.as_ref().is_some_and(Value::is_mortal);
        if !changes.iter().any(is_mortal) {
            return Ok(0);
        }
        if let Some(id) = self.tenure.as_ref().and_then(Lease::id) {
            return Ok(id);
        }
        let lease = self.lease(self.cluster.config.times.tenure)?;
        let id = lease.id().unwrap_or(0);
        self.tenure = Some(lease);
        Ok(id)
    }
}

impl Store for Etcd {
    fn name(&self) -> &'static str {
        "etcd"
    }

    fn is_shared(&self) -> bool {
        true
    }

    fn load(&mut self) -> Result<Loaded, StoreError> {
        self.writer.settle(&self.cluster)?;
        load::load(&self.cluster)
    }

    fn commit(&mut self, changes: &[Change], guards: &[Guard]) -> Result<Revision, CommitError> {
        let lease = self.tenure(changes).map_err(CommitError::Failed)?;
        let ended = commit::commit(&self.cluster, &mut self.writer, changes, guards, lease);
        if let Err(Ended::WithoutLease(_)) = &ended
            && let Some(tenure) = self.tenure.take()
        {
            tenure.leave();
        }
        ended.map_err(Ended::into_error)
    }

    fn fitting(&self, changes: &[Change], guards: &[Guard]) -> usize {
        commit::fitting(&self.cluster.config, changes, guards)
    }

    fn settle(&mut self) -> Result<Outcome, StoreError> {
        self.writer.settle(&self.cluster)
    }

    fn frontier(&mut self) -> Result<Option<Revision>, StoreError> {
        self.writer.fence(&self.cluster).map(Some)
    }

    fn watch(&mut self, revision: Revision, tell: Box<dyn FnMut(News) + Send>) {
        let tell = news::telling(self.cluster.config.prefix.clone(), tell);
        self.watch = Some(Watch::start(Arc::clone(&self.cluster), revision, tell));
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        self.watch = None;
        // The next server on this machine takes the rows over in time.
        if let Some(tenure) = self.tenure.take() {
            tenure.leave();
        }
        self.writer.forget_lease();
        self.cluster.shut_down();
    }
}

/// What stands under the prefix.
enum Named {
    Row(Key),
    /// Of a store.
    Marker,
    /// Another program's, or a newer weft-ipam's.
    Foreign,
}

fn name_of(prefix: &str, key: &Bytes) -> Result<Named, RowError> {
    let text = str::from_utf8(&key.0)
        .ok()
        .and_then(|text| text.strip_prefix(prefix)?.strip_prefix('/'))
        .ok_or_else(|| RowError::Key(String::from_utf8_lossy(&key.0).into_owned()))?;
    if text.starts_with(marker::MARKERS) {
        return Ok(Named::Marker);
    }
    Ok(Key::parse(text).map_or_else(
        |error| {
            tracing::error!(%error, "the row is passed over");
            Named::Foreign
        },
        Named::Row,
    ))
}

fn row_of(key: &Key, found: &KeyValue) -> Result<Row, RowError> {
    let value = Value::read(key, &found.value.0);
    if let Value::Aside(row) = &value {
        tracing::error!(%key, reason = row.reason, "a row is set aside: correct it or delete it");
    }
    Ok(Row {
        value,
        revision: found.mod_revision,
    })
}

//! One commit is one etcd transaction, asked until it is answered.
//!
//! Each attempt compares the writer's marker with its last known revision and
//! writes it anew. So of several attempts at most one is made, and one that
//! comes late, out of a paused member or a slow network, finds the marker
//! changed and is not made at all.

use std::{sync::Arc, time::Duration};

use weft_etcd::{
    Cluster, Config, Fault, below,
    message::{Bytes, Compare, KeyValue, Operation, TXN, TxnRequest, TxnResponse},
};

use super::{
    marker::{Seen, Writer},
    row_of,
};
use crate::{
    model::{Key, Revision, Value},
    store::{Change, CommitError, Guard, StoreError, Update, expectations},
};

/// Of a transaction, for the marker: its read, and the comparison or the
/// write of a fence.
const MARKER_OPERATIONS: usize = 3;

/// More than protobuf's framing takes, for a change and for the rest with the
/// marker.
const CHANGE_BYTES: usize = 64;
const MARKER_BYTES: usize = 2048;

/// How often a marker that was changed from elsewhere is taken over for one
/// request. Only one's own late attempts change it.
pub(super) const ADOPTIONS: usize = 4;

/// A change or a guard in etcd's terms.
struct Encoded {
    key: Bytes,
    /// 0: must not exist.
    expected: Revision,
    /// None of a guard.
    write: Option<Operation>,
}

/// A commit under way.
struct Commit<'a> {
    keys: Vec<&'a Key>,
    rows: Vec<Encoded>,
    /// What the marker says once it is made.
    marker: Bytes,
    /// An attempt was not answered, and may have been made or still be.
    doubt: bool,
}

/// What a transaction that was answered with no means.
enum Judged {
    /// An earlier attempt was made.
    Done(Revision),
    Conflict(Vec<Update>),
    /// The rows are as expected, the marker was not: it is known now.
    Again,
    /// Nobody can tell whether an earlier attempt was made.
    Untold,
}

/// Why a commit was not made, or not for sure.
pub(super) enum Ended {
    /// A lease that it named is unknown to etcd.
    WithoutLease(CommitError),
    Otherwise(CommitError),
}

impl Ended {
    pub fn into_error(self) -> CommitError {
        let (Self::WithoutLease(error) | Self::Otherwise(error)) = self;
        error
    }
}

impl From<CommitError> for Ended {
    fn from(error: CommitError) -> Self {
        Self::Otherwise(error)
    }
}

/// `lease` is that of rows which need one.
pub(super) fn commit(
    cluster: &Arc<Cluster>,
    writer: &mut Writer,
    changes: &[Change],
    guards: &[Guard],
    lease: u64,
) -> Result<Revision, Ended> {
    check_size(&cluster.config, changes, guards).map_err(CommitError::Failed)?;
    let mut revision = writer.revision(cluster).map_err(CommitError::Failed)?;
    let mut commit = Commit::new(&cluster.config.prefix, writer, changes, guards, lease);
    let mut attempts = cluster.attempts();
    let mut adoptions = 0;
    loop {
        let endpoint = cluster.current();
        let txn = commit.transaction(writer, revision);
        let fault = match ask(cluster, endpoint, &txn, attempts.left()) {
            Ok(answer) if answer.succeeded => {
                writer.wrote(answer.header.revision);
                return Ok(answer.header.revision);
            }
            Ok(answer) => match commit.judge(writer, &answer) {
                Ok(Judged::Done(revision)) => return Ok(revision),
                Ok(Judged::Conflict(updates)) => return Err(CommitError::Conflict(updates).into()),
                Ok(Judged::Again) if adoptions < ADOPTIONS => {
                    adoptions += 1;
                    revision = writer.revision(cluster).map_err(CommitError::Failed)?;
                    continue;
                }
                Ok(Judged::Again) => Fault::Foreign("the writer's marker does not stay".into()),
                Ok(Judged::Untold) => return Err(commit.fail(writer, gone()).into()),
                Err(error) => return Err(commit.fail(writer, error).into()),
            },
            Err(fault) => fault,
        };
        commit.doubt |= fault.may_be_done();
        let without_lease = fault.is_without_lease();
        if without_lease {
            writer.forget_lease();
        }
        if !(fault.is_passing() && attempts.next(endpoint)) {
            let error = commit.fail(writer, fault.tell(cluster.object(endpoint)).into());
            return Err(if without_lease {
                Ended::WithoutLease(error)
            } else {
                error.into()
            });
        }
        tracing::debug!(endpoint = cluster.object(endpoint), ?fault, "asking again");
    }
}

/// How many of the changes, from the first on, one transaction can hold.
pub(super) fn fitting(config: &Config, changes: &[Change], guards: &[Guard]) -> usize {
    let others = MARKER_OPERATIONS + guards.len();
    let most = config.limits.operations.saturating_sub(others);
    let mut bytes = bytes_around(config, guards);
    let count = changes
        .iter()
        .take(most)
        .take_while(|change| {
            bytes += bytes_of(config, &change.key, change.value.as_ref());
            bytes <= config.limits.request_bytes
        })
        .count();
    count.max(1).min(changes.len())
}

impl<'a> Commit<'a> {
    fn new(
        prefix: &str,
        writer: &mut Writer,
        changes: &'a [Change],
        guards: &'a [Guard],
        lease: u64,
    ) -> Self {
        let written = changes
            .iter()
            .map(|change| Encoded::of(prefix, change, lease));
        let compared = guards.iter().map(|guard| Encoded::guard(prefix, guard));
        Self {
            keys: expectations(changes, guards).map(|(key, _)| key).collect(),
            rows: written.chain(compared).collect(),
            marker: writer.next_marker(),
            doubt: false,
        }
    }

    /// When an earlier attempt may still come, the failure branch moves the
    /// marker on too.
    fn transaction(&self, writer: &mut Writer, revision: Revision) -> TxnRequest {
        let mut txn = TxnRequest::default();
        for row in &self.rows {
            let key = || row.key.clone();
            txn.compare.push(Compare::last_written(key(), row.expected));
            txn.success.extend(row.write.clone());
            txn.failure.push(Operation::Range { key: key() });
        }
        txn.compare
            .push(Compare::last_written(writer.key.clone(), revision));
        txn.success.push(writer.put(self.marker.clone()));
        txn.failure.push(writer.read());
        if self.doubt {
            let fence = writer.fence_unless(&self.marker);
            txn.failure.push(Operation::Txn(fence));
        }
        txn
    }

    fn judge(&mut self, writer: &mut Writer, answer: &TxnResponse) -> Result<Judged, StoreError> {
        let reads = answer.responses.iter();
        let found: Vec<Option<&KeyValue>> = reads
            .take_while(|response| response.response_range.is_some())
            .map(|response| response.row())
            .collect();
        if found.len() != self.rows.len() + 1 {
            self.doubt = true;
            return Err(incomplete());
        }
        let fenced = self.doubt.then_some(answer.header.revision);
        match writer.see(found[self.rows.len()], fenced, &self.marker) {
            Seen::Made(revision) => return Ok(Judged::Done(revision)),
            Seen::Gone if self.doubt => return Ok(Judged::Untold),
            Seen::Gone | Seen::NotMade => self.doubt = false,
        }
        let mut updates = Vec::new();
        for ((key, row), now) in self.keys.iter().zip(&self.rows).zip(found) {
            if now.map_or(0, |now| now.mod_revision) != row.expected {
                updates.push(update(key, now)?);
            }
        }
        if updates.is_empty() {
            return Ok(Judged::Again);
        }
        Ok(Judged::Conflict(updates))
    }

    fn fail(self, writer: &mut Writer, error: StoreError) -> CommitError {
        if !self.doubt {
            return CommitError::Failed(error);
        }
        writer.doubt(self.marker);
        CommitError::Unknown(error)
    }
}

impl Encoded {
    fn of(prefix: &str, change: &Change, lease: u64) -> Self {
        let key = below(prefix, &change.key.to_string());
        let write = match &change.value {
            Some(value) => Operation::Put {
                key: key.clone(),
                value: Bytes(value.encode()),
                lease: if value.is_mortal() { lease } else { 0 },
            },
            None => Operation::Delete { key: key.clone() },
        };
        Self {
            key,
            expected: change.expected.unwrap_or(0),
            write: Some(write),
        }
    }

    fn guard(prefix: &str, guard: &Guard) -> Self {
        Self {
            key: below(prefix, &guard.key.to_string()),
            expected: guard.expected.unwrap_or(0),
            write: None,
        }
    }
}

fn check_size(config: &Config, changes: &[Change], guards: &[Guard]) -> Result<(), StoreError> {
    let fits = fitting(config, changes, guards);
    let rows = changes
        .iter()
        .map(|c| bytes_of(config, &c.key, c.value.as_ref()));
    let bytes = rows.sum::<usize>() + bytes_around(config, guards);
    if fits == changes.len() && bytes <= config.limits.request_bytes {
        return Ok(());
    }
    Err(StoreError::TooLarge {
        object: "etcd".to_owned(),
        changes: changes.len(),
        bytes,
        fitting: fits,
    })
}

/// Of the guards and the marker.
fn bytes_around(config: &Config, guards: &[Guard]) -> usize {
    let guards = guards.iter().map(|g| bytes_of(config, &g.key, None));
    MARKER_BYTES + guards.sum::<usize>()
}

/// The key is in the comparison and in both branches.
fn bytes_of(config: &Config, key: &Key, value: Option<&Value>) -> usize {
    let key = config.prefix.len() + 1 + key.to_string().len();
    3 * key + value.map_or(0, |value| value.encode().len()) + CHANGE_BYTES
}

fn ask(
    cluster: &Cluster,
    endpoint: usize,
    txn: &TxnRequest,
    time: Duration,
) -> Result<TxnResponse, Fault> {
    match cluster.acquaint(endpoint, time) {
        Ok(()) => cluster.post(endpoint, TXN, txn, time),
        // So far, nothing was written.
        Err(Fault::Unanswered(reason)) => Err(Fault::Unreachable(reason)),
        Err(fault) => Err(fault),
    }
}

fn incomplete() -> StoreError {
    StoreError::Backend {
        object: "etcd".to_owned(),
        reason: "its answer to a transaction lacks parts".to_owned(),
        hint: "check what stands between weft-ipam and etcd".to_owned(),
    }
}

fn gone() -> StoreError {
    StoreError::Backend {
        object: "etcd".to_owned(),
        reason: "the marker of this weft-ipam is gone".to_owned(),
        hint: "leave the rows below .writer/ alone".to_owned(),
    }
}

fn update(key: &Key, found: Option<&KeyValue>) -> Result<Update, StoreError> {
    let row = match found {
        Some(found) => Some(row_of(key, found)?),
        None => None,
    };
    Ok(Update {
        key: key.clone(),
        row,
    })
}

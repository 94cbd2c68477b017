//! One commit is one etcd transaction, asked until it is answered.
//!
//! Each attempt compares the writer's marker with its last known revision and
//! writes it anew. So of several attempts at most one is made, and one that
//! comes late, out of a paused member or a slow network, finds the marker
//! changed and is not made at all.

use std::{
    collections::hash_map::RandomState,
    hash::{BuildHasher, Hasher},
    process,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use serde::{Deserialize, Serialize};

use super::{
    below,
    cluster::Cluster,
    config::Config,
    fault::Fault,
    message::{Bytes, Compare, KeyValue, Operation, TXN, TxnRequest, TxnResponse},
    row_of,
};
use crate::{
    model::{Key, Revision, Value},
    store::{Change, CommitError, Guard, StoreError, Update, expectations},
};

/// Before all rows, whose names start with a letter.
pub(super) const MARKERS: &str = ".writer/";

/// Of a transaction, for the marker: its read, and its write.
const MARKER_OPERATIONS: usize = 2;

/// More than protobuf's framing takes, for a change and for the rest with the
/// marker.
const CHANGE_BYTES: usize = 64;
const MARKER_BYTES: usize = 2048;

/// How often a marker that was changed from elsewhere is taken over in one
/// commit. Only a load's sweep and one's own late attempts change it.
const ADOPTIONS: usize = 4;

/// Who commits: one store, from its start to its end.
#[derive(Debug)]
pub(super) struct Writer {
    pub key: Bytes,
    id: String,
    commits: u64,
    /// Of the marker; 0: there is none.
    revision: Revision,
    /// A commit may still be made.
    in_doubt: bool,
}

/// The marker's value.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Marker {
    /// Of the commit that wrote it.
    commit: String,
    /// Seconds since 1970.
    time: u64,
}

/// A change or a guard in etcd's terms.
struct Encoded {
    key: Bytes,
    /// 0: must not exist.
    expected: Revision,
    /// None of a guard.
    write: Option<Operation>,
}

/// What a transaction that was answered with no means.
enum Judged {
    /// An earlier attempt was made.
    Done(Revision),
    Conflict(Vec<Update>),
    /// The rows are as expected, the marker was not: it is known now.
    Again,
}

pub(super) fn commit(
    cluster: &Cluster,
    writer: &mut Writer,
    changes: &[Change],
    guards: &[Guard],
) -> Result<Revision, CommitError> {
    let config = &cluster.config;
    check_size(config, changes, guards).map_err(CommitError::Failed)?;
    let keys: Vec<_> = expectations(changes, guards).map(|(key, _)| key).collect();
    let written = changes.iter().map(|c| Encoded::of(&config.prefix, c));
    let compared = guards.iter().map(|g| Encoded::guard(&config.prefix, g));
    let rows: Vec<_> = written.chain(compared).collect();
    let marker = writer.next_marker();
    let mut attempts = cluster.attempts();
    let (mut doubt, mut adoptions) = (false, 0);
    loop {
        let endpoint = cluster.current();
        let fence = doubt || writer.in_doubt;
        let txn = transaction(writer, &marker, &rows, fence);
        let answer = ask(cluster, endpoint, &txn, attempts.left());
        let fault = match answer {
            Ok(answer) if answer.succeeded => {
                writer.known(answer.header.revision);
                return Ok(answer.header.revision);
            }
            Ok(answer) => match judge(writer, &marker, &keys, &rows, &answer, fence) {
                Ok(Judged::Done(revision)) => return Ok(revision),
                Ok(Judged::Conflict(updates)) => return Err(CommitError::Conflict(updates)),
                Ok(Judged::Again) if adoptions < ADOPTIONS => {
                    adoptions += 1;
                    doubt = false;
                    continue;
                }
                Ok(Judged::Again) => Fault::Foreign("the writer's marker does not stay".into()),
                Err(error) => return Err(writer.fail(error, doubt)),
            },
            Err(fault) => fault,
        };
        doubt |= fault.may_be_done();
        if !(fault.is_passing() && attempts.next(endpoint)) {
            return Err(writer.fail(fault.tell(cluster.object(endpoint)), doubt));
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

impl Writer {
    pub fn new(prefix: &str) -> Self {
        // Two hashers with random keys: no two stores share a number.
        let random = || RandomState::new().build_hasher().finish();
        let id = format!("{:016x}{:08x}", random(), process::id() ^ low(random()));
        Self {
            key: below(prefix, &format!("{MARKERS}{id}")),
            id,
            commits: 0,
            revision: 0,
            in_doubt: false,
        }
    }

    /// Makes sure that no earlier commit can be made from now on.
    pub fn settle(&mut self, cluster: &Cluster) -> Result<(), StoreError> {
        if self.in_doubt {
            self.fence(cluster)?;
        }
        Ok(())
    }

    /// Writes the marker alone: what was committed before is older, and the
    /// watch tells it before this.
    pub fn fence(&mut self, cluster: &Cluster) -> Result<Revision, StoreError> {
        let marker = self.next_marker();
        let fence = TxnRequest {
            success: vec![self.put(&marker)],
            ..TxnRequest::default()
        };
        // To make it twice does no harm.
        let answer: TxnResponse = cluster.read(TXN, &fence)?;
        self.known(answer.header.revision);
        Ok(answer.header.revision)
    }

    fn next_marker(&mut self) -> Marker {
        self.commits += 1;
        Marker {
            commit: format!("{}-{}", self.id, self.commits),
            time: seconds(SystemTime::now()),
        }
    }

    fn put(&self, marker: &Marker) -> Operation {
        Operation::Put {
            key: self.key.clone(),
            value: Bytes(serde_json::to_vec(marker).expect("plain data")),
        }
    }

    fn known(&mut self, revision: Revision) {
        self.revision = revision;
        self.in_doubt = false;
    }

    fn fail(&mut self, error: StoreError, doubt: bool) -> CommitError {
        self.in_doubt |= doubt;
        if doubt {
            CommitError::Unknown(error)
        } else {
            CommitError::Failed(error)
        }
    }
}

impl Marker {
    /// Whether it was written before then; false where it is no marker.
    pub fn is_before(value: &[u8], then: SystemTime) -> bool {
        serde_json::from_slice::<Self>(value).is_ok_and(|marker| marker.time < seconds(then))
    }
}

impl Encoded {
    fn of(prefix: &str, change: &Change) -> Self {
        let key = below(prefix, &change.key.to_string());
        let write = match &change.value {
            Some(value) => Operation::Put {
                key: key.clone(),
                value: Bytes(value.encode()),
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

/// When an earlier attempt may still come, the failure branch moves the
/// marker on too.
fn transaction(writer: &Writer, marker: &Marker, rows: &[Encoded], fence: bool) -> TxnRequest {
    let mut txn = TxnRequest::default();
    for row in rows {
        let key = || row.key.clone();
        txn.compare.push(compare(key(), row.expected));
        txn.success.extend(row.write.clone());
        txn.failure.push(Operation::Range { key: key() });
    }
    txn.compare
        .push(compare(writer.key.clone(), writer.revision));
    txn.success.push(writer.put(marker));
    txn.failure.push(Operation::Range {
        key: writer.key.clone(),
    });
    if fence {
        txn.failure.push(writer.put(&Marker {
            commit: format!("{}-fence", marker.commit),
            time: marker.time,
        }));
    }
    txn
}

fn compare(key: Bytes, revision: Revision) -> Compare {
    match revision {
        0 => Compare::Created {
            key,
            create_revision: 0,
        },
        mod_revision => Compare::Modified { key, mod_revision },
    }
}

fn judge(
    writer: &mut Writer,
    marker: &Marker,
    keys: &[&Key],
    rows: &[Encoded],
    answer: &TxnResponse,
    fenced: bool,
) -> Result<Judged, StoreError> {
    let found: Vec<Option<&KeyValue>> = answer
        .responses
        .iter()
        .map_while(|response| response.response_range.as_ref())
        .map(|range| range.kvs.first())
        .collect();
    if found.len() != rows.len() + 1 {
        return Err(incomplete());
    }
    let ours = found[rows.len()];
    let revision = ours.map_or(0, |ours| ours.mod_revision);
    writer.known(if fenced {
        answer.header.revision
    } else {
        revision
    });
    let wrote = ours.and_then(|ours| serde_json::from_slice::<Marker>(&ours.value.0).ok());
    if wrote.is_some_and(|wrote| wrote.commit == marker.commit) {
        return Ok(Judged::Done(revision));
    }
    let mut updates = Vec::new();
    for ((key, row), now) in keys.iter().zip(rows).zip(found) {
        if now.map_or(0, |now| now.mod_revision) != row.expected {
            updates.push(update(key, now)?);
        }
    }
    if updates.is_empty() {
        return Ok(Judged::Again);
    }
    Ok(Judged::Conflict(updates))
}

fn incomplete() -> StoreError {
    StoreError::Backend {
        object: "etcd".to_owned(),
        reason: "its answer to a transaction lacks parts".to_owned(),
        hint: "check what stands between weft-ipam and etcd".to_owned(),
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

fn low(number: u64) -> u32 {
    u32::try_from(number & u64::from(u32::MAX)).expect("masked")
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}

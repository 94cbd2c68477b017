//! The marker: a row of each store's own that every commit compares and
//! writes.
//!
//! It stands under a lease, so that it goes when its store is gone.
//!
//! Invariant: a commit compares the marker's revision, never its absence. So
//! once the marker was written again or is gone, nothing that was sent before
//! can be made any more; and while it has the value that a commit gave it,
//! that commit was made.

use std::{
    collections::hash_map::RandomState,
    hash::{BuildHasher, Hasher},
    process,
    sync::Arc,
};

use weft_etcd::{
    Cluster, Fault, Lease, below,
    message::{Bytes, Compare, KeyValue, Operation, Relation, TXN, TxnRequest, TxnResponse},
};

use super::commit::ADOPTIONS;
use crate::{
    model::Revision,
    store::{Outcome, StoreError},
};

/// Before all rows, whose names start with a letter.
pub(super) const MARKERS: &str = ".writer/";

/// Who commits: one store, from its start to its end.
#[derive(Debug)]
pub(super) struct Writer {
    pub key: Bytes,
    id: String,
    commits: u64,
    /// Of the marker as it was last seen; none: it is to be written first.
    revision: Option<Revision>,
    lease: Option<Lease>,
    /// What the marker says if the last commit, of which there was no answer,
    /// was made.
    in_doubt: Option<Bytes>,
}

/// What the marker tells of a commit that asked for it.
#[derive(Debug)]
pub(super) enum Seen {
    Made(Revision),
    NotMade,
    Gone,
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
            revision: None,
            lease: None,
            in_doubt: None,
        }
    }

    /// What a commit compares the marker with; it is made if it is missing.
    pub fn revision(&mut self, cluster: &Arc<Cluster>) -> Result<Revision, StoreError> {
        self.settle(cluster)?;
        match self.revision {
            Some(revision) => Ok(revision),
            None => self.fence(cluster),
        }
    }

    /// What became of the commit in doubt, which cannot be made from now on.
    pub fn settle(&mut self, cluster: &Cluster) -> Result<Outcome, StoreError> {
        let Some(doubted) = self.in_doubt.clone() else {
            return Ok(Outcome::NotMade);
        };
        let mut fence = self.fence_unless(&doubted);
        fence.success.insert(0, self.read());
        fence.failure.push(self.read());
        // To make it twice does no harm.
        let answer: TxnResponse = cluster.read(TXN, &fence)?;
        let found = answer.responses.first().and_then(|one| one.row());
        self.in_doubt = None;
        let fenced = Some(answer.header.revision);
        Ok(match self.see(found, fenced, &doubted) {
            Seen::Made(revision) => Outcome::Made(revision),
            Seen::NotMade => Outcome::NotMade,
            Seen::Gone => Outcome::Unknown,
        })
    }

    /// Writes the marker alone: what was committed before is older, and the
    /// watch tells it before this. A copy of this request that comes late
    /// finds another marker, and writes nothing over a commit's.
    pub fn fence(&mut self, cluster: &Arc<Cluster>) -> Result<Revision, StoreError> {
        let (mut renewals, mut adoptions) = (0, 0);
        loop {
            if self.lease.as_ref().is_none_or(|lease| lease.id().is_none()) {
                self.lease = Some(Lease::grant(cluster, cluster.config.times.lease)?);
            }
            let marker = self.next_marker();
            let fence = TxnRequest {
                compare: vec![Compare::last_written(
                    self.key.clone(),
                    self.revision.unwrap_or(0),
                )],
                success: vec![self.put(marker.clone())],
                failure: vec![self.read()],
            };
            // Asked again, it finds what an earlier copy wrote.
            let answer: Result<TxnResponse, _> = cluster.read_fault(TXN, &fence);
            match answer {
                Ok(answer) if answer.succeeded => {
                    self.wrote(answer.header.revision);
                    return Ok(answer.header.revision);
                }
                Ok(answer) => {
                    let found = answer.responses.first().and_then(|one| one.row());
                    self.revision = found.map(|row| row.mod_revision);
                    match found {
                        Some(row) if row.value == marker => {
                            self.wrote(row.mod_revision);
                            return Ok(row.mod_revision);
                        }
                        _ if adoptions < ADOPTIONS => adoptions += 1,
                        _ => {
                            let fault = Fault::Foreign("the writer's marker does not stay".into());
                            let object = cluster.object(cluster.current());
                            return Err(fault.tell(object).into());
                        }
                    }
                }
                Err((_, fault)) if fault.is_without_lease() && renewals == 0 => {
                    renewals += 1;
                    self.forget_lease();
                }
                Err((endpoint, fault)) => return Err(fault.tell(cluster.object(endpoint)).into()),
            }
        }
    }

    /// etcd does not know it any more, and so the marker is gone too.
    pub fn forget_lease(&mut self) {
        (self.lease, self.revision) = (None, None);
    }

    /// The value that the next commit gives the marker.
    pub fn next_marker(&mut self) -> Bytes {
        self.commits += 1;
        Bytes(format!("{}-{}", self.id, self.commits).into_bytes())
    }

    pub fn put(&self, value: Bytes) -> Operation {
        Operation::Put {
            key: self.key.clone(),
            value,
            lease: self.lease.as_ref().and_then(Lease::id).unwrap_or(0),
        }
    }

    pub fn read(&self) -> Operation {
        Operation::Range {
            key: self.key.clone(),
        }
    }

    /// Writes the marker anew, unless it says that this commit was made, or is
    /// gone: then nothing can be made as it is.
    pub fn fence_unless(&mut self, made: &Bytes) -> TxnRequest {
        let marker = self.next_marker();
        TxnRequest {
            compare: vec![Compare::Value {
                key: self.key.clone(),
                result: Relation::NotEqual,
                value: made.clone(),
            }],
            success: vec![self.put(marker)],
            failure: Vec::new(),
        }
    }

    /// Takes in the marker as a transaction found it. If that fenced, it wrote
    /// the marker at `fenced`.
    pub fn see(
        &mut self,
        found: Option<&KeyValue>,
        fenced: Option<Revision>,
        made: &Bytes,
    ) -> Seen {
        let Some(found) = found else {
            self.revision = None;
            return Seen::Gone;
        };
        if found.value == *made {
            self.wrote(found.mod_revision);
            return Seen::Made(found.mod_revision);
        }
        self.wrote(fenced.unwrap_or(found.mod_revision));
        Seen::NotMade
    }

    /// The marker was written last at this revision, and nothing is in doubt.
    pub fn wrote(&mut self, revision: Revision) {
        self.revision = Some(revision);
        self.in_doubt = None;
    }

    pub fn doubt(&mut self, made: Bytes) {
        self.in_doubt = Some(made);
    }
}

fn low(number: u64) -> u32 {
    u32::try_from(number & u64::from(u32::MAX)).expect("masked")
}

//! Rows in etcd, written only as they were read.
//!
//! Invariant: a write whose answer was lost and that is found done counts as
//! done.

use weft_etcd::{
    Cluster, Error, end_of,
    message::{
        Bytes, Compare, KeyValue, Operation, RANGE, RangeRequest, RangeResponse, TXN, TxnRequest,
        TxnResponse,
    },
};

pub fn read(cluster: &Cluster, key: &str) -> Result<Option<KeyValue>, Error> {
    let query = RangeRequest {
        key: key.into(),
        ..RangeRequest::default()
    };
    let found: RangeResponse = cluster.read(RANGE, &query)?;
    Ok(found.kvs.into_iter().next())
}

/// All rows below the key at a revision; 0: at the newest. Returns which that
/// was.
pub fn list(cluster: &Cluster, key: &str, revision: u64) -> Result<(u64, Vec<KeyValue>), Error> {
    let key = key.trim_end_matches('/');
    let query = RangeRequest {
        key: weft_etcd::below(key, ""),
        range_end: Some(end_of(key)),
        revision,
        ..RangeRequest::default()
    };
    let found: RangeResponse = cluster.read(RANGE, &query)?;
    Ok((found.header.revision, found.kvs))
}

/// Writes the row if it was written last at `seen`; 0: if there is none.
/// Returns the revision of this write; none: somebody else wrote the row.
pub fn write(cluster: &Cluster, key: &str, seen: u64, value: String) -> Result<Option<u64>, Error> {
    let value = Bytes(value.into_bytes());
    let put = Operation::Put {
        key: key.into(),
        value: value.clone(),
        lease: 0,
    };
    let answer = swap(cluster, key, seen, put)?;
    if answer.succeeded {
        return Ok(Some(answer.header.revision));
    }
    let found = answer.responses.first().and_then(|response| response.row());
    Ok(found
        .filter(|row| row.value == value && row.mod_revision > seen)
        .map(|row| row.mod_revision))
}

/// False: somebody else wrote the row.
pub fn delete(cluster: &Cluster, key: &str, seen: u64) -> Result<bool, Error> {
    let answer = swap(cluster, key, seen, Operation::Delete { key: key.into() })?;
    let found = answer.responses.first().and_then(|response| response.row());
    Ok(answer.succeeded || found.is_none())
}

fn swap(cluster: &Cluster, key: &str, seen: u64, then: Operation) -> Result<TxnResponse, Error> {
    let query = TxnRequest {
        compare: vec![Compare::last_written(key.into(), seen)],
        success: vec![then],
        failure: vec![Operation::Range { key: key.into() }],
    };
    cluster.read(TXN, &query)
}

//! All rows at one revision, page by page.

use weft_etcd::{
    Cluster, Fault, below, end_of,
    message::{Bytes, KeyValue, RANGE, RangeRequest, RangeResponse},
};

use super::{Named, name_of, row_of};
use crate::store::{Loaded, StoreError};

/// How often a load starts anew when etcd compacts the revision it reads.
const TRIES: usize = 3;

/// etcd walks its whole index for each page, so pages are large; but a page
/// must arrive within the time for a request.
const PAGE_BYTES: usize = 8 * 1024 * 1024;
const FIRST_PAGE: u64 = 1000;
const LARGEST_PAGE: u64 = 50_000;

pub(super) fn load(cluster: &Cluster) -> Result<Loaded, StoreError> {
    let mut tries = 0;
    loop {
        tries += 1;
        match read_all(cluster) {
            Ok(loaded) => return Ok(loaded),
            Err(Failure::Fault(_, fault)) if fault.is_compacted() && tries < TRIES => {}
            Err(Failure::Fault(endpoint, fault)) => {
                return Err(fault.tell(cluster.object(endpoint)).into());
            }
            Err(Failure::Row(error)) => return Err(error),
        }
    }
}

enum Failure {
    Fault(usize, Fault),
    Row(StoreError),
}

fn read_all(cluster: &Cluster) -> Result<Loaded, Failure> {
    let prefix = &cluster.config.prefix;
    let mut loaded = Loaded::default();
    let mut query = RangeRequest {
        key: below(prefix, ""),
        range_end: Some(end_of(prefix)),
        limit: FIRST_PAGE,
        ..RangeRequest::default()
    };
    loop {
        let page: RangeResponse = cluster
            .read_fault(RANGE, &query)
            .map_err(|(endpoint, fault)| Failure::Fault(endpoint, fault))?;
        if query.revision == 0 {
            query.revision = page.header.revision;
            loaded.revision = page.header.revision;
        }
        let next = page
            .kvs
            .last()
            .filter(|_| page.more)
            .map(|last| after(&last.key));
        query.limit = next_limit(&page.kvs);
        for found in page.kvs {
            match name_of(prefix, &found.key).map_err(|error| Failure::Row(error.into()))? {
                Named::Marker | Named::Foreign => {}
                Named::Row(key) => {
                    let row = row_of(&key, &found).map_err(|error| Failure::Row(error.into()))?;
                    loaded.rows.push((key, row));
                }
            }
        }
        match next {
            Some(key) => query.key = key,
            None => return Ok(loaded),
        }
    }
}

/// The next key that there can be.
fn after(key: &Bytes) -> Bytes {
    let mut next = key.clone();
    next.0.push(0);
    next
}

/// As many rows of this size as a page can hold.
fn next_limit(page: &[KeyValue]) -> u64 {
    let bytes: usize = page
        .iter()
        .map(|row| row.key.0.len() + row.value.0.len())
        .sum();
    let each = (bytes / page.len().max(1)).max(1);
    u64::try_from(PAGE_BYTES / each)
        .unwrap_or(LARGEST_PAGE)
        .clamp(1, LARGEST_PAGE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_grow_until_they_are_large_and_never_become_empty() {
        let row = |size: usize| KeyValue {
            key: Bytes(vec![b'k'; 100]),
            value: Bytes(vec![b'v'; size - 100]),
            mod_revision: 1,
            ..KeyValue::default()
        };
        assert_eq!(next_limit(&[row(1024), row(1024)]), 8192);
        assert_eq!(next_limit(&[row(100)]), LARGEST_PAGE);
        assert_eq!(next_limit(&[row(PAGE_BYTES + 100)]), 1);
        assert_eq!(next_limit(&[]), LARGEST_PAGE);
    }
}

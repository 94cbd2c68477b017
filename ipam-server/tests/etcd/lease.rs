//! Leases, and the marker under one, on a real etcd.

use std::time::Duration;

use weft_ipam::store::{
    CommitError, Outcome, Store,
    etcd::{Etcd, Lease},
};

use crate::support::{
    change,
    etcd::{Member, config},
    eventually,
    proxy::{Proxy, Way},
};

/// The shortest that etcd grants.
const SHORT: Duration = Duration::from_secs(2);
const MARKERS: &str = "/weft/ipam/v1/.writer/";

fn put_under(etcd: &Member, lease: &Lease, key: &str) {
    let id = format!("--lease={:x}", lease.id().expect("it lives"));
    etcd.must(&["put", &id, key, "x"]);
}

fn count(etcd: &Member, prefix: &str) -> usize {
    let keys = etcd.must(&["get", "--prefix", "--keys-only", prefix]);
    keys.lines().filter(|line| !line.is_empty()).count()
}

/// With a marker that goes soon.
fn short_lived(ports: &[u16]) -> Etcd {
    let mut config = config(ports);
    config.times.lease = SHORT;
    let mut store = Etcd::new(config).expect("a valid configuration");
    store.load().expect("etcd runs");
    store.frontier().expect("etcd runs");
    store
}

#[test]
fn a_lease_is_kept_alive_and_ends_with_its_holder() {
    let etcd = Member::start(&[]);
    let store = crate::support::etcd::store(&[etcd.client]);
    let lease = store.lease(SHORT).expect("etcd runs");
    put_under(&etcd, &lease, "/node/1");
    std::thread::sleep(3 * SHORT);
    assert_eq!(count(&etcd, "/node/"), 1, "it is kept alive");
    drop(lease);
    assert_eq!(count(&etcd, "/node/"), 0, "it is revoked");

    let lease = store.lease(SHORT).expect("etcd runs");
    let id = format!("{:x}", lease.id().expect("it lives"));
    etcd.must(&["lease", "revoke", &id]);
    eventually("the holder hears of it", || lease.id().is_none());
}

#[test]
fn a_lease_of_whom_nobody_hears_ends_and_is_told() {
    let etcd = Member::start(&[]);
    let proxy = Proxy::before(etcd.client);
    let store = crate::support::etcd::store(&[proxy.port]);
    let lease = store.lease(SHORT).expect("etcd runs");
    put_under(&etcd, &lease, "/node/1");
    proxy.requests(Way::Lose);
    proxy.cut();
    eventually("its rows go", || count(&etcd, "/node/") == 0);
    assert!(lease.id().is_some(), "nobody could tell");
    proxy.requests(Way::Pass);
    proxy.cut();
    eventually("the holder hears of it", || lease.id().is_none());
}

#[test]
fn a_marker_goes_with_its_store_and_comes_again() {
    let etcd = Member::start(&[]);
    let proxy = Proxy::before(etcd.client);
    let first = short_lived(&[etcd.client]);
    assert_eq!(count(&etcd, MARKERS), 1);
    drop(first);
    assert_eq!(count(&etcd, MARKERS), 0, "a store that ends leaves nothing");

    let mut cut_off = short_lived(&[proxy.port]);
    let revision = cut_off.commit(&[change(1, 1, None)], &[]).expect("a row");
    proxy.requests(Way::Lose);
    proxy.cut();
    eventually("the marker goes", || count(&etcd, MARKERS) == 0);
    proxy.requests(Way::Pass);
    proxy.cut();
    cut_off
        .commit(&[change(1, 2, Some(revision))], &[])
        .expect("nothing was in doubt");
    assert_eq!(count(&etcd, MARKERS), 1);
}

#[test]
fn what_was_in_doubt_when_the_lease_ended_is_not_made_later() {
    let etcd = Member::start(&[]);
    let (slow, other) = (Proxy::before(etcd.client), Proxy::before(etcd.client));
    let mut store = short_lived(&[slow.port, other.port]);
    let first = store.commit(&[change(1, 1, None)], &[]).expect("a new row");
    slow.requests(Way::Hold);
    other.requests(Way::Lose);
    let result = store.commit(&[change(1, 2, Some(first))], &[]);
    assert!(matches!(result, Err(CommitError::Unknown(_))), "{result:?}");
    eventually("the marker goes", || count(&etcd, MARKERS) == 0);
    other.requests(Way::Pass);
    other.cut();
    assert_eq!(store.settle().expect("by the other way"), Outcome::Unknown);
    store.frontier().expect("a marker of a new lease");
    slow.requests(Way::Pass);
    std::thread::sleep(Duration::from_secs(1));
    let rows = store.load().expect("etcd runs").rows;
    assert_eq!(rows[0].1.revision, first, "it came late and was made");
}

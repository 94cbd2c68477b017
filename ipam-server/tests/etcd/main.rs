//! The etcd store with a real etcd, as it works and as it fails.

use weft_ipam::store::Store;

#[path = "../store/contract.rs"]
mod contract;
mod failures;
mod lease;
mod members;
mod processes;
mod store;
mod support;
mod tls;
mod trouble;
mod users;

#[test]
fn etcd_holds_the_contract() {
    let member = support::etcd::Member::start(&[]);
    let open = || -> Box<dyn Store> { Box::new(support::etcd::store(&[member.client])) };
    contract::holds(open(), Some(open()));
}

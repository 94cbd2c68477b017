//! What stores keep, and what may befall them.

use weft_ipam::store::{memory::Memory, redb::Redb};

mod contract;
mod embedded;

#[test]
fn memory_holds() {
    let store = Memory::default();
    contract::holds(Box::new(store.clone()), Some(Box::new(store)));
}

#[test]
fn redb_holds() {
    let directory = tempfile::tempdir().expect("a directory");
    let store = Redb::open(directory.path().join("ipam.redb")).expect("it opens");
    contract::holds(Box::new(store), None);
}

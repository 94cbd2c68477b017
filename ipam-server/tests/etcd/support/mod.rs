//! A real etcd on loopback and a proxy before it that fails as networks do.

pub mod etcd;
pub mod proxy;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use weft_ipam::{
    model::{Block, Key, Revision, Value},
    store::Change,
};

/// Waits until it holds; fails after 20 s.
pub fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(20);
    while !holds() {
        assert!(Instant::now() < end, "in 20 s it did not come: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

pub fn key(number: u32) -> Key {
    let [_, b, c, d] = (number * 64).to_be_bytes();
    Key::Block(format!("10.{b}.{c}.{d}/26").parse().expect("a CIDR"))
}

pub fn block(number: u32, sequence: u64) -> Value {
    let Key::Block(cidr) = key(number) else {
        unreachable!("made above")
    };
    Value::Block(Arc::new(Block {
        cidr,
        owner: None,
        claimed: 0,
        sequence,
        allocations: Default::default(),
        free: Default::default(),
    }))
}

pub fn change(number: u32, sequence: u64, expected: Option<Revision>) -> Change {
    Change {
        key: key(number),
        value: Some(block(number, sequence)),
        expected,
    }
}

pub fn removal(number: u32, expected: Revision) -> Change {
    Change {
        key: key(number),
        value: None,
        expected: Some(expected),
    }
}

//! Nodes that register, over a store that does what the test says.

use std::{
    thread,
    time::{Duration, Instant},
};

use crossbeam::channel::Sender;
use serde_json::json;
use weft_api::ipam::{Code, Node, Reply};
use weft_ipam::{
    model::{Block, Key, Value},
    store::{Change, News, Store},
};

use super::rig::*;

const GRACE: Duration = Duration::from_millis(100);

fn silent() -> (Rig, Sender<u64>) {
    let (silence, silenced) = crossbeam::channel::unbounded();
    let rig = Rig::with_members(&Scripted::default(), GRACE, silenced);
    (rig, silence)
}

fn record(rig: &mut Rig) -> Option<Node> {
    let Reply::Nodes(nodes) = rig.granted(request(json!({"op": "nodes"}))) else {
        panic!("nodes");
    };
    nodes.into_iter().next()
}

fn eventually(rig: &mut Rig, what: &str, holds: impl Fn(Option<&Node>) -> bool) {
    let until = Instant::now() + PATIENCE;
    while !holds(record(rig).as_ref()) {
        assert!(Instant::now() < until, "it did not come: {what}");
        thread::sleep(Duration::from_millis(10));
    }
}

/// All is loaded anew.
fn missed(rig: &Rig) {
    for tell in rig.script.watches.lock().expect("whole").iter_mut() {
        tell(News::Missed);
    }
}

fn has_own(node: Option<&Node>) -> bool {
    node.is_some_and(|node| node.tunnel.len() == 1)
}

#[test]
fn a_record_whose_completion_was_not_told_is_withdrawn_with_its_node() {
    let (mut rig, silence) = silent();
    rig.granted(registration("n1", 1));
    let ticket = rig.ticket;
    rig.steps([Step::Pass, Step::UntoldDone]);
    rig.granted(pool("10.1.0.0/24"));
    eventually(&mut rig, "it has an address", has_own);
    assert!(rig.script.steps.lock().expect("whole").is_empty());
    silence.send(ticket).expect("the writer runs");
    eventually(&mut rig, "it is withdrawn", |node| node.is_none());
    rig.granted(request(json!({"op": "node-delete", "name": "n1"})));
    assert_eq!(rig.live(), 0);
}

#[test]
fn a_record_whose_writing_anew_was_not_told_is_withdrawn_with_its_node() {
    let (mut rig, silence) = silent();
    rig.granted(registration("n1", 1));
    let ticket = rig.ticket;
    // As its lease ran out.
    rig.steps([Step::UntoldDone]);
    let load = rig.script.rows.load().expect("memory loads");
    let lost = load
        .rows
        .iter()
        .filter(|(key, _)| matches!(key, Key::Node(_) | Key::Underlay(_) | Key::Vtep(_)));
    let lost: Vec<_> = lost
        .map(|(key, row)| Change {
            key: key.clone(),
            value: None,
            expected: Some(row.revision),
        })
        .collect();
    rig.script.rows.commit(&lost, &[]).expect("it is lost");
    missed(&rig);
    let written = || rig.script.steps.lock().expect("whole").is_empty();
    let until = Instant::now() + PATIENCE;
    while !written() {
        assert!(Instant::now() < until, "it is not written anew");
        thread::sleep(Duration::from_millis(10));
    }
    eventually(&mut rig, "it is there again", |node| node.is_some());
    silence.send(ticket).expect("the writer runs");
    eventually(&mut rig, "it is withdrawn", |node| node.is_none());
}

#[test]
fn who_frees_an_address_is_told_that_its_node_is_back() {
    let own = || json!({"op": "release", "by": "handle", "handle": "tunnel:n1"});
    let delete = || json!({"op": "node-delete", "name": "n1"});
    for freeing in [own(), delete()] {
        // No other news come.
        let mut rig = Rig::pooled(&Scripted::default());
        rig.granted(registration("n1", 1));
        rig.granted(request(json!({"op": "node-leave", "name": "n1"})));
        rig.steps([Step::After(registration("n1", 1))]);
        assert_eq!(rig.refused(request(freeing)), Code::InUse);
        assert_eq!(rig.live(), 1);
        assert!(has_own(record(&mut rig).as_ref()));
    }
}

#[test]
fn an_address_that_a_record_names_and_nobody_holds_is_given_anew() {
    let (mut rig, _silence) = silent();
    rig.granted(pool("10.1.0.0/24"));
    rig.granted(registration("n1", 1));
    let own = record(&mut rig).expect("it is known").tunnel[0];
    // A foreign hand frees it; a load tells of it.
    let rows = rig.script.rows.load().expect("memory loads").rows;
    let (key, row) = rows
        .iter()
        .find(|(key, _)| matches!(key, Key::Block(_)))
        .expect("a block");
    let Value::Block(block) = &row.value else {
        panic!("a block");
    };
    let mut block = Block::clone(block);
    block.free.extend(block.allocations.keys());
    block.allocations.clear();
    let freed = Change {
        key: key.clone(),
        value: Some(Value::Block(block.into())),
        expected: Some(row.revision),
    };
    rig.script.rows.commit(&[freed], &[]).expect("it is freed");
    missed(&rig);
    let until = Instant::now() + PATIENCE;
    loop {
        let now = record(&mut rig).expect("it is known").tunnel[0];
        let asked = request(json!({"op": "allocations", "node": "n1"}));
        let Reply::Allocations(all) = rig.granted(asked) else {
            panic!("allocations");
        };
        if all.iter().any(|one| one.address == now) {
            break;
        }
        assert!(Instant::now() < until, "{own} is nobody's");
        thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(rig.live(), 1);
}

//! The writer over a store that does what the test says.

mod members;
mod rig;

use std::{
    sync::{Arc, atomic::Ordering},
    time::Instant,
};

use serde_json::json;
use weft_api::ipam::{Code, Error, Event, Reply, Request, Time};
use weft_ipam::{
    store::{News, Store},
    writer::{Note, Writer},
};

use rig::*;

#[test]
fn a_conflict_is_planned_again() {
    let script = Scripted::default();
    let mut rig = Rig::pooled(&script);
    let first = address(&rig.granted(allocate("c1")));
    // No news come: the book is behind, and the store says so.
    rig.steps([Step::After(allocate("c2"))]);
    let third = address(&rig.granted(allocate("c3")));
    let second = address(&rig.granted(allocate("c2")));
    assert!(first != second && second != third && first != third);
    assert_eq!(rig.live(), 3);
}

#[test]
fn a_conflict_without_end_is_told() {
    let script = Scripted::default();
    let mut rig = Rig::pooled(&script);
    rig.steps((0..101).map(|_| Step::Conflict));
    assert_eq!(rig.refused(allocate("c1")), Code::Contended);
    assert_eq!(rig.script.steps.lock().expect("whole").len(), 0);
    assert_eq!(rig.live(), 0);
    rig.steps((0..100).map(|_| Step::Conflict));
    rig.granted(allocate("c1"));
    assert_eq!(rig.live(), 1);
}

#[test]
fn a_failure_refuses_changes_and_answers_questions() {
    let script = Scripted::default();
    other(&script.rows, pool("10.1.0.0/24"));
    script.steps.lock().expect("whole").push_back(Step::Failed);
    let status = request(json!({"op": "pools"}));
    let missing = request(json!({"op": "unreserve", "name": "none"}));
    let mut rig = Rig::with(
        &script,
        vec![allocate("c1"), status, missing, allocate("c2")],
    );
    let answers: Vec<_> = (0..4).map(|_| rig.answer()).collect();
    let codes = answers
        .iter()
        .map(|answer| answer.as_ref().err().map(|e| e.code));
    let expected = [
        Some(Code::Unavailable),
        None,
        Some(Code::NotFound),
        Some(Code::Unavailable),
    ];
    assert_eq!(codes.collect::<Vec<_>>(), expected);
    assert_eq!(rig.live(), 0);
    rig.granted(allocate("c1"));
    assert_eq!(rig.live(), 1);
}

#[test]
fn what_may_have_been_done_is_looked_up() {
    for step in [Step::UnknownDone, Step::UnknownUndone] {
        let script = Scripted::default();
        let mut rig = Rig::pooled(&script);
        rig.steps([step]);
        let first = address(&rig.granted(allocate("c1")));
        assert_eq!(rig.live(), 1);
        assert_eq!(address(&rig.granted(allocate("c1"))), first);
        assert_eq!(rig.resyncs(), 0, "nothing was missed");
    }
}

#[test]
fn what_was_done_unheard_is_answered_as_done() {
    let script = Scripted::default();
    let mut rig = Rig::pooled(&script);
    rig.granted(request(
        json!({"op": "reserve", "name": "r", "cidrs": ["10.1.0.0/30"]}),
    ));
    rig.granted(node("n1", 1));
    let given = address(&rig.granted(allocate("c1")));
    rig.steps([Step::UnknownDone]);
    assert_eq!(
        released(rig.granted(release("c1"))).released,
        [address_of(&given)]
    );
    rig.granted(request(
        json!({"op": "pool-disable", "name": "default", "disabled": true}),
    ));
    for gone in [
        json!({"op": "unreserve", "name": "r"}),
        json!({"op": "node-delete", "name": "n1"}),
        json!({"op": "pool-delete", "name": "default"}),
    ] {
        rig.steps([Step::UnknownDone]);
        assert_eq!(rig.granted(request(gone.clone())), Reply::Done, "{gone}");
        assert_eq!(rig.refused(request(gone)), Code::NotFound, "it is gone");
        assert_eq!(rig.script.steps.lock().expect("whole").len(), 0);
    }
    assert_eq!(rig.live(), 0);
}

#[test]
fn what_nobody_can_tell_is_not_planned_again() {
    let script = Scripted::default();
    let mut rig = Rig::pooled(&script);
    rig.granted(allocate("c1"));
    rig.steps([Step::UntoldDone]);
    assert_eq!(rig.refused(release("c1")), Code::Deadline);
    assert_eq!(rig.resyncs(), 1, "watchers are told all anew");
    assert_eq!(rig.live(), 0, "the book has what was done");
}

#[test]
fn the_parts_of_a_request_are_answered_as_one() {
    let script = Scripted {
        room: Some(2),
        news: true,
        ..Scripted::default()
    };
    let mut rig = Rig::start(&script);
    rig.granted(request(json!({"op": "pool-create", "name": "default",
        "cidr": "10.1.0.0/24", "block_size": 32})));
    let give = |rig: &mut Rig, n: u8| {
        let given = rig.granted(allocate(&format!("c{n}")));
        address_of(&address(&given))
    };
    let given: Vec<_> = (0..8).map(|n| give(&mut rig, n)).collect();
    rig.raise_mark(2);
    // Two parts go through, then one is another server's.
    rig.steps([Step::Pass, Step::Pass, Step::After(release("c7"))]);
    let gc = json!({"op": "gc", "network": "pods", "node": "n1", "valid": []});
    let mut told = released(rig.granted(request(gc))).released;
    told.sort_unstable();
    let mut expected = given[..7].to_vec();
    expected.sort_unstable();
    assert_eq!(told, expected);
    assert_eq!(rig.live(), 0);

    let given: Vec<_> = (0..8).map(|n| give(&mut rig, n)).collect();
    let all = given.iter().map(|one| json!({"address": one}));
    let all = json!({"op": "release", "by": "addresses", "addresses": all.collect::<Vec<_>>()});
    rig.steps([Step::Pass, Step::After(release("c7"))]);
    let told = released(rig.granted(request(all)));
    assert_eq!((told.released.len(), told.unallocated), (7, vec![given[7]]));

    for n in 0..8 {
        give(&mut rig, n);
    }
    rig.raise_mark(4);
    rig.steps([Step::Pass, Step::Failed]);
    let gc = json!({"op": "gc", "network": "pods", "node": "n1", "valid": []});
    let error = rig.ask(request(gc)).expect_err("the store failed");
    assert_eq!(error.code, Code::Deadline, "something was changed: {error}");
    assert!(
        error.message.contains("2 addresses were released"),
        "{error}"
    );
    assert_eq!(rig.live(), 6);
}

#[test]
fn what_cannot_be_looked_up_is_a_deadline() {
    for (step, done) in [(Step::UnknownDone, 1), (Step::UnknownUndone, 0)] {
        let script = Scripted::default();
        let mut rig = Rig::pooled(&script);
        rig.steps([step]);
        // Neither what became of it, nor the rows; nor the rows again.
        script.deaf.store(3, Ordering::SeqCst);
        assert_eq!(rig.refused(allocate("c1")), Code::Deadline);
        // A book that may be wrong answers nothing.
        let status = request(json!({"op": "status"}));
        assert_eq!(rig.refused(status), Code::Unavailable);
        assert_eq!(rig.live(), done);
        rig.granted(allocate("c1"));
        assert_eq!(rig.live(), 1);
    }
}

#[test]
fn a_store_that_does_not_load_does_not_start() {
    let script = Scripted::default();
    script.deaf.store(1, Ordering::SeqCst);
    let start = || {
        Writer::start(
            Box::new(script.clone()),
            Box::new(|| NOW),
            8,
            Box::new(drop),
        )
    };
    let told = start().expect_err("it does not load").to_string();
    assert_eq!(told, "script: as written; read on");
    start().expect("it loads now");
}

#[test]
fn missed_news_load_all_anew_and_watch_again() {
    let script = Scripted::default();
    let mut rig = Rig::pooled(&script);
    other(&script.rows, node("n7", 7));
    let mut tell = script
        .watches
        .lock()
        .expect("whole")
        .pop()
        .expect("a watch");
    tell(News::Missed);
    let until = Instant::now() + PATIENCE;
    while rig.resyncs() == 0 {
        assert!(Instant::now() < until, "nobody was told");
        rig.granted(request(json!({"op": "status"})));
    }
    assert!(matches!(&rig.heard[..], [Event::Snapshot { nodes, .. }] if nodes.len() == 1));
    assert_eq!(
        script.watches.lock().expect("whole").len(),
        1,
        "it watches again"
    );
}

#[test]
fn missed_news_are_loaded_in_the_end_though_nobody_asks() {
    let script = Scripted::default();
    let rig = Rig::pooled(&script);
    other(&script.rows, node("n7", 7));
    script.deaf.store(1, Ordering::SeqCst);
    let mut tell = script.watches.lock().expect("whole").remove(0);
    tell(News::Missed);
    let note = rig.notes.recv_timeout(PATIENCE).expect("watchers are told");
    assert!(matches!(
        note,
        Note::Resync(Event::Snapshot { nodes, .. }) if nodes.len() == 1
    ));
}

#[test]
fn news_in_the_middle_of_a_batch_and_echoes_are_told_once() {
    let script = Scripted {
        news: true,
        ..Scripted::default()
    };
    let mut rig = Rig::pooled(&script);
    rig.steps([Step::After(node("n8", 8))]);
    rig.granted(node("n1", 1));
    rig.granted(allocate("c1"));
    rig.granted(allocate("c2"));
    let nodes = |rig: &mut Rig| match rig.granted(request(json!({"op": "nodes"}))) {
        Reply::Nodes(nodes) => nodes.len(),
        other => panic!("{other:?}"),
    };
    let until = Instant::now() + PATIENCE;
    while nodes(&mut rig) < 2 {
        assert!(Instant::now() < until, "n8 is not heard of");
    }
    rig.granted(release("c1"));
    assert_eq!(rig.live(), 1);
    let mut told: Vec<String> = (rig.heard.iter())
        .map(|event| match event {
            Event::Node { node, .. } => node.name.to_string(),
            Event::Route { .. } => "route".into(),
            other => panic!("{other:?}"),
        })
        .collect();
    told.sort();
    assert_eq!(told, ["n1", "n8", "route"]);
}

#[test]
fn a_clock_that_jumps_doubles_nothing() {
    let script = Scripted::default();
    let mut rig = Rig::start(&script);
    rig.granted(pool("10.1.0.0/26"));
    rig.granted(request(json!({"op": "configure", "cooldown_seconds": 60})));
    let mut sequences = std::collections::BTreeSet::new();
    let hour = 3_600_000;
    for (n, at) in [NOW, NOW - hour, NOW + hour, 0, NOW, Time::MAX, NOW]
        .into_iter()
        .enumerate()
    {
        rig.clock.store(at, Ordering::SeqCst);
        for place in 0..8 {
            rig.granted(allocate(&format!("c{n}-{place}")));
        }
        let all = rig.granted(request(json!({"op": "allocations"})));
        let Reply::Allocations(all) = all else {
            panic!("{all:?}");
        };
        let held: Vec<_> = all.iter().filter(|one| one.handle.is_some()).collect();
        let addresses: std::collections::BTreeSet<_> = held.iter().map(|one| one.address).collect();
        assert_eq!((held.len(), addresses.len()), (8 + n, 8 + n));
        let fresh = held
            .iter()
            .filter(|one| sequences.insert((one.address, one.sequence)));
        assert_eq!(fresh.count(), 8, "a sequence number came twice at {at}");
        // One stays.
        for place in 0..7 {
            rig.granted(release(&format!("c{n}-{place}")));
        }
    }
}

fn cooldown() -> Request {
    request(json!({"op": "configure", "cooldown_seconds": 30}))
}

fn status() -> Request {
    request(json!({"op": "status"}))
}

/// Held, kept and resting.
fn counted(rig: &mut Rig) -> usize {
    match rig.granted(status()) {
        Reply::Status(status) => status.allocations,
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_has_rested_is_swept_however_busy_the_server_is() {
    let script = Scripted::default();
    let mut rig = Rig::pooled(&script);
    rig.granted(cooldown());
    rig.granted(allocate("c1"));
    rig.granted(release("c1"));
    assert_eq!(counted(&mut rig), 1, "it rests");
    rig.clock.store(NOW + 31_000, Ordering::SeqCst);
    // A request always waits: there is no idle moment.
    let held = Instant::now();
    let mut unanswered = 50;
    for _ in 0..unanswered {
        rig.send(status());
    }
    while rig.script.rows.load().expect("memory loads").revision < 5 {
        rig.granted(status());
        rig.send(status());
        unanswered += 1;
        assert!(held.elapsed() < PATIENCE, "nothing was swept");
    }
    for _ in 0..unanswered {
        rig.answer().expect("a status");
    }
    rig.granted(node("n2", 2));
    assert_eq!(counted(&mut rig), 0);
}

#[test]
fn of_many_servers_one_sweeps() {
    let script = Scripted {
        news: true,
        ..Scripted::default()
    };
    let mut rigs: Vec<_> = (0..8).map(|_| Rig::start(&script)).collect();
    rigs[0].granted(pool("10.1.0.0/24"));
    rigs[0].granted(cooldown());
    rigs[0].granted(allocate("c1"));
    rigs[0].granted(release("c1"));
    let before = rigs[0].script.rows.load().expect("memory loads").revision;
    for step in 0..500 {
        for rig in &mut rigs {
            rig.clock.store(NOW + 29_000 + step * 100, Ordering::SeqCst);
            // Its sweep comes after the first answer.
            rig.granted(status());
            rig.granted(status());
        }
    }
    assert_eq!(counted(&mut rigs[7]), 0);
    let after = script.rows.clone().load().expect("memory loads").revision;
    assert_eq!(after, before + 1, "one sweep");
    assert_eq!(script.conflicts.load(Ordering::SeqCst), 0);
}

#[test]
fn a_sweep_that_lost_waits_for_its_next_turn() {
    let script = Scripted::default();
    let mut rig = Rig::pooled(&script);
    rig.granted(cooldown());
    rig.granted(allocate("c1"));
    rig.granted(release("c1"));
    rig.clock.store(NOW + 31_000, Ordering::SeqCst);
    rig.steps([Step::Conflict, Step::Failed]);
    let steps = |rig: &Rig| rig.script.steps.lock().expect("whole").len();
    rig.granted(status());
    rig.granted(status());
    assert_eq!(
        (counted(&mut rig), steps(&rig)),
        (1, 1),
        "it lost, and waits"
    );
    rig.clock.store(NOW + 32_000, Ordering::SeqCst);
    rig.granted(status());
    rig.granted(status());
    assert_eq!(
        (counted(&mut rig), steps(&rig)),
        (1, 0),
        "it failed, and waits"
    );
    rig.clock.store(NOW + 63_000, Ordering::SeqCst);
    rig.granted(status());
    rig.granted(status());
    assert_eq!(counted(&mut rig), 0);
}

#[test]
fn news_are_heard_while_a_batch_is_planned_again() {
    let script = Scripted {
        news: true,
        ..Scripted::default()
    };
    let mut rig = Rig::pooled(&script);
    // The conflict tells of no row; only news can tell that n1 has a block.
    rig.steps([Step::AfterAndConflict(allocate("c1"))]);
    let answer = rig.granted(allocate("c1"));
    let Reply::Allocated(given) = answer else {
        panic!("{answer:?}");
    };
    assert!(given.existing, "the other server's answer");
    assert_eq!(script.conflicts.load(Ordering::SeqCst), 0, "heard at once");
}

#[test]
fn what_is_too_large_is_refused_alone() {
    let script = Scripted::default();
    other(&script.rows, pool("10.1.0.0/24"));
    let huge = json!({"op": "reserve", "name": "huge", "cidrs": ["10.1.0.0/30"]});
    let batch = vec![
        allocate("c1"),
        allocate("c2"),
        request(huge),
        allocate("c3"),
        status(),
    ];
    let mut rig = Rig::with(&script, batch);
    let answers: Vec<_> = (0..5).map(|_| rig.answer()).collect();
    let refused = |answer: &Result<Reply, Error>| answer.as_ref().err().map(|error| error.code);
    let codes: Vec<_> = answers.iter().map(refused).collect();
    let too_large = Some(Code::Unavailable);
    assert_eq!(codes, [None, None, too_large, None, None], "{answers:?}");
    assert_eq!(rig.live(), 3);
}

#[test]
fn an_answer_that_writes_nothing_holds_only_while_its_guards_do() {
    let script = Scripted::default();
    let mut rig = Rig::pooled(&script);
    rig.granted(allocate("c1"));
    // No news come: the book still says that c1 has an address.
    other(&script.rows, release("c1"));
    let Reply::Allocated(given) = rig.granted(allocate("c1")) else {
        panic!("an address");
    };
    assert!(!given.existing, "it was given back by another server");
    assert_eq!(rig.live(), 1);
}

#[test]
fn of_two_servers_pools_that_overlap_the_second_is_refused() {
    // The conflict tells of the settings, not of the other's pool.
    let script = Scripted {
        late: Some(Arc::default()),
        ..Scripted::default()
    };
    let mut rig = Rig::start(&script);
    rig.steps([Step::After(pool("10.1.0.0/24"))]);
    let mine = json!({"op": "pool-create", "name": "mine", "cidr": "10.1.0.128/25"});
    assert_eq!(rig.refused(request(mine)), Code::Taken);
    let mine = json!({"op": "pool-create", "name": "mine", "cidr": "10.1.1.0/24"});
    rig.granted(request(mine));
    // News that never come are not done without.
    script.watches.lock().expect("whole").clear();
    other(&script.rows, node("n1", 1));
    assert_eq!(rig.refused(pool("10.2.0.0/24")), Code::Unavailable);
}

#[test]
fn who_does_not_hear_others_doubles_and_deletes_nothing() {
    let script = Scripted {
        silent: true,
        ..Scripted::default()
    };
    other(&script.rows, pool("10.1.0.0/24"));
    let mut rig = Rig::start(&script);
    // No news come of it, and only the settings' row tells that it was.
    other(&script.rows, node("n1", 1));
    assert_eq!(rig.refused(node("n2", 1)), Code::Unavailable);
    assert_eq!(rig.refused(registration("n2", 1)), Code::Unavailable);
    for gone in [
        json!({"op": "node-delete", "name": "n1"}),
        json!({"op": "pool-delete", "name": "default"}),
    ] {
        assert_eq!(rig.refused(request(gone)), Code::Unavailable);
    }
    rig.granted(allocate("c1"));
}

#[test]
fn without_a_store_that_others_write_too_nothing_is_said_to_stand() {
    for (news, expected) in [(true, Some(Code::Unavailable)), (false, None)] {
        let script = Scripted {
            news,
            ..Scripted::default()
        };
        let mut rig = Rig::pooled(&script);
        rig.granted(allocate("c1"));
        rig.steps([Step::Failed]);
        // Another server may have released it and given it away.
        let again = rig.ask(allocate("c1"));
        assert_eq!(again.err().map(|error| error.code), expected);
    }
}

//! What operators and other programs do to an etcd.

use std::{sync::mpsc, thread, time::Duration};

use serde_json::Value;
use weft_ipam::store::{CommitError, News, Store, etcd::Etcd};

use crate::support::{
    change,
    etcd::{Member, cluster, config, ready, store},
    eventually,
    proxy::Proxy,
};

#[test]
fn a_full_etcd_is_told_and_forgiven() {
    let etcd = Member::start(&["--quota-backend-bytes=200000"]);
    let mut store = ready(&[etcd.client]);
    let revision = store.commit(&[change(1, 1, None)], &[]).expect("a new row");
    let page = "x".repeat(4000);
    eventually("it is full", || {
        !etcd.control(&["put", "/filler", &page]).status.success()
    });
    let refused = store.commit(&[change(1, 2, Some(revision))], &[]);
    let Err(CommitError::Failed(error)) = refused else {
        panic!("{refused:?}");
    };
    assert!(error.to_string().contains("alarm disarm"), "{error}");
    let rows = store.load().expect("it may be read").rows;
    assert_eq!(rows[0].1.revision, revision);
    // A server that starts now reads too, and is refused when it writes.
    let mut late = crate::support::etcd::store(&[etcd.client]);
    assert_eq!(late.load().expect("it may be read").rows.len(), 1);
    let refused = late.commit(&[change(2, 1, None)], &[]);
    assert!(
        matches!(refused, Err(CommitError::Failed(_))),
        "{refused:?}"
    );

    let status = status(&etcd);
    let now = status["header"]["revision"].to_string();
    etcd.must(&["compaction", &now]);
    etcd.must(&["defrag"]);
    etcd.must(&["alarm", "disarm"]);
    for (store, row) in [
        (&mut store, change(1, 2, Some(revision))),
        (&mut late, change(2, 1, None)),
    ] {
        store.commit(&[row], &[]).expect("there is room");
    }
}

fn status(member: &Member) -> Value {
    let status = member.must(&["endpoint", "status", "--write-out=json"]);
    let status: Value = serde_json::from_str(&status).expect("JSON");
    status[0]["Status"].clone()
}

#[test]
fn a_leader_that_moves_loses_and_doubles_nothing() {
    let members = cluster(3, &[]);
    members.iter().for_each(Member::wait_ready);
    let ports: Vec<_> = members.iter().map(|member| member.client).collect();
    let mut settings = config(&ports);
    // Longer than an election.
    settings.times.deadline = Duration::from_secs(15);
    let mut store = Etcd::new(settings).expect("a valid configuration");
    store.load().expect("the cluster runs");
    let mut revision = store.commit(&[change(1, 1, None)], &[]).expect("a new row");
    let mut sequence = 1;
    for _ in 0..6 {
        thread::scope(|scope| {
            let moving = scope.spawn(|| move_leader(&members));
            while !moving.is_finished() {
                sequence += 1;
                revision = store
                    .commit(&[change(1, sequence, Some(revision))], &[])
                    .expect("made once");
            }
        });
    }
    let rows = store.load().expect("the cluster runs").rows;
    assert_eq!(rows[0].1.revision, revision);
    assert_eq!(rows[0].1.value, crate::support::block(1, sequence));
}

fn move_leader(members: &[Member]) {
    let all: Vec<_> = members.iter().map(status).collect();
    let id = |status: &Value| status["header"]["member_id"].as_u64();
    let leads = |status: &&Value| status["leader"].as_u64() == id(status);
    let leader = all.iter().position(|status| leads(&status));
    let leader = leader.expect("one leads");
    let next = id(&all[(leader + 1) % all.len()]).expect("an id");
    members[leader].must(&["move-leader", &format!("{next:x}")]);
}

#[test]
fn foreign_rows_below_the_prefix_are_named() {
    let etcd = Member::start(&[]);
    let mut store = ready(&[etcd.client]);
    store.commit(&[change(1, 1, None)], &[]).expect("a new row");
    for (key, value, words) in [
        ("zebra/1", "{}", "another program wrote it"),
        ("block/10.9.0.0-26", "{\"stripes\":7}", "block/10.9.0.0-26"),
        ("pool/p", "not JSON", "does not hold what its key says"),
    ] {
        let row = format!("/weft/ipam/v1/{key}");
        etcd.must(&["put", &row, value]);
        let told = store.load().expect_err("it is not ours").to_string();
        assert!(told.contains(words) && told.contains(key), "{told}");
        etcd.must(&["del", &row]);
        assert_eq!(store.load().expect("all is ours").rows.len(), 1);
    }
    // Beside the prefix, others are left alone.
    etcd.must(&["put", "/weft/ipam/v10/zebra", "x"]);
    etcd.must(&["put", "/weft/ipam/v1", "x"]);
    assert_eq!(store.load().expect("all is ours").rows.len(), 1);
}

#[test]
fn a_watch_that_meets_a_foreign_row_ends_and_asks_no_more() {
    let etcd = Member::start(&[]);
    let proxy = Proxy::before(etcd.client);
    let mut watcher = store(&[proxy.port]);
    let start = watcher.load().expect("etcd runs").revision;
    let (sender, news) = mpsc::channel();
    watcher.watch(start, Box::new(move |told| drop(sender.send(told))));
    etcd.must(&["put", "/weft/ipam/v1/zebra/1", "{}"]);
    let told = news.recv_timeout(Duration::from_secs(15)).expect("news");
    assert!(matches!(told, News::Missed), "{told:?}");
    assert!(news.recv().is_err(), "the watch ended");
    proxy.take_paths();
    thread::sleep(Duration::from_secs(2));
    assert_eq!(proxy.take_paths(), Vec::<String>::new());
}

#[test]
fn another_cluster_is_not_written() {
    let mut ours = Member::start(&[]);
    let other = Member::start(&[]);
    let mut store = ready(&[ours.client, other.client]);
    let revision = store.commit(&[change(1, 1, None)], &[]).expect("a new row");
    ours.kill();
    let refused = store.commit(&[change(1, 2, Some(revision))], &[]);
    let told = refused.expect_err("ours is gone").to_string();
    assert!(told.contains("another cluster"), "{told}");
    let found = other.must(&["get", "--prefix", "/weft/"]);
    assert_eq!(found, "");
}

//! What operators and other programs do to an etcd.

use std::{thread, time::Duration};

use serde_json::Value;
use weft_ipam::store::{CommitError, Store, etcd::Etcd};

use crate::support::{
    change,
    etcd::{Member, cluster, config, ready},
    eventually,
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

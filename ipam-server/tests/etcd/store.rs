//! The etcd store with a real etcd: commits, conflicts, news, limits.

use std::{
    collections::HashMap,
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use crate::support::{
    change,
    etcd::{Member, ready, store},
    eventually, key,
    proxy::Proxy,
    removal,
};
use weft_ipam::{
    model::{Key, Value},
    store::{CommitError, News, Store, StoreError, etcd::Etcd},
};

#[test]
fn what_is_committed_is_loaded_and_stale_commits_change_nothing() {
    let etcd = Member::start(&[]);
    let (mut a, mut b) = (store(&[etcd.client]), store(&[etcd.client]));
    assert!(a.load().expect("an empty etcd").rows.is_empty());
    let first = a
        .commit(&[change(1, 1, None), change(2, 1, None)], &[])
        .expect("new rows");
    let second = b
        .commit(&[change(1, 2, Some(first))], &[])
        .expect("as expected");
    assert!(second > first);

    let stale = a.commit(&[change(1, 9, Some(first)), change(2, 9, Some(first))], &[]);
    let Err(CommitError::Conflict(rows)) = stale else {
        panic!("{stale:?}");
    };
    assert_eq!(rows.len(), 1);
    assert_eq!(rows[0].key, key(1));
    assert_eq!(rows[0].row.as_ref().map(|row| row.revision), Some(second));

    let exists = a.commit(&[change(2, 9, None)], &[]);
    assert!(
        matches!(exists, Err(CommitError::Conflict(_))),
        "{exists:?}"
    );
    b.commit(&[removal(2, first)], &[]).expect("as expected");
    let gone = a.commit(&[change(2, 9, Some(first))], &[]);
    let Err(CommitError::Conflict(rows)) = gone else {
        panic!("{gone:?}");
    };
    assert_eq!(rows[0].row, None);

    let loaded = b.load().expect("etcd runs");
    assert_eq!(loaded.rows.len(), 1);
    assert_eq!(loaded.rows[0].0, key(1));
    assert_eq!(loaded.rows[0].1.revision, second);
}

#[test]
fn a_commit_is_one_request_and_a_conflict_too() {
    let etcd = Member::start(&[]);
    let proxy = Proxy::before(etcd.client);
    let mut store = ready(&[proxy.port]);
    proxy.take_paths();
    let revision = store.commit(&[change(1, 1, None)], &[]).expect("a new row");
    assert_eq!(proxy.take_paths(), ["/v3/kv/txn"]);
    for sequence in 2..10 {
        store
            .commit(
                &[change(sequence, 1, None), change(sequence + 100, 1, None)],
                &[],
            )
            .expect("new rows");
        assert_eq!(proxy.take_paths(), ["/v3/kv/txn"]);
    }
    let conflict = store.commit(&[change(1, 1, Some(revision + 1))], &[]);
    assert!(matches!(conflict, Err(CommitError::Conflict(_))));
    assert_eq!(proxy.take_paths(), ["/v3/kv/txn"]);
}

#[test]
fn eight_stores_that_count_on_one_row_lose_nothing() {
    const EACH: u64 = 25;
    let etcd = Member::start(&[]);
    let mut first = store(&[etcd.client]);
    first.commit(&[change(1, 0, None)], &[]).expect("a new row");
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                let mut store = store(&[etcd.client]);
                (0..EACH).for_each(|_| count_up(&mut store));
            });
        }
    });
    let loaded = first.load().expect("etcd runs");
    let Value::Block(block) = &loaded.rows[0].1.value else {
        panic!("another row");
    };
    assert_eq!(block.sequence, 8 * EACH);
}

fn count_up(store: &mut Etcd) {
    let mut row = store.load().expect("etcd runs").rows.remove(0).1;
    loop {
        let Value::Block(block) = &row.value else {
            panic!("another row");
        };
        match store.commit(&[change(1, block.sequence + 1, Some(row.revision))], &[]) {
            Ok(_) => return,
            Err(CommitError::Conflict(mut rows)) => row = rows.remove(0).row.expect("not deleted"),
            Err(error) => panic!("{error}"),
        }
    }
}

#[test]
fn news_come_whole_and_in_order_and_end_with_the_store() {
    let etcd = Member::start(&[]);
    let (mut writer, mut watcher) = (ready(&[etcd.client]), store(&[etcd.client]));
    let start = watcher.load().expect("etcd runs").revision;
    let (sender, news) = mpsc::channel();
    watcher.watch(start, Box::new(move |told| drop(sender.send(told))));
    let mut commits = Vec::new();
    for number in 0..20 {
        let pair = [change(number, 1, None), change(number + 100, 1, None)];
        commits.push(writer.commit(&pair, &[]).expect("new rows"));
    }
    for expected in commits {
        match news.recv_timeout(Duration::from_secs(5)).expect("news") {
            News::Updates { revision, updates } => {
                assert_eq!(revision, expected);
                assert_eq!(updates.len(), 2);
            }
            News::Missed => panic!("nothing was compacted"),
        }
    }
    drop(watcher);
    // The sender lives in the watch's thread.
    eventually("the watch ends", || {
        matches!(news.try_recv(), Err(mpsc::TryRecvError::Disconnected))
    });
}

#[test]
fn what_a_foreign_hand_writes_is_set_aside_and_stops_nothing() {
    let etcd = Member::start(&[]);
    let (mut ours, mut other) = (store(&[etcd.client]), store(&[etcd.client]));
    let start = ours.load().expect("etcd runs").revision;
    let (sender, news) = mpsc::channel();
    ours.watch(start, Box::new(move |told| drop(sender.send(told))));
    for (name, bytes) in [
        ("lease/x", "{}"),
        ("block/10.0.0.0-8", "{}"),
        ("block/10.0.0.64-26", "rubbish"),
        (
            "pool/p",
            r#"{"name": "p", "cidr": "10.0.0.0/24", "block_size": 99}"#,
        ),
    ] {
        etcd.must(&["put", &format!("/weft/ipam/v1/{name}"), bytes]);
    }
    let last = other.commit(&[change(2, 1, None)], &[]).expect("a new row");
    let mut told = Vec::new();
    loop {
        match news.recv_timeout(Duration::from_secs(15)).expect("news") {
            News::Updates { revision, updates } => {
                told.extend(updates);
                if revision == last {
                    break;
                }
            }
            News::Missed => panic!("nothing was missed"),
        }
    }
    let loaded = ours.load().expect("it loads").rows;
    let told = told
        .into_iter()
        .map(|update| (update.key, update.row.expect("written")));
    let told: HashMap<_, _> = told.collect();
    assert_eq!(told, loaded.into_iter().collect());
    assert_eq!(told.len(), 3);
    let reason = |text: &str| {
        let key = Key::parse(text).expect("a key");
        match &told[&key].value {
            Value::Aside(row) => row.reason.clone(),
            other => panic!("{text}: {other:?}"),
        }
    };
    assert!(reason("block/10.0.0.64-26").contains("expected value"));
    assert!(reason("pool/p").contains("block size 99"));
    // It is written over, and conflicts, as any row.
    let row = &told[&key(1)];
    ours.commit(&[change(1, 1, Some(row.revision))], &[])
        .expect("as expected");
}

#[test]
fn a_cut_watch_goes_on_and_tells_when_it_missed_something() {
    let etcd = Member::start(&[]);
    let proxy = Proxy::before(etcd.client);
    let (mut writer, mut watcher) = (ready(&[etcd.client]), store(&[proxy.port]));
    let start = watcher.load().expect("etcd runs").revision;
    let (sender, news) = mpsc::channel();
    watcher.watch(start, Box::new(move |told| drop(sender.send(told))));
    let next = || news.recv_timeout(Duration::from_secs(15)).expect("news");
    let first = writer
        .commit(&[change(1, 1, None)], &[])
        .expect("a new row");
    assert!(matches!(next(), News::Updates { revision, .. } if revision == first));

    proxy.cut();
    let second = writer
        .commit(&[change(2, 1, None)], &[])
        .expect("a new row");
    assert!(matches!(next(), News::Updates { revision, .. } if revision == second));

    // Silent, not closed: only the pulse can find it out.
    proxy.answers(crate::support::proxy::Way::Lose);
    let third = writer
        .commit(&[change(3, 1, None)], &[])
        .expect("a new row");
    thread::sleep(Duration::from_secs(1));
    proxy.answers(crate::support::proxy::Way::Pass);
    assert!(matches!(next(), News::Updates { revision, .. } if revision == third));

    proxy.requests(crate::support::proxy::Way::Lose);
    proxy.cut();
    let fourth = writer
        .commit(&[removal(3, third)], &[])
        .expect("as expected");
    etcd.must(&["compaction", &fourth.to_string()]);
    proxy.requests(crate::support::proxy::Way::Pass);
    assert!(matches!(next(), News::Missed));
    assert!(news.recv().is_err(), "the watch ended");
}

#[test]
fn many_rows_are_loaded_in_pages_and_too_many_changes_are_refused() {
    let etcd = Member::start(&[]);
    let mut store = store(&[etcd.client]);
    let rows: Vec<_> = (0..5000).map(|number| change(number, 1, None)).collect();
    let mut left = &rows[..];
    while !left.is_empty() {
        let (now, later) = left.split_at(store.fitting(left, &[]));
        assert_eq!(now.len(), left.len().min(125));
        store.commit(now, &[]).expect("it fits");
        left = later;
    }
    let loaded = store.load().expect("etcd runs");
    let found: HashMap<_, _> = loaded.rows.into_iter().collect();
    assert_eq!(found.len(), rows.len());

    let refused = store.commit(&rows[..126], &[]);
    assert!(
        matches!(
            refused,
            Err(CommitError::Failed(StoreError::TooLarge {
                fitting: 125,
                ..
            }))
        ),
        "{refused:?}"
    );
}

#[test]
fn an_etcd_that_is_not_there_is_named() {
    let port = crate::support::etcd::free_ports(1)[0];
    let began = Instant::now();
    let error = store(&[port]).load().expect_err("nobody listens");
    assert!(began.elapsed() < Duration::from_secs(6));
    let text = error.to_string();
    assert!(text.contains(&format!("127.0.0.1:{port}")), "{text}");
    assert!(text.contains("check that etcd runs"), "{text}");
}

//! The etcd store while etcd or the network fails, mid-request.

use std::{sync::mpsc, thread, time::Duration};

use crate::support::{
    self, change,
    etcd::{Member, cluster, config, ready, store},
    proxy::{Proxy, Way},
};
use nix::sys::signal::Signal;
use weft_ipam::store::{CommitError, News, Outcome, Store, etcd::Etcd};

#[test]
fn a_lost_answer_is_asked_for_again_and_counts_once() {
    let etcd = Member::start(&[]);
    let proxy = Proxy::before(etcd.client);
    // Through the proxy first, then past it.
    let mut store = store(&[proxy.port, etcd.client]);
    store.load().expect("etcd runs");
    proxy.answers(Way::Lose);
    let revision = store.commit(&[change(1, 1, None)], &[]).expect("made once");
    let rows = store.load().expect("etcd runs").rows;
    assert_eq!(rows.len(), 1);
    // Version 1 would be 2, had it been made twice.
    assert_eq!(rows[0].1.revision, revision);
}

#[test]
fn without_any_answer_it_is_unknown_and_the_store_tells() {
    let etcd = Member::start(&[]);
    let proxy = Proxy::before(etcd.client);
    let mut store = ready(&[proxy.port]);
    for (number, lost) in [(1, true), (2, false), (3, true)] {
        // Long enough for several attempts.
        if lost {
            proxy.requests(Way::Lose);
        } else {
            proxy.answers(Way::Lose);
        }
        let result = store.commit(&[change(number, 1, None)], &[]);
        assert!(matches!(result, Err(CommitError::Unknown(_))), "{result:?}");
        proxy.requests(Way::Pass);
        proxy.answers(Way::Pass);
        proxy.cut();
        let outcome = store.settle().expect("the network is back");
        let rows = store.load().expect("the network is back").rows;
        let found = rows.iter().find(|(key, _)| *key == support::key(number));
        let expected = found.map_or(Outcome::NotMade, |(_, row)| Outcome::Made(row.revision));
        assert_eq!(outcome, expected);
        assert_eq!(found.is_none(), lost);
    }
    store
        .commit(&[change(4, 1, None)], &[])
        .expect("all is well");
}

#[test]
fn an_etcd_that_answers_nonsense_is_told_and_then_heard_again() {
    let etcd = Member::start(&[]);
    let proxy = Proxy::before(etcd.client);
    let (mut store, mut other) = (ready(&[proxy.port]), ready(&[etcd.client]));
    let (sender, news) = mpsc::channel();
    let start = store.load().expect("etcd runs").revision;
    store.watch(start, Box::new(move |told| drop(sender.send(told))));

    proxy.answers(Way::Garble);
    let endpoint = format!("etcd 127.0.0.1:{}", proxy.port);
    match store.commit(&[change(1, 1, None)], &[]) {
        Err(CommitError::Unknown(error)) => {
            let text = error.to_string();
            assert!(text.contains(&endpoint), "{text}");
            assert!(text.contains("JSON gateway"), "{text}");
        }
        other => panic!("{other:?}"),
    }
    let error = store.load().expect_err("nonsense").to_string();
    assert!(error.contains(&endpoint), "{error}");
    // The watch is told of it in nonsense.
    let second = other.commit(&[change(2, 1, None)], &[]).expect("new");

    proxy.answers(Way::Pass);
    let outcome = store.settle().expect("it speaks again");
    let rows = store.load().expect("it speaks again").rows;
    assert_eq!(rows.len(), 2);
    let first = rows.iter().find(|(key, _)| *key == support::key(1));
    let first = first.expect("it was made").1.revision;
    assert_eq!(outcome, Outcome::Made(first));
    for expected in [first, second] {
        let is_it = |news| match news {
            News::Updates { revision, updates } => revision == expected && !updates.is_empty(),
            News::Missed => panic!("nothing was missed"),
        };
        while !is_it(news.recv_timeout(Duration::from_secs(15)).expect("news")) {}
    }
}

#[test]
fn a_marker_that_goes_tells_nothing_and_lets_nothing_be_made() {
    let etcd = Member::start(&[]);
    let (slow, other) = (Proxy::before(etcd.client), Proxy::before(etcd.client));
    let remove = || etcd.must(&["del", "--prefix", "/weft/ipam/v1/.writer/"]);
    let mut store = ready(&[slow.port, other.port]);
    let first = store.commit(&[change(1, 1, None)], &[]).expect("a new row");
    remove();
    let second = store.commit(&[change(1, 2, Some(first))], &[]);
    let second = second.expect("nothing was in doubt");

    slow.requests(Way::Hold);
    other.requests(Way::Lose);
    let result = store.commit(&[change(1, 3, Some(second))], &[]);
    assert!(matches!(result, Err(CommitError::Unknown(_))), "{result:?}");
    remove();
    other.requests(Way::Pass);
    other.cut();
    assert_eq!(store.settle().expect("by the other way"), Outcome::Unknown);
    slow.requests(Way::Pass);
    thread::sleep(Duration::from_secs(1));
    let rows = store.load().expect("etcd runs").rows;
    assert_eq!(rows[0].1.revision, second, "it came late and was made");
    store
        .commit(&[change(1, 4, Some(second))], &[])
        .expect("all is well");
}

#[test]
fn a_commit_that_comes_late_is_not_made() {
    let etcd = Member::start(&[]);
    let (slow, other) = (Proxy::before(etcd.client), Proxy::before(etcd.client));
    let mut store = ready(&[slow.port, other.port]);
    slow.requests(Way::Hold);
    other.requests(Way::Lose);
    let result = store.commit(&[change(1, 1, None)], &[]);
    assert!(matches!(result, Err(CommitError::Unknown(_))), "{result:?}");

    other.requests(Way::Pass);
    other.cut();
    assert!(store.load().expect("by the other way").rows.is_empty());
    slow.take_paths();
    slow.requests(Way::Pass);
    thread::sleep(Duration::from_secs(1));
    let rows = store.load().expect("etcd runs").rows;
    assert!(rows.is_empty(), "{rows:?}");
}

#[test]
fn a_fence_that_comes_late_hides_no_commit() {
    let etcd = Member::start(&[]);
    let (slow, other) = (Proxy::before(etcd.client), Proxy::before(etcd.client));
    let mut store = ready(&[slow.port, other.port]);
    slow.requests(Way::Hold);
    store.frontier().expect("by the other way");
    other.answers(Way::Lose);
    let result = store.commit(&[change(1, 1, None)], &[]);
    assert!(matches!(result, Err(CommitError::Unknown(_))), "{result:?}");
    slow.requests(Way::Pass);
    thread::sleep(Duration::from_secs(1));
    other.answers(Way::Pass);
    other.cut();
    let outcome = store.settle().expect("the network is back");
    let rows = store.load().expect("the network is back").rows;
    assert_eq!(outcome, Outcome::Made(rows[0].1.revision));
}

#[test]
fn a_killed_etcd_is_waited_for_and_nothing_is_lost() {
    let mut etcd = Member::start(&[]);
    let mut store = store(&[etcd.client]);
    let mut known = Vec::new();
    for number in 0..60 {
        if number % 20 == 10 {
            etcd.kill();
        }
        match store.commit(&[change(number, 1, None)], &[]) {
            Ok(revision) => known.push((number, revision)),
            Err(error) => {
                let text = error.to_string();
                assert!(text.contains("etcd 127.0.0.1"), "{text}");
                etcd.restart();
            }
        }
    }
    let rows = store.load().expect("etcd runs").rows;
    assert_eq!(known.len(), 57);
    for (number, revision) in known {
        let found = rows.iter().find(|(key, _)| *key == support::key(number));
        assert_eq!(found.map(|(_, row)| row.revision), Some(revision));
    }
}

#[test]
fn a_paused_etcd_is_unknown_and_then_recovers() {
    let etcd = Member::start(&[]);
    let mut store = store(&[etcd.client]);
    let revision = store.commit(&[change(1, 1, None)], &[]).expect("a new row");
    etcd.signal(Signal::SIGSTOP);
    let result = store.commit(&[change(1, 2, Some(revision))], &[]);
    assert!(matches!(result, Err(CommitError::Unknown(_))), "{result:?}");
    etcd.signal(Signal::SIGCONT);
    let rows = store.load().expect("it goes on").rows;
    let settled = rows[0].1.revision;
    thread::sleep(Duration::from_millis(500));
    let rows = store.load().expect("it goes on").rows;
    assert_eq!(rows[0].1.revision, settled, "nothing comes late");
    store
        .commit(&[change(1, 3, Some(settled))], &[])
        .expect("as expected");
}

#[test]
fn one_of_three_members_may_die() {
    let mut members = cluster(3, &[]);
    members.iter().for_each(Member::wait_ready);
    let ports: Vec<_> = members.iter().map(|member| member.client).collect();
    let mut settings = config(&ports);
    // Longer than an election.
    settings.times.deadline = Duration::from_secs(15);
    let mut store = Etcd::new(settings).expect("a valid configuration");
    store.load().expect("the cluster runs");
    let mut revision = store.commit(&[change(1, 1, None)], &[]).expect("a new row");
    members[0].kill();
    for sequence in 2..20 {
        revision = store
            .commit(&[change(1, sequence, Some(revision))], &[])
            .expect("two members are a majority");
    }
    assert_eq!(store.load().expect("two run").rows[0].1.revision, revision);
}

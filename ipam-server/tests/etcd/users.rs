//! The etcd store as one of etcd's users.

use std::{sync::mpsc, thread, time::Duration};

use weft_ipam::store::{
    News, Store,
    etcd::{Etcd, Login},
};

use crate::support::{
    change,
    etcd::{Member, config, store},
    eventually,
};

/// `weft` may use the prefix, `other` may nothing.
fn with_users(more: &[&str]) -> Member {
    let etcd = Member::start(more);
    for arguments in [
        &["user", "add", "root:r"][..],
        &["user", "grant-role", "root", "root"],
        &["role", "add", "weft"],
        &[
            "role",
            "grant-permission",
            "weft",
            "--prefix=true",
            "readwrite",
            "/weft/ipam/v1/",
        ],
        &["user", "add", "weft:secret"],
        &["user", "grant-role", "weft", "weft"],
        &["user", "add", "other:o"],
        &["auth", "enable"],
    ] {
        etcd.must(arguments);
    }
    etcd
}

fn as_user(port: u16, user: &str, password: &str) -> Etcd {
    let mut config = config(&[port]);
    config.times.lease = Duration::from_secs(2);
    config.login = Some(Login {
        user: user.to_owned(),
        password: password.to_owned(),
    });
    Etcd::new(config).expect("a valid configuration")
}

#[test]
fn a_user_logs_in_and_does_so_again_when_etcd_forgot_it() {
    let mut etcd = with_users(&[]);
    let mut user = as_user(etcd.client, "weft", "secret");
    user.load().expect("it may");
    let revision = user.commit(&[change(1, 1, None)], &[]).expect("it may");
    // Simple tokens do not outlive the process.
    etcd.kill();
    etcd.restart();
    user.commit(&[change(1, 2, Some(revision))], &[])
        .expect("it logs in again");

    for (mut store, words) in [
        (
            as_user(etcd.client, "weft", "wrong"),
            "check user and password",
        ),
        (as_user(etcd.client, "other", "o"), "grant the etcd user"),
        (store(&[etcd.client]), "set user and password"),
    ] {
        let text = store.load().expect_err("it may not").to_string();
        assert!(text.contains(words), "{text}");
    }
}

#[test]
fn a_token_that_expires_is_replaced() {
    let etcd = with_users(&["--auth-token-ttl=1"]);
    let mut user = as_user(etcd.client, "weft", "secret");
    let start = user.load().expect("it may").revision;
    let lease = user.lease(Duration::from_secs(2)).expect("it may");
    let (sender, news) = mpsc::channel();
    user.watch(start, Box::new(move |told| drop(sender.send(told))));
    let mut revision = None;
    for sequence in 1..4 {
        let written = user.commit(&[change(1, sequence, revision)], &[]);
        revision = Some(written.expect("it logs in again"));
        eventually("the watch tells it", || match news.try_recv() {
            Ok(News::Updates { revision: told, .. }) => Some(told) == revision,
            Ok(News::Missed) => panic!("nothing was missed"),
            Err(_) => false,
        });
        thread::sleep(Duration::from_secs(3));
    }
    assert!(lease.id().is_some(), "the lease is kept alive");
    assert_eq!(user.load().expect("it may").rows.len(), 1);
}

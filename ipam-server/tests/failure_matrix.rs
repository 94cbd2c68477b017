//! Each row of the failure matrix of Calico's address management, with a
//! crash between any two writes, and each defect that is not to be repeated.

mod support;

use support::*;
use weft_api::ipam::{AffinityState, Code, Held, Release, Reply, Request};
use weft_ipam::{
    model::{Key, Value},
    plan::plan,
    routes,
};

const SMALL: &[(&str, &str, u8)] = &[("p", "10.0.0.0/29", 30)];
const MINUTE: u64 = 60_000;

fn affinities(cluster: &Cluster, state: AffinityState) -> usize {
    let is_it = |value: &Value| matches!(value, Value::Affinity(row) if row.state == state);
    cluster
        .rows
        .rows
        .values()
        .filter(|row| is_it(&row.value))
        .count()
}

fn routed(cluster: &mut Cluster) -> Vec<String> {
    cluster.server.sync(&cluster.rows);
    match routes::snapshot(&cluster.server.book) {
        weft_api::ipam::Event::Snapshot { routes, .. } => routes
            .iter()
            .map(|route| format!("{} {}", route.net, route.node))
            .collect(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn row_1_a_crash_before_the_block_is_finished_by_the_next_request() {
    let mut cluster = Cluster::with_pools(SMALL);
    assert!(
        cluster
            .server
            .crash(&mut cluster.rows, &want("n1", "a"), NOW, 1)
    );
    assert_eq!(affinities(&cluster, AffinityState::Pending), 1);
    assert_eq!(routed(&mut cluster), Vec::<String>::new());
    cluster.address("n1", "a");
    assert_eq!(affinities(&cluster, AffinityState::Confirmed), 1);
    assert_eq!(affinities(&cluster, AffinityState::Pending), 0);
    cluster.clean(NOW);
}

#[test]
fn row_2_a_crash_before_the_confirmation_rewrites_the_block() {
    let mut cluster = Cluster::with_pools(SMALL);
    assert!(
        cluster
            .server
            .crash(&mut cluster.rows, &want("n1", "a"), NOW, 2)
    );
    assert_eq!(routed(&mut cluster), Vec::<String>::new());
    let block = |cluster: &Cluster| {
        let row = |key: &Key| matches!(key, Key::Block(_));
        let mut rows = cluster.rows.rows.iter().filter(|(key, _)| row(key));
        rows.next().map(|(_, row)| row.revision).expect("a block")
    };
    let before = block(&cluster);
    cluster.address("n1", "a");
    assert!(block(&cluster) > before);
    assert_eq!(affinities(&cluster, AffinityState::Confirmed), 1);
    cluster.clean(NOW);
}

#[test]
fn row_3_of_two_nodes_that_race_for_a_range_one_owns_it_and_one_moves_on() {
    // A pool of two blocks; both nodes first look at the same one in one of
    // the pools' halves, or else in the other.
    for crash in 0..=3 {
        let mut cluster = Cluster::with_pools(&[("p", "10.0.0.0/30", 31)]);
        let mut late = Server::default();
        late.sync(&cluster.rows);
        cluster.address("n1", "a");
        cluster.address("n1", "b");
        // The loser has not heard of the winner's block.
        late.crash(&mut cluster.rows, &want("n2", "c"), NOW, crash);
        late.sync(&cluster.rows);
        let reply = late.ask(&mut cluster.rows, &want("n2", "c"), NOW);
        assert!(matches!(reply, Ok(Reply::Allocated(_))), "{reply:?}");
        assert_eq!(affinities(&cluster, AffinityState::Pending), 0);
        cluster.clean(NOW);
    }
}

#[test]
fn row_3_the_losers_pending_row_is_removed() {
    let mut cluster = Cluster::with_pools(&[("p", "10.0.0.0/31", 31)]);
    let mut late = Server::default();
    late.sync(&cluster.rows);
    cluster.address("n1", "a");
    late.crash(&mut cluster.rows, &want("n2", "c"), NOW, 6);
    assert_eq!(affinities(&cluster, AffinityState::Pending), 1);
    // It loses the only block, and borrows from it.
    let given = cluster.give(&want("n2", "c"), NOW);
    assert!(given.addresses[0].borrowed);
    assert_eq!(affinities(&cluster, AffinityState::Pending), 0);
    cluster.clean(NOW);
}

#[test]
fn row_4_two_processes_of_one_node_share_the_block() {
    let mut cluster = Cluster::with_pools(SMALL);
    let mut other = Server::default();
    other.sync(&cluster.rows);
    let mine = cluster.give(&want("n1", "a"), NOW);
    let Ok(Reply::Allocated(theirs)) = other.ask(&mut cluster.rows, &want("n1", "b"), NOW) else {
        panic!("refused");
    };
    assert_eq!(mine.addresses[0].block, theirs.addresses[0].block);
    assert_ne!(first(&mine), first(&theirs));
    cluster.clean(NOW);
}

#[test]
fn row_5_nothing_counts_handles_so_no_crash_makes_them_wrong() {
    for crash in 0..8 {
        let mut cluster = Cluster::with_pools(SMALL);
        cluster
            .server
            .crash(&mut cluster.rows, &want("n1", "a"), NOW, crash);
        let address = cluster.address("n1", "a");
        let released = cluster.drop_container("a", NOW);
        assert_eq!(
            released.released,
            vec![address.parse::<std::net::IpAddr>().expect("valid")]
        );
        assert_eq!(cluster.drop_container("a", NOW), Default::default());
        cluster.clean(NOW);
    }
}

#[test]
fn rows_6_and_7_a_release_that_is_behind_is_refused() {
    for whole_block in [false, true] {
        let mut cluster = Cluster::with_pools(&[("p", "10.0.0.0/32", 32)]);
        let address = cluster.address("n1", "a");
        let old = cluster.held(&address).expect("held");
        cluster.drop_container("a", NOW);
        if whole_block {
            let delete = Request::NodeDelete { name: name("n1") };
            cluster.done(delete);
            assert!(
                !cluster
                    .rows
                    .rows
                    .keys()
                    .any(|key| matches!(key, Key::Block(_)))
            );
        }
        // The very same attachment, and a clock that was set back.
        let again = cluster.give(&want("n1", "a"), NOW - 5 * MINUTE);
        assert_eq!(first(&again), address);
        let held = Held {
            address: old.address,
            handle: old.handle.clone(),
            sequence: Some(old.sequence),
        };
        let addresses = vec![held];
        let error = cluster.release(Release::Addresses { addresses }, NOW);
        assert_eq!(error.expect_err("refused").code, Code::Changed);
        assert!(
            cluster
                .held(&address)
                .is_some_and(|held| held.handle.is_some())
        );
    }
}

#[test]
fn row_8_a_block_that_is_reclaimed_and_used_at_once_has_one_owner() {
    for owner_first in [true, false] {
        let mut cluster = Cluster::with_pools(&[("p", "10.0.0.0/31", 31)]);
        cluster.address("n1", "a");
        cluster.drop_container("a", NOW);
        let later = NOW + 2 * MINUTE;
        cluster.server.sync(&cluster.rows);
        let own = plan(&cluster.server.book, &want("n1", "b"), later).expect("planned");
        let reclaim = plan(&cluster.server.book, &want("n2", "c"), later).expect("planned");
        let (quick, slow) = if owner_first {
            (&own, &reclaim)
        } else {
            (&reclaim, &own)
        };
        assert!(cluster.rows.commit(&cluster.server.book, quick));
        assert!(!cluster.rows.commit(&cluster.server.book, slow));
        let b = cluster.give(&want("n1", "b"), later);
        let c = cluster.give(&want("n2", "c"), later);
        assert_ne!(first(&b), first(&c));
        assert_eq!(b.addresses[0].borrowed, !owner_first);
        assert_eq!(c.addresses[0].borrowed, owner_first);
        cluster.clean(later);
    }
}

#[test]
fn a_young_empty_block_is_not_reclaimed() {
    let mut cluster = Cluster::with_pools(&[("p", "10.0.0.0/31", 31)]);
    cluster.address("n1", "a");
    cluster.drop_container("a", NOW);
    assert!(cluster.give(&want("n2", "c"), NOW + MINUTE - 1).addresses[0].borrowed);
}

#[test]
fn row_9_a_reservation_over_a_used_address_ends_with_its_release() {
    let mut cluster = Cluster::with_pools(&[("p", "10.0.0.0/30", 30)]);
    let address = cluster.address("n1", "a");
    cluster.done(reserve("r", &[&format!("{address}/32"), "10.0.0.3/32"]));
    let usage = |cluster: &mut Cluster| match cluster.ask(&Request::Pools, NOW) {
        Ok(Reply::Pools(pools)) => (
            pools[0].usage.used,
            pools[0].usage.reserved,
            pools[0].usage.free,
        ),
        other => panic!("{other:?}"),
    };
    assert_eq!(usage(&mut cluster), (1, 1, 2));
    assert_eq!(cluster.address("n1", "a"), address);
    cluster.drop_container("a", NOW);
    assert_eq!(usage(&mut cluster), (0, 2, 2));
    let b = cluster.address("n1", "b");
    let c = cluster.address("n1", "c");
    assert!(b != address && c != address && b != c);
    assert_eq!(cluster.refused(&want("n1", "d"), NOW), Code::Exhausted);
    cluster.clean(NOW);
}

#[test]
fn row_10_a_disabled_pool_gives_nothing_and_still_takes_back() {
    let mut cluster = Cluster::with_pools(SMALL);
    let address = cluster.address("n1", "a");
    assert_eq!(
        cluster.refused(&Request::PoolDelete { name: name("p") }, NOW),
        Code::InUse,
        "it is enabled"
    );
    let disable = Request::PoolDisable {
        name: name("p"),
        disabled: true,
    };
    cluster.done(disable);
    assert_eq!(cluster.refused(&want("n1", "b"), NOW), Code::NoPool);
    assert_eq!(
        cluster.refused(&Request::PoolDelete { name: name("p") }, NOW),
        Code::InUse
    );
    assert_eq!(routed(&mut cluster).len(), 1);
    assert_eq!(cluster.address("n1", "a"), address);
    // Somebody removes the pool's row behind our back.
    cluster.server.sync(&cluster.rows);
    let removal = weft_ipam::plan::Plan {
        changes: vec![(Key::Pool(name("p")), None)],
        guards: vec![],
        reply: Reply::Done,
    };
    assert!(cluster.rows.commit(&cluster.server.book, &removal));
    assert_eq!(cluster.drop_container("a", NOW).released.len(), 1);
    cluster.clean(NOW);
}

#[test]
fn row_11_a_node_that_is_no_longer_selected_keeps_only_what_is_full() {
    let mut cluster = Cluster::default();
    for (text, cidr) in [("a", "10.0.0.0/29"), ("b", "10.1.0.0/29")] {
        let mut pool = pool(text, cidr, 30);
        pool.node_selector = format!("rack == '{text}'");
        cluster.done(Request::PoolCreate(Box::new(pool)));
    }
    cluster.done(node_put(1, &[("rack", "a")]));
    let all: Vec<_> = (0..5)
        .map(|n| cluster.address("n1", &format!("c{n}")))
        .collect();
    assert!(all.iter().all(|address| address.starts_with("10.0.")));
    // Two blocks; the second becomes empty.
    cluster.drop_container("c4", NOW);
    cluster.done(node_put(1, &[("rack", "b")]));
    assert_eq!(routed(&mut cluster).len(), 2);
    assert!(cluster.address("n1", "d").starts_with("10.1."));
    assert_eq!(routed(&mut cluster).len(), 2);
    for n in 0..4 {
        assert_eq!(routed(&mut cluster).len(), 2);
        cluster.drop_container(&format!("c{n}"), NOW);
    }
    assert_eq!(routed(&mut cluster).len(), 1);
    cluster.clean(NOW);
}

#[test]
fn row_12_clocks_delay_a_cooldown_and_nothing_else() {
    let mut cluster = Cluster::with_pools(&[("p", "10.0.0.0/32", 32)]);
    cluster.done(Request::Configure(cooldown(30)));
    let address = cluster.address("n1", "a");
    cluster.drop_container("a", NOW + 60 * MINUTE);
    assert_eq!(cluster.refused(&want("n1", "b"), NOW), Code::Exhausted);
    let later = NOW + 61 * MINUTE;
    assert_eq!(first(&cluster.give(&want("n1", "b"), later)), address);
    // A clock that runs an hour late gives and takes back all the same.
    assert_eq!(
        cluster
            .drop_container("b", NOW - 60 * MINUTE)
            .released
            .len(),
        1
    );
}

/// Every plan, cut short after any of its writes, leaves what the same
/// request asked again brings to the end, and no address has two owners.
#[test]
#[expect(clippy::too_many_lines, reason = "a table")]
fn every_request_survives_a_crash_between_any_two_writes() {
    type Prepare = fn(&mut Cluster);
    let one: Prepare = |cluster| {
        cluster.done(node_put(1, &[]));
        cluster.address("n1", "a");
    };
    let empty: Prepare = |cluster| {
        cluster.done(node_put(1, &[]));
        for n in 0..8 {
            cluster.address("n1", &format!("x{n}"));
        }
        for n in 0..8 {
            cluster.drop_container(&format!("x{n}"), NOW);
        }
    };
    let disabled: Prepare = |cluster| {
        cluster.done(node_put(1, &[]));
        cluster.address("n1", "x");
        cluster.drop_container("x", NOW);
        cluster.done(Request::PoolDisable {
            name: name("p"),
            disabled: true,
        });
    };
    let later = NOW + 2 * MINUTE;
    let cases: [(&str, Prepare, Request, Request); 6] = [
        ("claim", |_| {}, want("n1", "a"), want("n1", "a")),
        ("reclaim", empty, want("n2", "c"), want("n2", "c")),
        (
            "release",
            one,
            Request::Release(Release::Attachment(attachment("a"))),
            want("n1", "b"),
        ),
        (
            "node",
            empty,
            Request::NodeDelete { name: name("n1") },
            Request::NodeDelete { name: name("n1") },
        ),
        (
            "pool",
            disabled,
            Request::PoolDelete { name: name("p") },
            Request::PoolDelete { name: name("p") },
        ),
        ("gc", one, gc("n1", &[]), gc("n1", &[])),
    ];
    for (what, prepare, request, next) in cases {
        for writes in 0.. {
            let mut cluster = Cluster::with_pools(SMALL);
            prepare(&mut cluster);
            cluster.server.sync(&cluster.rows);
            let crashed = cluster
                .server
                .crash(&mut cluster.rows, &request, later, writes);
            // Others go on meanwhile.
            let _ = cluster.ask(&want("n3", "other"), later);
            let again = cluster.ask(&next, later);
            let refused = again.as_ref().err().map(|error| error.code);
            let fine = [None, Some(Code::NotFound), Some(Code::InUse)];
            assert!(fine.contains(&refused), "{what} {writes}: {again:?}");
            for (number, other) in [(1, "n1"), (2, "n2"), (3, "n3")] {
                cluster.done(node_put(number, &[]));
                let _ = cluster.ask(&want(other, &format!("{other}-after")), later);
            }
            assert_eq!(
                cluster.rows.problems(later),
                vec![],
                "{what} after {writes} writes"
            );
            if !crashed {
                break;
            }
        }
    }
}

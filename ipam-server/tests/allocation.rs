//! What an allocation looks at, in which order, how it is refused, and the
//! defects of Calico's address management that are not to be repeated.

mod support;

use support::*;
use weft_api::ipam::{
    Attachment, Code, ConfigChange, Encapsulation, Event, Family, Held, Node, Release, Reply,
    Request, Use,
};
use weft_api::names::Mac;
use weft_ipam::{
    book::Book,
    model::{Key, Value},
    plan::plan,
    routes,
    store::{Row, Update},
    sweep,
};

fn limit(blocks: u32) -> Request {
    Request::Configure(ConfigChange {
        blocks_per_node: Some(blocks),
        ..ConfigChange::default()
    })
}

#[test]
fn defect_1_a_lost_race_for_a_specific_address_is_tried_again() {
    let mut cluster = Cluster::with_pools(&[("p", "10.0.0.0/30", 30)]);
    let mut late = Server::default();
    late.sync(&cluster.rows);
    cluster.address("n1", "a");
    let ask = want_with("n2", "b", |ask| {
        ask.addresses = vec!["10.0.0.3".parse().expect("valid")]
    });
    let reply = late.ask(&mut cluster.rows, &ask, NOW);
    assert!(
        matches!(&reply, Ok(Reply::Allocated(given)) if given.addresses[0].borrowed),
        "{reply:?}"
    );
    cluster.clean(NOW);
}

#[test]
fn defect_2_a_handle_is_what_the_blocks_say_after_any_refusal() {
    let mut cluster = Cluster::with_pools(&[("p", "10.0.0.0/31", 31)]);
    let dual = want_with("n1", "a", |ask| ask.families.push(Family::V6));
    for _ in 0..3 {
        assert_eq!(cluster.refused(&dual, NOW), Code::NoPool);
        assert!(
            cluster
                .server
                .book
                .held_by(&attachment("a").handle())
                .is_empty()
        );
    }
    cluster.done(Request::PoolCreate(Box::new(pool(
        "six",
        "fd00::/120",
        122,
    ))));
    let both = cluster.give(&dual, NOW);
    assert_eq!(both.addresses.len(), 2);
    assert_eq!(
        cluster.server.book.held_by(&attachment("a").handle()).len(),
        2
    );
    let half = cluster.give(&want("n1", "a"), NOW);
    assert!(half.existing && half.addresses == both.addresses[..1]);
    // One family first, then both.
    cluster.address("n1", "b");
    let b = cluster.give(
        &want_with("n1", "b", |ask| ask.families.push(Family::V6)),
        NOW,
    );
    assert!(!b.existing && b.addresses.len() == 2);
    cluster.clean(NOW);
}

#[test]
fn defect_3_the_block_limit_does_not_forbid_to_borrow_and_is_told() {
    let mut cluster = Cluster::with_pools(&[("p", "10.0.0.0/30", 31)]);
    cluster.done(limit(1));
    cluster.address("n1", "a");
    cluster.address("n1", "b");
    let refusal = cluster
        .ask(&want("n1", "c"), NOW)
        .expect_err("nothing to borrow");
    assert_eq!(refusal.code, Code::Exhausted);
    assert!(refusal.message.contains("no more than 1"), "{refusal}");
    cluster.address("n2", "x");
    assert!(cluster.give(&want("n1", "c"), NOW).addresses[0].borrowed);
    cluster.drop_container("c", NOW);
    cluster.done(Request::Configure(strict()));
    let refusal = cluster.ask(&want("n1", "c"), NOW).expect_err("strict");
    assert_eq!(refusal.code, Code::BlockLimit);
    assert!(refusal.message.contains("owns 1"), "{refusal}");
}

#[test]
fn defects_4_and_6_room_and_uncut_ranges_are_found_by_index() {
    // 2^60 blocks: whoever walks them does not end.
    let mut cluster = Cluster::with_pools(&[("p", "fd00::/62", 122)]);
    let six = |node: &str, container: &str| {
        want_with(node, container, |ask| ask.families = vec![Family::V6])
    };
    cluster.give(&six("n1", "a"), NOW);
    let lend_only = ConfigChange {
        claim_blocks: Some(false),
        ..ConfigChange::default()
    };
    cluster.done(Request::Configure(lend_only));
    assert!(cluster.give(&six("n2", "b"), NOW).addresses[0].borrowed);
    // A wholly reserved half is passed over in one step.
    cluster.done(Request::Configure(ConfigChange {
        claim_blocks: Some(true),
        ..ConfigChange::default()
    }));
    cluster.done(reserve("half", &["fd00::/63"]));
    let given = cluster.give(&six("n3", "c"), NOW);
    assert!(
        given.addresses[0]
            .address
            .to_string()
            .starts_with("fd00:0:0:2")
    );
    cluster.clean(NOW);
}

#[test]
fn defect_5_every_release_gives_a_new_sequence_number() {
    let mut cluster = Cluster::with_pools(&[("p", "10.0.0.0/31", 31)]);
    cluster.done(Request::Configure(cooldown(30)));
    let address = cluster.address("n1", "a");
    let before = cluster.held(&address).expect("held").sequence;
    let handle = attachment("a").handle();
    cluster
        .release(Release::Handle { handle }, NOW)
        .expect("released");
    let rests = cluster.held(&address).expect("rests");
    assert!(rests.sequence > before && rests.released == Some(NOW) && rests.handle.is_none());
}

#[test]
fn defect_7_nobody_healthy_is_collected_and_nothing_is_reused_too_soon() {
    let mut cluster = Cluster::with_pools(&[("p", "10.0.0.0/28", 29)]);
    let tunnel = want_with("n1", "tunnel", |ask| ask.purpose = Use::Tunnel);
    let tunnel = first(&cluster.give(&tunnel, NOW));
    let [a, b, c] = ["a", "b", "c"].map(|container| cluster.address("n1", container));
    cluster.address("n2", "elsewhere");
    cluster.age();
    let young = first(&cluster.give(&want("n1", "young"), NOW + 10));
    assert_eq!(
        freed(&mut cluster, &gc("n1", &["a"])),
        [b.clone(), c.clone()]
    );
    for held in [&a, &tunnel, &young] {
        assert!(cluster.held(held).is_some(), "{held}");
    }
    // First come back, last given out.
    let next: Vec<_> = (0..3)
        .map(|n| cluster.address("n1", &format!("new{n}")))
        .collect();
    assert!(!next.contains(&b), "{next:?}");
    cluster.done(Request::Configure(cooldown(30)));
    cluster.drop_container("a", NOW);
    let Reply::Pools(pools) = cluster.ask(&Request::Pools, NOW).expect("asked") else {
        panic!("not pools");
    };
    assert_eq!(pools[0].usage.resting, 1);
    cluster.server.sync(&cluster.rows);
    assert_eq!(cluster.server.book.next_rested(), Some(NOW + 30_000));
    assert_eq!(sweep::rested(&cluster.server.book, NOW + 29_999, 9), vec![]);
    assert_eq!(
        sweep::rested(&cluster.server.book, NOW + 30_000, 9).len(),
        1
    );
}

fn freed(cluster: &mut Cluster, gc: &Request) -> Vec<String> {
    let Ok(Reply::Released(released)) = cluster.ask(gc, NOW + 20) else {
        panic!("refused");
    };
    let mut freed: Vec<_> = released.released.iter().map(ToString::to_string).collect();
    freed.sort();
    freed
}

#[test]
fn a_clock_that_is_set_makes_nobody_a_leak() {
    let mut cluster = Cluster::with_pools(&[("p", "10.0.0.0/28", 29)]);
    cluster.address("n1", "listed");
    // The list is made at NOW. Then the clock is set back by a day, or the
    // server's was never right, and a container comes that is not on it.
    let day = 24 * 3600 * 1000;
    let young = first(&cluster.give(&want("n1", "young"), NOW - day));
    assert_eq!(freed(&mut cluster, &gc("n1", &["listed"])), [""; 0]);
    // However old it looks by then.
    let late = cluster.ask(&gc("n1", &["listed"]), NOW + day);
    assert_eq!(late, Ok(Reply::Released(Default::default())));
    assert!(cluster.held(&young).is_some());
}

#[test]
fn an_allocation_is_young_for_a_whole_interval_of_the_mark() {
    let mut cluster = Cluster::with_pools(&[("p", "10.0.0.0/28", 29)]);
    let a = cluster.address("n1", "a");
    assert!(raise(&mut cluster.server, &mut cluster.rows));
    let b = cluster.address("n1", "b");
    assert_eq!(freed(&mut cluster, &gc("n1", &[])), [""; 0]);
    assert!(raise(&mut cluster.server, &mut cluster.rows));
    // A list from before the last mark does not know what came with the first.
    assert_eq!(freed(&mut cluster, &gc_before("n1", &[], Some(1))), [""; 0]);
    // Who asks again is there.
    assert!(cluster.give(&want("n1", "b"), NOW).existing);
    assert!(raise(&mut cluster.server, &mut cluster.rows));
    assert_eq!(freed(&mut cluster, &gc_before("n1", &[], Some(9))), [a]);
    assert!(raise(&mut cluster.server, &mut cluster.rows));
    assert_eq!(freed(&mut cluster, &gc("n1", &[])), [b]);
    cluster.clean(NOW);
}

#[test]
fn a_server_that_is_behind_makes_nothing_that_looks_older_than_it_is() {
    let mut cluster = Cluster::with_pools(&[("p", "10.0.0.0/28", 29)]);
    cluster.address("n1", "a");
    let mut late = Server::default();
    late.sync(&cluster.rows);
    cluster.age();
    assert!(!raise(&mut late, &mut cluster.rows), "it was not faster");
    let mut late = Server::default();
    late.sync(&cluster.rows);
    cluster.address("n1", "b");
    assert!(raise(&mut cluster.server, &mut cluster.rows));
    let reply = late.ask(&mut cluster.rows, &want("n2", "c"), NOW);
    assert!(matches!(reply, Ok(Reply::Allocated(_))), "{reply:?}");
    assert!(raise(&mut cluster.server, &mut cluster.rows));
    assert_eq!(freed(&mut cluster, &gc("n2", &[])), [""; 0]);
}

#[test]
fn rows_from_before_the_mark_are_read_and_age() {
    let mut cluster = Cluster::with_pools(&[("p", "10.0.0.0/28", 29)]);
    let a = cluster.address("n1", "a");
    let block = cluster.rows.rows.values().find_map(|row| match &row.value {
        Value::Block(block) => Some(serde_json::to_value(&**block).expect("JSON")),
        _ => None,
    });
    assert!(
        block.expect("a block")["allocations"]["0"]
            .get("mark")
            .is_none()
    );
    cluster.age();
    assert_eq!(freed(&mut cluster, &gc("n1", &[])), [a]);
}

#[test]
fn an_identity_gets_its_address_again_on_any_node() {
    let mut cluster = Cluster::with_pools(&[("p", "10.0.0.0/28", 30)]);
    let sticky = |node: &str, container: &str| {
        want_with(node, container, |ask| ask.identity = Some(name("db/pg-0")))
    };
    let address = first(&cluster.give(&sticky("n1", "a"), NOW));
    let refusal = cluster
        .ask(&sticky("n2", "b"), NOW)
        .expect_err("n1 holds it");
    assert_eq!(refusal.code, Code::Taken);
    assert!(
        refusal.message.contains("net/a/eth0 on node n1"),
        "{refusal}"
    );
    // A new container on the same node takes over.
    assert_eq!(first(&cluster.give(&sticky("n1", "b"), NOW)), address);
    assert_eq!(cluster.drop_container("a", NOW), Default::default());
    assert_eq!(cluster.drop_container("b", NOW).kept.len(), 1);
    let moved = cluster.give(&sticky("n2", "c"), NOW);
    assert!(first(&moved) == address && moved.addresses[0].borrowed);
    let identity = || Release::Identity {
        identity: name("db/pg-0"),
    };
    assert_eq!(
        cluster.release(identity(), NOW).expect_err("held").code,
        Code::InUse
    );
    cluster.drop_container("c", NOW);
    assert_eq!(
        cluster
            .release(identity(), NOW)
            .expect("kept")
            .released
            .len(),
        1
    );
    assert_eq!(cluster.held(&address), None);
    cluster.clean(NOW);
}

fn sticky_at(container: &str, network: &str, interface: &str) -> Request {
    want_with("n1", container, |ask| {
        ask.identity = Some(name("db/pg-0"));
        ask.attachment.network = name(network);
        ask.attachment.interface = name(interface);
    })
}

#[test]
fn an_identity_has_an_address_in_each_of_its_places() {
    let mut cluster = Cluster::with_pools(&[("p", "10.0.0.0/28", 29)]);
    let places = [("net", "eth0"), ("net", "net1"), ("other", "eth0")];
    let ask = |cluster: &mut Cluster, container: &str| {
        places.map(|(network, interface)| {
            let ask = sticky_at(container, network, interface);
            first(&cluster.give(&ask, NOW))
        })
    };
    let had = ask(&mut cluster, "a");
    assert!(had[0] != had[1] && had[1] != had[2] && had[0] != had[2]);
    cluster.clean(NOW);
    for (network, interface) in places {
        let attachment = Attachment {
            network: name(network),
            container: name("a"),
            interface: name(interface),
        };
        let released = cluster.release(Release::Attachment(attachment), NOW);
        assert_eq!(released.expect("no refusal").kept.len(), 1);
    }
    let mut reversed = places.map(|(network, interface)| {
        let address = first(&cluster.give(&sticky_at("b", network, interface), NOW));
        (network, interface, address)
    });
    reversed.reverse();
    // The next container takes over, in whatever order it asks.
    for (network, interface, address) in &reversed {
        let again = first(&cluster.give(&sticky_at("c", network, interface), NOW));
        assert_eq!(again, *address);
    }
    assert_eq!(
        reversed.map(|(_, _, address)| address),
        [had[2].clone(), had[1].clone(), had[0].clone()]
    );
    cluster.clean(NOW);
}

#[test]
fn an_address_kept_before_places_were_told_serves_who_asks_first() {
    let mut cluster = Cluster::with_pools(&[("p", "10.0.0.0/28", 29)]);
    let old = first(&cluster.give(&sticky_at("a", "net", "eth0"), NOW));
    for held in [true, false] {
        // As rows were written before.
        cluster.rows.edit(|key, json| {
            if let Key::Block(_) = key {
                let held = json["allocations"]["0"].as_object_mut();
                assert!(held.expect("an allocation").remove("place").is_some());
            }
        });
        if held {
            // The handle tells the place.
            let other = first(&cluster.give(&sticky_at("b", "net", "net1"), NOW));
            assert_ne!(other, old);
            assert_eq!(
                first(&cluster.give(&sticky_at("b", "net", "eth0"), NOW)),
                old
            );
            cluster.drop_container("b", NOW);
        }
    }
    assert_eq!(
        first(&cluster.give(&sticky_at("c", "other", "eth0"), NOW)),
        old
    );
    let fresh = first(&cluster.give(&sticky_at("c", "net", "eth0"), NOW));
    assert_ne!(fresh, old);
    cluster.clean(NOW);
}

#[test]
fn of_two_nodes_that_take_one_address_or_mac_at_once_one_is_refused() {
    type Edit = fn(&mut Node);
    let twins: [Edit; 3] = [
        |node| node.underlay = vec!["192.0.2.1/24".parse().expect("valid")],
        |node| node.vtep_mac = Mac([2, 0, 0, 0, 0, 1]),
        |node| node.underlay.push("2001:db8::1/64".parse().expect("valid")),
    ];
    for (known, twin) in [(false, twins[0]), (false, twins[1]), (true, twins[2])] {
        let mut cluster = Cluster::default();
        let [mut one, mut other] = [node(1, &[]), node(2, &[])];
        if known {
            cluster.done(node_put(1, &[]));
            cluster.done(node_put(2, &[]));
        }
        twin(&mut one);
        twin(&mut other);
        let mut late = Server::default();
        late.sync(&cluster.rows);
        cluster.done(Request::NodePut(Box::new(one)));
        let other = Request::NodePut(Box::new(other));
        let refusal = late.ask(&mut cluster.rows, &other, NOW);
        assert_eq!(refusal.map_err(|error| error.code), Err(Code::Taken));
        cluster.clean(NOW);
    }
}

#[test]
fn nodes_that_change_their_labels_do_not_wait_for_each_other() {
    let mut cluster = Cluster::default();
    cluster.done(node_put(1, &[]));
    cluster.done(node_put(2, &[]));
    let mut late = Server::default();
    late.sync(&cluster.rows);
    cluster.done(node_put(1, &[("rack", "a")]));
    let request = node_put(2, &[("rack", "b")]);
    let plan = plan(&late.book, &request, NOW).expect("planned");
    assert!(cluster.rows.commit(&late.book, &plan));
}

#[test]
fn a_release_with_one_stale_member_frees_nothing() {
    let mut cluster = Cluster::with_pools(&[("p", "10.0.0.0/28", 30)]);
    let held = ["a", "b"].map(|container| {
        let address = cluster.address("n1", container);
        cluster.held(&address).expect("held")
    });
    let list = |sequence: u64| Release::Addresses {
        addresses: vec![
            Held {
                address: held[0].address,
                handle: held[0].handle.clone(),
                sequence: None,
            },
            Held {
                address: held[1].address,
                handle: None,
                sequence: Some(sequence),
            },
        ],
    };
    let stale = cluster.release(list(held[1].sequence + 1), NOW);
    assert_eq!(stale.expect_err("stale").code, Code::Changed);
    assert!(cluster.held(&held[0].address.to_string()).is_some());
    let released = cluster
        .release(list(held[1].sequence), NOW)
        .expect("as it is");
    assert_eq!(released.released.len(), 2);
    let again = cluster
        .release(list(held[1].sequence), NOW)
        .expect("no error");
    assert_eq!(again.unallocated.len(), 2);
}

#[test]
fn pools_that_make_no_sense_are_refused() {
    let cases: [(&str, u8, Use, Encapsulation); 8] = [
        ("10.0.0.1/24", 26, Use::Workload, Encapsulation::Vxlan),
        ("10.0.0.0/24", 19, Use::Workload, Encapsulation::Vxlan),
        ("10.0.0.0/27", 26, Use::Workload, Encapsulation::Vxlan),
        ("fd00::/120", 115, Use::Workload, Encapsulation::Vxlan),
        ("fd00::/120", 122, Use::Workload, Encapsulation::Ipip),
        ("169.254.1.0/24", 26, Use::Workload, Encapsulation::Vxlan),
        ("fe80::/64", 122, Use::Workload, Encapsulation::Vxlan),
        ("10.0.0.0/24", 26, Use::LoadBalancer, Encapsulation::Vxlan),
    ];
    let mut cluster = Cluster::with_pools(&[("p", "10.9.0.0/16", 26)]);
    for (cidr, size, purpose, encapsulation) in cases {
        let mut bad = pool("bad", cidr, size);
        bad.uses = vec![purpose];
        bad.encapsulation = encapsulation;
        let code = cluster.refused(&Request::PoolCreate(Box::new(bad)), NOW);
        assert_eq!(code, Code::Invalid, "{cidr} /{size}");
    }
    let overlap = Request::PoolCreate(Box::new(pool("q", "10.9.1.0/24", 26)));
    assert_eq!(cluster.refused(&overlap, NOW), Code::Taken);
    let same = Request::PoolCreate(Box::new(pool("p", "10.9.0.0/16", 26)));
    assert_eq!(cluster.ask(&same, NOW), Ok(Reply::Done));
}

#[test]
fn watchers_hear_of_confirmed_blocks_and_of_loans() {
    let mut cluster = Cluster::with_pools(&[("p", "10.0.0.0/31", 31)]);
    let hear = |cluster: &mut Cluster, request: &Request, now| {
        cluster.server.sync(&cluster.rows);
        let plan = plan(&cluster.server.book, request, now).expect("planned");
        assert!(cluster.rows.commit(&cluster.server.book, &plan));
        let updates = cluster.server.unheard(&cluster.rows);
        let events = routes::events(&cluster.server.book, &updates, cluster.rows.revision);
        let told = |event: Event| match event {
            Event::Route { route, .. } => format!("{} {}", route.net, route.node),
            Event::RouteGone { net, .. } => format!("{net} gone"),
            Event::Node { node, .. } => format!("node {}", node.name),
            other => panic!("{other:?}"),
        };
        events.into_iter().map(told).collect::<Vec<_>>()
    };
    let release = |container| Request::Release(Release::Attachment(attachment(container)));
    assert_eq!(hear(&mut cluster, &node_put(1, &[]), NOW), ["node n1"]);
    assert_eq!(
        hear(&mut cluster, &want("n1", "a"), NOW),
        ["10.0.0.0/31 n1"]
    );
    assert_eq!(
        hear(&mut cluster, &want("n2", "b"), NOW),
        ["10.0.0.1/32 n2"]
    );
    assert_eq!(hear(&mut cluster, &release("b"), NOW), ["10.0.0.1/32 gone"]);
    assert_eq!(hear(&mut cluster, &release("a"), NOW), Vec::<String>::new());
    let later = NOW + 60_000;
    assert_eq!(
        hear(&mut cluster, &want("n2", "b"), later),
        ["10.0.0.0/31 n2"]
    );
    let rows = cluster.rows.rows.iter();
    let blocks = rows
        .filter(|(key, row)| matches!(key, Key::Block(_)) && matches!(row.value, Value::Block(_)));
    assert_eq!(blocks.count(), 1);
}

#[test]
fn a_pool_may_take_anothers_place_in_one_commit() {
    let row = |name: &str| {
        let pool = pool(name, "10.0.0.0/24", 26);
        Update {
            key: Key::Pool(pool.name.clone()),
            row: Some(Row {
                value: Value::Pool(pool),
                revision: 1,
            }),
        }
    };
    let gone = |update: &Update| Update {
        key: update.key.clone(),
        row: None,
    };
    for [old, new] in [["a", "z"], ["z", "a"]] {
        let [old, new] = [row(old), row(new)];
        for updates in [[gone(&old), new.clone()], [new.clone(), gone(&old)]] {
            let mut book = Book::default();
            book.apply(&old);
            book.apply_all(&updates);
            let net = "10.0.0.0/26".parse().expect("a CIDR");
            let found = book
                .pool_of(&net)
                .map(|range| Key::Pool(range.name().clone()));
            assert_eq!(found, Some(new.key.clone()));
        }
    }
}

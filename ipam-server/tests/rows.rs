//! Rows that a foreign hand wrote: each is set aside or taken for what it
//! says, nothing that is asked afterwards panics, and nobody is given what a
//! row says is somebody else's.

mod support;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use proptest::{prelude::*, sample::Index};
use serde_json::{Value as Json, json};
use support::*;
use weft_api::{
    ipam::{Attachment, Code, Family, ProblemKind, Release, Reply, Request},
    names::Handle,
};
use weft_ipam::{
    book::Book,
    model::{Key, RowError, Value},
    routes,
    store::{Loaded, Update},
    sweep,
};

/// A world of every kind of row.
fn world() -> Cluster {
    let mut cluster =
        Cluster::with_pools(&[("four", "10.0.0.0/27", 29), ("six", "fd00::/124", 126)]);
    cluster.done(Request::Configure(cooldown(30)));
    cluster.done(reserve("routers", &["10.0.0.0/31", "fd00::/127"]));
    for number in [1, 2] {
        cluster.done(node_put(number, &[("rack", "a")]));
        for container in ["a", "b", "sticky", "gone"] {
            let ask = want_with(
                &format!("n{number}"),
                &format!("{container}{number}"),
                |ask| {
                    ask.families = vec![Family::V4, Family::V6];
                    ask.identity =
                        (container == "sticky").then(|| name(&format!("db/pg-{number}")));
                },
            );
            let _ = cluster.ask(&ask, NOW);
        }
    }
    cluster.drop_container("sticky1", NOW);
    cluster.drop_container("gone1", NOW);
    cluster.age();
    cluster.clean(NOW);
    cluster
}

fn nasty() -> impl Strategy<Value = Json> {
    let texts = [
        "",
        "x",
        "n2",
        "a/b",
        "10.0.0.0/8",
        "10.0.0.8/29",
        "10.0.0.8/30",
        "10.0.0.9/29",
        "::/0",
        "0.0.0.0/0",
        "fd00::4/126",
        "10.0.0.0/33",
        "255.255.255.255/32",
        "127.0.0.1/8",
        "ff:ff:ff:ff:ff:ff",
        "pending",
        "net/a1/eth0",
        "net/a2/eth0",
        "db/pg-1",
        "workload",
        "tunnel",
        "ipip",
        "has(",
        "\u{0}",
    ];
    let texts: Vec<_> = texts.iter().map(|text| json!(text)).collect();
    let others = vec![
        json!(null),
        json!(true),
        json!(false),
        json!([]),
        json!({}),
        json!(0),
        json!(1),
        json!(-1),
        json!(7),
        json!(8),
        json!(29),
        json!(30),
        json!(128),
        json!(255),
        json!(u32::MAX),
        json!(u64::MAX),
        json!(0.5),
    ];
    prop::sample::select([texts, others].concat())
}

#[derive(Debug, Clone)]
enum Edit {
    /// Somewhere in the row.
    Replace(Json),
    Remove,
    /// An element or a field again, at another place.
    Repeat(u32),
    /// The whole row under another row's key, or under one of its own.
    Move(Index),
    Copy(String),
    Cut(usize),
}

fn edits() -> impl Strategy<Value = Vec<(Index, Index, Edit)>> {
    let keys = [
        "pool/inner",
        "pool/around",
        "block/10.0.0.8-30",
        "block/10.0.0.12-30",
        "block/10.0.0.0-28",
        "block/10.0.0.0-20",
        "block/fd00::-124",
        "block/192.0.2.0-29",
        "node/n3",
        "affinity/n2/10.0.0.8-29",
        "affinity/n9/10.0.0.8-30",
        "reservation/x",
    ];
    let edit = prop_oneof![
        8 => nasty().prop_map(Edit::Replace),
        3 => Just(Edit::Remove),
        3 => (0_u32..10).prop_map(Edit::Repeat),
        1 => any::<Index>().prop_map(Edit::Move),
        6 => prop::sample::select(keys.map(str::to_owned).to_vec()).prop_map(Edit::Copy),
        1 => (0_usize..200).prop_map(Edit::Cut),
    ];
    prop::collection::vec((any::<Index>(), any::<Index>(), edit), 1..6)
}

/// How many values there are in a value, itself included.
fn count(json: &Json) -> usize {
    1 + match json {
        Json::Array(all) => all.iter().map(count).sum(),
        Json::Object(all) => all.values().map(count).sum(),
        _ => 0,
    }
}

/// Edits the value that is the `place`th in order.
fn edit(json: &mut Json, place: &mut usize, edit_it: &Edit) -> bool {
    if *place == 0 {
        match (edit_it, json) {
            (Edit::Replace(with), json) => *json = with.clone(),
            (Edit::Repeat(at), Json::Array(all)) => all.push(json!(at)),
            (Edit::Repeat(at), Json::Object(all)) => {
                if let Some(first) = all.values().next().cloned() {
                    all.insert(at.to_string(), first);
                }
            }
            _ => {}
        }
        return true;
    }
    *place -= 1;
    match json {
        Json::Array(all) => {
            let removed = matches!(edit_it, Edit::Remove).then_some(*place);
            if removed.is_some_and(|at| at < all.len()) {
                all.remove(*place);
                return true;
            }
            all.iter_mut().any(|one| edit(one, place, edit_it))
        }
        Json::Object(all) => {
            let key = all.keys().nth(*place).cloned();
            if let (Edit::Remove, Some(key)) = (edit_it, key) {
                all.remove(&key);
                return true;
            }
            all.values_mut().any(|one| edit(one, place, edit_it))
        }
        _ => false,
    }
}

/// Makes every edit; the rows as they are then, and what was written.
fn spoil(cluster: &mut Cluster, edits: &[(Index, Index, Edit)]) -> Vec<Update> {
    for (row, place, change) in edits {
        let keys: Vec<_> = cluster.rows.rows.keys().cloned().collect();
        let key = row.get(&keys);
        let bytes = cluster.rows.rows[key].value.encode();
        let (key, bytes) = match change {
            Edit::Move(to) => (to.get(&keys).clone(), bytes),
            Edit::Copy(to) => {
                let to = match Key::parse(to) {
                    Ok(to) => to,
                    Err(_) => continue,
                };
                // With the name and range that the new key tells: it is sound,
                // and contradicts others.
                let mut json: Json = serde_json::from_slice(&bytes).unwrap_or_default();
                match (&to, &mut json) {
                    (
                        Key::Pool(name) | Key::Node(name) | Key::Reservation(name),
                        Json::Object(json),
                    ) => {
                        json.insert("name".to_owned(), json!(name));
                    }
                    (Key::Block(cidr), Json::Object(json)) => {
                        json.insert("cidr".to_owned(), json!(cidr));
                        let size = 1_u64 << (cidr.max_prefix_len() - cidr.prefix_len());
                        if let Some(Json::Object(held)) = json.get_mut("allocations") {
                            held.retain(|at, _| at.parse::<u64>().is_ok_and(|at| at < size));
                        }
                        if let Some(Json::Array(free)) = json.get_mut("free") {
                            free.retain(|at| at.as_u64().is_some_and(|at| at < size));
                        }
                    }
                    _ => {}
                }
                (to, serde_json::to_vec(&json).expect("JSON"))
            }
            Edit::Cut(at) => (key.clone(), bytes[..bytes.len().min(*at)].to_vec()),
            other => {
                let Ok(mut json) = serde_json::from_slice::<Json>(&bytes) else {
                    continue;
                };
                let mut at = place.index(count(&json));
                edit(&mut json, &mut at, other);
                (key.clone(), serde_json::to_vec(&json).expect("JSON"))
            }
        };
        cluster.rows.put(&key, Value::read(&key, &bytes));
    }
    cluster.server.unheard(&cluster.rows)
}

/// Whoever a sound row says has an address, also where several have it.
fn holders(rows: &Rows) -> BTreeMap<IpAddr, BTreeSet<Option<Handle>>> {
    let mut holders: BTreeMap<_, BTreeSet<_>> = BTreeMap::new();
    for row in rows.rows.values() {
        if let Value::Block(block) = &row.value {
            for (ordinal, held) in &block.allocations {
                let of = holders.entry(block.address(*ordinal)).or_default();
                of.insert(held.handle.clone());
            }
        }
    }
    holders
}

fn requests() -> Vec<Request> {
    let at = |text: &str| text.parse::<IpAddr>().expect("an address");
    let mut all = vec![
        Request::Check { in_use: None },
        Request::Pools,
        Request::Blocks,
        Request::Nodes,
    ];
    for node in ["n1", "n2", "n3"] {
        for family in [Family::V4, Family::V6] {
            for n in 0..2 {
                all.push(want_with(node, &format!("{node}-{family:?}-{n}"), |ask| {
                    ask.families = vec![family];
                }));
            }
        }
        all.push(Request::Allocations {
            node: Some(name(node)),
            borrowed: false,
        });
    }
    for address in [
        "10.0.0.3",
        "10.0.0.9",
        "10.0.0.13",
        "10.0.0.30",
        "fd00::6",
        "192.0.2.3",
    ] {
        all.push(Request::Address {
            address: at(address),
        });
        all.push(want_with(
            "n2",
            &format!("at-{address}").replace(':', "_"),
            |ask| {
                ask.families = vec![Family::of(at(address))];
                ask.addresses = vec![at(address)];
            },
        ));
    }
    for pod in ["db/pg-1", "db/pg-2"] {
        all.push(want_with("n2", &pod.replace('/', "-"), |ask| {
            ask.identity = Some(name(pod))
        }));
        all.push(Request::Release(Release::Identity {
            identity: name(pod),
        }));
    }
    all.extend(changes());
    all
}

/// What gives back, makes and takes away.
fn changes() -> Vec<Request> {
    let mut all = vec![];
    all.push(gc("n1", &["a1"]));
    all.extend(["a2", "b1", "at-10.0.0.9"].map(|container| {
        Request::Release(Release::Attachment(Attachment {
            ..attachment(container)
        }))
    }));
    all.push(node_put(1, &[]));
    all.push(node_put(3, &[]));
    all.push(Request::Configure(strict()));
    all.extend(["four", "six"].map(|pool| Request::PoolDisable {
        name: name(pool),
        disabled: true,
    }));
    all.extend(["four", "six", "inner"].map(|pool| Request::PoolDelete { name: name(pool) }));
    all.push(Request::PoolCreate(Box::new(pool(
        "new",
        "10.0.0.0/27",
        30,
    ))));
    all.push(want("n1", "new"));
    all.push(Request::Unreserve {
        name: name("routers"),
    });
    all.extend(["n1", "n2"].map(|node| Request::NodeDelete { name: name(node) }));
    all
}

fn loaded(rows: &Rows) -> Book {
    Book::load(Loaded {
        revision: rows.revision,
        rows: (rows.rows.iter())
            .map(|(key, row)| (key.clone(), row.clone()))
            .collect(),
    })
}

/// An answer to `request` gives nobody what another has.
fn fair(request: &Request, reply: &Reply, before: &BTreeMap<IpAddr, BTreeSet<Option<Handle>>>) {
    let (Request::Allocate(ask), Reply::Allocated(given)) = (request, reply) else {
        return;
    };
    let handle = ask.attachment.handle();
    for address in given.addresses.iter().map(|assigned| assigned.address) {
        let had = before.get(&address).into_iter().flatten().flatten();
        let others: Vec<_> = had.filter(|one| **one != handle).collect();
        let former = ask.identity.is_some();
        assert!(former || others.is_empty(), "{address} is {others:?}'s");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn no_row_of_a_foreign_hand_panics_or_doubles_an_address(edits in edits(), turn in 0_usize..40) {
        let mut cluster = world();
        let written = spoil(&mut cluster, &edits);
        routes::events(&cluster.server.book, &written, cluster.rows.revision);
        cluster.server.sync(&cluster.rows);
        routes::snapshot(&cluster.server.book);
        let fresh = loaded(&cluster.rows);
        prop_assert_eq!(fresh.counts(), cluster.server.book.counts());
        prop_assert_eq!(fresh.cut(), cluster.server.book.cut());
        for node in ["n1", "n2", "n3"] {
            prop_assert_eq!(fresh.share(&name(node)), cluster.server.book.share(&name(node)));
        }
        let mut requests = requests();
        let middle = turn % requests.len();
        requests.rotate_left(middle);
        for (step, request) in requests.iter().enumerate() {
            let now = NOW + 50_000 * step as u64;
            cluster.rows.problems(now);
            sweep::rested(&cluster.server.book, now, 9);
            let before = holders(&cluster.rows);
            if let Request::Check { .. } = request {
                continue;
            }
            if let Ok(reply) = cluster.ask(request, now) {
                fair(request, &reply, &before);
            }
        }
        let fresh = loaded(&cluster.rows);
        prop_assert_eq!(fresh.counts(), cluster.server.book.counts());
        prop_assert_eq!(fresh.cut(), cluster.server.book.cut());
    }
}

/// Its key is named, and what is wrong.
fn refused(key: &str, row: &Json, told: &str) {
    let parsed = Key::parse(key).expect("a key");
    let bytes = serde_json::to_vec(row).expect("JSON");
    match Value::decode(&parsed, &bytes) {
        Err(RowError::Value { key: named, reason }) => {
            assert!(named == key && reason.contains(told), "{key}: {reason}");
        }
        other => panic!("{key} {told}: {other:?}"),
    }
}

/// `row` with the fields of `change`.
fn with(row: &Json, change: Json) -> Json {
    let mut row = row.clone();
    if let Json::Object(fields) = change {
        row.as_object_mut().expect("an object").extend(fields);
    }
    row
}

#[test]
fn a_pool_or_reservation_that_cannot_be_is_named_with_what_is_wrong() {
    for (cidr, size, told) in [
        ("10.0.0.0/24", 0, "block size 0"),
        ("10.0.0.0/24", 23, "smaller than a block"),
        ("fd00::/64", 64, "block size 64"),
        ("10.0.0.1/24", 26, "behind its prefix"),
        ("10.0.0.0/33", 26, "invalid IP address"),
    ] {
        let row = json!({"name": "p", "cidr": cidr, "block_size": size});
        refused("pool/p", &row, told);
    }
    refused(
        "pool/p",
        &json!({"name": "q", "cidr": "10.0.0.0/24"}),
        "it is of q",
    );
    refused("pool/p", &json!({"name": "p"}), "cidr");
    refused(
        "reservation/r",
        &json!({"name": "s", "cidrs": []}),
        "it is of s",
    );
}

#[test]
fn a_block_that_cannot_be_is_named_with_what_is_wrong() {
    let held = json!({"handle": "h", "sequence": 1, "node": "n1", "use": "workload", "since": 0});
    let sound = json!({"cidr": "10.0.0.0/30", "owner": null, "claimed": 0, "sequence": 1,
                       "allocations": {"1": held}, "free": [0, 2, 3]});
    for (change, told) in [
        (json!({"free": [0, 2, 4]}), "ordinal 4 is out"),
        (json!({"free": [0, 2, 2]}), "free twice"),
        (json!({"free": [0, 1]}), "both free and allocated"),
        (json!({"allocations": {"9": held}}), "ordinal 9 is out"),
        (json!({"cidr": "10.0.0.4/30"}), "it is of 10.0.0.4/30"),
    ] {
        refused("block/10.0.0.0-30", &with(&sound, change), told);
    }
    let key = Key::parse("block/10.0.0.0-30").expect("a key");
    Value::decode(&key, &serde_json::to_vec(&sound).expect("JSON")).expect("it is sound");
}

#[test]
fn a_node_that_cannot_be_is_named_with_what_is_wrong() {
    let sound =
        json!({"name": "n1", "underlay": ["192.0.2.1/24"], "vtep_mac": "02:00:00:00:00:01"});
    for (change, told) in [
        (json!({"underlay": []}), "no underlay"),
        (
            json!({"underlay": ["0.0.0.0/0"]}),
            "no address of one machine",
        ),
        (
            json!({"underlay": ["224.0.0.1/4"]}),
            "no address of one machine",
        ),
        (
            json!({"underlay": ["192.0.2.1/24", "192.0.2.2/24"]}),
            "not its only",
        ),
        (json!({"vtep_mac": "ff:ff:ff:ff:ff:ff"}), "no MAC address"),
        (json!({"port": 0}), "port 0"),
        (json!({"name": "n2"}), "it is of n2"),
    ] {
        refused("node/n1", &with(&sound, change), told);
    }
    let key = Key::parse("node/n1").expect("a key");
    Value::decode(&key, &serde_json::to_vec(&sound).expect("JSON")).expect("it is sound");
}

#[test]
fn a_block_that_is_set_aside_is_neither_cut_nor_given_from_and_is_told() {
    let mut cluster = Cluster::with_pools(&[("p", "10.0.0.0/29", 30)]);
    let had = cluster.address("n1", "a");
    cluster.rows.edit(|key, json| {
        if let Key::Block(_) = key {
            json["free"] = json!([9]);
        }
    });
    let problems = cluster.rows.problems(NOW);
    let told = |problem: &weft_api::ipam::Problem| {
        problem.kind == ProblemKind::Structure && problem.message.contains("ordinal 9")
    };
    assert!(problems.iter().any(told), "{problems:?}");
    let this = want_with("n1", "b", |ask| {
        ask.addresses = vec![had.parse().expect("valid")]
    });
    assert_eq!(cluster.refused(&this, NOW), Code::Taken);
    let others: Vec<_> = (0..4)
        .map(|n| cluster.address("n1", &format!("c{n}")))
        .collect();
    assert!(!others.contains(&had));
    assert_eq!(cluster.refused(&want("n1", "d"), NOW), Code::Exhausted);
    // Mended, it is as before: the affinity stayed.
    cluster.rows.edit(|key, json| {
        if let Key::Block(_) = key
            && json["free"] == json!([9])
        {
            json["free"] = json!([1, 2, 3]);
        }
    });
    assert!(cluster.give(&want("n1", "a"), NOW).existing);
    cluster.address("n1", "d");
    cluster.clean(NOW);
}

#[test]
fn settings_that_are_set_aside_are_not_written_over_unasked() {
    let mut cluster = Cluster::with_pools(&[]);
    cluster.done(Request::Configure(strict()));
    cluster.rows.edit(|key, json| {
        if let Key::Config = key {
            json["cooldown_seconds"] = json!("soon");
        }
    });
    cluster.done(Request::PoolCreate(Box::new(pool("p", "10.0.0.0/29", 30))));
    let row = &cluster.rows.rows[&Key::Config].value;
    assert!(String::from_utf8_lossy(&row.encode()).contains("soon"));
    cluster.done(Request::Configure(cooldown(0)));
    cluster.clean(NOW);
}

#[test]
fn a_lost_mark_makes_nothing_old() {
    let mut cluster = Cluster::with_pools(&[("p", "10.0.0.0/29", 30)]);
    cluster.address("n1", "old");
    cluster.age();
    cluster.address("n1", "young");
    cluster.rows.edit(|key, json| {
        if let Key::Mark = key {
            *json = json!("much");
        }
    });
    let freed = cluster.ask(&gc("n1", &[]), NOW).expect("no refusal");
    let Reply::Released(released) = freed else {
        panic!("{freed:?}");
    };
    assert_eq!(released.released.len(), 1, "the old one");
    cluster.address("n1", "new");
    assert!(raise(&mut cluster.server, &mut cluster.rows));
    let freed = cluster.ask(&gc("n1", &[]), NOW);
    assert_eq!(freed, Ok(Reply::Released(Default::default())));
    cluster.clean(NOW);
}

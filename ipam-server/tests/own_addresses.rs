//! Nodes' own addresses with servers that are behind: of what gives one and
//! what frees it at the same moment, one is void.

mod support;

use serde_json::json;
use support::*;
use weft_api::{
    ipam::{Code, Node, ProblemKind, Release, Request},
    names::Handle,
};
use weft_ipam::{
    check::check,
    model::{Key, Value},
};

fn request(value: serde_json::Value) -> Request {
    serde_json::from_value(value).expect("a request")
}

fn register() -> Request {
    Request::NodeRegister(Box::new(node(1, &[])))
}

/// A pool, and node n1 withdrawn with an address of its own.
fn withdrawn() -> (Cluster, String) {
    let mut cluster = Cluster::with_pools(&[("p", "10.0.0.0/24", 26)]);
    cluster.ask(&register(), NOW).expect("it registers");
    let own = own(&cluster).expect("it is known").tunnel[0].to_string();
    cluster.done(request(json!({"op": "node-leave", "name": "n1"})));
    cluster.held(&own).expect("it is kept");
    (cluster, own)
}

fn own(cluster: &Cluster) -> Option<Node> {
    match &cluster.rows.rows.get(&Key::Node(name("n1")))?.value {
        Value::Node(node) => Some(node.clone()),
        other => panic!("{other:?}"),
    }
}

/// What its record names is held, as its own.
fn sound(cluster: &mut Cluster, what: &Request) {
    cluster.server.sync(&cluster.rows);
    for address in own(cluster).map(|node| node.tunnel).unwrap_or_default() {
        let held = cluster.held(&address.to_string());
        let handle = held.and_then(|held| held.handle).expect("it is held");
        assert_eq!(handle.as_str(), "tunnel:n1", "{what:?}");
    }
    cluster.clean(NOW);
}

fn freeing(own: &str) -> [Request; 4] {
    [
        json!({"op": "release", "by": "handle", "handle": "tunnel:n1"}),
        json!({"op": "release", "by": "addresses", "addresses": [{"address": own}]}),
        json!({"op": "node-delete", "name": "n1"}),
        json!({"op": "pool-delete", "name": "p"}),
    ]
    .map(request)
}

/// n1 comes back by one server, and by another, which has not heard of it, its
/// address is freed.
struct Race {
    cluster: Cluster,
    registers: Server,
    frees: Server,
    freeing: Request,
}

impl Race {
    fn at(place: usize) -> Self {
        let (mut cluster, own_address) = withdrawn();
        let freeing = freeing(&own_address).into_iter().nth(place);
        let freeing = freeing.expect("one of four");
        let registers = behind(&cluster);
        if matches!(freeing, Request::PoolDelete { .. }) {
            let disable = json!({"op": "pool-disable", "name": "p", "disabled": true});
            cluster.done(request(disable));
        }
        Self {
            frees: behind(&cluster),
            cluster,
            registers,
            freeing,
        }
    }
}

/// A server that has heard of all so far, and of nothing that comes.
fn behind(cluster: &Cluster) -> Server {
    let mut server = Server::default();
    server.sync(&cluster.rows);
    server
}

#[test]
fn an_address_is_not_freed_by_who_has_not_heard_that_its_node_is_back() {
    for place in 0..4 {
        let Race {
            mut cluster,
            mut registers,
            mut frees,
            freeing,
        } = Race::at(place);
        registers
            .ask(&mut cluster.rows, &register(), NOW)
            .expect("it registers");
        let refusal = frees.ask(&mut cluster.rows, &freeing, NOW);
        let code = refusal.map_err(|error| error.code);
        assert_eq!(code, Err(Code::InUse), "{freeing:?}");
        sound(&mut cluster, &freeing);
        assert_eq!(own(&cluster).map(|node| node.tunnel.len()), Some(1));
    }
}

#[test]
fn who_registers_does_not_name_what_was_freed_unheard() {
    for place in 0..4 {
        let Race {
            mut cluster,
            mut registers,
            mut frees,
            freeing,
        } = Race::at(place);
        frees
            .ask(&mut cluster.rows, &freeing, NOW)
            .expect("nobody uses it");
        registers
            .ask(&mut cluster.rows, &register(), NOW)
            .expect("it registers");
        sound(&mut cluster, &freeing);
    }
}

#[test]
fn what_a_record_does_not_name_any_more_is_freed() {
    let named = || Node {
        tunnel: vec!["10.0.0.200".parse().expect("an address")],
        ..node(1, &[])
    };
    for change in [
        Request::NodePut(Box::new(named())),
        Request::NodePut(Box::new(node(1, &[]))),
        Request::NodeRegister(Box::new(named())),
    ] {
        let mut cluster = Cluster::with_pools(&[("p", "10.0.0.0/24", 26)]);
        cluster.ask(&register(), NOW).expect("it registers");
        let before = own(&cluster).expect("it is known").tunnel[0].to_string();
        cluster.ask(&change, NOW).expect("it is granted");
        assert!(
            cluster
                .held(&before)
                .is_none_or(|held| held.handle.is_none()),
            "{change:?}"
        );
        cluster.clean(NOW);
    }
    // What it names goes on.
    let mut cluster = Cluster::with_pools(&[("p", "10.0.0.0/24", 26)]);
    cluster.ask(&register(), NOW).expect("it registers");
    let same = Node {
        registered: None,
        ..own(&cluster).expect("it is known")
    };
    let address = same.tunnel[0].to_string();
    cluster.done(Request::NodePut(Box::new(same)));
    assert!(
        cluster
            .held(&address)
            .is_some_and(|held| held.handle.is_some())
    );
}

#[test]
fn nodes_and_pools_are_apart() {
    let mut cluster = Cluster::with_pools(&[("pods", "192.0.2.0/26", 26)]);
    for refused in [node_put(1, &[]), register()] {
        let error = cluster.ask(&refused, NOW).expect_err("it lies in the pool");
        assert_eq!(error.code, Code::Taken);
        for part in ["node n1", "192.0.2.1", "pool pods", "192.0.2.0/26"] {
            assert!(error.message.contains(part), "{error}");
        }
        assert!(error.hint.contains("outside the pods' network"), "{error}");
    }
    cluster.done(node_put(100, &[]));
    let around = Request::PoolCreate(Box::new(pool("around", "192.0.2.64/26", 26)));
    let error = cluster.ask(&around, NOW).expect_err("a node lies in it");
    assert_eq!(error.code, Code::Taken);
    for part in ["pool around", "192.0.2.64/26", "192.0.2.100", "node n100"] {
        assert!(error.message.contains(part), "{error}");
    }
    // No pool holds loopback addresses.
    let mut local = node(2, &[]);
    local.underlay = vec!["127.0.0.1/8".parse().expect("an address")];
    cluster.done(Request::NodePut(Box::new(local)));
    // What came about all the same is told.
    let Value::Pool(mut row) = cluster.rows.rows[&Key::Pool(name("pods"))].value.clone() else {
        panic!("a pool");
    };
    row.cidr = "192.0.2.0/24".parse().expect("a range");
    cluster.rows.put(&Key::Pool(name("pods")), Value::Pool(row));
    let problems = cluster.rows.problems(NOW);
    let told = |message: &str| problems.iter().any(|one| one.message.contains(message));
    assert!(told("192.0.2.100 lies in pool pods"), "{problems:?}");
}

#[test]
fn what_is_kept_for_withdrawn_nodes_is_noted() {
    let (mut cluster, own_address) = withdrawn();
    cluster.done(node_put(2, &[]));
    let rows = cluster.rows.rows.iter();
    let report = check(rows.map(|(key, row)| (key, &row.value)), None, NOW);
    assert_eq!(report.problems, []);
    let [note] = &report.notes[..] else {
        panic!("{:?}", report.notes);
    };
    assert_eq!(note.kind, ProblemKind::Kept);
    assert_eq!(note.object, own_address);
    assert!(note.message.contains("node n1"), "{note:?}");
    assert!(note.hint.contains("weft ipam node delete n1"), "{note:?}");
    // A record that names no such address is another matter.
    let key = Key::Node(name("n1"));
    cluster.rows.put(&key, Value::Node(node(1, &[])));
    let [leak] = &cluster.rows.problems(NOW)[..] else {
        panic!("one problem");
    };
    assert_eq!(leak.kind, ProblemKind::Leak);
    assert!(leak.message.contains("does not name"), "{leak:?}");
    // Its remedy.
    cluster.server.sync(&cluster.rows);
    let handle = Handle::new("tunnel:n1").expect("a handle");
    cluster
        .release(Release::Handle { handle }, NOW)
        .expect("nobody uses it");
    cluster.clean(NOW);
}

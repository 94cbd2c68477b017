use weft_api::names::{Mac, Vni};

use super::*;

fn name(text: &str) -> Name {
    Name::new(text).expect("valid")
}

fn net(text: &str) -> IpNet {
    text.parse().expect("a prefix")
}

fn node(number: u8) -> Node {
    Node {
        name: name(&format!("n{number}")),
        underlay: vec![net(&format!("192.0.2.{number}/24"))],
        vtep_mac: Mac([2, 0, 0, 0, 1, number]),
        vni: Vni::DEFAULT,
        port: 4789,
        tunnel: Vec::new(),
        labels: BTreeMap::new(),
        registered: None,
    }
}

fn route(text: &str, node: &str, encapsulation: Encapsulation) -> Route {
    Route {
        net: net(text),
        node: name(node),
        encapsulation,
        when: When::Always,
        nat_outgoing: false,
    }
}

fn vxlan(text: &str, node: &str) -> Route {
    route(text, node, Encapsulation::Vxlan)
}

fn own() -> forwarder::Node {
    record(&node(1), Vec::new())
}

fn view(nodes: &[Node], routes: &[Route]) -> View {
    let mut view = View::default();
    view.take(Event::Snapshot {
        revision: 5,
        nodes: nodes.to_vec(),
        routes: routes.to_vec(),
    });
    view
}

fn table(nodes: &Nodes) -> Vec<(String, Vec<String>)> {
    let row = |node: &forwarder::Node| {
        let blocks = node.blocks.iter().map(ToString::to_string).collect();
        (node.name.to_string(), blocks)
    };
    std::iter::once(&nodes.node)
        .chain(&nodes.peers)
        .map(row)
        .collect()
}

fn rows(list: &[(&str, &[&str])]) -> Vec<(String, Vec<String>)> {
    list.iter()
        .map(|(node, blocks)| {
            let blocks = blocks.iter().map(ToString::to_string).collect();
            (node.to_string(), blocks)
        })
        .collect()
}

#[test]
fn a_snapshot_becomes_nodes_with_their_blocks() {
    let mut first = node(1);
    first.tunnel = vec![net("10.1.0.0/32").addr()];
    let view = view(
        &[first.clone(), node(2)],
        &[
            vxlan("10.1.0.0/24", "n1"),
            vxlan("10.2.0.0/24", "n2"),
            vxlan("10.1.0.9/32", "n2"),
        ],
    );
    let (nodes, left_out) = view.nodes(&own());
    assert_eq!(left_out, []);
    assert_eq!(
        table(&nodes),
        rows(&[
            ("n1", &["10.1.0.0/24"]),
            ("n2", &["10.1.0.9/32", "10.2.0.0/24"])
        ])
    );
    assert_eq!(nodes.node.tunnel, first.tunnel);
    assert_eq!(
        nodes.peers[0].underlay,
        [IpAddr::from([192, 0, 2, 2])],
        "the subnet's length is not part of it"
    );
}

#[test]
#[expect(clippy::too_many_lines, reason = "a table")]
fn each_event_changes_what_it_says_and_no_more() {
    let mut view = view(
        &[node(1), node(2)],
        &[vxlan("10.1.0.0/24", "n1"), vxlan("10.2.0.0/24", "n2")],
    );
    type Rows<'a> = &'a [(&'a str, &'a [&'a str])];
    let steps: [(Event, Rows<'_>); 6] = [
        (
            Event::Node {
                revision: 6,
                node: node(3),
            },
            &[
                ("n1", &["10.1.0.0/24"]),
                ("n2", &["10.2.0.0/24"]),
                ("n3", &[]),
            ],
        ),
        (
            Event::Route {
                revision: 7,
                route: vxlan("10.2.0.0/24", "n3"),
            },
            &[
                ("n1", &["10.1.0.0/24"]),
                ("n2", &[]),
                ("n3", &["10.2.0.0/24"]),
            ],
        ),
        (
            Event::NodeGone {
                revision: 8,
                name: name("n2"),
            },
            &[("n1", &["10.1.0.0/24"]), ("n3", &["10.2.0.0/24"])],
        ),
        (
            Event::RouteGone {
                revision: 9,
                net: net("10.1.0.0/24"),
            },
            &[("n1", &[]), ("n3", &["10.2.0.0/24"])],
        ),
        (
            Event::Alive { revision: 12 },
            &[("n1", &[]), ("n3", &["10.2.0.0/24"])],
        ),
        (
            Event::Snapshot {
                revision: 2,
                nodes: vec![node(1)],
                routes: Vec::new(),
            },
            &[("n1", &[])],
        ),
    ];
    for (event, expected) in steps {
        let told = format!("{event:?}");
        view.take(event);
        assert_eq!(table(&view.nodes(&own()).0), rows(expected), "{told}");
    }
    assert_eq!(view.revision(), Some(2), "an older store is believed");
}

#[test]
fn a_resumption_repeats_what_may_not_have_come_whole() {
    let mut view = View::default();
    assert_eq!(view.resume(), None);
    view.take(Event::Snapshot {
        revision: 5,
        nodes: Vec::new(),
        routes: Vec::new(),
    });
    assert_eq!(view.resume(), Some(5));
    view.take(Event::Node {
        revision: 7,
        node: node(2),
    });
    assert_eq!((view.revision(), view.resume()), (Some(7), Some(6)));
    view.take(Event::Alive { revision: 7 });
    assert_eq!(view.resume(), Some(7));
}

#[test]
fn each_block_goes_by_the_way_of_its_pool() {
    let view = view(
        &[node(1), node(2)],
        &[
            route("10.1.0.0/24", "n1", Encapsulation::None),
            route("10.2.0.0/24", "n2", Encapsulation::None),
            route("10.3.0.0/24", "n2", Encapsulation::Ipip),
            vxlan("10.4.0.0/24", "n9"),
            vxlan("10.5.0.0/24", "n2"),
        ],
    );
    let (nodes, left_out) = view.nodes(&own());
    assert_eq!(
        table(&nodes),
        rows(&[
            ("n1", &["10.1.0.0/24"]),
            ("n2", &["10.2.0.0/24", "10.3.0.0/24", "10.5.0.0/24"])
        ])
    );
    let ways = [
        (net("10.2.0.0/24"), Way::Direct),
        (net("10.3.0.0/24"), Way::Ipip),
    ];
    assert_eq!(nodes.peers[0].ways, ways.into());
    let told: Vec<_> = left_out.iter().map(ToString::to_string).collect();
    assert_eq!(
        told,
        ["10.4.0.0/24 gets no route: node n9 is unknown; make it known by weft ipam node put",]
    );
}

#[test]
fn cross_subnet_tunnels_to_those_who_are_no_neighbours() {
    let [one, mut near, mut far, mut alone] = [1, 2, 3, 4].map(node);
    near.underlay.push(net("2001:db8:2::2/64"));
    far.underlay = vec![net("198.51.100.3/24"), net("2001:db8::3/64")];
    // Its own prefix says that nobody is near.
    alone.underlay = vec![net("192.0.2.4/32")];
    let one = Node {
        underlay: vec![net("192.0.2.1/24"), net("2001:db8::1/64")],
        ..one
    };
    let near_only = |text: &str, node: &str, encapsulation| Route {
        when: When::CrossSubnet,
        ..route(text, node, encapsulation)
    };
    let [vxlan, ipip] = [Encapsulation::Vxlan, Encapsulation::Ipip];
    let routes = [
        near_only("10.2.0.0/24", "n2", vxlan),
        near_only("fd00:2::/64", "n2", vxlan),
        near_only("10.3.0.0/24", "n3", ipip),
        near_only("fd00:3::/64", "n3", vxlan),
        near_only("10.4.0.0/24", "n4", vxlan),
        near_only("10.4.1.0/24", "n4", ipip),
    ];
    let ways = |own: Option<&Node>| {
        let all = [near.clone(), far.clone(), alone.clone()];
        let nodes: Vec<_> = all.into_iter().chain(own.cloned()).collect();
        let (nodes, _) = view(&nodes, &routes).nodes(&record(&one, Vec::new()));
        let ways = nodes.peers.into_iter().flat_map(|peer| peer.ways);
        ways.collect::<BTreeMap<_, _>>()
    };
    let far_away = [
        (net("10.3.0.0/24"), Way::Ipip),
        (net("10.4.1.0/24"), Way::Ipip),
    ];
    let direct = [
        (net("10.2.0.0/24"), Way::Direct),
        (net("fd00:3::/64"), Way::Direct),
    ];
    assert_eq!(
        ways(Some(&one)),
        far_away.into_iter().chain(direct).collect()
    );
    assert_eq!(ways(None), far_away.into(), "nobody knows our subnet");
}

#[test]
fn a_node_that_the_server_does_not_know_serves_its_pods_all_the_same() {
    let view = view(&[node(2)], &[vxlan("10.1.0.0/24", "n1")]);
    let (nodes, left_out) = view.nodes(&own());
    assert_eq!(
        table(&nodes),
        rows(&[("n1", &["10.1.0.0/24"]), ("n2", &[])])
    );
    assert_eq!(left_out, [LeftOut::OwnUnknown(name("n1"))]);
}

#[test]
fn the_own_addresses_outlive_the_record_unless_another_has_them() {
    let mut own = own();
    own.tunnel = ["10.1.0.0", "fd00:1::"]
        .map(|a| a.parse().expect("an address"))
        .into();
    let (nodes, _) = view(&[node(2)], &[]).nodes(&own);
    assert_eq!(nodes.node.tunnel, own.tunnel);
    let mut heir = node(2);
    heir.tunnel = own.tunnel[..1].to_vec();
    let (nodes, left_out) = view(&[heir], &[]).nodes(&own);
    assert_eq!(nodes.node.tunnel, own.tunnel[1..]);
    assert_eq!(nodes.peers[0].tunnel, own.tunnel[..1]);
    assert_eq!(left_out, [LeftOut::OwnUnknown(name("n1"))]);
    // A record that names none takes them.
    let (nodes, _) = view(&[node(1)], &[]).nodes(&own);
    assert_eq!(nodes.node.tunnel, Vec::<IpAddr>::new());
}

#[test]
fn a_bad_record_takes_nobody_with_it() {
    let mut copy = node(3);
    copy.underlay = node(1).underlay;
    let mut broken = node(4);
    broken.vtep_mac = Mac([1, 0, 0, 0, 0, 0]);
    let mut doubled = node(5);
    doubled.tunnel = vec![net("10.9.0.1/32").addr()];
    let mut double = doubled.clone();
    double.name = name("n6");
    double.underlay = node(6).underlay;
    double.vtep_mac = node(6).vtep_mac;
    let nodes = [node(1), node(2), copy, broken, doubled, double];
    let view = view(&nodes, &[]);
    let (nodes, left_out) = view.nodes(&own());
    let names: Vec<_> = nodes.peers.iter().map(|peer| peer.name.as_str()).collect();
    assert_eq!(names, ["n2", "n5"]);
    let told: Vec<_> = left_out.iter().map(ToString::to_string).collect();
    assert_eq!(told.len(), 3, "{told:?}");
    let shared = "n3 is left out: underlay address 192.0.2.1 is also node n1's";
    assert!(told[0].contains(shared), "{told:?}");
    assert!(told[1].contains("is not a unicast MAC"), "{told:?}");
    assert!(
        told[2].contains("n6 is left out: 10.9.0.1/32 is also node n5's"),
        "{told:?}"
    );
}

#[test]
fn of_two_nodes_with_one_mac_the_second_is_left_out() {
    let mut twin = node(3);
    twin.vtep_mac = node(2).vtep_mac;
    // Of the other family it is the same node's other tunnel.
    let mut other_family = node(4);
    other_family.vtep_mac = node(2).vtep_mac;
    other_family.underlay = vec![net("2001:db8::4/64")];
    let view = view(&[node(1), node(2), twin, other_family], &[]);
    let (nodes, left_out) = view.nodes(&own());
    let names: Vec<_> = nodes.peers.iter().map(|peer| peer.name.as_str()).collect();
    assert_eq!(names, ["n2", "n4"]);
    let expected = LeftOut::Taken {
        node: name("n3"),
        what: "VTEP MAC 02:00:00:00:01:02".to_owned(),
        by: name("n2"),
    };
    assert_eq!(left_out, [expected]);
}

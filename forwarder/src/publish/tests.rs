use std::{
    collections::BTreeMap,
    num::{NonZeroU16, NonZeroU64},
    time::Instant,
};

use weft_api::{
    forwarder::{Capabilities, Host, Limit, PortMapping},
    names::{Mac, Vni},
};
use weft_engine::{PeerId, PortId};

use super::*;

fn name(text: &str) -> Name {
    Name::new(text).expect("valid")
}

fn addresses(list: &[&str]) -> Vec<IpAddr> {
    list.iter()
        .map(|a| a.parse().expect("an address"))
        .collect()
}

fn node(text: &str, underlay: &[&str], blocks: &[&str]) -> Node {
    Node {
        name: name(text),
        underlay: addresses(underlay),
        vtep_mac: Mac([2, 0, 0, 0, 1, text.as_bytes()[1]]),
        vni: Vni::DEFAULT,
        port: 4789,
        blocks: blocks.iter().map(|b| b.parse().expect("a block")).collect(),
        ways: BTreeMap::new(),
        tunnel: Vec::new(),
    }
}

fn own() -> Node {
    node("n1", &["192.0.2.1", "2001:db8::1"], &[])
}

fn state() -> State {
    State::new(own(), 1500)
}

fn pod(text: &str, number: u8) -> Attach {
    Attach {
        name: name(text),
        driver: weft_api::forwarder::Driver::Tap,
        mac: Mac([2, 0, 0, 0, 0, number]),
        addresses: addresses(&[&format!("10.1.0.{number}"), &format!("fd00::{number}")]),
        mtu: 1430,
        capabilities: Capabilities::default(),
        host: None,
    }
}

const WHOLE: Takes = Takes {
    udp: true,
    tcp: true,
};

fn with(state: &State, spec: Attach) -> (State, PortId) {
    state
        .with_port(spec, WHOLE)
        .expect("nothing stands against it")
}

fn nodes(peers: Vec<Node>) -> Nodes {
    Nodes { node: own(), peers }
}

fn code<T>(result: Result<T, Error>) -> Option<Code> {
    result.err().map(|error| error.code)
}

#[test]
fn a_port_gets_the_lowest_free_place() {
    let (state, first) = with(&state(), pod("a", 1));
    let (state, second) = with(&state, pod("b", 2));
    let (state, third) = with(&state, pod("c", 3));
    assert_eq!((first, second, third), (PortId(0), PortId(1), PortId(2)));
    let (state, gone) = state.without_port(&name("b")).expect("it is there");
    assert_eq!(gone, PortId(1));
    let (state, _) = state.without_port(&name("c")).expect("it is there");
    assert_eq!(state.ports.len(), 1, "free places at the end are given up");
    let (state, again) = with(&state, pod("d", 4));
    assert_eq!(again, PortId(1));
    let snapshot = state.snapshot(Epoch(7)).expect("consistent");
    let at = |a: &str| snapshot.port_of(a.parse().expect("an address"));
    assert_eq!(at("10.1.0.1"), Some(PortId(0)));
    assert_eq!(at("fd00::4"), Some(PortId(1)));
    assert_eq!(at("10.1.0.2"), None);
    assert_eq!(code(state.without_port(&name("b"))), Some(Code::NotFound));
}

#[test]
fn what_another_port_has_is_taken() {
    let (state, _) = with(&state(), pod("a", 1));
    let mut same_name = pod("b", 2);
    same_name.name = name("a");
    let mut same_mac = pod("b", 2);
    same_mac.mac = pod("a", 1).mac;
    let mut same_address = pod("b", 2);
    same_address.addresses.push(addresses(&["fd00::1"])[0]);
    for spec in [same_name, same_mac, same_address] {
        assert_eq!(code(state.with_port(spec, WHOLE)), Some(Code::Taken));
    }
}

fn pod_at(list: &[&str], mtu: u16) -> Attach {
    Attach {
        addresses: addresses(list),
        mtu,
        ..pod("a", 1)
    }
}

fn refused_as_invalid(spec: Attach) {
    let result = state().with_port(spec.clone(), WHOLE);
    assert_eq!(code(result), Some(Code::Invalid), "{spec:?}");
}

#[test]
fn addresses_that_no_pod_can_have_are_invalid() {
    for address in [
        "0.0.0.0",
        "127.0.0.1",
        "224.0.0.5",
        "255.255.255.255",
        "240.0.0.1",
        "169.254.1.1",
        "169.254.9.9",
        "::",
        "::1",
        "ff02::1",
        "fe80::1",
        "::ffff:10.0.0.1",
    ] {
        refused_as_invalid(pod_at(&[address], 1430));
    }
    refused_as_invalid(pod_at(&[], 1430));
    refused_as_invalid(pod_at(&["10.0.0.1", "10.0.0.1"], 1430));
}

#[test]
fn a_mac_or_mtu_that_cannot_be_is_invalid() {
    for mac in [[0; 6], [0xff; 6], [1, 0, 0, 0, 0, 1], [0xee; 6]] {
        refused_as_invalid(Attach {
            mac: Mac(mac),
            ..pod("a", 1)
        });
    }
    refused_as_invalid(pod_at(&["10.0.0.1"], 67));
    refused_as_invalid(pod_at(&["10.0.0.1", "fd00::1"], 1279));
    with(&state(), pod_at(&["10.0.0.1"], 68));
    with(&state(), pod_at(&["10.0.0.1", "fd00::1"], 1280));
}

#[test]
fn datagrams_take_the_first_family_both_nodes_have() {
    let both = node("n2", &["2001:db8::2", "192.0.2.2"], &["10.2.0.0/24"]);
    let v4 = node("n3", &["192.0.2.3"], &["10.3.0.0/24"]);
    let v6 = node("n4", &["2001:db8::4"], &["10.4.0.0/24"]);
    let none = node("n5", &[], &["10.5.0.0/24"]);
    let peers = vec![both, v4, v6, none];
    let state = state()
        .with_nodes(nodes(peers.clone()))
        .expect("consistent");
    let snapshot = state.snapshot(Epoch(1)).expect("consistent");
    let remote = |id| snapshot.peer(PeerId(id)).remote.map(|r| r.to_string());
    assert_eq!(remote(0).as_deref(), Some("[2001:db8::2]:4789"));
    assert_eq!(remote(1).as_deref(), Some("192.0.2.3:4789"));
    assert_eq!(remote(2).as_deref(), Some("[2001:db8::4]:4789"));
    assert_eq!(remote(3), None);
    let mtu = |id| snapshot.peer(PeerId(id)).mtu;
    assert_eq!((mtu(0), mtu(1), mtu(2)), (1430, 1450, 1430));
    let from = |a: &str| snapshot.peer_from(a.parse().expect("an address"));
    assert_eq!(from("192.0.2.2"), Some(PeerId(0)));
    assert_eq!(from("2001:db8::2"), Some(PeerId(0)));

    let single = State::new(node("n1", &["192.0.2.1"], &[]), 9000);
    let own = node("n1", &["192.0.2.1"], &[]);
    let state = single
        .with_nodes(Nodes { node: own, peers })
        .expect("consistent");
    let snapshot = state.snapshot(Epoch(1)).expect("consistent");
    let remote = |id| snapshot.peer(PeerId(id)).remote.map(|r| r.to_string());
    assert_eq!(remote(0).as_deref(), Some("192.0.2.2:4789"));
    assert_eq!(remote(2), None);
    assert_eq!(snapshot.peer(PeerId(0)).mtu, 8950);
}

#[test]
fn a_tunnel_address_outside_the_blocks_lives_at_its_node_too() {
    let mut peer = node("n2", &["192.0.2.2"], &["10.2.0.0/24"]);
    peer.tunnel = addresses(&["10.2.0.1", "fd99::2"]);
    let state = state().with_nodes(nodes(vec![peer])).expect("consistent");
    let snapshot = state.snapshot(Epoch(1)).expect("consistent");
    let blocks: Vec<String> = snapshot
        .peer(PeerId(0))
        .blocks
        .iter()
        .map(|(net, _)| net.to_string())
        .collect();
    assert_eq!(blocks, ["10.2.0.0/24", "fd99::2/128"]);
}

#[test]
fn counters_stay_with_the_name() {
    let peers = |text| nodes(vec![node(text, &["192.0.2.2"], &["10.2.0.0/24"])]);
    let (first, _) = with(&state(), pod("a", 1));
    let first = first.with_nodes(peers("n2")).expect("consistent");
    first.peers[0].peer.to_peer.add(3, 300);
    first
        .ports()
        .next()
        .expect("one port")
        .port
        .from_pod
        .add(4, 400);
    let (second, _) = with(&first, pod("b", 2));
    let second = second.with_nodes(peers("n2")).expect("consistent");
    assert_eq!(second.peers[0].peer.to_peer.packets(), 3);
    assert_eq!(
        second.ports().next().expect("a port").port.from_pod.bytes(),
        400
    );
    let third = second.with_nodes(peers("n3")).expect("consistent");
    assert_eq!(third.peers[0].peer.to_peer.packets(), 0);
}

#[test]
fn what_another_node_has_is_taken() {
    let n2 = node("n2", &["192.0.2.2"], &["10.2.0.0/24"]);
    let mut tunnelled = node("n3", &["192.0.2.3"], &["10.2.0.7/32"]);
    let mut also_tunnelled = node("n4", &["192.0.2.4"], &[]);
    also_tunnelled.tunnel = addresses(&["10.2.0.7"]);
    for peers in [
        vec![n2.clone(), node("n2", &["192.0.2.3"], &[])],
        vec![n2.clone(), node("n3", &["192.0.2.2"], &[])],
        vec![n2.clone(), node("n3", &["192.0.2.3"], &["10.2.0.0/24"])],
        vec![tunnelled.clone(), also_tunnelled],
        vec![node("n1", &["192.0.2.2"], &[])],
        vec![node("n2", &["192.0.2.1"], &[])],
    ] {
        assert_eq!(
            code(state().with_nodes(nodes(peers.clone()))),
            Some(Code::Taken),
            "{peers:?}"
        );
    }
    // A block within another's block is a borrowed address: fine.
    tunnelled.blocks = vec!["10.2.0.7/32".parse().expect("a block")];
    let state = state()
        .with_nodes(nodes(vec![n2, tunnelled]))
        .expect("nested is no clash");
    let snapshot = state.snapshot(Epoch(1)).expect("consistent");
    let peer = |address: &str| snapshot.peer_of(addresses(&[address])[0]);
    assert_eq!(peer("10.2.0.7"), Some(PeerId(1)));
    assert_eq!(peer("10.2.0.8"), Some(PeerId(0)));
}

#[test]
fn no_two_nodes_have_one_mac() {
    let n2 = node("n2", &["192.0.2.2"], &[]);
    let twin = |of: &Node, underlay: &str| Node {
        vtep_mac: of.vtep_mac,
        ..node("n3", &[underlay], &[])
    };
    for (of, peers) in [
        ("n2", vec![n2.clone(), twin(&n2, "192.0.2.3")]),
        ("n1", vec![twin(&own(), "192.0.2.3")]),
    ] {
        let refused = state().with_nodes(nodes(peers));
        let error = refused.expect_err("one MAC");
        assert_eq!(error.code, Code::Taken, "{error}");
        let mac = format!("node n3: VTEP MAC {}", node(of, &[], &[]).vtep_mac);
        let told = [mac, format!("is also node {of}'s")];
        assert!(
            told.iter().all(|words| error.message.contains(words)),
            "{error}"
        );
    }
    // What one node is over IPv6 and over IPv4.
    let both = vec![n2.clone(), twin(&n2, "2001:db8::2")];
    state().with_nodes(nodes(both)).expect("one node's tunnels");
}

#[test]
fn a_port_and_its_node_cannot_share_an_address() {
    let (ported, _) = with(&state(), pod("a", 1));
    let mut own = own();
    own.tunnel = addresses(&["10.1.0.1"]);
    let nodes = Nodes {
        node: own,
        peers: Vec::new(),
    };
    assert_eq!(code(ported.with_nodes(nodes.clone())), Some(Code::Taken));
    let applied = state().with_nodes(nodes).expect("nobody has it yet");
    assert_eq!(
        code(applied.with_port(pod("a", 1), WHOLE)),
        Some(Code::Taken)
    );
}

#[test]
fn a_node_that_cannot_be_is_invalid() {
    let peer = node("n2", &["192.0.2.2"], &[]);
    let bad = [
        Node {
            port: 0,
            ..peer.clone()
        },
        Node {
            vtep_mac: Mac([1, 0, 0, 0, 0, 0]),
            ..peer.clone()
        },
        Node {
            tunnel: addresses(&["10.0.0.1", "10.0.0.2"]),
            ..peer.clone()
        },
        Node {
            tunnel: addresses(&["fe80::1"]),
            ..peer.clone()
        },
        node("n2", &["192.0.2.2", "192.0.2.3"], &[]),
        node("n2", &["192.0.2.2", "2001:db8::2", "192.0.2.2"], &[]),
        node("n2", &["fe80::2"], &[]),
        node("n2", &["0.0.0.0"], &[]),
        node("n2", &["239.1.1.1"], &[]),
        node("n2", &["192.0.2.2"], &["10.2.0.1/24"]),
        node("n2", &["192.0.2.2"], &["10.2.0.0/24", "10.2.0.0/24"]),
        node("n2", &["192.0.2.2"], &["224.0.0.0/8"]),
        node("n2", &["192.0.2.2"], &["127.0.0.0/8"]),
    ];
    for peer in bad {
        let result = state().with_nodes(nodes(vec![peer.clone()]));
        assert_eq!(code(result), Some(Code::Invalid), "{peer:?}");
    }
    for own in [
        node("n1", &["192.0.2.9"], &[]),
        Node {
            port: 8472,
            ..own()
        },
    ] {
        let nodes = Nodes {
            node: own.clone(),
            peers: Vec::new(),
        };
        assert_eq!(
            code(state().with_nodes(nodes)),
            Some(Code::Invalid),
            "{own:?}"
        );
    }
}

#[test]
fn the_own_record_is_the_tunnels_end() {
    let mut own = own();
    own.vni = Vni::new(77).expect("valid");
    own.vtep_mac = Mac([2, 9, 9, 9, 9, 9]);
    own.tunnel = addresses(&["10.1.0.9"]);
    let state = state()
        .with_nodes(Nodes {
            node: own,
            peers: Vec::new(),
        })
        .expect("consistent");
    let snapshot = state.snapshot(Epoch(3)).expect("consistent");
    assert_eq!(snapshot.vtep.mac, [2, 9, 9, 9, 9, 9]);
    assert_eq!(snapshot.vtep.addresses, addresses(&["10.1.0.9"]));
    assert_eq!(
        (snapshot.epoch, snapshot.gateway.mac),
        (Epoch(3), [0xee; 6])
    );
}

fn publishing(text: &str, number: u8, mappings: &[&str]) -> Attach {
    let mappings = mappings.iter().map(|mapping| {
        let [host_ip, host_port, protocol] = mapping.split(' ').collect::<Vec<_>>()[..] else {
            panic!("an address, a port and a protocol");
        };
        PortMapping {
            host_port: host_port.parse().expect("a port"),
            container_port: NonZeroU16::MIN,
            protocol: serde_json::from_str(&format!("{protocol:?}")).expect("a protocol"),
            host_ip: host_ip.parse().ok(),
        }
    });
    let capabilities = Capabilities {
        port_mappings: mappings.collect(),
        ..Capabilities::default()
    };
    Attach {
        capabilities,
        ..pod(text, number)
    }
}

#[test]
fn what_another_port_publishes_is_taken_until_it_goes() {
    let first = publishing("a", 1, &["192.0.2.1 80 tcp", "* 53 udp"]);
    let (state, _) = with(&state(), first);
    for mapping in [
        "192.0.2.1 80 tcp",
        "0.0.0.0 80 tcp",
        "* 80 tcp",
        ":: 53 udp",
    ] {
        let refused = state.with_port(publishing("b", 2, &["* 81 tcp", mapping]), WHOLE);
        let error = refused.expect_err("it is taken");
        assert_eq!(error.code, Code::Taken, "{error}");
        let published = "is published by port a";
        assert!(error.message.contains(published), "{error}");
    }
    let others = ["192.0.2.2 80 tcp", ":: 80 tcp", "* 80 udp", "* 53 tcp"];
    with(&state, publishing("b", 2, &others));
    let (state, _) = state.without_port(&name("a")).expect("it is there");
    with(&state, publishing("b", 2, &["* 80 tcp", "* 53 udp"]));
}

#[test]
fn a_port_that_publishes_the_same_twice_is_invalid() {
    refused_as_invalid(publishing("a", 1, &["192.0.2.1 80 tcp", "* 80 tcp"]));
    with(
        &state(),
        publishing("a", 1, &["192.0.2.1 80 tcp", "* 80 udp"]),
    );
}

#[test]
fn a_limited_port_has_shapers_that_outlive_a_change() {
    let limit = Limit {
        rate: NonZeroU64::new(8000).expect("not zero"),
        burst: NonZeroU64::new(8000).expect("not zero"),
    };
    let mut spec = pod("a", 1);
    spec.capabilities.bandwidth.from_pod = Some(limit);
    let (state, id) = with(&state(), spec);
    let (later, _) = with(&state, pod("b", 2));
    let mut refused = Vec::new();
    for state in [&state, &later] {
        let snapshot = state.snapshot(Epoch(1)).expect("consistent");
        let port = snapshot.port(id).expect("it is there");
        assert!(port.to_pod_shaper.is_none());
        let shaper = port.from_pod_shaper.as_ref().expect("it is limited");
        refused.push(shaper.departure(10_000, 1, Instant::now()).is_none());
    }
    // The burst and its debt are the port's, not the tables'.
    assert_eq!(refused, [false, true]);
}

fn host(addresses_of: &[&str], pools: &[&str]) -> Attach {
    Attach {
        addresses: addresses(addresses_of),
        host: Some(Host {
            pools: pools.iter().map(|p| p.parse().expect("a pool")).collect(),
        }),
        ..pod("weft0", 9)
    }
}

#[test]
fn the_host_port_holds_what_is_the_nodes_own() {
    let mut own = own();
    own.tunnel = addresses(&["10.1.0.0", "fd00::100"]);
    let nodes = |own| Nodes {
        node: own,
        peers: Vec::new(),
    };
    let applied = state().with_nodes(nodes(own.clone())).expect("good");
    let (held, id) = with(&applied, host(&["10.1.0.0"], &["10.1.0.0/16"]));
    let snapshot = held.snapshot(Epoch(1)).expect("consistent");
    assert_eq!(snapshot.host().map(|port| port.id), Some(id));
    for address in ["10.1.0.0", "fd00::100", "192.0.2.1", "2001:db8::1"] {
        let address = addresses(&[address])[0];
        assert_eq!(snapshot.port_of(address), Some(id), "{address}");
        assert!(!snapshot.is_gateway(address));
    }
    // It may stay though the node's address is another's, or none at all.
    own.tunnel = addresses(&["10.1.0.1"]);
    let moved = held.with_nodes(nodes(own)).expect("good");
    moved.snapshot(Epoch(2)).expect("consistent");
    with(&state(), host(&[], &[]));
}

#[test]
fn there_is_one_host_port_and_its_addresses_are_nobody_elses() {
    let mut own = own();
    own.tunnel = addresses(&["10.1.0.9"]);
    let nodes = Nodes {
        node: own,
        peers: Vec::new(),
    };
    let applied = state().with_nodes(nodes).expect("good");
    let (held, _) = with(&applied, host(&["10.1.0.9"], &[]));
    let mut second = host(&[], &[]);
    (second.name, second.mac) = (name("weft1"), Mac([2, 0, 0, 0, 0, 8]));
    let error = held.with_port(second, WHOLE).expect_err("a second");
    assert_eq!(error.code, Code::Taken, "{error}");
    assert!(error.hint.contains("weft host down"), "{error}");
    let mut pod = pod("a", 1);
    for own in ["10.1.0.9", "192.0.2.1"] {
        pod.addresses = addresses(&[own]);
        assert_eq!(code(held.with_port(pod.clone(), WHOLE)), Some(Code::Taken));
    }
    refused_as_invalid(host(&["10.1.0.9"], &["10.1.0.7/24"]));
    let mut limited = publishing("a", 1, &["* 80 tcp"]);
    limited.host = Some(Host { pools: Vec::new() });
    refused_as_invalid(limited);
}

#[test]
fn the_host_port_comes_with_the_nodes_own_addresses_only() {
    let with_tunnel = |tunnel: &[&str]| {
        let node = Node {
            tunnel: addresses(tunnel),
            ..own()
        };
        let peers = Vec::new();
        state().with_nodes(Nodes { node, peers }).expect("good")
    };
    // They moved between the look at them and the attachment.
    let moved = with_tunnel(&["10.1.0.1"]);
    for former in [&["10.1.0.0"][..], &["10.1.0.1", "10.1.0.0"]] {
        let refused = moved
            .place_for(&host(former, &[]))
            .expect_err("not its own");
        assert_eq!(refused.code, Code::Invalid);
        assert!(refused.message.contains("10.1.0.0 is not"), "{refused}");
    }
    with(&moved, host(&["10.1.0.1"], &[]));
    with(&moved, host(&["192.0.2.1"], &[]));
}

#[test]
fn the_host_port_follows_the_nodes_own_addresses() {
    let moved = |state: &State, tunnel: &[&str]| {
        let node = Node {
            tunnel: addresses(tunnel),
            ..own()
        };
        let peers = Vec::new();
        state.with_nodes(Nodes { node, peers }).expect("consistent")
    };
    let of_host = |state: &State| {
        let mut rows = state.ports();
        let row = rows.find(|row| row.spec.host.is_some()).expect("there");
        let mut held = row.port.addresses.clone();
        held.sort_unstable();
        (held, row.spec.addresses.clone())
    };
    let before = moved(&state(), &["10.244.1.0"]);
    let (before, _) = with(&before, host(&["10.244.1.0"], &["10.244.0.0/16"]));
    let after = moved(&before, &["10.244.1.7", "fd00::7"]);
    let (held, spec) = of_host(&after);
    let expected = ["10.244.1.7", "192.0.2.1", "2001:db8::1", "fd00::7"];
    assert_eq!(held, addresses(&expected));
    assert_eq!(
        spec,
        addresses(&["10.244.1.0"]),
        "what its link has is told"
    );
    // What it had is free for a pod, and what it has is not.
    let mut former = pod("p", 1);
    former.addresses = addresses(&["10.244.1.0"]);
    let (with_pod, _) = with(&after, former.clone());
    former.addresses = addresses(&["10.244.1.7"]);
    assert_eq!(code(after.place_for(&former)), Some(Code::Taken));
    // Back to where a pod is by now: refused, and nothing has changed.
    let node = Node {
        tunnel: addresses(&["10.244.1.0"]),
        ..own()
    };
    let peers = Vec::new();
    let back = with_pod.with_nodes(Nodes { node, peers });
    assert_eq!(code(back), Some(Code::Taken));
    assert_eq!(of_host(&with_pod).0, addresses(&expected));
}

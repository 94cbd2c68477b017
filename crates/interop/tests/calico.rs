//! Calico's records are read and written as Calico does, and bad ones are
//! refused by their key.

use std::{collections::BTreeMap, net::IpAddr};

use proptest::prelude::*;
use serde_json::Value as Json;
use weft_interop::{
    Error,
    calico::{
        Affinity, Block, Encapsulation, Handle, Holder, Ipam, Pool, Pools, Record, Reservation,
        State, Tunnel, Wire, affinity_key, block_key, block_of, derived_mac, handle_key, node_key,
        peers, record,
    },
};

const NODE: &str = include_str!("golden/calico_node.json");
const ANNOTATIONS: &str = include_str!("golden/calico_annotations.json");
const BLOCK: &str = include_str!("golden/calico_block.json");
const NEW_BLOCK: &str = include_str!("golden/calico_new_block.json");
const POOL: &str = include_str!("golden/calico_pool.json");

fn node() -> Record {
    Record::parse(&node_key("node-1"), NODE.as_bytes()).expect("a node")
}

fn named(name: &str, address: &str, tunnel: &str) -> Record {
    Record {
        name: name.to_owned(),
        v4: Tunnel {
            address: Some(address.parse().expect("a CIDR")),
            tunnel: Some(tunnel.parse().expect("an address")),
            ..Tunnel::default()
        },
        v6: Tunnel::default(),
    }
}

/// Where `named` nodes are in another subnet.
fn ours() -> Record {
    named("ours", "198.51.100.1/24", "10.244.200.1")
}

fn pool(key: &str, from: &str, to: &str) -> Pool {
    Pool::parse(key, POOL.replace(from, to).as_bytes()).expect("a pool")
}

fn pools() -> Pools {
    let (pools, errors) = Pools::new([pool("pools/1", "", "")]);
    assert_eq!(errors, []);
    pools
}

fn block(cidr: &str, node: &str) -> Block {
    let text = BLOCK
        .replace("10.244.1.0/30", cidr)
        .replace("host:node-1", &format!("host:{node}"));
    Block::parse("block", text.as_bytes()).expect("a block")
}

#[test]
fn a_node_is_read_and_written_as_calico_does() {
    let node = node();
    let written = serde_json::to_string_pretty(&node.to_json(None)).expect("plain data");
    assert_eq!(written, NODE.trim_end());
    let annotations: BTreeMap<String, String> = serde_json::from_str(ANNOTATIONS).expect("JSON");
    assert_eq!(node.annotations(), annotations);
    assert_eq!(
        Record::of_annotations("node-1", &annotations),
        Ok(node.clone())
    );
    assert_eq!(node.mac(false).to_string(), "66:00:00:00:00:07");
    assert_eq!(node.mac(true), derived_mac("node-1", true));
}

#[test]
fn what_others_wrote_of_a_node_stays() {
    let mut before: Json = serde_json::from_str(NODE).expect("JSON");
    before["metadata"]["uid"] = "u".into();
    before["spec"]["bgp"]["asNumber"] = 64512.into();
    let mut node = node();
    node.v4.mac = None;
    let after = node.to_json(Some(before.clone()));
    assert_eq!(after["metadata"]["uid"], "u");
    assert_eq!(after["spec"]["bgp"]["asNumber"], 64512);
    assert_eq!(after["spec"].get("vxlanTunnelMACAddr"), None);
}

#[test]
fn a_block_is_written_as_it_was_read() {
    let block = Block::parse("k", BLOCK.as_bytes()).expect("a block");
    let written = serde_json::to_value(&block).expect("plain data");
    let golden: Json = serde_json::from_str(BLOCK).expect("JSON");
    assert_eq!(written, golden);
}

#[test]
fn keys_are_calicos() {
    let v4 = "10.244.1.0/26".parse().expect("a CIDR");
    let v6 = "fd00:10:244:1::/122".parse().expect("a CIDR");
    assert_eq!(
        node_key("n1"),
        "/calico/resources/v3/projectcalico.org/nodes/n1"
    );
    assert_eq!(
        block_key(v4),
        "/calico/ipam/v2/assignment/ipv4/block/10.244.1.0-26"
    );
    assert_eq!(
        affinity_key("n1", v6),
        "/calico/ipam/v2/host/n1/ipv6/block/fd00:10:244:1::-122"
    );
    assert_eq!(
        [block_of(&block_key(v4)), block_of(&affinity_key("n1", v6))],
        [Some(v4), Some(v6)]
    );
    assert_eq!(block_of("/calico/ipam/v2/config"), None);
    assert_eq!(
        handle_key(&Holder::tunnel("n1", true).handle),
        "/calico/ipam/v2/handle/vxlan-v6-tunnel-addr-n1"
    );
}

#[test]
fn bad_nodes_and_blocks_are_refused_by_their_key() {
    for (from, to, field) in [
        ("192.0.2.7/24", "192.0.2/24", "ipv4Address"),
        ("192.0.2.7/24", "2001:db8::7", "ipv4Address"),
        ("10.244.200.17", "10.244.200.17/26", "ipv4VXLANTunnelAddr"),
        ("66:00:00:00:00:07", "66", "vxlanTunnelMACAddr"),
        ("\"10.244.200.17\"", "17", "ipv4VXLANTunnelAddr"),
    ] {
        let refused = Record::parse("k", NODE.replace(from, to).as_bytes());
        let named = matches!(&refused, Err(Error::Field { key, field: f, .. })
            if key == "k" && *f == field);
        assert!(named, "{refused:?}");
    }
    for text in [NODE, BLOCK] {
        let text = text.trim_end();
        for cut in 0..text.len() {
            let cut = &text.as_bytes()[..cut];
            let refused = [Record::parse("k", cut).err(), Block::parse("k", cut).err()];
            assert!(
                refused
                    .iter()
                    .all(|e| matches!(e, Some(Error::Json { key, .. }) if key == "k"))
            );
        }
    }
    let crooked = BLOCK.replace("10.244.1.0/30", "10.244.1.1/30");
    assert!(matches!(
        Block::parse("k", crooked.as_bytes()),
        Err(Error::Field { .. })
    ));
}

#[test]
fn an_address_is_taken_and_given_back_as_calico_does() {
    let json = |block: &Block| -> Json { serde_json::from_str(&block.to_json()).expect("JSON") };
    let golden: Json = serde_json::from_str(NEW_BLOCK).expect("JSON");
    let cidr = "10.244.1.0/30".parse().expect("a CIDR");
    let mut block = Block::new(
        cidr,
        "node-1",
        "2026-01-31T12:00:00Z".to_owned(),
        1_769_860_800_000_000_000,
    );
    assert_eq!(json(&block), golden);
    assert!(block.is_empty());

    let holder = Holder::tunnel("node-1", false);
    let reserved: IpAddr = "10.244.1.0".parse().expect("an address");
    let taken = block.assign(&holder, |address| address != reserved);
    let address: IpAddr = "10.244.1.1".parse().expect("an address");
    assert_eq!(taken, Some(address));
    let found: Vec<_> = block.held_by(&holder.handle).map(|(a, _)| a).collect();
    assert_eq!(found, [address]);
    assert!(!block.is_empty());
    let written = json(&block);
    assert_eq!(written["allocations"].to_string(), "[null,0,null,null]");
    assert_eq!(written["unallocated"].to_string(), "[0,2,3]");
    assert_eq!(
        written["attributes"].to_string(),
        r#"[{"handle_id":"vxlan-tunnel-addr-node-1","secondary":{"node":"node-1","type":"vxlanTunnelAddress"}}]"#
    );
    let at = written["sequenceNumberForAllocation"].to_string();
    assert_eq!(at, r#"{"1":1769860800000000000}"#);

    let mut resting = block.clone();
    assert_eq!(
        resting.release(&holder.handle, Some("2026-01-31T12:00:01Z")),
        1
    );
    assert!(!resting.is_empty(), "it rests");
    assert_eq!(resting.held_by(&holder.handle).count(), 0);
    assert_eq!(resting.release(&holder.handle, None), 0, "it is released");
    assert_eq!(block.release(&holder.handle, None), 1);
    assert!(block.is_empty());
    assert_eq!(json(&block)["unallocated"].to_string(), "[0,2,3,1]");
}

#[test]
fn a_block_gives_each_address_once_and_what_is_torn_gives_none() {
    let mut block = Block::parse("k", BLOCK.as_bytes()).expect("a block");
    let holder = Holder::tunnel("node-9", false);
    assert_eq!(
        block.assign(&holder, |_| true).map(|a| a.to_string()),
        Some("10.244.1.2".to_owned())
    );
    assert_eq!(block.assign(&holder, |_| true), None);
    // The address that it calls free is taken.
    let torn = BLOCK.replace(r#""unallocated": [2]"#, r#""unallocated": [1, -1, 99]"#);
    let mut torn = Block::parse("k", torn.as_bytes()).expect("a block");
    assert_eq!(torn.assign(&holder, |_| true), None);
    assert_eq!(torn.held_on("node-2").count(), 1);
}

#[test]
fn affinities_and_handles_are_calicos() {
    assert_eq!(
        Affinity::of(State::PendingDeletion).to_json(),
        r#"{"state":"pendingDeletion","deleted":false}"#
    );
    for text in ["", "{}", r#"{"state":""}"#, r#"{"state":"confirmed"}"#] {
        let read = Affinity::parse("k", text.as_bytes());
        assert_eq!(read, Ok(Affinity::of(State::Confirmed)), "{text:?}");
    }
    let mut handle = Handle::default();
    let cidr = "10.244.1.0/26".parse().expect("a CIDR");
    assert!(handle.count(cidr, 1));
    assert_eq!(
        handle.to_json(),
        r#"{"block":{"10.244.1.0/26":1},"deleted":false}"#
    );
    assert_eq!(
        Handle::parse("k", handle.to_json().as_bytes()),
        Ok(handle.clone())
    );
    assert!(!handle.count(cidr, -1));
}

#[test]
fn pools_say_the_way_and_settings_their_defaults() {
    use weft_api::forwarder::Way;
    // To a node of another subnet, and to one of the same.
    let ways = |from: &str, to: &str| {
        let pool = pool("pools/1", from, to);
        [false, true].map(|same| pool.way(same))
    };
    assert_eq!(ways("", ""), [Way::Vxlan, Way::Vxlan]);
    assert_eq!(ways("Always", "CrossSubnet"), [Way::Vxlan, Way::Direct]);
    let none = (r#""vxlanMode": "Always""#, r#""vxlanMode": "Never""#);
    assert_eq!(ways(none.0, none.1), [Way::Direct, Way::Direct]);
    let vxlan = "\"vxlanMode\": \"Always\",\n    \"ipipMode\": \"Never\"";
    let ipip = |mode: &str| ways(vxlan, &format!("\"ipipMode\": \"{mode}\""));
    assert_eq!(ipip("Always"), [Way::Ipip, Way::Ipip]);
    assert_eq!(ipip("CrossSubnet"), [Way::Ipip, Way::Direct]);
    let bare = pool("pools/1", r#""blockSize": 26,"#, "");
    assert_eq!(
        (bare.block_size, bare.encapsulation),
        (26, Encapsulation::Vxlan)
    );
    assert!(!pool("k", r#""natOutgoing": true"#, r#""disabled": true"#).for_tunnels);
    assert!(!pool("k", r#", "Tunnel""#, "").for_tunnels);
    assert!(!pool("k", "Automatic", "Manual").for_tunnels);
    for (from, to, field) in [
        ("10.244.0.0/16", "10.244.0.1/16", "spec.cidr"),
        (r#""blockSize": 26"#, r#""blockSize": 8"#, "spec.blockSize"),
        ("Never", "Always", "spec.ipipMode"),
        ("Never", "Sometimes", "spec.ipipMode"),
    ] {
        let refused = Pool::parse("k", POOL.replace(from, to).as_bytes());
        assert!(
            matches!(&refused, Err(Error::Field { field: f, .. }) if *f == field),
            "{refused:?}"
        );
    }

    let felix = br#"{"spec":{"vxlanVNI":7,"vxlanPort":8472,"vxlanMTU":1400,"vxlanMTUV6":0}}"#;
    let wire = Wire::default().with("k", felix).expect("settings");
    assert_eq!(
        (wire.vni.value(), wire.port, wire.mtu),
        (7, 8472, [Some(1400), None])
    );
    for wrong in [
        r#"{"spec":{"vxlanVNI":-1}}"#,
        r#"{"spec":{"vxlanPort":0}}"#,
        "[",
    ] {
        assert!(
            Wire::default().with("k", wrong.as_bytes()).is_err(),
            "{wrong}"
        );
    }
    let ipam = Ipam::parse("k", br#"{"strict_affinity":true}"#).expect("settings");
    assert_eq!((ipam.claim_blocks, ipam.most_blocks()), (false, 20));
    assert!(Ipam::default().claim_blocks);
    let reserved = br#"{"spec":{"reservedCIDRs":["10.0.0.0/30","10.0.1.1"]}}"#;
    let reserved = Reservation::parse("k", reserved).expect("a reservation");
    let covers = |text: &str| reserved.covers(text.parse().expect("an address"));
    assert_eq!(
        ["10.0.0.3", "10.0.1.1", "10.0.1.2"].map(covers),
        [true, true, false]
    );
}

#[test]
fn pools_that_overlap_are_told_and_the_smaller_counts() {
    let smaller = pool("pools/2", "10.244.0.0/16", "10.244.1.0/24");
    let (pools, errors) = Pools::new([pool("pools/1", "", ""), smaller]);
    let told = errors[0].to_string();
    assert!(
        told.contains("pools/1") && told.contains("pools/2"),
        "{told}"
    );
    let of = |text: &str| {
        let pool = pools.of(&text.parse().expect("a CIDR"));
        pool.map(|pool| pool.key.as_str())
    };
    assert_eq!(of("10.244.1.0/26"), Some("pools/2"));
    assert_eq!(of("10.244.2.0/26"), Some("pools/1"));
    assert_eq!(of("10.9.0.0/26"), None);
}

#[test]
fn a_loan_of_a_whole_block_is_a_route_to_the_borrower() {
    let text = BLOCK
        .replace("10.244.1.0/30", "10.244.1.0/32")
        .replace("[0, 1, null, 2]", "[1]");
    let block = Block::parse("k", text.as_bytes()).expect("a block");
    let records = [
        named("node-1", "192.0.2.7/24", "10.244.200.17"),
        named("node-2", "192.0.2.8/24", "10.244.200.18"),
    ];
    let found = peers(&ours(), &records, [&block], &pools(), Wire::default());
    let blocks: Vec<_> = found.nodes.iter().map(|node| node.blocks.len()).collect();
    assert_eq!((blocks, found.errors), (vec![0, 1], vec![]));
}

/// Each would make the forwarder refuse all nodes.
#[test]
fn what_no_node_can_have_takes_no_other_node_away() {
    let good = named("good", "192.0.2.7/24", "10.244.200.17");
    let bad = |change: &dyn Fn(&mut Record)| {
        let mut record = named("bad", "192.0.2.8/24", "10.244.200.18");
        change(&mut record);
        record
    };
    let address = |text: &str| Some(text.parse().expect("a CIDR"));
    let inner = |text: &str| Some(text.parse().expect("an address"));
    let all = [
        bad(&|node| node.v4.address = address("224.0.0.1/24")),
        bad(&|node| node.v4.address = address("0.0.0.0/0")),
        bad(&|node| node.v4.address = address("198.51.100.1/24")),
        bad(&|node| node.v4.tunnel = inner("127.0.0.1")),
        bad(&|node| node.v4.tunnel = inner("10.244.200.1")),
        bad(&|node| node.v4.tunnel = inner("10.244.200.17")),
        bad(&|node| node.v4.mac = Some("01:00:00:00:00:01".parse().expect("a MAC"))),
        bad(&|node| node.v4.mac = Some(derived_mac("good", false))),
        bad(&|node| node.v4.mac = Some(derived_mac("ours", false))),
        bad(&|node| node.name = "good".to_owned()),
        bad(&|node| node.name = "a b".to_owned()),
    ];
    for record in all {
        let records = [good.clone(), record];
        let found = peers(&ours(), &records, &[], &pools(), Wire::default());
        let names: Vec<_> = found.nodes.iter().map(|node| node.name.as_str()).collect();
        assert_eq!(names, ["good"], "{records:?}");
        assert_eq!(found.errors.len(), 1, "{records:?}");
    }
}

#[test]
fn what_is_ill_in_a_record_is_told_by_its_field() {
    let ill = |v6: bool, change: &dyn Fn(&mut Tunnel)| {
        let mut record = named("bad", "192.0.2.8/24", "10.244.200.18");
        if v6 {
            (record.v4, record.v6) = (Tunnel::default(), record.v4);
            record.v6.address = Some("2001:db8::8/64".parse().expect("a CIDR"));
        }
        change(if v6 { &mut record.v6 } else { &mut record.v4 });
        let found = peers(&ours(), &[record], &[], &pools(), Wire::default());
        match &found.errors[..] {
            [Error::Field { field, .. }] => *field,
            other => panic!("{other:?}"),
        }
    };
    let (v4, v6) = (IpAddr::from([127, 0, 0, 1]), "::1".parse().ok());
    let ipip = |address| move |tunnel: &mut Tunnel| (tunnel.tunnel, tunnel.ipip) = (None, address);
    let vxlan = |address| move |tunnel: &mut Tunnel| tunnel.tunnel = address;
    assert_eq!(ill(false, &vxlan(Some(v4))), "spec.ipv4VXLANTunnelAddr");
    assert_eq!(ill(true, &vxlan(v6)), "spec.ipv6VXLANTunnelAddr");
    assert_eq!(ill(false, &ipip(Some(v4))), "spec.bgp.ipv4IPIPTunnelAddr");
    assert_eq!(ill(true, &ipip(v6)), "spec.bgp.ipv6IPIPTunnelAddr");
    let mac = |tunnel: &mut Tunnel| tunnel.mac = "01:00:00:00:00:01".parse().ok();
    assert_eq!(ill(false, &mac), "spec.vxlanTunnelMACAddr");
    let mac_v6 = |tunnel: &mut Tunnel| {
        tunnel.tunnel = "fd00:10:244:200::18".parse().ok();
        mac(tunnel);
    };
    assert_eq!(ill(true, &mac_v6), "spec.vxlanTunnelMACAddrV6");
}

#[test]
fn nodes_have_their_blocks_and_what_was_lent_to_them() {
    let records = [
        node(),
        named("node-2", "192.0.2.8/24", "10.244.200.18"),
        named("ours", "192.0.2.9/24", "10.244.200.19"),
    ];
    let blocks = [
        block("10.244.1.0/30", "node-1"),
        block("10.244.2.0/30", "node-2"),
    ];
    let found = peers(&ours(), &records, &blocks, &pools(), Wire::default());
    assert_eq!(found.errors, []);
    let told: Vec<_> = found
        .nodes
        .iter()
        .map(|node| {
            let blocks: Vec<_> = node.blocks.iter().map(ToString::to_string).collect();
            (
                node.name.as_str(),
                node.tunnel[0].to_string(),
                blocks.join(" "),
            )
        })
        .collect();
    let told: Vec<_> = told
        .iter()
        .map(|(a, b, c)| (*a, b.as_str(), c.as_str()))
        .collect();
    assert_eq!(
        told,
        [
            (
                "node-1",
                "10.244.200.17",
                "10.244.1.0/30 10.244.2.0/32 10.244.2.3/32"
            ),
            ("node-1/v6", "fd00:10:244:200::17", ""),
            ("node-2", "10.244.200.18", "10.244.1.1/32 10.244.2.0/30"),
        ]
    );
    assert_eq!(
        (found.nodes[0].vni.value(), found.nodes[0].port),
        (4096, 4789)
    );
    assert_eq!(found.nodes[2].vtep_mac, derived_mac("node-2", false));
}

#[test]
fn what_has_no_tunnel_takes_no_tunnel_address() {
    use weft_api::forwarder::Way;
    let (pools, errors) = Pools::new([
        pool("pools/1", "Always", "CrossSubnet"),
        pool("pools/2", "10.244.0.0/16", "10.245.0.0/16"),
    ]);
    assert_eq!(errors, []);
    let ours = named("ours", "192.0.2.1/24", "10.244.200.1");
    let mut records = [
        named("near", "192.0.2.7/24", "10.244.200.17"),
        named("far", "198.51.100.8/24", "10.244.200.18"),
        named("bare", "192.0.2.9/24", "10.244.200.19"),
        named("empty", "192.0.2.10/24", "10.244.200.20"),
    ];
    for bare in &mut records[2..] {
        bare.v4.tunnel = None;
    }
    let blocks = [
        ("10.244.1.0/30", "near"),
        ("10.245.1.0/30", "near"),
        ("10.244.2.0/30", "far"),
        ("10.244.3.0/30", "bare"),
        ("10.245.3.0/30", "bare"),
    ]
    .map(|(cidr, node)| {
        let mut block = block(cidr, node);
        block.allocations = None;
        block
    });
    let found = peers(&ours, &records, &blocks, &pools, Wire::default());
    assert_eq!(found.errors, []);
    let net = |text: &str| text.parse::<ipnet::IpNet>().expect("a CIDR");
    let direct = |text: &str| BTreeMap::from([(net(text), Way::Direct)]);
    let told = found
        .nodes
        .iter()
        .map(|node| (node.name.as_str(), node.blocks.clone(), node.ways.clone()));
    assert_eq!(
        told.collect::<Vec<_>>(),
        [
            (
                "near",
                vec![net("10.244.1.0/30"), net("10.245.1.0/30")],
                direct("10.244.1.0/30")
            ),
            ("far", vec![net("10.244.2.0/30")], Default::default()),
            ("bare", vec![net("10.244.3.0/30")], direct("10.244.3.0/30")),
        ]
    );
    assert!(found.nodes[2].tunnel.is_empty());
}

#[test]
fn what_contradicts_itself_is_left_out_and_told() {
    let long = "n".repeat(253);
    let records = [
        named("node-1", "192.0.2.7/24", "10.244.200.17"),
        named("node-2", "192.0.2.7/24", "10.244.200.18"),
        named(&long, "192.0.2.8/24", "10.244.200.19"),
        Record {
            name: "half".to_owned(),
            ..named("half", "192.0.2.9/24", "10.244.200.20")
        },
    ];
    let mut records = Vec::from(records);
    records[3].v4.tunnel = None;
    let blocks = [
        block("10.244.1.0/30", "node-1"),
        block("10.244.1.0/31", "node-2"),
    ];
    let found = peers(&ours(), &records, &blocks, &pools(), Wire::default());
    let names: Vec<_> = found.nodes.iter().map(|node| node.name.as_str()).collect();
    assert_eq!(names, ["node-1"]);
    let told: Vec<_> = found.errors.iter().map(ToString::to_string).collect();
    for (told, words) in told.iter().zip([
        ["10.244.1.0-31", "10.244.1.0-30"],
        ["nodes/node-2", "nodes/node-1"],
        ["nodes/nnn", "metadata.name"],
    ]) {
        assert!(words.iter().all(|word| told.contains(word)), "{told}");
    }
    assert_eq!(told.len(), 3);
}

#[test]
fn this_node_is_a_record_that_reads_back() {
    let records = [named("n1", "192.0.2.7/24", "10.244.200.17")];
    let found = peers(&ours(), &records, &[], &pools(), Wire::default());
    let own = record(&found.nodes[0], [24, 64]);
    assert_eq!(own, named("n1", "192.0.2.7/24", "10.244.200.17"));
}

proptest! {
    #[test]
    fn what_is_written_reads_back(
        name in "[a-z0-9.-]{1,40}",
        v4 in any::<(Option<(u32, u8)>, Option<u32>, Option<[u8; 6]>)>(),
        v6 in any::<(Option<(u128, u8)>, Option<u128>, Option<[u8; 6]>)>(),
    ) {
        use std::net::{Ipv4Addr, Ipv6Addr};
        use ipnet::IpNet;
        use weft_api::names::Mac;
        let four = |a: u32| IpAddr::V4(Ipv4Addr::from(a));
        let six = |a: u128| IpAddr::V6(Ipv6Addr::from(a));
        let node = Record {
            name,
            v4: Tunnel {
                address: v4.0.map(|(a, len)| IpNet::new(four(a), len % 33).expect("valid")),
                tunnel: v4.1.map(four),
                mac: v4.2.map(Mac),
                ipip: v4.1.map(four),
            },
            v6: Tunnel {
                address: v6.0.map(|(a, len)| IpNet::new(six(a), len % 129).expect("valid")),
                tunnel: v6.1.map(six),
                mac: v6.2.map(Mac),
                ipip: v6.1.map(six),
            },
        };
        let written = node.to_json(None).to_string();
        prop_assert_eq!(Record::parse("k", written.as_bytes()), Ok(node.clone()));
        let annotations = node.annotations();
        prop_assert_eq!(Record::of_annotations(&node.name, &annotations), Ok(node));
    }
}

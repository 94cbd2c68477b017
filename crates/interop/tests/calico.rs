//! Calico's records are read and written as Calico does, and bad ones are
//! refused by their key.

use std::collections::BTreeMap;

use proptest::prelude::*;
use serde_json::Value as Json;
use weft_interop::{
    Error,
    calico::{
        Block, Record, Tunnel, Wire, affinity_key, block_key, derived_mac, node_key, peers, record,
    },
};

const NODE: &str = include_str!("golden/calico_node.json");
const ANNOTATIONS: &str = include_str!("golden/calico_annotations.json");
const BLOCK: &str = include_str!("golden/calico_block.json");

fn node() -> Record {
    Record::parse(&node_key("node-1"), NODE.as_bytes()).expect("a node")
}

fn named(name: &str, address: &str, tunnel: &str) -> Record {
    Record {
        name: name.to_owned(),
        v4: Tunnel {
            address: Some(address.parse().expect("a CIDR")),
            tunnel: Some(tunnel.parse().expect("an address")),
            mac: None,
        },
        v6: Tunnel::default(),
    }
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
    let found = peers("ours", &records, &blocks, Wire::default());
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
    let found = peers("ours", &records, &blocks, Wire::default());
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
    let found = peers(
        "ours",
        &[named("n1", "192.0.2.7/24", "10.244.200.17")],
        &[],
        Wire::default(),
    );
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
        use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
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
            },
            v6: Tunnel {
                address: v6.0.map(|(a, len)| IpNet::new(six(a), len % 129).expect("valid")),
                tunnel: v6.1.map(six),
                mac: v6.2.map(Mac),
            },
        };
        let written = node.to_json(None).to_string();
        prop_assert_eq!(Record::parse("k", written.as_bytes()), Ok(node.clone()));
        let annotations = node.annotations();
        prop_assert_eq!(Record::of_annotations(&node.name, &annotations), Ok(node));
    }
}

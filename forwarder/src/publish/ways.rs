//! How packets for each block get to its node, and whether this forwarder has
//! what they need.

use ipnet::IpNet;
use weft_api::{
    forwarder::{Code, Error, Node, Nodes, Way},
    names::Name,
};
use weft_engine::Reach;
use weft_wire::vxlan::{ETHERNET_OVERHEAD, OVERHEAD_V4, OVERHEAD_V6};

use super::{refusal, unique::places_of};

/// What it takes to speak IP-in-IP.
pub const REMEDY: &str = "start the forwarder with CAP_NET_RAW, an IPv4 address among \
                          uplink.addresses and uplink.ipip = true, or give the pool another \
                          encapsulation";

/// A route that this forwarder cannot serve.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unserved {
    pub net: IpNet,
    pub node: Name,
}

/// The node's blocks and lone tunnel addresses, and how each is reached.
pub(super) fn of(node: &Node) -> Vec<(IpNet, Reach)> {
    let usual = if is_l3(node) {
        Way::VxlanL3
    } else {
        Way::Vxlan
    };
    let reach = |net: &IpNet| match node.ways.get(net).copied().unwrap_or(usual) {
        Way::Vxlan => weft_engine::Way::Vxlan.into(),
        Way::VxlanL3 => weft_engine::Way::VxlanL3.into(),
        Way::Ipip => weft_engine::Way::Ipip.into(),
        Way::Direct => Reach::Direct,
    };
    places_of(node)
        .into_iter()
        .map(|net| (net, reach(&net)))
        .collect()
}

/// Whether the node's VXLAN datagrams hold no Ethernet header.
pub(super) fn is_l3(node: &Node) -> bool {
    node.ways.values().any(|way| *way == Way::VxlanL3)
}

/// What VXLAN costs of each outer packet to the node.
pub(super) fn vxlan_overhead(node: &Node, v4: bool) -> u16 {
    let overhead = if v4 { OVERHEAD_V4 } else { OVERHEAD_V6 };
    let spared = if is_l3(node) { ETHERNET_OVERHEAD } else { 0 };
    overhead - spared
}

/// Whether all ways of the peers' blocks can be gone; `ipip` says whether
/// IP-in-IP can.
pub(super) fn check(ipip: bool, peers: &[Node]) -> Result<(), Error> {
    let by_ipip = |node: &Node| by_ipip(node).next();
    match peers.iter().find_map(by_ipip) {
        Some(Unserved { net, node }) if !ipip => {
            let message = format!("node {node}: {net} is behind ipip, which this forwarder lacks");
            Err(refusal(Code::Invalid, message, REMEDY))
        }
        _ => Ok(()),
    }
}

/// Takes out of the peers what needs IP-in-IP, and says what that was.
pub fn without_ipip(nodes: &mut Nodes) -> Vec<Unserved> {
    let mut unserved = Vec::new();
    for node in &mut nodes.peers {
        let gone: Vec<_> = by_ipip(node).collect();
        node.blocks
            .retain(|net| node.ways.get(net) != Some(&Way::Ipip));
        node.ways.retain(|_, way| *way != Way::Ipip);
        unserved.extend(gone);
    }
    unserved
}

fn by_ipip(node: &Node) -> impl Iterator<Item = Unserved> {
    let by_ipip = node.ways.iter().filter(|(_, way)| **way == Way::Ipip);
    by_ipip.map(|(net, _)| Unserved {
        net: *net,
        node: node.name.clone(),
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use weft_api::names::{Mac, Vni};
    use weft_engine::{Epoch, Holder, PeerId, Snapshot};

    use super::*;
    use crate::publish::State;

    fn net(text: &str) -> IpNet {
        text.parse().expect("a prefix")
    }

    fn node(number: u8, underlay: &[&str], blocks: &[&str], by_ipip: &[&str]) -> Node {
        Node {
            name: Name::new(format!("n{number}")).expect("a name"),
            underlay: underlay.iter().map(|a| a.parse().expect("valid")).collect(),
            vtep_mac: Mac([2, 0, 0, 0, 1, number]),
            vni: Vni::DEFAULT,
            port: 4789,
            blocks: blocks.iter().map(|block| net(block)).collect(),
            ways: by_ipip.iter().map(|b| (net(b), Way::Ipip)).collect(),
            tunnel: Vec::new(),
        }
    }

    fn nodes(peer: Node) -> Nodes {
        Nodes {
            node: node(1, &["192.0.2.1"], &[], &[]),
            peers: vec![peer],
        }
    }

    fn state(ipip: bool) -> State {
        let mut state = State::new(node(1, &["192.0.2.1"], &[], &[]), 1500);
        state.set_ipip(ipip);
        state
    }

    const BLOCKS: [&str; 2] = ["10.2.0.0/24", "10.3.0.0/24"];

    fn holder(snapshot: &Snapshot, net_text: &str) -> Option<Holder> {
        snapshot.holder_of(net(net_text).addr())
    }

    fn behind(reach: impl Into<Reach>) -> Option<Holder> {
        Some(Holder::Peer(PeerId(0), reach.into()))
    }

    #[test]
    fn each_block_keeps_its_way_into_the_tables() {
        let peer = node(2, &["2001:db8::2", "192.0.2.2"], &BLOCKS, &BLOCKS[1..]);
        let state = state(true).with_nodes(nodes(peer)).expect("consistent");
        let snapshot = state.snapshot(Epoch(1)).expect("consistent");
        let holders = BLOCKS.map(|block| holder(&snapshot, block));
        let expected = [weft_engine::Way::Vxlan, weft_engine::Way::Ipip];
        assert_eq!(holders, expected.map(behind));
        let ipip = snapshot.peers()[0].ipip.expect("both have IPv4");
        assert_eq!(ipip.remote.to_string(), "192.0.2.2");
        assert_eq!(ipip.mtu, 1480);
    }

    #[test]
    fn without_a_raw_socket_ipip_is_refused_and_can_be_left_out() {
        let mut nodes = nodes(node(2, &["192.0.2.2"], &BLOCKS, &BLOCKS[1..]));
        let error = state(false).with_nodes(nodes.clone()).expect_err("refused");
        assert_eq!(error.code, Code::Invalid);
        assert!(error.message.contains("10.3.0.0/24"), "{error}");
        assert!(error.hint.contains("CAP_NET_RAW"), "{error}");
        let left_out = without_ipip(&mut nodes);
        let expected = Unserved {
            net: net(BLOCKS[1]),
            node: nodes.peers[0].name.clone(),
        };
        assert_eq!(left_out, [expected]);
        let state = state(false).with_nodes(nodes).expect("VXLAN is left");
        let snapshot = state.snapshot(Epoch(1)).expect("consistent");
        assert_eq!(
            holder(&snapshot, BLOCKS[0]),
            behind(weft_engine::Way::Vxlan)
        );
        assert_eq!(holder(&snapshot, BLOCKS[1]), None);
    }

    #[test]
    fn a_node_without_inner_ethernet_has_it_for_all_blocks() {
        let mut peer = node(2, &["192.0.2.2"], &BLOCKS, &BLOCKS[1..]);
        peer.ways.insert(net(BLOCKS[0]), Way::VxlanL3);
        peer.tunnel = vec![net("10.9.0.1/32").addr()];
        let state = state(true).with_nodes(nodes(peer)).expect("consistent");
        let snapshot = state.snapshot(Epoch(1)).expect("consistent");
        let [l3, ipip] = [weft_engine::Way::VxlanL3, weft_engine::Way::Ipip].map(behind);
        assert_eq!(holder(&snapshot, BLOCKS[0]), l3);
        assert_eq!(holder(&snapshot, BLOCKS[1]), ipip);
        assert_eq!(holder(&snapshot, "10.9.0.1/32"), l3);
        let peer = &snapshot.peers()[0];
        assert!(peer.l3);
        assert_eq!(peer.mtu, 1500 - 20 - 8 - 8);
    }

    #[test]
    fn ways_that_cannot_be_are_refused() {
        let stray = node(2, &["192.0.2.2"], &BLOCKS[..1], &BLOCKS[1..]);
        let v6 = node(2, &["192.0.2.2"], &["fd00:2::/64"], &["fd00:2::/64"]);
        let mut mixed = node(2, &["192.0.2.2"], &BLOCKS, &[]);
        mixed.ways.insert(net(BLOCKS[0]), Way::VxlanL3);
        for peer in [stray, v6, mixed] {
            let error = state(true).with_nodes(nodes(peer)).expect_err("refused");
            assert_eq!(error.code, Code::Invalid, "{error}");
        }
    }

    #[test]
    fn a_message_without_ways_means_vxlan() {
        let line = r#"{"name":"n2","underlay":["192.0.2.2"],"vtep_mac":"02:00:00:00:01:02","blocks":["10.2.0.0/24"]}"#;
        let peer: Node = serde_json::from_str(line).expect("an old message");
        assert_eq!(peer.ways, BTreeMap::new());
        assert!(!serde_json::to_string(&peer).expect("JSON").contains("ways"));
        let line = line.replace(
            "\"blocks\"",
            "\"ways\":{\"10.2.0.0/24\":\"ipip\"},\"blocks\"",
        );
        let peer: Node = serde_json::from_str(&line).expect("a new message");
        assert_eq!(peer.ways[&net("10.2.0.0/24")], Way::Ipip);
    }
}

//! Each bad packet has a reason and a counter, and moves no other.

use weft_engine::{Peer, Port, Way};
use weft_testkit::{
    frames::{FrameBuilder, between},
    sim::{Datagrams, GATEWAY, World, datagram, pod_mac, pod_v4, pod_v6, tunnel_v4},
};
use weft_wire::{VnetHeader, edit};

fn from_pod() -> FrameBuilder {
    between(pod_v4(0, 0), pod_v4(1, 0))
        .macs(pod_mac(0, 0), GATEWAY.mac)
        .udp(1, 2)
        .filled(64)
}

fn from_peer() -> FrameBuilder {
    between(pod_v4(0, 0), pod_v4(1, 0)).udp(1, 2).filled(64)
}

/// A frame from pod 0 of node 0 is lost for `reason`, and nothing else
/// happens but what is named.
#[track_caller]
fn pod_loses(frame: &[u8], reason: &'static str, also: &[(&'static str, u64)]) {
    pod_loses_in(World::default(), VnetHeader::default(), frame, reason, also);
}

#[track_caller]
fn pod_loses_in(
    mut world: World,
    vnet: VnetHeader,
    frame: &[u8],
    reason: &'static str,
    also: &[(&'static str, u64)],
) {
    let moved = world.moved(0, |world| world.send_all(0, 0, &[(vnet, frame.to_vec())]));
    let expected = [("received_from_ports", 1), (reason, 1)];
    assert_eq!(moved, expected.iter().chain(also).copied().collect());
    assert!(world.received(1, 0).is_empty());
}

/// A datagram that node 1 receives is lost for `reason`.
#[track_caller]
fn tunnel_loses(datagram: &Datagrams, reason: &'static str, also: &[(&'static str, u64)]) {
    tunnel_loses_in(World::default(), datagram, reason, also);
}

#[track_caller]
fn tunnel_loses_in(
    mut world: World,
    datagram: &Datagrams,
    reason: &'static str,
    also: &[(&'static str, u64)],
) {
    let moved = world.moved(1, |world| world.arrive(1, std::slice::from_ref(datagram)));
    let expected = [("received_from_peers", 1), (reason, 1)];
    assert_eq!(moved, expected.iter().chain(also).copied().collect());
    assert!(world.received(1, 0).is_empty());
}

const MISS: (&str, u64) = ("flow_misses", 1);
const ICMP: [(&str, u64); 2] = [("originated", 1), ("sent_to_ports", 1)];
const ICMP_TO_PEER: [(&str, u64); 2] = [("originated", 1), ("sent_to_peers", 1)];

#[test]
fn truncated_frames_of_every_length() {
    let frame = from_pod().build();
    pod_loses(&frame[..13], "malformed_ethernet", &[]);
    pod_loses(&[], "malformed_ethernet", &[]);
    for len in 14..frame.len() {
        pod_loses(&frame[..len], "malformed_ip", &[]);
    }
}

#[test]
fn headers_that_lie() {
    let mut version = from_pod().build();
    version[14] = 0x65;
    pod_loses(&version, "malformed_ip", &[]);
    let mut checksum = from_pod().build();
    checksum[24] ^= 1;
    pod_loses(&checksum, "malformed_ip", &[]);
    let mut udp_len = from_pod().build();
    udp_len[39] = 255;
    pod_loses(&udp_len, "malformed_transport", &[]);
    let mut ethertype = from_pod().build();
    ethertype[12..14].copy_from_slice(&[0x88, 0xcc]);
    pod_loses(&ethertype, "unsupported_ethertype", &[]);
}

#[test]
fn super_frames_that_are_none() {
    let (vnet, frame) = from_pod().filled(3000).super_frame(1000);
    let wrong = [
        VnetHeader {
            gso_size: 0,
            ..vnet
        },
        VnetHeader {
            gso_type: 1,
            ..vnet
        },
        VnetHeader {
            gso_type: 77,
            ..vnet
        },
        VnetHeader {
            csum_start: 4000,
            ..vnet
        },
        VnetHeader {
            csum_start: 0,
            ..vnet
        },
        VnetHeader {
            csum_offset: u16::MAX,
            ..vnet
        },
    ];
    for vnet in wrong {
        pod_loses_in(World::default(), vnet, &frame, "malformed_offload", &[]);
    }
}

#[test]
fn spoofed_sources() {
    pod_loses(
        &from_pod().macs(pod_mac(0, 1), GATEWAY.mac).build(),
        "spoofed_mac",
        &[],
    );
    let other = between(pod_v4(0, 1), pod_v4(1, 0)).macs(pod_mac(0, 0), GATEWAY.mac);
    pod_loses(&other.udp(1, 2).build(), "spoofed_address", &[]);
    let other = between(pod_v6(1, 0), pod_v6(1, 1)).macs(pod_mac(0, 0), GATEWAY.mac);
    pod_loses(&other.udp(1, 2).build(), "spoofed_address", &[]);
}

#[test]
fn a_spoofer_of_a_known_flow_is_not_helped_by_the_flow_cache() {
    let mut world = World::default();
    world.send(0, 0, &from_pod().build());
    let spoofed = from_pod().macs(pod_mac(0, 1), GATEWAY.mac).build();
    let moved = world.moved(0, |world| world.send(0, 1, &spoofed));
    assert_eq!(
        moved,
        [("received_from_ports", 1), ("spoofed_address", 1)].into()
    );
}

#[test]
fn destinations_that_are_not_carried() {
    pod_loses(
        &from_pod().macs(pod_mac(0, 0), [2; 6]).build(),
        "not_for_gateway",
        &[],
    );
    pod_loses(
        &from_pod().macs(pod_mac(0, 0), [0xff; 6]).build(),
        "multicast",
        &[],
    );
    let to = |dst: [u8; 4]| {
        between(pod_v4(0, 0), dst)
            .macs(pod_mac(0, 0), GATEWAY.mac)
            .udp(1, 2)
    };
    pod_loses(&to([224, 0, 0, 9]).build(), "multicast", &[MISS]);
    pod_loses(&to([169, 254, 9, 9]).build(), "link_local", &[MISS]);
    pod_loses(&to([169, 254, 1, 1]).build(), "gateway_unserved", &ICMP);
    pod_loses(
        &to([203, 0, 113, 1]).build(),
        "no_route",
        &[&[MISS][..], &ICMP].concat(),
    );
    let link_local = between([0xfe80, 0, 0, 0, 0, 0, 0, 9], pod_v6(1, 0));
    let frame = link_local
        .macs(pod_mac(0, 0), GATEWAY.mac)
        .udp(1, 2)
        .build();
    pod_loses(&frame, "link_local", &[]);
}

#[test]
fn an_address_of_the_nodes_own_block_that_no_pod_holds() {
    let mut world = World::default();
    // A peer claims a wider block around ours.
    world.nodes[0].change(
        0,
        |_| {},
        |peer| {
            let block = "10.244.0.0/16".parse().expect("a prefix");
            peer.blocks.push((block, Way::Vxlan.into()));
        },
    );
    let nobody = between(pod_v4(0, 0), pod_v4(0, 9)).macs(pod_mac(0, 0), GATEWAY.mac);
    let also = [&[MISS][..], &ICMP].concat();
    let frame = nobody.udp(1, 2).build();
    pod_loses_in(world, VnetHeader::default(), &frame, "no_route", &also);
}

#[test]
fn hop_limits_that_ran_out() {
    for ttl in [0, 1] {
        let also = [&[MISS][..], &ICMP].concat();
        pod_loses(&from_pod().ttl(ttl).build(), "hop_limit", &also);
    }
    let arrived = datagram(0, &from_peer().ttl(1).build());
    tunnel_loses(
        &arrived,
        "hop_limit",
        &[&[MISS][..], &ICMP_TO_PEER].concat(),
    );
}

#[test]
fn packets_too_big_for_their_way() {
    let also = [&[MISS][..], &ICMP].concat();
    let big = from_pod().filled(1500).dont_fragment();
    pod_loses(&big.build(), "too_big", &also);
    let (vnet, frame) = from_pod().filled(3000).super_frame(1430);
    let mut world = World::default();
    let moved = world.moved(0, |world| world.send_all(0, 0, &[(vnet, frame)]));
    // 3000 bytes at 1430 a segment are three packets.
    let expected = [
        ("received_from_ports", 3),
        ("too_big", 3),
        MISS,
        ICMP[0],
        ICMP[1],
    ];
    assert_eq!(moved, expected.into());
}

#[test]
fn a_peer_without_a_common_family_is_reachable_by_nobody() {
    let mut world = World::default();
    world.nodes[0].change(0, |_| {}, |peer| peer.remote = None);
    let also = [&[MISS][..], &ICMP].concat();
    pod_loses_in(
        world,
        VnetHeader::default(),
        &from_pod().build(),
        "no_uplink",
        &also,
    );
}

#[test]
fn strangers_datagrams() {
    let mut stranger = datagram(0, &from_peer().build());
    stranger.from = [198, 51, 100, 1].into();
    tunnel_loses(&stranger, "unknown_peer", &[]);
}

#[test]
fn vxlan_headers_that_are_wrong() {
    let good = datagram(0, &from_peer().build());
    let edited = |at: usize, value: u8| {
        let mut datagram = good.clone();
        datagram.bytes[at] = value;
        datagram
    };
    tunnel_loses(&edited(0, 0), "vxlan_no_vni", &[]);
    tunnel_loses(&edited(0, 0x88), "vxlan_reserved", &[]);
    tunnel_loses(&edited(1, 1), "vxlan_reserved", &[]);
    tunnel_loses(&edited(7, 1), "vxlan_reserved", &[]);
    tunnel_loses(&edited(6, 1), "wrong_vni", &[]);
    let short = Datagrams {
        bytes: good.bytes[..7].to_vec(),
        stride: 7,
        ..good.clone()
    };
    tunnel_loses(&short, "vxlan_truncated", &[]);
    let empty = Datagrams {
        bytes: Vec::new(),
        stride: 1,
        ..good.clone()
    };
    tunnel_loses(&empty, "vxlan_truncated", &[]);
}

#[test]
fn an_inner_frame_cut_at_every_length() {
    let whole = datagram(0, &from_peer().build());
    for len in 8..whole.bytes.len() {
        let cut = Datagrams {
            bytes: whole.bytes[..len].to_vec(),
            stride: len,
            ..whole.clone()
        };
        let reason = if len < 8 + 14 {
            "malformed_ethernet"
        } else {
            "malformed_ip"
        };
        tunnel_loses(&cut, reason, &[]);
    }
}

#[test]
fn inner_frames_for_somebody_else() {
    let mut wrong_mac = datagram(0, &from_peer().build());
    wrong_mac.bytes[8..14].copy_from_slice(&[2; 6]);
    tunnel_loses(&wrong_mac, "wrong_vtep", &[]);
    let mut arp = datagram(0, &from_peer().build());
    arp.bytes[20..22].copy_from_slice(&[0x08, 0x06]);
    tunnel_loses(&arp, "unsupported_ethertype", &[]);
}

#[test]
fn inner_sources_outside_the_peers_blocks() {
    let foreign = between([10, 99, 0, 1], pod_v4(1, 0)).udp(1, 2).build();
    tunnel_loses(&datagram(0, &foreign), "foreign_source", &[MISS]);
    let ours = between(pod_v4(1, 1), pod_v4(1, 0)).udp(1, 2).build();
    tunnel_loses(&datagram(0, &ours), "foreign_source", &[MISS]);
}

#[test]
fn nothing_that_a_peer_sent_goes_back_to_a_peer() {
    let looped = between(pod_v4(0, 0), pod_v4(0, 1)).udp(1, 2).build();
    let also = [&[MISS][..], &ICMP_TO_PEER].concat();
    tunnel_loses(&datagram(0, &looped), "not_here", &also);
    let nobody = between(pod_v4(0, 0), pod_v4(1, 9)).udp(1, 2).build();
    tunnel_loses(&datagram(0, &nobody), "not_here", &also);
}

#[test]
fn congestion_marks_on_packets_that_cannot_bear_them() {
    let mut marked = datagram(0, &from_peer().build());
    marked.ecn = 3;
    tunnel_loses(&marked, "congestion_unmarked", &[MISS]);

    let mut world = World::default();
    let mut marked = datagram(0, &from_peer().class(0x02).build());
    marked.ecn = 3;
    world.arrive(1, &[marked]);
    assert_eq!(
        world.received(1, 0)[0].frame[15] & 3,
        3,
        "the mark is carried over"
    );
}

#[test]
fn a_pod_with_a_smaller_link_says_so() {
    let mut world = World::default();
    world.nodes[1].change(1, |port: &mut Port| port.mtu = 1000, |_: &mut Peer| {});
    let big = datagram(0, &from_peer().filled(1200).dont_fragment().build());
    let also = [&[MISS][..], &ICMP_TO_PEER].concat();
    tunnel_loses_in(world, &big, "too_big", &also);
}

#[test]
fn a_flood_of_errors_is_kept_within_bounds() {
    let mut world = World::default();
    let frame = from_pod().ttl(1).build();
    let moved = world.moved(0, |world| {
        for _ in 0..1000 {
            world.send(0, 0, &frame);
        }
    });
    assert_eq!(moved["hop_limit"], 1000);
    assert_eq!(moved["originated"], 50);
    assert_eq!(moved["icmp_suppressed"], 950);
}

#[test]
fn one_bad_datagram_does_not_harm_its_train() {
    let mut world = World::default();
    let good = datagram(0, &from_peer().build());
    let mut train = good.clone();
    train.bytes.extend(&good.bytes);
    train.bytes.extend(&good.bytes);
    train.bytes[good.stride] = 0;
    let moved = world.moved(1, |world| world.arrive(1, &[train]));
    assert_eq!(moved["vxlan_no_vni"], 1);
    assert_eq!(moved["sent_to_ports"], 2);
}

#[test]
fn pings_of_the_node_and_of_its_tunnel_address_are_answered() {
    let mut world = World::default();
    let ping = between(pod_v4(0, 0), tunnel_v4(1)).macs(pod_mac(0, 0), GATEWAY.mac);
    let moved = world.moved(1, |world| {
        world.send(0, 0, &ping.echo_request(7, 1).build())
    });
    let expected = [
        ("received_from_peers", 1),
        ("answered", 1),
        ("originated", 1),
        ("sent_to_peers", 1),
        MISS,
    ];
    assert_eq!(moved, expected.into());
    assert_eq!(world.received(0, 0).len(), 1, "the answer came home");
}

#[test]
fn pings_with_a_wrong_checksum_are_not_answered() {
    let ping = between(pod_v4(0, 0), GATEWAY.v4).macs(pod_mac(0, 0), GATEWAY.mac);
    let mut frame = ping.echo_request(7, 1).filled(9).build();
    *frame.last_mut().expect("not empty") ^= 1;
    pod_loses(&frame, "malformed_transport", &[]);
}

#[test]
fn an_empty_datagram_is_counted() {
    let empty = Datagrams {
        bytes: Vec::new(),
        stride: 1,
        ..datagram(0, &[])
    };
    tunnel_loses(&empty, "vxlan_truncated", &[]);
}

#[test]
fn a_fragment_beyond_the_largest_datagram() {
    let mut frame = from_pod().filled(3000).build();
    frame[20..22].copy_from_slice(&8150_u16.to_be_bytes());
    edit::refresh_ipv4_checksum(&mut frame[14..34]);
    pod_loses(&frame, "malformed_ip", &[]);
}

#[test]
fn a_super_frame_that_is_a_fragment() {
    let (vnet, mut frame) = from_pod().filled(3000).super_frame(1000);
    frame[20] |= 0x20;
    edit::refresh_ipv4_checksum(&mut frame[14..34]);
    pod_loses_in(World::default(), vnet, &frame, "malformed_offload", &[]);
}

#[test]
fn one_pods_errors_do_not_cost_another_its_path_mtu() {
    let mut world = World::default();
    let expired = from_pod().ttl(1).build();
    for _ in 0..100 {
        world.send(0, 0, &expired);
    }
    let big = between(pod_v4(0, 1), pod_v4(1, 0)).macs(pod_mac(0, 1), GATEWAY.mac);
    world.send(0, 1, &big.udp(1, 2).filled(1500).dont_fragment().build());
    assert_eq!(world.received(0, 1).len(), 1, "Fragmentation Needed");
}

//! Good packets arrive as they should, by the fewest steps.

use weft_engine::Epoch;
use weft_testkit::{
    frames::{FrameBuilder, between},
    sim::{self, GATEWAY, World, pod_mac, pod_v4, pod_v6, vtep_mac},
};
use weft_wire::{
    Ethernet, Packet, VnetHeader, checksum, parse,
    parse::{dst_mac, src_mac},
};

fn flow(node: usize) -> FrameBuilder {
    let frame = between(pod_v4(0, 0), pod_v4(node, 1));
    frame
        .macs(pod_mac(0, 0), GATEWAY.mac)
        .udp(1000, 2000)
        .filled(100)
}

fn packet(frame: &[u8]) -> Packet {
    match parse(frame) {
        Ok(Ethernet::Ip(packet)) => packet,
        other => panic!("{other:?} is no packet"),
    }
}

#[test]
fn to_a_neighbour_on_the_node() {
    let mut world = World::default();
    let moved = world.moved(0, |world| world.send(0, 0, &flow(0).build()));
    let expected = [
        ("received_from_ports", 1),
        ("flow_misses", 1),
        ("sent_to_ports", 1),
    ];
    assert_eq!(moved, expected.into());
    let received = world.received(0, 1);
    let frame = &received[0].frame;
    assert_eq!(
        (dst_mac(frame), src_mac(frame)),
        (pod_mac(0, 1), GATEWAY.mac)
    );
    assert_eq!(packet(frame).hop_limit, 63);

    let moved = world.moved(0, |world| world.send(0, 0, &flow(0).build()));
    let expected = [
        ("received_from_ports", 1),
        ("flow_hits", 1),
        ("sent_to_ports", 1),
    ];
    assert_eq!(
        moved,
        expected.into(),
        "the second packet finds its way in the cache"
    );
}

#[test]
fn across_the_tunnel() {
    for v6 in [false, true] {
        let mut world = World::default();
        let builder = if v6 {
            let frame = between(pod_v6(0, 0), pod_v6(1, 1));
            frame.macs(pod_mac(0, 0), GATEWAY.mac).udp(1, 2).filled(9)
        } else {
            flow(1)
        };
        let moved = world.moved(0, |world| world.send(0, 0, &builder.build()));
        let expected = [
            ("received_from_ports", 1),
            ("flow_misses", 1),
            ("sent_to_peers", 1),
        ];
        assert_eq!(moved, expected.into());
        let received = world.received(1, 1);
        assert_eq!(received.len(), 1);
        let frame = &received[0].frame;
        assert_eq!(
            (dst_mac(frame), src_mac(frame)),
            (pod_mac(1, 1), GATEWAY.mac)
        );
        assert_eq!(packet(frame).hop_limit, 62, "each node takes one");
        assert!(checksum::verify(frame, &packet(frame)));
    }
}

#[test]
fn partial_checksums_are_finished_before_they_leave_the_node() {
    let mut world = World {
        hold: true,
        ..World::default()
    };
    let (vnet, frame) = flow(1).unsummed();
    world.send_all(0, 0, &[(vnet, frame)]);
    let send = &world.nodes[0].held[0];
    let (_, inner) = weft_wire::vxlan::decap(&send.bytes).expect("VXLAN");
    assert!(checksum::verify(inner, &packet(inner)));
    assert_eq!((dst_mac(inner), src_mac(inner)), (vtep_mac(1), vtep_mac(0)));
}

#[test]
fn ethernet_padding_stays_behind() {
    let mut world = World {
        hold: true,
        ..World::default()
    };
    let mut frame = flow(1).filled(1).build();
    let len = frame.len();
    frame.resize(60, 0);
    world.send(0, 0, &frame);
    assert_eq!(world.nodes[0].held[0].bytes.len(), 8 + len);
}

#[test]
fn new_tables_are_obeyed_by_flows_that_are_cached() {
    let mut world = World::default();
    world.send(0, 0, &flow(1).build());
    assert_eq!(world.received(1, 1).len(), 1);
    world.nodes[0].change(0, |_| {}, |peer| peer.blocks.clear());
    assert!(world.nodes[0].tables.epoch > Epoch(1));
    let moved = world.moved(0, |world| world.send(0, 0, &flow(1).build()));
    assert_eq!(moved["no_route"], 1);
    world.nodes[0].tables = sim::tables(0, 9);
    world.send(0, 0, &flow(1).build());
    assert_eq!(world.received(1, 1).len(), 1);
}

#[test]
fn the_entropy_is_the_flows() {
    for port in 0..64 {
        let mut world = World {
            hold: true,
            ..World::default()
        };
        let frame = flow(1).udp(port, 2000).filled(10).build();
        world.send_all(0, 0, &vec![(VnetHeader::default(), frame); 5]);
        assert_eq!(
            world.nodes[0].held.len(),
            1,
            "packets of one flow share a socket"
        );
    }
    let mut world = World {
        hold: true,
        ..World::default()
    };
    let frames: Vec<_> = (0..64)
        .map(|port| {
            (
                VnetHeader::default(),
                flow(1).udp(port, 2000).filled(10).build(),
            )
        })
        .collect();
    world.send_all(0, 0, &frames);
    assert_eq!(
        world.nodes[0].held.len(),
        4,
        "64 flows spread over all 4 sockets"
    );
}

#[test]
fn ecn_is_copied_to_the_outer_header() {
    for (class, ecn) in [(0, 0), (1, 1), (2, 2), (0xb8 | 2, 2)] {
        let mut world = World {
            hold: true,
            ..World::default()
        };
        world.send(0, 0, &flow(1).class(class).build());
        assert_eq!(world.nodes[0].held[0].ecn, ecn);
    }
}

#[test]
fn a_packet_that_may_be_fragmented_is() {
    let mut world = World::default();
    let whole = flow(1).filled(3000).build();
    let moved = world.moved(0, |world| world.send(0, 0, &whole));
    let expected = [
        ("received_from_ports", 1),
        ("flow_misses", 1),
        ("fragmented", 1),
        ("originated", 3),
        ("sent_to_peers", 3),
    ];
    assert_eq!(moved, expected.into());
    let mut joined = Vec::new();
    for received in world.received(1, 1) {
        let packet = packet(&received.frame);
        assert!(packet.ip_len() <= sim::MTU);
        joined.extend_from_slice(&received.frame[34..packet.end]);
    }
    assert_eq!(joined, whole[34..], "the fragments make the datagram");
}

#[test]
fn fragments_of_one_datagram_take_one_way_in_order() {
    let mut world = World {
        hold: true,
        ..World::default()
    };
    let fragments = flow(1).filled(4000).fragments(1400);
    let frames: Vec<_> = fragments
        .into_iter()
        .map(|f| (VnetHeader::default(), f))
        .collect();
    world.send_all(0, 0, &frames);
    assert_eq!(world.nodes[0].held.len(), 1);
    let held = std::mem::take(&mut world.nodes[0].held);
    world.arrive(1, &held);
    let offsets: Vec<_> = world
        .received(1, 1)
        .iter()
        .map(|r| u16::from_be_bytes([r.frame[20], r.frame[21]]) & 0x1fff)
        .collect();
    assert_eq!(offsets, [0, 175, 350]);
}

#[test]
fn lost_datagrams_cost_no_others() {
    let mut world = World {
        hold: true,
        ..World::default()
    };
    let (vnet, frame) = flow(1).tcp(1, 2).filled(13_980).super_frame(1398);
    world.send_all(0, 0, &[(vnet, frame)]);
    let mut held = std::mem::take(&mut world.nodes[0].held);
    let stride = held[0].stride;
    held[0].bytes.drain(3 * stride..4 * stride);
    world.arrive(1, &held);
    let received = world.received(1, 1);
    let lens: Vec<_> = received
        .iter()
        .map(|r| packet(&r.frame).end - packet(&r.frame).payload)
        .collect();
    assert_eq!(lens, [3 * 1398, 6 * 1398]);
}

/// The lengths of the IP packets that pod 1 of node 1 received.
fn lengths(world: &mut World) -> Vec<usize> {
    let received = world.received(1, 1);
    received.iter().map(|r| packet(&r.frame).ip_len()).collect()
}

#[test]
fn fragments_keep_their_place_in_the_flow() {
    let frames = |first: FrameBuilder| {
        [first, flow(1).filled(10)].map(|b| (VnetHeader::default(), b.build()))
    };
    let mut world = World::default();
    world.send_all(0, 0, &frames(flow(1).filled(3000)));
    assert_eq!(
        lengths(&mut world),
        [1444, 1444, 180, 38],
        "cut on the way to the peer"
    );

    let mut world = World::default();
    world.nodes[1].change(1, |port| port.mtu = 1000, |_| {});
    world.send_all(0, 0, &frames(flow(1).filled(1200)));
    assert_eq!(
        lengths(&mut world),
        [996, 252, 38],
        "cut on the way to the pod"
    );
}

#[test]
fn a_batch_of_datagrams_to_be_cut_arrives_whole() {
    let mut world = World::default();
    let frame = flow(1).filled(8900).build();
    let moved = world.moved(0, |world| {
        world.send_all(0, 0, &vec![(VnetHeader::default(), frame); 28]);
    });
    assert_eq!((moved["fragmented"], moved["originated"]), (28, 28 * 7));
    assert_eq!(moved["sent_to_peers"], 28 * 7);
    let carried: usize = lengths(&mut world).iter().map(|len| len - 20).sum();
    assert_eq!(carried, 28 * 8908);
}

#[test]
fn a_change_of_ecn_does_not_reorder_a_flow() {
    let mut world = World::default();
    let segment = |seq, class| {
        let builder = flow(1).tcp(1, 2).seq(seq).class(class).filled(100);
        (VnetHeader::default(), builder.build())
    };
    world.send_all(0, 0, &[segment(0, 2), segment(100, 0), segment(200, 2)]);
    let received = world.received(1, 1);
    let seqs: Vec<_> = received.iter().map(|r| r.frame[41]).collect();
    assert_eq!(seqs, [0, 100, 200]);
}

#[test]
fn ipv6_packets_of_the_least_mtu_always_fit() {
    let mut world = World::default();
    world.nodes[0].change(0, |_| {}, |peer| peer.mtu = 1200);
    let to = between(pod_v6(0, 0), pod_v6(1, 1)).macs(pod_mac(0, 0), GATEWAY.mac);
    world.send(0, 0, &to.udp(1, 2).filled(1280 - 48).build());
    assert_eq!(lengths(&mut world), [1280]);
}

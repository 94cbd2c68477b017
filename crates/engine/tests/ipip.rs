//! IP-in-IP: what leaves is the inner packet alone, what arrives is taken
//! from peers only, and IPv6 and other blocks go by VXLAN beside it.

use proptest::prelude::*;
use weft_engine::Way;
use weft_testkit::{
    frames::{ACK, FrameBuilder, PSH, between},
    sim::{self, Datagrams, GATEWAY, World, by_ipip, pod_mac, pod_v4, pod_v6},
};
use weft_wire::{ETHERNET_LEN, Ethernet, checksum, ipip, parse};

/// Two nodes whose IPv4 goes by IP-in-IP.
fn world() -> World {
    let mut world = World::default();
    for node in [0, 1] {
        world.nodes[node].change(node, |port| port.mtu = 1480, by_ipip);
    }
    world
}

fn flow() -> FrameBuilder {
    between(pod_v4(0, 0), pod_v4(1, 0)).macs(pod_mac(0, 0), GATEWAY.mac)
}

fn held(world: &mut World) -> Vec<Datagrams> {
    std::mem::take(&mut world.nodes[0].held)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn a_super_frame_comes_out_as_it_went_in(
        tcp: bool,
        size in 1_u16..1428,
        segments in 2_usize..44,
        short in 0_usize..1428,
        id: u16,
    ) {
        let len = usize::from(size) * (segments - 1) + 1 + short % usize::from(size);
        let builder = flow().dont_fragment().id(id);
        let builder = if tcp { builder.tcp(4000, 80).flags(ACK | PSH) } else { builder.udp(4000, 53) };
        let (vnet_in, frame) = builder.filled(len).super_frame(size);
        let mut world = world();
        world.hold = true;
        world.send_all(0, 0, &[(vnet_in, frame.clone())]);
        let sends = held(&mut world);
        prop_assert_eq!(sends.len(), 1, "one super-frame is one send");
        prop_assert_eq!(sends[0].way, Way::Ipip);
        let packets: Vec<_> = sends[0].bytes.chunks(sends[0].stride).collect();
        prop_assert_eq!(packets.len(), segments);
        for packet in packets {
            prop_assert!(packet.len() <= 1500);
            let inner = &packet[ipip::decap(packet).expect("IP-in-IP")];
            let frame = [&frame[..ETHERNET_LEN], inner].concat();
            let Ok(Ethernet::Ip(packet)) = parse(&frame) else {
                panic!("a segment does not parse");
            };
            prop_assert!(checksum::verify(&frame, &packet));
        }
        // Without a UDP_GRO of its own, each packet comes as its own train.
        let singly: Vec<_> = sends[0]
            .bytes
            .chunks(sends[0].stride)
            .map(|packet| Datagrams { stride: packet.len(), bytes: packet.to_vec(), ..sends[0].clone() })
            .collect();
        world.arrive(1, &singly);
        let received = world.received(1, 0);
        prop_assert_eq!(received.len(), 1, "one super-frame is one write");
        prop_assert_eq!(received[0].vnet, vnet_in);
        let (ip_in, ip_out) = (&frame[ETHERNET_LEN..], &received[0].frame[ETHERNET_LEN..]);
        prop_assert_eq!(ip_in.len(), ip_out.len());
        // Two nodes have taken one each from the hop limit.
        for at in (0..ip_in.len()).filter(|at| !(8..12).contains(at)) {
            prop_assert_eq!(ip_in[at], ip_out[at], "byte {} of the IP packet", at);
        }
    }
}

#[test]
fn each_block_has_its_own_way() {
    let mut world = world();
    world.hold = true;
    let v6 = between(pod_v6(0, 0), pod_v6(1, 0)).macs(pod_mac(0, 0), GATEWAY.mac);
    let [v4, v6] = [flow(), v6].map(|frame| frame.udp(1, 2).filled(9).build());
    world.send_all(0, 0, &[v4, v6].map(|frame| (Default::default(), frame)));
    let sends = held(&mut world);
    let ways: Vec<_> = sends.iter().map(|send| send.way).collect();
    assert_eq!(ways, [Way::Ipip, Way::Vxlan]);
    world.arrive(1, &sends);
    assert_eq!(world.received(1, 0).len(), 2);
}

/// While nodes learn of a change, a peer sends by the old way.
#[test]
fn a_peer_is_heard_by_every_way() {
    let mut world = World::default();
    world.arrive(1, &[sim::ipip(0, &flow().udp(1, 2).build())]);
    assert_eq!(world.received(1, 0).len(), 1);
}

#[test]
fn the_way_is_thirty_bytes_wider_than_vxlans() {
    let mut world = world();
    let sized = |payload| flow().dont_fragment().udp(1, 2).filled(payload).build();
    let moved = world.moved(0, |world| world.send(0, 0, &sized(1480 - 28)));
    assert_eq!(moved["sent_to_peers"], 1);
    let moved = world.moved(0, |world| world.send(0, 0, &sized(1481 - 28)));
    assert_eq!(moved["too_big"], 1);
    let told = world.received(0, 0).pop().expect("an ICMP error").frame;
    assert_eq!(told[ETHERNET_LEN + 26..][..2], 1480_u16.to_be_bytes());
}

#[test]
fn answers_take_the_same_way() {
    let mut world = world();
    world.hold = true;
    let dying = sim::ipip(0, &flow().ttl(1).udp(1, 2).build());
    world.arrive(1, &[dying]);
    let replies = std::mem::take(&mut world.nodes[1].held);
    assert_eq!(replies.len(), 1);
    assert_eq!(replies[0].way, Way::Ipip);
}

#[test]
fn the_outer_congestion_mark_is_carried_over() {
    for (class, lost) in [(0, true), (1, false), (2, false), (3, false)] {
        let mut world = world();
        let mut marked = sim::ipip(0, &flow().class(class).udp(1, 2).build());
        marked.ecn = 3;
        let moved = world.moved(1, |world| world.arrive(1, &[marked]));
        assert_eq!(moved.contains_key("congestion_unmarked"), lost, "{class}");
        let received = world.received(1, 0);
        assert_eq!(received.len(), usize::from(!lost));
        for received in received {
            assert_eq!(received.frame[ETHERNET_LEN + 1] & 3, 3);
        }
    }
}

fn loses(packet: &Datagrams, reason: &str) {
    let mut world = world();
    let moved = world.moved(1, |world| world.arrive(1, std::slice::from_ref(packet)));
    assert_eq!(moved.get(reason), Some(&1), "{moved:?}");
    assert_eq!(moved["received_from_peers"], 1);
    assert_eq!(world.received(1, 0), []);
}

#[test]
fn strangers_and_liars() {
    let good = sim::ipip(0, &flow().udp(1, 2).filled(9).build());
    let mut stranger = good.clone();
    stranger.from = [198, 51, 100, 1].into();
    loses(&stranger, "unknown_peer");

    let foreign = between([203, 0, 113, 1], pod_v4(1, 0)).udp(1, 2).build();
    loses(&sim::ipip(0, &foreign), "foreign_source");
    let elsewhere = between(pod_v4(0, 0), [203, 0, 113, 1]).udp(1, 2).build();
    loses(&sim::ipip(0, &elsewhere), "not_here");
    let v6 = between(pod_v6(0, 0), pod_v6(1, 0)).udp(1, 2).build();
    loses(&sim::ipip(0, &v6), "malformed_ip");

    let mut with_options = good.clone();
    with_options.bytes[0] = 0x4f;
    loses(&with_options, "malformed_ip");
}

#[test]
fn a_packet_cut_at_every_length() {
    let whole = sim::ipip(0, &flow().udp(1, 2).filled(9).build());
    for len in 0..whole.bytes.len() {
        let cut = Datagrams {
            bytes: whole.bytes[..len].to_vec(),
            stride: len.max(1),
            ..whole.clone()
        };
        loses(&cut, "malformed_ip");
    }
}

#[test]
fn without_an_ipv4_underlay_there_is_no_way() {
    let mut world = World::default();
    world.nodes[0].change(
        0,
        |_| {},
        |peer| {
            by_ipip(peer);
            peer.ipip = None;
        },
    );
    let moved = world.moved(0, |world| world.send(0, 0, &flow().udp(1, 2).build()));
    assert_eq!(moved["no_uplink"], 1);
}

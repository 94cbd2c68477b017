//! Segment, carry, coalesce: the super-frame that comes out is the one that
//! went in, and what crosses the tunnel in between is sound.

use std::net::IpAddr;

use proptest::{collection::vec, prelude::*};
use weft_testkit::{
    frames::{ACK, CWR, FIN, FrameBuilder, PSH, between},
    sim::{Datagrams, GATEWAY, World, pod_mac, pod_v4, pod_v6},
};
use weft_wire::{ETHERNET_LEN, Ethernet, VnetHeader, checksum, parse, vnet, vxlan};

fn from_pod(src: impl Into<IpAddr>, dst: impl Into<IpAddr>) -> FrameBuilder {
    between(src, dst)
        .macs(pod_mac(0, 0), GATEWAY.mac)
        .dont_fragment()
}

fn flow(v6: bool) -> FrameBuilder {
    if v6 {
        from_pod(pod_v6(0, 0), pod_v6(1, 0))
    } else {
        from_pod(pod_v4(0, 0), pod_v4(1, 0))
    }
}

/// The inner frames of a send.
fn inner(send: &Datagrams) -> Vec<Vec<u8>> {
    let datagrams = send.bytes.chunks(send.stride);
    datagrams
        .map(|bytes| vxlan::decap(bytes).expect("VXLAN").1.to_vec())
        .collect()
}

fn assert_sound(frame: &[u8]) {
    let Ok(Ethernet::Ip(packet)) = parse(frame) else {
        panic!("a segment does not parse");
    };
    assert!(
        checksum::verify(frame, &packet),
        "a segment's checksum is wrong"
    );
    assert!(packet.ip_len() <= 1450, "a segment exceeds the MTU");
}

fn payload(frame: &[u8]) -> Vec<u8> {
    match parse(frame) {
        Ok(Ethernet::Ip(packet)) => frame[packet.payload..packet.end].to_vec(),
        other => panic!("{other:?} is no packet"),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn a_super_frame_comes_out_as_it_went_in(
        v6: bool,
        tcp: bool,
        size in 1_u16..1390,
        segments in 2_usize..44,
        short in 0_usize..1390,
        seq: u32,
        id: u16,
    ) {
        let len = usize::from(size) * (segments - 1) + 1 + short % usize::from(size);
        let builder = flow(v6).id(id);
        let builder = if tcp { builder.tcp(4000, 80).seq(seq).flags(ACK | PSH) } else { builder.udp(4000, 53) };
        let (vnet_in, frame) = builder.filled(len).super_frame(size);
        let mut world = World { hold: true, ..World::default() };
        world.send_all(0, 0, &[(vnet_in, frame.clone())]);
        let sends = std::mem::take(&mut world.nodes[0].held);
        prop_assert_eq!(sends.len(), 1, "one super-frame is one send");
        let frames = inner(&sends[0]);
        prop_assert_eq!(frames.len(), segments);
        frames.iter().for_each(|frame| assert_sound(frame));

        world.arrive(1, &sends);
        let received = world.received(1, 0);
        prop_assert_eq!(received.len(), 1, "one send is one write");
        let (vnet_out, out) = (received[0].vnet, &received[0].frame);
        prop_assert_eq!(vnet_out, vnet_in);
        // Two nodes have taken one each from the hop limit; the MACs are the
        // last hop's. Nothing else has changed.
        let (ip_in, ip_out) = (&frame[ETHERNET_LEN..], &out[ETHERNET_LEN..]);
        prop_assert_eq!(ip_in.len(), ip_out.len());
        let hops = if v6 { 7..8 } else { 8..12 };
        for at in (0..ip_in.len()).filter(|at| !hops.contains(at)) {
            prop_assert_eq!(ip_in[at], ip_out[at], "byte {} of the IP packet", at);
        }
        prop_assert!(parse(out).is_ok());
    }

    #[test]
    fn whatever_is_merged_the_stream_is_the_same(
        tcp: bool,
        lens in vec(1_usize..200, 1..60),
        flags in vec(prop::sample::select(&[ACK, ACK | PSH, ACK | FIN, ACK | CWR][..]), 60),
        ports in vec(1_u16..4, 60),
    ) {
        let mut world = World::default();
        let mut sent: [Vec<u8>; 4] = Default::default();
        let mut frames = Vec::new();
        for (place, &len) in lens.iter().enumerate() {
            let port = ports[place];
            let stream = &mut sent[usize::from(port)];
            let data: Vec<u8> = (0..len).map(|at| (place * 7 + at) as u8).collect();
            let builder = flow(false).id(place as u16);
            let builder = if tcp {
                builder.tcp(port, 80).seq(stream.len() as u32).flags(flags[place])
            } else {
                builder.udp(port, 53)
            };
            stream.extend(&data);
            frames.push((VnetHeader::default(), builder.payload(&data).build()));
        }
        world.send_all(0, 0, &frames);
        let mut came: [Vec<u8>; 4] = Default::default();
        let mut packets = 0;
        for received in world.received(1, 0) {
            let data = payload(&received.frame);
            let size = usize::from(received.vnet.gso_size);
            packets += if received.vnet.is_super_frame() { data.len().div_ceil(size) } else { 1 };
            let Ok(Ethernet::Ip(packet)) = parse(&received.frame) else { panic!("no packet") };
            came[usize::from(packet.key.src_port)].extend(&data);
        }
        prop_assert_eq!(came, sent);
        prop_assert_eq!(packets, lens.len(), "no datagram was split or joined");
    }
}

#[test]
fn small_datagrams_of_one_size_share_a_send_and_a_write() {
    let mut world = World {
        hold: true,
        ..World::default()
    };
    let frame = flow(false).udp(4000, 53).filled(64).build();
    let frames = vec![(VnetHeader::default(), frame); 64];
    world.send_all(0, 0, &frames);
    let sends = std::mem::take(&mut world.nodes[0].held);
    assert_eq!(sends.len(), 1);
    world.arrive(1, &sends);
    let received = world.received(1, 0);
    assert_eq!(received.len(), 1);
    assert_eq!(received[0].vnet.gso_type, vnet::GSO_UDP_L4);
    assert_eq!(received[0].vnet.gso_size, 64);
}

#[test]
fn more_than_128_datagrams_take_a_second_send() {
    let mut world = World {
        hold: true,
        ..World::default()
    };
    let frame = flow(false).udp(4000, 53).filled(64).build();
    world.send_all(0, 0, &vec![(VnetHeader::default(), frame); 130]);
    let counts: Vec<_> = world.nodes[0]
        .held
        .iter()
        .map(|send| inner(send).len())
        .collect();
    assert_eq!(counts, [128, 2]);
}

#[test]
fn a_gap_in_the_sequence_is_not_closed() {
    let mut world = World::default();
    let segment = |seq| {
        (
            VnetHeader::default(),
            flow(false).tcp(1, 2).seq(seq).filled(100).build(),
        )
    };
    world.send_all(
        0,
        0,
        &[segment(0), segment(100), segment(300), segment(400)],
    );
    let received = world.received(1, 0);
    let lens: Vec<_> = received
        .iter()
        .map(|received| payload(&received.frame).len())
        .collect();
    assert_eq!(lens, [200, 200]);
}

#[test]
fn a_wrong_checksum_is_neither_merged_nor_mended() {
    let mut world = World::default();
    let good = flow(false).tcp(1, 2).seq(0).filled(100).build();
    let mut bad = flow(false).tcp(1, 2).seq(100).filled(100).build();
    *bad.last_mut().expect("not empty") ^= 1;
    let frames = [good, bad].map(|frame| (VnetHeader::default(), frame));
    world.send_all(0, 0, &frames);
    let received = world.received(1, 0);
    assert_eq!(received.len(), 2);
    let Ok(Ethernet::Ip(packet)) = parse(&received[1].frame) else {
        panic!("no packet")
    };
    assert!(!checksum::verify(&received[1].frame, &packet));
}

#[test]
fn packets_that_differ_in_what_a_merge_would_lose_stay_apart() {
    let first = || flow(false).tcp(1, 2).seq(0).filled(100);
    let second = || flow(false).tcp(1, 2).seq(100).filled(100);
    let differing = [
        second().ttl(63),
        second().class(0x20),
        second().ack(9),
        second().window(9),
        second().tcp_options(&[1, 1, 1, 1]),
        second().flags(ACK | CWR),
        second().filled(101),
    ];
    for (place, second) in differing.iter().enumerate() {
        let mut world = World::default();
        let frames = [first().build(), second.build()];
        world.send_all(0, 0, &frames.map(|frame| (VnetHeader::default(), frame)));
        assert_eq!(world.received(1, 0).len(), 2, "case {place}");
    }
}

#[test]
fn same_node_delivery_keeps_super_frame_and_partial_checksum() {
    let mut world = World::default();
    let builder = from_pod(pod_v4(0, 0), pod_v4(0, 1))
        .tcp(1, 2)
        .filled(40_000);
    let (vnet, frame) = builder.super_frame(1398);
    world.send_all(0, 0, &[(vnet, frame.clone())]);
    let received = world.received(0, 1);
    assert_eq!(received.len(), 1);
    assert_eq!(received[0].vnet, vnet);
    assert_eq!(
        received[0].frame[34..],
        frame[34..],
        "the transport is untouched"
    );
}

#[test]
fn a_port_that_takes_no_super_frames_gets_none_from_the_tunnel() {
    let mut world = World::default();
    world.nodes[1].change(
        1,
        |port| (port.takes_tcp, port.takes_udp) = (false, false),
        |_| {},
    );
    for builder in [flow(false).tcp(1, 2), flow(false).udp(1, 2)] {
        let (vnet, frame) = builder.filled(3 * 1000).super_frame(1000);
        world.send_all(0, 0, &[(vnet, frame)]);
        let received = world.received(1, 0);
        assert_eq!(received.len(), 3);
        for received in received {
            assert_eq!(received.vnet, VnetHeader::default());
            assert_sound(&received.frame);
        }
    }
}

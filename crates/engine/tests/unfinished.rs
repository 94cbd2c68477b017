//! A kernel peer's frames that nobody finished, because no NIC was on their
//! way, arrive as those that a NIC has finished.

use std::net::IpAddr;

use weft_engine::segment::segment;
use weft_testkit::{
    frames::{CWR, FrameBuilder, between},
    sim::{self, MTU, Received, World, pod_mac, pod_v4, pod_v6},
};
use weft_wire::{ETHERNET_LEN, Ethernet, Packet, VnetHeader, checksum, parse, vnet, vxlan};

const TCP: bool = true;
const UDP: bool = false;

/// Towards the second pod of node 1.
fn flow(v6: bool, tcp: bool) -> FrameBuilder {
    let [src, dst]: [IpAddr; 2] = match v6 {
        true => [pod_v6(0, 0).into(), pod_v6(1, 1).into()],
        false => [pod_v4(0, 0).into(), pod_v4(1, 1).into()],
    };
    let frame = between(src, dst).dont_fragment();
    if tcp {
        frame.tcp(1000, 80)
    } else {
        frame.udp(1000, 53)
    }
}

fn each() -> impl Iterator<Item = (bool, bool)> {
    [false, true]
        .into_iter()
        .flat_map(|v6| [(v6, TCP), (v6, UDP)])
}

fn packet(frame: &[u8]) -> Packet {
    match parse(frame) {
        Ok(Ethernet::Ip(packet)) => packet,
        other => panic!("{other:?} is no packet"),
    }
}

/// A node whose pods' links take everything whole, or nothing.
fn world(whole: bool) -> World {
    let mut world = World::default();
    let edit = |port: &mut weft_engine::Port| (port.takes_tcp, port.takes_udp) = (whole, whole);
    world.nodes[1].change(1, edit, |_| ());
    world
}

/// What the pod's kernel makes of a write: every packet of it, finished.
fn packets(received: &[Received]) -> Vec<Vec<u8>> {
    let mut packets = Vec::new();
    for Received { vnet, frame, .. } in received {
        let whole = packet(frame);
        if vnet.is_super_frame() {
            let cut = segment(frame, &whole, vnet, |headers, payload| {
                packets.push([headers, &frame[payload]].concat());
            });
            assert!(cut);
            continue;
        }
        let mut finished = frame.clone();
        if vnet.needs_checksum() {
            let (start, offset) = (vnet.csum_start.into(), vnet.csum_offset.into());
            let udp = whole.key.protocol == 17;
            assert!(checksum::complete_partial(
                &mut finished,
                start,
                offset,
                udp
            ));
        }
        packets.push(finished);
    }
    packets
}

fn is_finished(frame: &[u8]) -> bool {
    checksum::verify(frame, &packet(frame))
}

#[test]
fn a_partial_checksum_is_finished_or_left_to_the_pod() {
    for (whole, (v6, tcp)) in [true, false]
        .into_iter()
        .flat_map(|w| each().map(move |e| (w, e)))
    {
        // A bare ACK, and what could be merged.
        for len in [0, 1, 333] {
            let (_, frame) = flow(v6, tcp).filled(len).unsummed();
            let mut world = world(whole);
            let moved = world.moved(1, |world| world.arrive(1, &[sim::datagram(0, &frame)]));
            assert_eq!(moved["sent_to_ports"], 1);
            let received = world.received(1, 1);
            let vnet = received[0].vnet;
            assert_eq!(vnet.needs_checksum(), whole, "len {len}");
            assert!(!vnet.is_super_frame());
            let packets = packets(&received);
            assert!(packets.iter().all(|frame| is_finished(frame)), "len {len}");
            assert_eq!(
                packets[0][packet(&frame).payload..],
                frame[packet(&frame).payload..]
            );
        }
    }
}

#[test]
fn a_wrong_checksum_stays_wrong() {
    for (whole, (v6, tcp)) in [true, false]
        .into_iter()
        .flat_map(|w| each().map(move |e| (w, e)))
    {
        let mut frame = flow(v6, tcp).filled(100).build();
        *frame.last_mut().expect("not empty") ^= 1;
        let mut world = world(whole);
        world.arrive(1, &[sim::datagram(0, &frame)]);
        let received = world.received(1, 1);
        assert_eq!(received[0].vnet, VnetHeader::default());
        assert!(!is_finished(&received[0].frame));
    }
}

#[test]
fn unfinished_packets_merge_as_finished_ones_do() {
    for v6 in [false, true] {
        let part = |number: u32| {
            let flow = flow(v6, TCP).seq(1 + number * 500).id(number as u16);
            sim::datagram(0, &flow.filled(500).unsummed().1)
        };
        let mut world = world(true);
        let moved = world.moved(1, |world| world.arrive(1, &[part(0), part(1), part(2)]));
        assert_eq!(moved["sent_to_ports"], 3);
        let received = world.received(1, 1);
        assert_eq!((received.len(), received[0].vnet.gso_size), (1, 500));
        assert!(packets(&received).iter().all(|frame| is_finished(frame)));
    }
}

#[test]
fn a_tcp_super_frame_is_cut_to_the_pods_mtu() {
    for (whole, v6) in [(true, false), (true, true), (false, false), (false, true)] {
        let (_, frame) = flow(v6, TCP)
            .seq(7)
            .flags(0x10 | CWR)
            .filled(20_000)
            .super_frame(1300);
        let headers = packet(&frame).payload - ETHERNET_LEN;
        let segments = 20_000_usize.div_ceil(MTU - headers);
        let mut world = world(whole);
        let moved = world.moved(1, |world| world.arrive(1, &[sim::datagram(0, &frame)]));
        let expected = [
            ("received_from_peers", segments as u64),
            ("flow_misses", 1),
            ("sent_to_ports", segments as u64),
        ];
        assert_eq!(moved, expected.into());
        let received = world.received(1, 1);
        assert_eq!(received.len(), if whole { 1 } else { segments });
        let kind = if v6 { vnet::GSO_TCPV6 } else { vnet::GSO_TCPV4 };
        let expected = if whole {
            kind | vnet::GSO_ECN
        } else {
            vnet::GSO_NONE
        };
        assert_eq!(received[0].vnet.gso_type, expected);
        check_packets(&frame, &packets(&received), segments);
        // The next packet of the flow does not join it.
        let (_, next) = flow(v6, TCP).seq(20_007).filled(10).unsummed();
        world.arrive(1, &[sim::datagram(0, &frame), sim::datagram(0, &next)]);
        let received = world.received(1, 1);
        assert_eq!(packets(&received).len(), segments + 1);
    }
}

#[test]
fn a_udp_super_frame_keeps_its_datagrams() {
    for (whole, v6) in [(true, false), (true, true), (false, false), (false, true)] {
        let (_, frame) = flow(v6, UDP).filled(1200 * 9 + 5).super_frame(1200);
        // As UDP_GRO reports it: one datagram, and the segments' size.
        let mut datagrams = sim::datagram(0, &frame);
        datagrams.stride = 1200;
        let mut world = world(whole);
        let moved = world.moved(1, |world| world.arrive(1, &[datagrams]));
        let expected = [
            ("received_from_peers", 10),
            ("flow_misses", 1),
            ("sent_to_ports", 10),
        ];
        assert_eq!(moved, expected.into());
        let received = world.received(1, 1);
        assert_eq!(received.len(), if whole { 1 } else { 10 });
        check_packets(&frame, &packets(&received), 10);
    }
}

/// What only claims to be larger than its datagram is no super-frame.
#[test]
fn a_train_whose_first_packet_lies_is_still_a_train() {
    let good = flow(false, UDP).filled(100).build();
    let mut lying = good.clone();
    let packet = packet(&good);
    lying[16..18].copy_from_slice(&200_u16.to_be_bytes());
    weft_wire::edit::refresh_ipv4_checksum(&mut lying[ETHERNET_LEN..packet.transport]);
    let mut train = sim::datagram(0, &lying);
    train.bytes.extend(sim::datagram(0, &good).bytes);
    let mut world = world(true);
    let moved = world.moved(1, |world| world.arrive(1, &[train]));
    let expected = [
        ("received_from_peers", 2),
        ("malformed_ip", 1),
        ("flow_misses", 1),
        ("sent_to_ports", 1),
    ];
    assert_eq!(moved, expected.into());
}

#[test]
fn a_super_frame_with_segments_too_big_for_the_pod_is_told() {
    let (_, frame) = flow(false, UDP).filled(1440 * 3).super_frame(1440);
    let mut datagrams = sim::datagram(0, &frame);
    datagrams.stride = 1440;
    let mut world = world(true);
    let moved = world.moved(1, |world| world.arrive(1, &[datagrams]));
    assert_eq!((moved["too_big"], moved["originated"]), (3, 1));
}

/// The packets are whole, right, small enough, and carry the payload on.
fn check_packets(sent: &[u8], packets: &[Vec<u8>], count: usize) {
    assert_eq!(packets.len(), count);
    let mut payload = Vec::new();
    for frame in packets {
        let packet = packet(frame);
        assert!(packet.ip_len() <= MTU && is_finished(frame));
        assert_eq!(packet.hop_limit, 63);
        assert_eq!(weft_wire::parse::dst_mac(frame), pod_mac(1, 1));
        payload.extend_from_slice(&frame[packet.payload..packet.end]);
    }
    assert_eq!(payload, sent[packet(sent).payload..]);
    assert!(vxlan::LEN + sent.len() > MTU);
}

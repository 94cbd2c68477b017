//! VXLAN without inner Ethernet: the IP packet stands behind the VXLAN header,
//! in both directions and both families.

use std::net::IpAddr;

use proptest::prelude::*;
use weft_engine::Way;
use weft_testkit::{
    frames::{ACK, FrameBuilder, PSH, between},
    sim::{self, Datagrams, GATEWAY, World, by_vxlan_l3, pod_mac, pod_v4, pod_v6},
};
use weft_wire::{ETHERNET_LEN, vxlan};

fn world() -> World {
    let mut world = World::default();
    for node in [0, 1] {
        world.nodes[node].change(node, |port| port.mtu = 1464, by_vxlan_l3);
    }
    world
}

fn flow(v6: bool) -> FrameBuilder {
    let pod = |node| -> IpAddr {
        match v6 {
            true => pod_v6(node, 0).into(),
            false => pod_v4(node, 0).into(),
        }
    };
    between(pod(0), pod(1)).macs(pod_mac(0, 0), GATEWAY.mac)
}

/// A datagram around the IP packet of a frame.
fn l3(frame: &[u8]) -> Datagrams {
    let bytes = [&vxlan::header(sim::VNI), &frame[ETHERNET_LEN..]].concat();
    Datagrams {
        stride: bytes.len(),
        bytes,
        ..sim::datagram(0, frame)
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn a_super_frame_comes_out_as_it_went_in(
        v6: bool,
        tcp: bool,
        size in 1_u16..1404,
        segments in 2_usize..44,
        short in 0_usize..1404,
    ) {
        let len = usize::from(size) * (segments - 1) + 1 + short % usize::from(size);
        let builder = flow(v6).dont_fragment();
        let builder = if tcp { builder.tcp(4000, 80).flags(ACK | PSH) } else { builder.udp(4000, 53) };
        let (vnet_in, frame) = builder.filled(len).super_frame(size);
        let mut world = world();
        world.hold = true;
        world.send_all(0, 0, &[(vnet_in, frame.clone())]);
        let sends = std::mem::take(&mut world.nodes[0].held);
        prop_assert_eq!(sends.len(), 1, "one super-frame is one send");
        prop_assert_eq!(sends[0].way, Way::VxlanL3);
        for datagram in sends[0].bytes.chunks(sends[0].stride) {
            prop_assert!(datagram.len() <= 1500 - 28);
            let (_, packet) = vxlan::decap(datagram).expect("VXLAN");
            prop_assert_eq!(packet[0] >> 4, if v6 { 6 } else { 4 });
        }
        // A socket does not know of the form.
        let trains = [Datagrams { way: Way::Vxlan, ..sends[0].clone() }];
        world.arrive(1, &trains);
        let received = world.received(1, 0);
        prop_assert_eq!(received.len(), 1, "one send is one write");
        prop_assert_eq!(received[0].vnet, vnet_in);
        let (ip_in, ip_out) = (&frame[ETHERNET_LEN..], &received[0].frame[ETHERNET_LEN..]);
        prop_assert_eq!(ip_in.len(), ip_out.len());
        let hops = if v6 { 7..8 } else { 8..12 };
        for at in (0..ip_in.len()).filter(|at| !hops.contains(at)) {
            prop_assert_eq!(ip_in[at], ip_out[at], "byte {} of the IP packet", at);
        }
    }
}

#[test]
fn the_other_form_is_not_taken_for_this_one() {
    for v6 in [false, true] {
        let frame = flow(v6).udp(1, 2).filled(64).build();
        let mut l3_node = world();
        let moved = l3_node.moved(1, |world| world.arrive(1, &[sim::datagram(0, &frame)]));
        assert_eq!(moved["malformed_ip"], 1);
        let mut l2_node = World::default();
        let moved = l2_node.moved(1, |world| world.arrive(1, &[l3(&frame)]));
        assert_eq!(moved["received_from_peers"], 1);
        assert!(!moved.contains_key("sent_to_ports"), "{moved:?}");
    }
}

#[test]
fn a_packet_cut_at_every_length_or_of_another_network_is_counted() {
    let whole = l3(&flow(false).udp(1, 2).filled(9).build());
    for len in 0..whole.bytes.len() {
        let cut = Datagrams {
            bytes: whole.bytes[..len].to_vec(),
            stride: len.max(1),
            ..whole.clone()
        };
        let reason = if len < 8 {
            "vxlan_truncated"
        } else {
            "malformed_ip"
        };
        let mut world = world();
        let moved = world.moved(1, |world| world.arrive(1, &[cut]));
        assert_eq!(moved.get(reason), Some(&1), "{len}: {moved:?}");
    }
    let mut other = whole;
    other.bytes[6] ^= 1;
    let mut world = world();
    let moved = world.moved(1, |world| world.arrive(1, &[other]));
    assert_eq!(moved["wrong_vni"], 1);
}

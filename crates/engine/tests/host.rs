//! The host port: the node speaks with its pods and with others', pods leave by
//! it for what the node is the way to, and nothing that it sends comes back.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use weft_engine::{Peer, Way};
use weft_testkit::{
    frames::{FrameBuilder, between},
    sim::{
        self, Datagrams, GATEWAY, HOST, World, datagram, direct, host_mac, pod_mac, pod_v4, pod_v6,
        tunnel_v4, underlay, vtep_mac,
    },
};
use weft_wire::{
    Ethernet, Packet, VnetHeader, checksum, parse,
    parse::{dst_mac, src_mac},
    protocol,
};

const OUTSIDE: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 9);
const OUTSIDE_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 9, 0, 0, 0, 0, 9);

/// Two nodes with host ports.
fn world() -> World {
    let mut world = World::default();
    for node in [0, 1] {
        world.nodes[node].open_host(node);
    }
    world
}

/// Two nodes with host ports, whose pods' packets the fabric carries.
fn by_the_fabric() -> World {
    let mut world = world();
    for node in [0, 1] {
        world.nodes[node].change(node, |_| {}, direct);
    }
    world
}

fn from_host(src: impl Into<IpAddr>, dst: impl Into<IpAddr>) -> FrameBuilder {
    let frame = between(src, dst).macs(host_mac(0), GATEWAY.mac);
    frame.udp(1000, 2000).filled(100)
}

fn from_pod(dst: impl Into<IpAddr>) -> FrameBuilder {
    let dst = dst.into();
    let src: IpAddr = match dst {
        IpAddr::V4(_) => pod_v4(0, 0).into(),
        IpAddr::V6(_) => pod_v6(0, 0).into(),
    };
    let frame = between(src, dst).macs(pod_mac(0, 0), GATEWAY.mac);
    frame.udp(1000, 2000).filled(100)
}

fn packet(frame: &[u8]) -> Packet {
    match parse(frame) {
        Ok(Ethernet::Ip(packet)) => packet,
        other => panic!("{other:?} is no packet"),
    }
}

/// Sends from the place and expects the packet, one hop further, at the other
/// and nothing else to happen.
#[track_caller]
fn arrives(world: &mut World, from: usize, frame: &FrameBuilder, to: usize) -> Vec<u8> {
    let frame = frame.build();
    let moved = world.moved(0, |world| world.send(0, from, &frame));
    let expected = [
        ("received_from_ports", 1),
        ("flow_misses", 1),
        ("sent_to_ports", 1),
    ];
    assert_eq!(moved, expected.into());
    let [received] = &world.received(0, to)[..] else {
        panic!("one packet arrives");
    };
    let after = packet(&received.frame);
    assert_eq!(after.hop_limit, packet(&frame).hop_limit - 1);
    assert_eq!(after.key, packet(&frame).key);
    assert!(checksum::verify(&received.frame, &after));
    received.frame.clone()
}

/// Sends from the place and expects it lost for `reason`, and nothing else to
/// happen but what is named.
#[track_caller]
fn loses(
    world: &mut World,
    from: usize,
    frame: &[u8],
    reason: &'static str,
    also: &[(&'static str, u64)],
) {
    let moved = world.moved(0, |world| world.send(0, from, frame));
    let expected = [("received_from_ports", 1), (reason, 1)];
    assert_eq!(moved, expected.iter().chain(also).copied().collect());
}

const MISSED: (&str, u64) = ("flow_misses", 1);
const HIT: (&str, u64) = ("flow_hits", 1);
/// The sender is told.
const TOLD: [(&str, u64); 3] = [MISSED, ("originated", 1), ("sent_to_ports", 1)];

/// Source, type and code of the only frame at the place, an ICMP error.
#[track_caller]
fn error_at(world: &mut World, place: usize) -> (IpAddr, IpAddr, u8, u8) {
    let [received] = &world.received(0, place)[..] else {
        panic!("one error arrives");
    };
    let error = packet(&received.frame);
    let at = error.transport;
    assert!(checksum::verify(&received.frame, &error));
    let (kind, code) = (received.frame[at], received.frame[at + 1]);
    (error.key.src, error.key.dst, kind, code)
}

#[test]
fn the_node_and_its_pods_reach_each_other() {
    for (node, pod) in [
        (IpAddr::from(tunnel_v4(0)), IpAddr::from(pod_v4(0, 0))),
        (underlay(0), pod_v4(0, 0).into()),
        (OUTSIDE_V6.into(), pod_v6(0, 0).into()),
    ] {
        let mut world = world();
        let frame = arrives(&mut world, HOST, &from_host(node, pod), 0);
        assert_eq!(
            (dst_mac(&frame), src_mac(&frame)),
            (pod_mac(0, 0), GATEWAY.mac)
        );
        let frame = arrives(&mut world, 0, &from_pod(node), HOST);
        assert_eq!(
            (dst_mac(&frame), src_mac(&frame)),
            (host_mac(0), GATEWAY.mac)
        );
    }
}

#[test]
fn what_the_node_and_its_pods_say_stays_unfinished() {
    let pod = |src, dst| between(src, dst).macs(pod_mac(0, 0), GATEWAY.mac);
    let node = |src, dst| between(src, dst).macs(host_mac(0), GATEWAY.mac);
    let ends = (pod_v4(0, 0), tunnel_v4(0));
    for (from, to, frame) in [
        (0, HOST, pod(ends.0, ends.1)),
        (HOST, 0, node(ends.1, ends.0)),
    ] {
        let mut world = world();
        let frame = frame.dont_fragment();
        let (vnet, frame) = frame.tcp(1, 2).filled(20_000).super_frame(1300);
        world.send_all(0, from, &[(vnet, frame)]);
        let received = world.received(0, to);
        assert_eq!(received.len(), 1);
        assert_eq!(received[0].vnet, vnet, "super-frame and partial checksum");
    }
}

#[test]
fn the_node_reaches_other_nodes_pods_through_the_tunnel_and_they_it() {
    let mut world = world();
    let frame = from_host(tunnel_v4(0), pod_v4(1, 1));
    let moved = world.moved(0, |world| world.send(0, HOST, &frame.build()));
    let expected = [("received_from_ports", 1), MISSED, ("sent_to_peers", 1)];
    assert_eq!(moved, expected.into());
    assert_eq!(world.received(1, 1).len(), 1);

    let back = between(pod_v4(1, 1), tunnel_v4(0)).macs(pod_mac(1, 1), GATEWAY.mac);
    let moved = world.moved(0, |world| {
        world.send(1, 1, &back.udp(2000, 1000).filled(9).build())
    });
    let expected = [("received_from_peers", 1), MISSED, ("sent_to_ports", 1)];
    assert_eq!(moved, expected.into());
    let received = world.received(0, HOST);
    assert_eq!(dst_mac(&received[0].frame), host_mac(0));
    assert_eq!(packet(&received[0].frame).hop_limit, 62);
}

#[test]
fn nodes_speak_from_their_underlay_too() {
    let mut world = world();
    let frame = from_host(underlay(0), pod_v4(1, 1)).build();
    let moved = world.moved(1, |world| world.send(0, HOST, &frame));
    let expected = [("received_from_peers", 1), MISSED, ("sent_to_ports", 1)];
    assert_eq!(moved, expected.into());
    let other = datagram(0, &between(underlay(1), pod_v4(1, 1)).udp(1, 2).build());
    let moved = world.moved(1, |world| world.arrive(1, &[other]));
    let expected = [("received_from_peers", 1), MISSED, ("foreign_source", 1)];
    assert_eq!(moved, expected.into());
}

#[test]
fn a_tunnel_takes_what_the_peer_does() {
    for src in [IpAddr::from(OUTSIDE), underlay(1)] {
        let mut world = world();
        let frame = from_host(src, pod_v4(1, 0)).build();
        loses(&mut world, HOST, &frame, "outside_source", &TOLD);
        let (from, to, kind, code) = error_at(&mut world, HOST);
        assert_eq!((from, to), (tunnel_v4(0).into(), src));
        assert_eq!((kind, code), (3, 1));
        // To the pods here they may speak.
        arrives(&mut world, HOST, &from_host(src, pod_v4(0, 0)), 0);
    }
    for src in [tunnel_v4(0).into(), underlay(0), [10, 244, 0, 99].into()] {
        let mut world = world();
        let frame = from_host(src, pod_v4(1, 0)).build();
        world.send(0, HOST, &frame);
        assert_eq!(world.received(1, 0).len(), 1, "{src}");
    }
}

#[test]
fn without_a_host_port_the_gateway_speaks_for_the_node() {
    let ping = between(pod_v4(0, 0), tunnel_v4(0)).macs(pod_mac(0, 0), GATEWAY.mac);
    let ping = ping.echo_request(1, 1).build();
    let mut world = World::default();
    world.send(0, 0, &ping);
    assert_eq!(world.received(0, 0).len(), 1, "the answer");
    // A flow that the cache knows obeys the new tables.
    let outside = from_pod(OUTSIDE).build();
    loses(&mut world, 0, &outside, "no_route", &TOLD);
    world.received(0, 0);
    world.nodes[0].open_host(0);
    world.send(0, 0, &ping);
    world.send(0, 0, &outside);
    assert!(world.received(0, 0).is_empty());
    assert_eq!(world.received(0, HOST).len(), 2);
}

#[test]
fn pods_leave_by_the_host_port_for_what_the_node_is_the_way_to() {
    for outside in [underlay(1), OUTSIDE.into(), OUTSIDE_V6.into()] {
        arrives(&mut world(), 0, &from_pod(outside), HOST);
        let frame = from_pod(outside).build();
        loses(&mut World::default(), 0, &frame, "no_route", &TOLD);
    }
    for pod in [IpAddr::from(pod_v4(1, 0)), pod_v6(1, 0).into()] {
        arrives(&mut by_the_fabric(), 0, &from_pod(pod), HOST);
        let mut world = World::default();
        world.nodes[0].change(0, |_| {}, direct);
        let frame = from_pod(pod).build();
        loses(&mut world, 0, &frame, "no_host_port", &TOLD);
    }
    // Nobody holds it, and the node is not the way.
    for nobodys in [
        IpAddr::from([10, 244, 0, 99]),
        [10, 244, 9, 9].into(),
        pod_v6(7, 7).into(),
    ] {
        let frame = from_pod(nobodys).build();
        loses(&mut world(), 0, &frame, "no_route", &TOLD);
        // The nodes here have no IPv6 address to tell others by.
        let (frame, told) = match nobodys {
            IpAddr::V4(_) => (from_host(OUTSIDE, nobodys), &TOLD[..]),
            IpAddr::V6(_) => (from_host(OUTSIDE_V6, nobodys), &[MISSED][..]),
        };
        loses(&mut world(), HOST, &frame.build(), "no_route", told);
    }
}

#[test]
fn nobody_reaches_what_every_host_has_for_itself() {
    for own in [[127, 0, 0, 1], [127, 9, 9, 9], [0, 0, 0, 0], [0, 1, 2, 3]] {
        let frame = from_pod(own).build();
        loses(&mut world(), 0, &frame, "loopback", &[MISSED]);
        let frame = from_host(tunnel_v4(0), own).build();
        loses(&mut world(), HOST, &frame, "loopback", &[MISSED]);
        let inner = between(pod_v4(1, 0), own).udp(1, 2).build();
        let mut world = world();
        let moved = world.moved(0, |world| world.arrive(0, &[datagram(1, &inner)]));
        assert_eq!(moved["loopback"], 1);
    }
    let mapped = Ipv4Addr::LOCALHOST.to_ipv6_mapped();
    for own in [Ipv6Addr::LOCALHOST, Ipv6Addr::UNSPECIFIED, mapped] {
        let frame = from_pod(own).build();
        loses(&mut world(), 0, &frame, "loopback", &[MISSED]);
    }
}

#[test]
fn the_node_may_not_speak_as_those_who_are_not_behind_it() {
    let to = pod_v4(0, 0);
    for src in [
        IpAddr::from(pod_v4(0, 1)),
        pod_v4(1, 0).into(),
        tunnel_v4(1).into(),
        [127, 0, 0, 1].into(),
        [0, 0, 0, 0].into(),
        [224, 0, 0, 1].into(),
    ] {
        let frame = from_host(src, to).build();
        loses(&mut world(), HOST, &frame, "spoofed_address", &[MISSED]);
    }
    for src in [pod_v6(0, 1), pod_v6(1, 0), Ipv6Addr::UNSPECIFIED] {
        let frame = from_host(src, pod_v6(0, 0)).build();
        loses(&mut world(), HOST, &frame, "spoofed_address", &[MISSED]);
    }
    for frame in [
        from_host(GATEWAY.v4, to),
        from_host(Ipv4Addr::new(169, 254, 7, 7), to),
        from_host(GATEWAY.v6, pod_v6(0, 0)),
    ] {
        let frame = frame.build();
        loses(&mut world(), HOST, &frame, "link_local", &[MISSED]);
    }
    let other_mac = from_host(OUTSIDE, to).macs(pod_mac(0, 1), GATEWAY.mac);
    let frame = other_mac.build();
    loses(&mut world(), HOST, &frame, "spoofed_mac", &[]);
    let other_hop = from_host(OUTSIDE, to).macs(host_mac(0), vtep_mac(1));
    let frame = other_hop.build();
    loses(&mut world(), HOST, &frame, "not_for_gateway", &[]);
}

#[test]
fn a_pod_has_no_tunnel_of_its_own() {
    const FORGED: &str = "forged_tunnel";
    let inner = between(tunnel_v4(1), pod_v4(1, 0)).build();
    for node in [underlay(0), underlay(1), tunnel_v4(0).into()] {
        let vxlan = from_pod(node).vxlan(sim::VNI, &inner);
        loses(&mut world(), 0, &vxlan.build(), FORGED, &[MISSED]);
        let ipip = from_pod(node).protocol(protocol::IPIP);
        loses(&mut world(), 0, &ipip.build(), FORGED, &[MISSED]);
        // The pieces of a datagram are one flow, whatever its first one says.
        let piece = |port| from_pod(node).udp(1000, port).filled(400).fragments(200);
        let (other, forged) = (piece(53), piece(sim::VXLAN_PORT));
        let mut world = world();
        world.send(0, 0, &other[0]);
        loses(&mut world, 0, &forged[0], FORGED, &[HIT]);
        world.send(0, 0, &forged[1]);
        assert_eq!(world.received(0, HOST).len(), 2);
        // Other ports and protocols are for whoever listens there.
        arrives(&mut world, 0, &from_pod(node), HOST);
        let own = from_host(tunnel_v4(0), pod_v4(0, 0));
        arrives(&mut world, HOST, &own.vxlan(sim::VNI, &inner), 0);
    }
    let mut world = world();
    for other in [IpAddr::from(OUTSIDE), pod_v4(0, 1).into()] {
        world.send(0, 0, &from_pod(other).vxlan(sim::VNI, &inner).build());
    }
    assert_eq!(
        world.received(0, HOST).len() + world.received(0, 1).len(),
        2
    );
}

#[test]
fn what_the_fabric_brings_is_taken() {
    let mut world = by_the_fabric();
    for (src, dst) in [
        (IpAddr::from(pod_v4(1, 0)), IpAddr::from(pod_v4(0, 0))),
        (pod_v6(1, 0).into(), pod_v6(0, 0).into()),
        (underlay(1), pod_v4(0, 0).into()),
        // An address of the own blocks that no pod holds may be the node's.
        ([10, 244, 0, 99].into(), pod_v4(0, 0).into()),
    ] {
        arrives(&mut world, HOST, &from_host(src, dst), 0);
    }
}

#[test]
fn nothing_comes_back_to_the_node() {
    for dst in [
        IpAddr::from(pod_v4(1, 0)),
        tunnel_v4(0).into(),
        underlay(0),
        OUTSIDE.into(),
    ] {
        let mut world = by_the_fabric();
        let frame = from_host(tunnel_v4(0), dst).build();
        loses(&mut world, HOST, &frame, "host_loop", &TOLD);
        let (src, dst, ..) = error_at(&mut world, HOST);
        assert_eq!((src, dst), (GATEWAY.v4.into(), tunnel_v4(0).into()));
    }
    let frame = from_host(pod_v6(1, 1), pod_v6(1, 0)).build();
    // The node has no IPv6 address of its own to tell another's pod by.
    loses(&mut by_the_fabric(), HOST, &frame, "host_loop", &[MISSED]);
}

/// Where the kernel leads them into weft0 because the peer's underlay address
/// lies in a pool.
#[test]
fn the_tunnels_own_datagrams_go_into_no_tunnel() {
    let inner = between(pod_v4(0, 0), pod_v4(1, 0)).build();
    let mut world = world();
    world.nodes[0].change(
        0,
        |_| {},
        |peer| peer.blocks.push((underlay(1).into(), Way::Vxlan.into())),
    );
    let outer = from_host(underlay(0), underlay(1));
    for own in [outer.clone().vxlan(sim::VNI, &inner), outer.clone().protocol(protocol::IPIP)] {
        loses(&mut world, HOST, &own.build(), "host_loop", &[MISSED]);
    }
    // The address itself is reached.
    let moved = world.moved(0, |world| world.send(0, HOST, &outer.build()));
    assert_eq!(moved.get("sent_to_peers"), Some(&1), "{moved:?}");
}

#[test]
fn a_pod_is_told_that_its_packet_came_back() {
    for dst in [
        IpAddr::from(pod_v4(1, 0)),
        OUTSIDE.into(),
        pod_v6(1, 0).into(),
    ] {
        let mut world = by_the_fabric();
        let pod = from_pod(dst);
        let back = pod.clone().macs(host_mac(0), GATEWAY.mac).build();
        loses(&mut world, HOST, &back, "host_loop", &TOLD);
        let (src, to, kind, code) = error_at(&mut world, 0);
        let gateway: (IpAddr, IpAddr) = match dst {
            IpAddr::V4(_) => (GATEWAY.v4.into(), pod_v4(0, 0).into()),
            IpAddr::V6(_) => (GATEWAY.v6.into(), pod_v6(0, 0).into()),
        };
        assert_eq!((src, to), gateway);
        let unreachable = if dst.is_ipv4() { (3, 1) } else { (1, 3) };
        assert_eq!((kind, code), unreachable);
    }
    // Forwarded by the node to another pod, it would be answered past the node.
    for other in [pod_v4(0, 1), pod_v4(1, 0)] {
        let frame = from_pod(other).macs(host_mac(0), GATEWAY.mac).build();
        loses(&mut world(), HOST, &frame, "spoofed_address", &[MISSED]);
    }
}

#[test]
fn hops_end_at_the_host_port_too() {
    let frame = from_host(tunnel_v4(0), pod_v4(0, 0)).ttl(1).build();
    let mut world = world();
    loses(&mut world, HOST, &frame, "hop_limit", &TOLD);
    let (src, _, kind, _) = error_at(&mut world, HOST);
    assert_eq!((src, kind), (GATEWAY.v4.into(), 11));
    let frame = from_pod(OUTSIDE).ttl(1).build();
    loses(&mut world, 0, &frame, "hop_limit", &TOLD);
    assert_eq!(error_at(&mut world, 0).2, 11);
}

#[test]
fn errors_beyond_the_node_come_from_the_node() {
    let mut world = by_the_fabric();
    let frame = from_host(pod_v4(1, 0), pod_v4(0, 0)).ttl(1).build();
    loses(&mut world, HOST, &frame, "hop_limit", &TOLD);
    let (src, dst, kind, _) = error_at(&mut world, HOST);
    assert_eq!((src, dst), (tunnel_v4(0).into(), pod_v4(1, 0).into()));
    assert_eq!(kind, 11);
}

#[test]
fn a_direct_way_is_as_wide_as_the_host_port() {
    let sized = |frame: FrameBuilder, len: usize| frame.dont_fragment().filled(len - 28);
    let mut world = by_the_fabric();
    let full = sized(from_pod(pod_v4(1, 0)), sim::HOST_MTU);
    arrives(&mut world, 0, &full, HOST);
    let over = sized(from_pod(pod_v4(1, 0)), sim::HOST_MTU + 1).build();
    loses(&mut world, 0, &over, "too_big", &[HIT, TOLD[1], TOLD[2]]);
    let (_, _, kind, code) = error_at(&mut world, 0);
    assert_eq!((kind, code), (3, 4));
}

#[test]
fn the_node_is_told_how_wide_the_tunnel_is() {
    let mut world = world();
    let frame = from_host(tunnel_v4(0), pod_v4(1, 0)).dont_fragment();
    let full = frame.clone().filled(sim::MTU - 28).build();
    world.send(0, HOST, &full);
    assert_eq!(world.received(1, 0).len(), 1);
    let over = frame.filled(sim::MTU - 27).build();
    loses(&mut world, HOST, &over, "too_big", &[HIT, TOLD[1], TOLD[2]]);
    let (src, _, kind, code) = error_at(&mut world, HOST);
    assert_eq!((src, kind, code), (GATEWAY.v4.into(), 3, 4));
}

#[test]
fn a_tunnel_brings_what_is_reached_directly() {
    let mut world = by_the_fabric();
    let inner = between(pod_v4(1, 0), pod_v4(0, 0)).udp(1, 2).filled(9);
    let arrival = [datagram(1, &inner.build())];
    let moved = world.moved(0, |world| world.arrive(0, &arrival));
    let expected = [("received_from_peers", 1), MISSED, ("sent_to_ports", 1)];
    assert_eq!(moved, expected.into());
    // What is to be said about it goes back by the tunnel.
    for l3 in [false, true] {
        world.hold = true;
        let edit = |peer: &mut Peer| {
            direct(peer);
            peer.l3 = l3;
        };
        world.nodes[0].change(0, |_| {}, edit);
        let arrival = Datagrams {
            bytes: match l3 {
                true => [&arrival[0].bytes[..8], &arrival[0].bytes[22..]].concat(),
                false => arrival[0].bytes.clone(),
            },
            ..arrival[0].clone()
        };
        let mut dead = arrival.clone();
        let ttl = if l3 { 8 + 8 } else { 22 + 8 };
        dead.bytes[ttl] = 1;
        let header = ttl - 8..ttl + 12;
        weft_wire::edit::refresh_ipv4_checksum(&mut dead.bytes[header]);
        dead.stride = dead.bytes.len();
        world.arrive(0, &[dead]);
        let held = std::mem::take(&mut world.nodes[0].held);
        let way = if l3 { Way::VxlanL3 } else { Way::Vxlan };
        assert_eq!(held.iter().map(|send| send.way).collect::<Vec<_>>(), [way]);
    }
}

#[test]
fn peers_reach_the_node_and_nothing_beyond() {
    let mut world = world();
    for (dst, lost) in [
        (IpAddr::from(tunnel_v4(0)), None),
        (underlay(0), None),
        (OUTSIDE.into(), Some("not_here")),
        ([10, 244, 9, 9].into(), Some("not_here")),
    ] {
        let inner = between(pod_v4(1, 0), dst).udp(1, 2).filled(9).build();
        let moved = world.moved(0, |world| world.arrive(0, &[datagram(1, &inner)]));
        assert_eq!(moved["received_from_peers"], 1);
        match lost {
            Some(reason) => assert_eq!(moved[reason], 1, "{dst}"),
            None => assert_eq!(moved["sent_to_ports"], 1, "{dst}"),
        }
    }
}

#[test]
fn the_node_is_offered_no_router() {
    let solicitation = between(GATEWAY.v6, Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 2));
    let frame = |mac| {
        let frame = solicitation.clone().ttl(255);
        let frame = frame.macs(mac, [0x33, 0x33, 0, 0, 0, 2]);
        frame.icmp(133, 0, [0; 4]).build()
    };
    let mut world = world();
    loses(
        &mut world,
        HOST,
        &frame(host_mac(0)),
        "gateway_unserved",
        &[],
    );
    world.send(0, 0, &frame(pod_mac(0, 0)));
    assert_eq!(world.received(0, 0).len(), 1, "a pod is");
}

#[test]
fn the_gateway_answers_the_node() {
    let mut world = world();
    let ping = between(tunnel_v4(0), GATEWAY.v4).macs(host_mac(0), GATEWAY.mac);
    world.send_all(
        0,
        HOST,
        &[(VnetHeader::default(), ping.echo_request(1, 1).build())],
    );
    assert_eq!(world.received(0, HOST).len(), 1);
}

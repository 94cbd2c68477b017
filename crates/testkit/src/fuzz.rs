//! The bodies of the fuzz targets. `fuzz/` calls them with bytes that
//! libFuzzer makes up, `tests/corpus.rs` with the committed corpus.
//!
//! Each panics when a promise of the crates under test is broken, whatever
//! the bytes.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
};

use weft_conntrack::{Config, Timeouts, Tracker};
use weft_engine::{
    DropReason, Gateway, Policy, Port, PortId,
    gateway::{
        arp,
        icmp::{self, Complaint},
        ndp,
    },
};
use weft_policy::{Change, Compiler, Flow, Rulebook, Transport, explain, interpret};
use weft_wire::{
    ETHERNET_LEN, Ethernet, FRAME_MAX, Mac, Packet, VnetHeader, checksum, describe, edit, ipip,
    parse::Fragment, piece, quote, vnet, vxlan,
};

use crate::sim::{self, Datagrams, World, pod_mac};

/// The pod of the `neighbours` capture.
const POD_MAC: Mac = [2, 0, 0, 0, 0, 0x0a];
const POD_V4: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 10);
const POD_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x0a);
const GATEWAY: Gateway = Gateway {
    mac: [0xee; 6],
    v4: Ipv4Addr::new(169, 254, 1, 1),
    v6: Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1),
};

/// Parsing, summing, editing and describing one frame.
pub fn parse(frame: &[u8]) {
    for frame in [frame, &mended(frame)] {
        assert_eq!(describe(frame).lines().count(), 1);
        if let Ok(Ethernet::Ip(packet)) = weft_wire::parse(frame) {
            parsed(frame, packet);
        }
    }
}

fn parsed(frame: &[u8], packet: Packet) {
    assert!(ETHERNET_LEN < packet.transport && packet.transport <= packet.payload);
    assert!(packet.payload <= packet.end && packet.end <= frame.len());
    assert_eq!(packet.key.src.is_ipv4(), packet.key.dst.is_ipv4());
    if packet.fragment != Fragment::Whole {
        assert_eq!((packet.key.src_port, packet.key.dst_port), (0, 0));
    }
    assert_eq!(
        piece::of(frame, &packet).is_none(),
        packet.fragment == Fragment::Whole
    );
    if let Some(whole) = piece::whole_key(frame, &packet) {
        assert_eq!((whole.src, whole.dst), (packet.key.src, packet.key.dst));
    }
    if let Some(about) = quote::about(frame, &packet) {
        assert!(quote::is_error(frame, &packet));
        assert_eq!(about.src.is_ipv4(), packet.is_v4());
    }
    let mut edited = frame.to_vec();
    checksum::complete(&mut edited, &packet);
    assert!(checksum::verify(&edited, &packet));
    if packet.hop_limit > 0 {
        edit::decrement_hop_limit(&mut edited, &packet);
        let hop_limit = packet.hop_limit - 1;
        let expected = Ethernet::Ip(Packet {
            hop_limit,
            ..packet
        });
        assert_eq!(weft_wire::parse(&edited), Ok(expected));
    }
}

/// Taking a datagram's inner frame out, and parsing that.
pub fn vxlan(datagram: &[u8]) {
    if let Ok((vni, frame)) = vxlan::decap(datagram) {
        assert_eq!([&vxlan::header(vni), frame].concat(), datagram);
        parse(frame);
    }
}

/// Showing one frame to every responder of the gateway.
pub fn gateway(frame: &[u8]) {
    for frame in [frame, &mended(frame)] {
        let mut reply = b"left over".to_vec();
        match arp::answer(frame, &GATEWAY, &port(), &mut reply) {
            Ok(()) => assert_eq!(weft_wire::parse(&reply), Ok(Ethernet::Arp)),
            Err(_) => assert!(reply.is_empty()),
        }
        if let Ok(Ethernet::Ip(packet)) = weft_wire::parse(frame) {
            shown(frame, packet);
        }
    }
}

fn shown(frame: &[u8], packet: Packet) {
    let mut reply = b"left over".to_vec();
    let answered = ndp::answer(frame, &packet, &GATEWAY, &port(), &mut reply);
    if sound(answered, &reply).is_some() {
        assert!(ndp::is_ndp(&packet, frame));
    }
    let answered = icmp::echo(frame, &packet, &mut reply);
    if let Some(echoed) = sound(answered, &reply) {
        assert_eq!(echoed.key.src, packet.key.dst);
        assert_eq!(echoed.key.dst, packet.key.src);
        assert_eq!(echoed.key.src_port, packet.key.src_port);
    }
    for complaint in complaints(packet.ip_len()) {
        let answered = complain(complaint, frame, &packet, &mut reply);
        let Some(told) = sound(answered, &reply) else {
            continue;
        };
        assert_eq!(told.key.dst, packet.key.src);
        assert!(told.ip_len() <= if told.is_v4() { 576 } else { 1280 });
        let mut nothing = Vec::new();
        let errors_about_an_error = complaints(0)
            .into_iter()
            .filter(|about| complain(*about, &reply, &told, &mut nothing).is_ok());
        assert_eq!(errors_about_an_error.count(), 0);
    }
}

fn complaints(mtu: usize) -> [Complaint; 4] {
    [
        Complaint::HopLimit,
        Complaint::TooBig { mtu },
        Complaint::NoRoute,
        Complaint::PortUnreachable,
    ]
}

fn complain(
    complaint: Complaint,
    frame: &[u8],
    packet: &Packet,
    reply: &mut Vec<u8>,
) -> Result<(), DropReason> {
    let source = match packet.is_v4() {
        true => IpAddr::V4(GATEWAY.v4),
        false => IpAddr::V6(GATEWAY.v6),
    };
    let (dst, src) = (POD_MAC, GATEWAY.mac);
    icmp::complain(complaint, frame, packet, source, dst, src, reply)
        .then_some(())
        .ok_or(DropReason::GatewayUnserved)
}

/// In the first byte of [`way`]: the nodes have host ports, the frame is the
/// node's, the nodes track connections.
const HOSTS: u8 = 4;
const FROM_HOST: u8 = 8;
const TRACKED: u8 = 16;

/// The whole way through two nodes: the frame of a pod or of the node behind
/// any virtio-net header, or a train of datagrams cut at any stride. Nothing may be lost
/// uncounted, and what arrives must be whole packets.
pub fn way(bytes: &[u8]) {
    let Some((&kind, rest)) = bytes.split_first() else {
        return;
    };
    let mut world = World::default();
    if kind & HOSTS != 0 {
        for node in [0, 1] {
            world.nodes[node].open_host(node);
        }
    }
    if kind & TRACKED != 0 {
        track(&mut world);
    }
    if kind & 1 == 0 {
        let Some((vnet, frame)) = VnetHeader::read(rest).zip(rest.get(vnet::LEN..)) else {
            return;
        };
        let from_host = kind & (HOSTS | FROM_HOST) == HOSTS | FROM_HOST;
        let (place, mac, src) = match from_host {
            true => (sim::HOST, sim::host_mac(0), sim::tunnel_v4(0)),
            false => (0, pod_mac(0, 0), sim::pod_v4(0, 0)),
        };
        let frame = addressed(frame, (mac, sim::GATEWAY.mac), src);
        world.moved(0, |world| world.send_all(0, place, &[(vnet, frame)]));
        world.moved(1, |_| {});
    } else {
        let Some((&[high, low], inner)) = rest.split_first_chunk() else {
            return;
        };
        let frame = addressed(inner, ([0; 6], [0; 6]), sim::pod_v4(0, 0));
        let mut train = if kind & 2 == 0 {
            sim::datagram(0, &frame)
        } else {
            frame_in_ipip(&frame)
        };
        train.stride = usize::from(u16::from_be_bytes([high, low])).max(1);
        world.moved(1, |world| world.arrive(1, &[train]));
    }
    for received in world.received(1, 0) {
        let parsed = weft_wire::parse(&received.frame);
        assert!(parsed.is_ok(), "{} arrived", describe(&received.frame));
    }
}

/// Has both nodes track connections, under rules that forbid nothing.
fn track(world: &mut World) {
    let config = Config {
        capacity: 16,
        timeouts: Timeouts::default(),
    };
    let now = world.now;
    for node in &mut world.nodes {
        node.tables.policy = Some(Policy {
            rules: Rulebook::default(),
            edition: 1,
            connections: Arc::new(Tracker::new(config, 1, now)),
            denied: Arc::default(),
            log: Arc::default(),
        });
    }
}

/// The frame's packet in an IP-in-IP packet, of which the first byte, and so
/// the header's length, is made up too.
fn frame_in_ipip(frame: &[u8]) -> Datagrams {
    let largest = FRAME_MAX - usize::from(ipip::OVERHEAD);
    let mut packet = sim::ipip(0, &frame[..frame.len().min(largest)]);
    if let Some((first, made_up)) = packet.bytes.first_mut().zip(frame.first()) {
        *first ^= made_up & 0x0f;
    }
    packet
}

/// The frame to a pod of the other node, with checksums that are right.
fn addressed(frame: &[u8], (src, dst): (Mac, Mac), from: Ipv4Addr) -> Vec<u8> {
    let mut frame = frame[..frame.len().min(FRAME_MAX)].to_vec();
    if frame.len() >= ETHERNET_LEN {
        edit::set_macs(&mut frame, dst, src);
    }
    let v4 = frame.get(12..14) == Some(&[0x08, 0x00]);
    if let Some(addresses) = frame.get_mut(26..34).filter(|_| v4) {
        addresses[..4].copy_from_slice(&from.octets());
        addresses[4..].copy_from_slice(&sim::pod_v4(1, 0).octets());
    }
    mended(&frame)
}

/// The packet of an answer, of which every byte is accounted for. Without an
/// answer nothing may be left in the buffer.
fn sound(answered: Result<(), DropReason>, reply: &[u8]) -> Option<Packet> {
    if answered.is_err() {
        assert!(reply.is_empty());
        return None;
    }
    let Ok(Ethernet::Ip(packet)) = weft_wire::parse(reply) else {
        panic!("the answer {} is no IP packet", describe(reply));
    };
    assert_eq!(packet.end, reply.len());
    assert!(checksum::verify(reply, &packet));
    Some(packet)
}

/// Reading objects, and judging between all their addresses: the compiled
/// rules say what the interpreter says, also after the first object is gone.
pub fn policy(text: &[u8]) {
    const ADDRESSES_MAX: usize = 8;
    let text = String::from_utf8_lossy(text);
    let Ok(objects) = weft_policy::read(&text) else {
        return;
    };
    let first = objects.first().map(weft_policy::Object::name);
    let mut compiler = Compiler::default();
    compiler.apply(objects.into_iter().map(Change::Put));
    let pods = compiler.objects().pods.values();
    let nodes = compiler.objects().nodes.values();
    let held = pods
        .flat_map(|pod| pod.addresses.clone())
        .chain(nodes.flat_map(|node| node.addresses.clone()));
    let mut addresses: Vec<_> = held.take(ADDRESSES_MAX).collect();
    addresses.extend([IpAddr::from([192, 0, 2, 1]), IpAddr::V6(POD_V6)]);
    judged_alike(&compiler, &addresses);
    compiler.apply(first.map(Change::Remove));
    judged_alike(&compiler, &addresses);
}

fn judged_alike(compiler: &Compiler, addresses: &[IpAddr]) {
    let rulebook = compiler.rulebook();
    for source in addresses {
        for destination in addresses {
            for transport in [Transport::Tcp(80), Transport::Udp(53), Transport::Other(1)] {
                let flow = Flow {
                    source: *source,
                    destination: *destination,
                    transport,
                };
                let verdict = interpret(compiler.objects(), &flow);
                assert_eq!(rulebook.judge(&flow), verdict);
                assert_eq!(explain(&rulebook, &flow).verdict, verdict);
            }
        }
    }
}

/// The frame with checksums that are right, past which made-up bytes would
/// hardly ever get.
fn mended(frame: &[u8]) -> Vec<u8> {
    let mut frame = frame.to_vec();
    if let Some(&first) = frame.get(ETHERNET_LEN) {
        let header_end = ETHERNET_LEN + usize::from(first & 0x0f) * 4;
        let has_header = first >> 4 == 4 && header_end >= ETHERNET_LEN + 20;
        if let Some(header) = frame
            .get_mut(ETHERNET_LEN..header_end)
            .filter(|_| has_header)
        {
            edit::refresh_ipv4_checksum(header);
        }
    }
    if let Ok(Ethernet::Ip(packet)) = weft_wire::parse(&frame) {
        checksum::complete(&mut frame, &packet);
    }
    frame
}

fn port() -> Port {
    sim::port_with(PortId(0), POD_MAC, vec![POD_V4.into(), POD_V6.into()])
}

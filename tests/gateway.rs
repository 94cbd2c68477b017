//! The gateway answers as a Linux router does, of which the captures under
//! `tests/fixtures` hold questions and answers.

use std::{fs, net::IpAddr, sync::Arc};

use weft_engine::{
    Gateway, Port, PortId,
    counters::Traffic,
    gateway::{
        arp,
        icmp::{self, Complaint},
    },
};
use weft_testkit::golden;
use weft_wire::{Ethernet, Mac, Packet, describe, parse};

const POD_MAC: Mac = [2, 0, 0, 0, 0, 0x0a];
const GATEWAY: Gateway = Gateway {
    mac: [0xee; 6],
    v4: std::net::Ipv4Addr::new(169, 254, 1, 1),
    v6: std::net::Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1),
};

fn frames(story: &str) -> Vec<Vec<u8>> {
    let path = format!("{}/tests/fixtures/{story}.pcap", env!("CARGO_MANIFEST_DIR"));
    let bytes = fs::read(path).expect("a capture");
    golden::read_pcap(&bytes).expect("a pcap file")
}

fn packet(frame: &[u8]) -> Option<Packet> {
    match parse(frame) {
        Ok(Ethernet::Ip(packet)) => Some(packet),
        _ => None,
    }
}

/// The transport part of a frame that carries IP.
fn message(frame: &[u8]) -> &[u8] {
    let packet = packet(frame).expect("an IP packet");
    &frame[packet.transport..packet.end]
}

/// Frames whose description holds `text`.
fn of<'a>(frames: &'a [Vec<u8>], text: &str) -> impl Iterator<Item = &'a Vec<u8>> {
    frames
        .iter()
        .filter(move |frame| describe(frame).contains(text))
}

#[test]
fn arp_is_answered_byte_for_byte() {
    let frames = frames("neighbours");
    let question = of(&frames, "arp who-has 169.254.1.1")
        .next()
        .expect("a question");
    let answer = of(&frames, "arp 169.254.1.1 is-at")
        .next()
        .expect("an answer");
    let port = Port {
        id: PortId(0),
        mac: POD_MAC,
        addresses: vec![IpAddr::from([10, 0, 0, 10])],
        mtu: 1500,
        takes_udp: false,
        takes_tcp: false,
        host: None,
        from_pod_shaper: None,
        to_pod_shaper: None,
        from_pod_packets: None,
        to_pod_packets: None,
        connections: Arc::default(),
        from_pod: Arc::new(Traffic::default()),
        to_pod: Arc::new(Traffic::default()),
    };
    let mut reply = Vec::new();
    arp::answer(question, &GATEWAY, &port, &mut reply).expect("answered");
    assert_eq!(reply, *answer);
}

#[test]
fn pings_are_answered_with_the_same_message() {
    let frames = frames("neighbours");
    for gateway in [IpAddr::V4(GATEWAY.v4), IpAddr::V6(GATEWAY.v6)] {
        let request = of(&frames, &format!("> {gateway} ")).find(|f| describe(f).contains("echo"));
        let request = request.expect("a request");
        let expected = of(&frames, &format!("| {gateway} > "))
            .find(|f| describe(f).contains("echo-reply"))
            .expect("a reply");
        let mut reply = Vec::new();
        let asked = packet(request).expect("an IP packet");
        icmp::echo(request, &asked, &mut reply).expect("answered");
        assert_eq!(message(&reply), message(expected));
        assert_eq!(reply[..12], expected[..12]);
    }
}

/// Errors of a router about packets it had not begun to forward. Others
/// quote a TTL that is lower by one.
#[test]
fn errors_are_the_same_messages() {
    let frames = frames("hops");
    let mtu = Complaint::TooBig { mtu: 1280 };
    let mut compared = 0;
    for (text, complaint) in [
        ("icmp time-exceeded", Complaint::HopLimit),
        ("icmp6 time-exceeded", Complaint::HopLimit),
        ("icmp fragmentation-needed", mtu),
        ("icmp6 packet-too-big", mtu),
    ] {
        for expected in of(&frames, text) {
            let router = packet(expected).expect("an IP packet");
            let quote = &message(expected)[8..];
            let cause = frames.iter().find(|frame| frame[14..].starts_with(quote));
            let cause = cause.expect("the packet that is quoted");
            let mut reply = Vec::new();
            let (dst, src) = (POD_MAC, [2, 0, 0, 0, 0, 1]);
            let about = packet(cause).expect("an IP packet");
            let source = router.key.src;
            assert!(icmp::complain(
                complaint, cause, &about, source, dst, src, &mut reply
            ));
            assert_eq!(message(&reply), message(expected), "{text}");
            assert_eq!(reply[..12], expected[..12]);
            assert_eq!(packet(&reply).map(|p| p.key), Some(router.key));
            compared += 1;
        }
    }
    assert_eq!(compared, 4);
}

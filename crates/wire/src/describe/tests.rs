use proptest::{collection::vec, prelude::*, sample::select};

use super::*;
use crate::edit;

fn bytes(hex: &str) -> Vec<u8> {
    let digits: String = hex.split_whitespace().collect();
    let byte = |at| u8::from_str_radix(&digits[at..at + 2], 16).expect("hex digits");
    (0..digits.len()).step_by(2).map(byte).collect()
}

const ARP: &str = "ffffffffffff02000000000a0806 0001080006040001
    02000000000a0a00000a 000000000000a9fe0101";
const PING: &str = "eeeeeeeeeeee02000000000a0800 4500003201864000
    4001843c0a00000aa9fe0101 0800ce1489180001
    776566742070696e6773207468652067617465776179";
const SOLICITATION: &str = "3333ff00000102000000000a86dd 6000000000203aff
    20010db800000000000000000000000a ff0200000000000000000001ff000001
    87004b4f00000000 fe800000000000000000000000000001 010102000000000a";

/// An IPv4 frame around `segment` with right checksums.
fn v4(flags_and_offset: u16, protocol: u8, segment: &[u8]) -> Vec<u8> {
    let mut frame = bytes(PING);
    frame.truncate(34);
    let total_len = u16::try_from(20 + segment.len()).expect("16 bits");
    frame[16..18].copy_from_slice(&total_len.to_be_bytes());
    frame[20..22].copy_from_slice(&flags_and_offset.to_be_bytes());
    frame[23] = protocol;
    edit::refresh_ipv4_checksum(&mut frame[14..34]);
    frame.extend_from_slice(segment);
    if let Ok(Ethernet::Ip(packet)) = parse(&frame) {
        checksum::complete(&mut frame, &packet);
    }
    frame
}

fn udp(dst_port: u16, payload: &[u8]) -> Vec<u8> {
    let len = u16::try_from(8 + payload.len()).expect("16 bits");
    let words = [50_000, dst_port, len, 0].map(u16::to_be_bytes);
    [words.as_flattened(), payload].concat()
}

#[test]
fn real_frames_read_well() {
    for (hex, expected) in [
        (
            ARP,
            "00:00:0a > ff:ff:ff:ff:ff:ff | arp who-has 169.254.1.1 tell 10.0.0.10 at 02:00:00:00:00:0a",
        ),
        (
            PING,
            "00:00:0a > ee:ee:ee | 10.0.0.10 > 169.254.1.1 ttl 64 len 50 id 0x0186 df \
             | icmp echo-request id 35096 seq 1 len 22",
        ),
        (
            SOLICITATION,
            "00:00:0a > 33:33:ff:00:00:01 | 2001:db8::a > ff02::1:ff00:1 hop 255 len 72 \
             | icmp6 neighbour-solicitation fe80::1 from 02:00:00:00:00:0a",
        ),
    ] {
        assert_eq!(describe(&bytes(hex)), expected);
    }
}

#[test]
fn a_tunnel_is_looked_into() {
    let inner = [&vxlan::header(4096)[..], &bytes(PING)].concat();
    for port in VXLAN_PORTS {
        let line = describe(&v4(0, protocol::UDP, &udp(port, &inner)));
        let expected = format!(
            "00:00:0a > ee:ee:ee | 10.0.0.10 > 169.254.1.1 ttl 64 len 100 id 0x0186 \
             | udp 50000 > {port} len 72 | vxlan 4096 | {}",
            describe(&bytes(PING))
        );
        assert_eq!(line, expected);
    }
    let line = describe(&v4(0, protocol::UDP, &udp(4789, &inner[..7])));
    assert!(line.ends_with("len 7 | malformed vxlan: shorter than a VXLAN header"));
    let line = describe(&v4(0, protocol::UDP, &udp(4790, &inner)));
    assert!(line.ends_with("udp 50000 > 4790 len 72"));
}

#[test]
fn tunnels_in_tunnels_end() {
    let mut frame = bytes(PING);
    for _ in 0..10 {
        let payload = [&vxlan::header(7)[..], &frame].concat();
        frame = v4(0, protocol::UDP, &udp(4789, &payload));
    }
    assert_eq!(describe(&frame).matches("vxlan 7").count(), DEPTH_MAX);
}

#[test]
fn tcp_tells_its_flags_and_numbers() {
    let mut segment = bytes("9c40 0050 00000007 00000009 50 12 faf0 0000 0000");
    segment.extend_from_slice(b"hello");
    let line = describe(&v4(0, protocol::TCP, &segment));
    assert!(line.ends_with("| tcp 40000 > 80 [SA] seq 7 ack 9 win 64240 len 5"));
    segment[13] = 0xc2;
    let line = describe(&v4(0, protocol::TCP, &segment));
    assert!(line.ends_with("[SEC] seq 7 win 64240 len 5"), "{line}");
}

#[test]
fn fragments_tell_their_place() {
    for (flags_and_offset, expected) in [
        (0x2000, "fragment 0+ | udp 50000 > 9 len 3"),
        (0x2001, "fragment 8+ | protocol 17 len 11"),
        (0x1ff0, "fragment 65408 | protocol 17 len 11"),
    ] {
        let line = describe(&v4(flags_and_offset, protocol::UDP, &udp(9, b"abc")));
        assert!(line.ends_with(expected), "{line}");
    }
}

#[test]
fn checksums_that_are_not_right_are_told() {
    let mut frame = v4(0, protocol::UDP, &udp(9, b"abc"));
    frame[40] ^= 1;
    assert!(describe(&frame).ends_with("len 3 checksum bad"));
    let Ok(Ethernet::Ip(packet)) = parse(&frame) else {
        panic!("no IP packet");
    };
    let partial = checksum::pseudo_header(&packet.key, 11);
    frame[40..42].copy_from_slice(&partial.to_be_bytes());
    assert!(describe(&frame).ends_with("len 3 checksum partial"));
}

#[test]
fn errors_name_the_packet_they_are_about() {
    let quote = v4(0, protocol::UDP, &udp(33434, b""))[14..].to_vec();
    let message = |kind, code, rest: [u8; 4], quote: &[u8]| {
        let message = [&[kind, code, 0, 0], &rest[..], quote].concat();
        describe(&v4(0, protocol::ICMP, &message))
    };
    let about = "about 10.0.0.10 > 169.254.1.1 udp 50000 > 33434 quoting 28 bytes";
    for (kind, code, expected) in [
        (11, 0, "icmp time-exceeded"),
        (3, 1, "icmp host-unreachable"),
        (3, 4, "icmp fragmentation-needed mtu 1450"),
        (12, 2, "icmp type 12 code 2"),
    ] {
        let line = message(kind, code, [0, 0, 5, 0xaa], &quote);
        assert!(line.ends_with(&format!("| {expected} {about}")), "{line}");
    }
    let line = message(11, 0, [0; 4], &quote[..19]);
    assert!(line.ends_with("time-exceeded quoting 19 bytes"), "{line}");
}

#[test]
fn what_is_no_packet_is_told_too() {
    assert_eq!(describe(&[1, 2, 3]), "3 bytes, no Ethernet frame");
    let mut frame = bytes(PING);
    frame[24] ^= 1;
    let expected = "00:00:0a > ee:ee:ee | malformed: the IPv4 header checksum is wrong";
    assert_eq!(describe(&frame), expected);
    frame[12..14].copy_from_slice(&[0x81, 0]);
    let expected = "00:00:0a > ee:ee:ee | ethertype 0x8100 len 50";
    assert_eq!(describe(&frame), expected);
    assert!(describe(&bytes(ARP)[..20]).ends_with("arp, not understood"));
}

proptest! {
    #[test]
    fn whatever_the_bytes_it_is_one_line(
        mut frame in vec(any::<u8>(), 0..200),
        hex in select(vec![ARP, PING, SOLICITATION]),
        edits in vec((any::<prop::sample::Index>(), any::<u8>()), 0..5),
        cut in 0..60_usize,
    ) {
        prop_assert_eq!(describe(&frame).lines().count(), 1);
        frame = bytes(hex);
        for (at, value) in edits {
            let at = at.index(frame.len());
            frame[at] = value;
        }
        frame.truncate(frame.len().saturating_sub(cut));
        if frame.len() >= 34 && frame[14] >> 4 == 4 {
            edit::refresh_ipv4_checksum(&mut frame[14..34]);
        }
        prop_assert_eq!(describe(&frame).lines().count(), 1);
    }
}

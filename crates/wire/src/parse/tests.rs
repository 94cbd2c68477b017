use proptest::{collection::vec, prelude::*, sample::select};

use super::*;
use crate::edit;

const TCP: [u8; 20] = [
    0x1f, 0x90, 0, 80, 0, 0, 0, 1, 0, 0, 0, 2, 0x50, 0x10, 0xff, 0xff, 0, 0, 0, 0,
];
const UDP: [u8; 10] = [0x1f, 0x90, 0, 53, 0, 10, 0, 0, 7, 7];

fn v4(protocol: u8, options: &[u8], flags_and_offset: u16, segment: &[u8]) -> Vec<u8> {
    let mut ip = vec![0; 20];
    ip.extend_from_slice(options);
    let header_len = ip.len();
    ip[0] = 0x40 | u8::try_from(header_len / 4).expect("at most 15 words");
    ip[6..8].copy_from_slice(&flags_and_offset.to_be_bytes());
    ip[8] = 63;
    ip[9] = protocol;
    ip[12..16].copy_from_slice(&[10, 0, 0, 1]);
    ip[16..20].copy_from_slice(&[10, 0, 0, 2]);
    ip.extend_from_slice(segment);
    let total_len = u16::try_from(ip.len()).expect("16 bits");
    ip[2..4].copy_from_slice(&total_len.to_be_bytes());
    edit::refresh_ipv4_checksum(&mut ip[..header_len]);
    ethernet(ethertype::IPV4, &ip)
}

/// `chain` is the next-header value and bytes of each extension header,
/// whose first byte is filled in.
fn v6(chain: &[(u8, Vec<u8>)], protocol: u8, segment: &[u8]) -> Vec<u8> {
    let mut ip = vec![0; 40];
    ip[0] = 0x60;
    ip[7] = 63;
    ip[8..24].copy_from_slice(&Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1).octets());
    ip[24..40].copy_from_slice(&Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 2).octets());
    let mut next_at = 6;
    for (kind, bytes) in chain {
        ip[next_at] = *kind;
        next_at = ip.len();
        ip.extend_from_slice(bytes);
    }
    ip[next_at] = protocol;
    ip.extend_from_slice(segment);
    let payload_len = u16::try_from(ip.len() - 40).expect("16 bits");
    ip[4..6].copy_from_slice(&payload_len.to_be_bytes());
    ethernet(ethertype::IPV6, &ip)
}

fn ethernet(ethertype: u16, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
    frame.extend_from_slice(&ethertype.to_be_bytes());
    frame.extend_from_slice(payload);
    frame
}

/// Hop-by-hop, routing and destination headers of `units` times 8 bytes.
fn options(kind: u8, units: u8) -> (u8, Vec<u8>) {
    let mut bytes = vec![0; usize::from(units) * 8];
    bytes[1] = units - 1;
    (kind, bytes)
}

fn fragment(offset: u16, more: bool) -> (u8, Vec<u8>) {
    let [high, low] = (offset << 3 | u16::from(more)).to_be_bytes();
    (44, vec![0, 0, high, low, 0, 0, 0, 9])
}

fn ip(frame: &[u8]) -> Packet {
    match parse(frame) {
        Ok(Ethernet::Ip(packet)) => packet,
        other => panic!("{other:?} is no IP packet"),
    }
}

fn ports(packet: &Packet) -> (u16, u16) {
    (packet.key.src_port, packet.key.dst_port)
}

#[test]
fn frames_are_told_apart_by_their_ethertype() {
    assert_eq!(parse(&ethernet(ethertype::ARP, &[])), Ok(Ethernet::Arp));
    let vlan = Ethernet::Other(0x8100);
    assert_eq!(parse(&ethernet(0x8100, &[0; 40])), Ok(vlan));
    assert_eq!(parse(&[0; 13]), Err(ParseError::Ethernet));
    assert_eq!(parse(&[]), Err(ParseError::Ethernet));
}

#[test]
fn a_packet_knows_its_flow_and_its_parts() {
    let frame = v4(protocol::TCP, &[], 0x4000, &[&TCP[..], b"payload"].concat());
    let packet = ip(&frame);
    assert_eq!(packet.key.src, IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1)));
    assert_eq!(packet.key.dst, IpAddr::V4(Ipv4Addr::new(10, 0, 0, 2)));
    assert_eq!(packet.key.protocol, protocol::TCP);
    assert_eq!(ports(&packet), (8080, 80));
    assert_eq!(packet.hop_limit, 63);
    assert_eq!(packet.fragment, Fragment::Whole);
    assert_eq!((packet.transport, packet.payload, packet.end), (34, 54, 61));
    assert_eq!(dst_mac(&frame), [2, 0, 0, 0, 0, 1]);
    assert_eq!(src_mac(&frame), [2, 0, 0, 0, 0, 2]);

    let packet = ip(&v6(&[], protocol::UDP, &UDP));
    assert!(!packet.is_v4());
    assert_eq!(ports(&packet), (8080, 53));
    assert_eq!((packet.transport, packet.payload, packet.end), (54, 62, 64));
    assert_eq!(packet.ip_len(), 50);
}

#[test]
fn ethernet_padding_is_no_part_of_the_packet() {
    for frame in [
        v4(protocol::UDP, &[], 0, &UDP),
        v6(&[], protocol::UDP, &UDP),
    ] {
        let mut padded = frame.clone();
        padded.extend([0xaa; 18]);
        assert_eq!(ip(&padded), ip(&frame));
    }
}

#[test]
fn ipv4_options_are_walked_over() {
    for words in 0..=10 {
        let packet = ip(&v4(protocol::UDP, &vec![1; words * 4], 0, &UDP));
        assert_eq!(packet.transport, 34 + words * 4);
        assert_eq!(ports(&packet), (8080, 53));
    }
}

#[test]
fn ipv4_headers_that_lie_are_refused() {
    let refused = |edit: &dyn Fn(&mut Vec<u8>)| {
        let mut frame = v4(protocol::UDP, &[], 0, &UDP);
        edit(&mut frame);
        edit::refresh_ipv4_checksum(&mut frame[14..34]);
        parse(&frame)
    };
    let length = Err(ParseError::IpLength);
    assert_eq!(refused(&|f| f[14] = 0x44), length, "a header of 16 bytes");
    assert_eq!(
        refused(&|f| f[14] = 0x4f),
        length,
        "a header beyond the packet"
    );
    assert_eq!(
        refused(&|f| f[17] = 19),
        length,
        "a packet within its header"
    );
    assert_eq!(
        refused(&|f| f[17] += 1),
        length,
        "a packet beyond the frame"
    );
    assert_eq!(refused(&|f| f.truncate(43)), length);
    assert_eq!(refused(&|f| f[14] = 0x65), Err(ParseError::IpVersion));
    let mut frame = v4(protocol::UDP, &[], 0, &UDP);
    for len in 14..34 {
        assert_eq!(parse(&frame[..len]), length);
    }
    frame[24] ^= 1;
    assert_eq!(parse(&frame), Err(ParseError::IpChecksum));
}

#[test]
fn ipv6_headers_that_lie_are_refused() {
    let frame = v6(&[], protocol::UDP, &UDP);
    for len in 14..frame.len() {
        assert_eq!(parse(&frame[..len]), Err(ParseError::IpLength));
    }
    let mut longer = frame.clone();
    longer[19] += 1;
    assert_eq!(parse(&longer), Err(ParseError::IpLength));
    let mut version = frame;
    version[14] = 0x40;
    assert_eq!(parse(&version), Err(ParseError::IpVersion));
}

#[test]
fn every_extension_header_is_walked_over() {
    let authentication = (51, vec![0, 4, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1, 9, 9, 9, 9]);
    let authentication = (authentication.0, [authentication.1, vec![9; 8]].concat());
    for (header, len) in [
        (options(0, 1), 8),
        (options(43, 3), 24),
        (options(60, 32), 256),
        (authentication.clone(), 24),
        (fragment(0, false), 8),
    ] {
        let kind = header.0;
        let packet = ip(&v6(&[header], protocol::TCP, &TCP));
        assert_eq!(packet.transport, 54 + len, "header {kind}");
        assert_eq!(ports(&packet), (8080, 80), "header {kind}");
        assert_eq!(packet.fragment, Fragment::Whole, "header {kind}");
    }
    let all = [
        options(0, 1),
        options(60, 2),
        options(43, 1),
        fragment(0, false),
        authentication,
        options(60, 1),
    ];
    let packet = ip(&v6(&all, protocol::TCP, &TCP));
    assert_eq!(packet.transport, 54 + 8 + 16 + 8 + 8 + 24 + 8);
    assert_eq!(packet.key.protocol, protocol::TCP);
}

#[test]
fn what_follows_an_unknown_header_is_not_looked_into() {
    // Encapsulating security payload, no next header, mobility, HIP, SHIM6.
    for kind in [50, 59, 135, 139, 140, 253] {
        let packet = ip(&v6(&[options(60, 1)], kind, &TCP));
        assert_eq!(packet.key.protocol, kind);
        assert_eq!(ports(&packet), (0, 0));
        assert_eq!((packet.transport, packet.payload), (62, 62));
    }
    assert_eq!(ip(&v6(&[], 59, &[])).end, 54);
}

#[test]
fn extension_headers_must_end_inside_the_packet() {
    let longest: Vec<_> = (0..EXTENSIONS_MAX).map(|_| options(60, 1)).collect();
    assert_eq!(ip(&v6(&longest, protocol::UDP, &UDP)).transport, 54 + 64);
    let longer = [longest, vec![options(60, 1)]].concat();
    let refused = Err(ParseError::Extensions);
    assert_eq!(parse(&v6(&longer, protocol::UDP, &UDP)), refused);

    for kind in [0, 43, 44, 51, 60] {
        // The header is cut short, or claims to reach beyond the packet.
        for segment in [&[][..], &[6], &[6, 0, 0, 0, 0, 0, 0], &[6, 200, 0, 0]] {
            let mut frame = v6(&[], kind, segment);
            frame.extend([0; 64]);
            assert_eq!(parse(&frame), refused, "header {kind}");
        }
    }
}

#[test]
fn fragments_of_one_datagram_share_a_key() {
    let more = 0x2000;
    let pieces = [
        (
            v4(protocol::UDP, &[], more, &[UDP; 4].concat()),
            Fragment::First,
        ),
        (v4(protocol::UDP, &[], more | 5, &[9; 40]), Fragment::Later),
        (v4(protocol::UDP, &[], 10, &[9]), Fragment::Later),
    ];
    for (frame, kind) in &pieces {
        let packet = ip(frame);
        assert_eq!(packet.fragment, *kind);
        assert_eq!(packet.key, ip(&pieces[0].0).key);
        assert_eq!(ports(&packet), (0, 0));
        let looked_into = if *kind == Fragment::First { 8 } else { 0 };
        assert_eq!(packet.payload, packet.transport + looked_into);
    }
    for (offset, more, kind) in [
        (0, true, Fragment::First),
        (5, true, Fragment::Later),
        (8190, false, Fragment::Later),
    ] {
        let packet = ip(&v6(&[fragment(offset, more)], protocol::UDP, &UDP));
        assert_eq!(packet.fragment, kind);
        assert_eq!(ports(&packet), (0, 0));
        assert_eq!(packet.transport, 62);
    }
}

#[test]
fn a_later_ipv6_fragment_is_not_walked_into() {
    let packet = ip(&v6(&[fragment(1, true)], 60, &[0xff, 0xff]));
    assert_eq!(packet.fragment, Fragment::Later);
    assert_eq!(packet.key.protocol, 60);
    assert_eq!((packet.transport, packet.payload), (62, 62));
}

#[test]
fn a_second_fragment_header_does_not_undo_the_first() {
    for second in [fragment(0, false), fragment(0, true)] {
        let frame = v6(&[fragment(0, true), second], protocol::UDP, &UDP);
        assert_eq!(ip(&frame).fragment, Fragment::First);
        assert_eq!(ports(&ip(&frame)), (0, 0));
    }
    let frame = v6(
        &[fragment(0, false), fragment(3, false)],
        protocol::UDP,
        &UDP,
    );
    assert_eq!(ip(&frame).fragment, Fragment::Later);
}

#[test]
fn transport_headers_that_lie_are_refused() {
    let refused = |protocol, segment: &[u8]| {
        for frame in [v4(protocol, &[], 0, segment), v6(&[], protocol, segment)] {
            assert_eq!(parse(&frame), Err(ParseError::Transport));
        }
    };
    for (protocol, len) in [(6, 20), (17, 8), (132, 12), (1, 8), (58, 8)] {
        for short in 0..len {
            refused(protocol, &[0x55; 20][..short]);
        }
    }
    let with = |bytes: &[u8], at: usize, value| {
        let mut bytes = bytes.to_vec();
        bytes[at] = value;
        bytes
    };
    refused(protocol::TCP, &with(&TCP, 12, 0x40));
    refused(protocol::TCP, &with(&TCP, 12, 0x60));
    refused(protocol::UDP, &with(&UDP, 5, 7));
    refused(protocol::UDP, &with(&UDP, 5, 11));
    refused(protocol::UDP, &with(&UDP, 4, 1));
}

#[test]
fn a_first_fragment_may_claim_the_whole_datagrams_length() {
    let mut segment = UDP;
    segment[4] = 0x20;
    let packet = ip(&v4(protocol::UDP, &[], 0x2000, &segment));
    assert_eq!(packet.fragment, Fragment::First);
}

#[test]
fn echoes_bear_their_identifier_and_errors_do_not() {
    for (protocol, kind, identifier) in [
        (protocol::ICMP, 8, 0x1234),
        (protocol::ICMP, 0, 0x1234),
        (protocol::ICMP, 3, 0),
        (protocol::ICMPV6, 128, 0x1234),
        (protocol::ICMPV6, 129, 0x1234),
        (protocol::ICMPV6, 2, 0),
    ] {
        let message = [kind, 1, 0, 0, 0x12, 0x34, 0, 1];
        let frame = match protocol {
            protocol::ICMP => v4(protocol, &[], 0, &message),
            _ => v6(&[], protocol, &message),
        };
        let expected = (identifier, u16::from_be_bytes([kind, 1]));
        assert_eq!(ports(&ip(&frame)), expected);
    }
}

#[test]
fn sctp_has_ports() {
    let packet = ip(&v4(
        protocol::SCTP,
        &[],
        0,
        &[0, 7, 0, 9, 0, 0, 0, 0, 0, 0, 0, 0],
    ));
    assert_eq!(ports(&packet), (7, 9));
}

/// What [`parse()`] promises of every frame it accepts.
fn keeps_its_promise(frame: &[u8]) {
    let Ok(Ethernet::Ip(packet)) = parse(frame) else {
        return;
    };
    let header_len = if packet.is_v4() { 20 } else { 40 };
    assert!(ETHERNET_LEN + header_len <= packet.transport);
    assert!(packet.transport <= packet.payload);
    assert!(packet.payload <= packet.end);
    assert!(packet.end <= frame.len());
    assert_eq!(packet.key.src.is_ipv4(), packet.key.dst.is_ipv4());
    if packet.fragment != Fragment::Whole {
        assert_eq!(ports(&packet), (0, 0));
    }
    // Bytes behind the packet do not change what it is.
    assert_eq!(parse(&frame[..packet.end]), Ok(Ethernet::Ip(packet)));
    checksum::verify(frame, &packet);
    let mut frame = frame.to_vec();
    checksum::complete(&mut frame, &packet);
    assert_eq!(parse(&frame), Ok(Ethernet::Ip(packet)));
    assert!(checksum::verify(&frame, &packet));
}

fn extension() -> impl Strategy<Value = (u8, Vec<u8>)> {
    let kind = select(vec![0_u8, 43, 51, 60]);
    let fragments = (0..4_u16, any::<bool>()).prop_map(|(at, more)| fragment(at, more));
    prop_oneof![
        (kind, 1..4_u8).prop_map(|(kind, units)| options(kind, units)),
        fragments,
        (any::<u8>(), vec(any::<u8>(), 1..20)),
    ]
}

proptest! {
    #[test]
    fn arbitrary_bytes_are_parsed_or_refused(frame in vec(any::<u8>(), 0..300)) {
        keeps_its_promise(&frame);
    }

    #[test]
    fn plausible_ipv4_is_parsed_or_refused(
        protocol in select(vec![1_u8, 6, 17, 58, 132, 99]),
        options in vec(any::<[u8; 4]>(), 0..=10),
        flags_and_offset in select(vec![0, 0x4000, 0x2000, 1, 0x2001, 0xffff_u16]),
        segment in vec(any::<u8>(), 0..64),
        cut in 0..8_usize,
    ) {
        let frame = v4(protocol, &options.concat(), flags_and_offset, &segment);
        keeps_its_promise(&frame);
        keeps_its_promise(&frame[..frame.len() - cut]);
    }

    #[test]
    fn plausible_ipv6_is_parsed_or_refused(
        chain in vec(extension(), 0..10),
        protocol in select(vec![0_u8, 1, 6, 17, 43, 44, 51, 58, 59, 60, 132]),
        segment in vec(any::<u8>(), 0..64),
        cut in 0..8_usize,
    ) {
        let frame = v6(&chain, protocol, &segment);
        keeps_its_promise(&frame);
        keeps_its_promise(&frame[..frame.len() - cut]);
    }
}

#[test]
fn no_fragment_reaches_beyond_the_largest_datagram() {
    let far = |offset| parse(&v4(protocol::UDP, &[], offset, &[9; 16]));
    assert!(far(8189).is_ok());
    assert_eq!(far(8190), Err(ParseError::IpLength));
    let far = |offset| parse(&v6(&[fragment(offset, false)], protocol::UDP, &[9; 16]));
    assert!(far(8189).is_ok());
    assert_eq!(far(8190), Err(ParseError::IpLength));
}

use std::net::Ipv6Addr;

use weft_wire::{Packet, describe, parse::Fragment};

use super::*;

const A: [u8; 4] = [10, 0, 0, 1];
const B: [u8; 4] = [10, 0, 0, 2];
const C: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);
const D: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 2);

fn packet(frame: &[u8]) -> Packet {
    match parse(frame) {
        Ok(Ethernet::Ip(packet)) => packet,
        other => panic!("{other:?} is no IP packet"),
    }
}

#[test]
fn what_is_built_reads_as_it_was_meant() {
    let syn = between(A, B)
        .macs([2, 0, 0, 0, 0, 7], [0xee; 6])
        .ttl(3)
        .class(0xb8)
        .id(9)
        .dont_fragment()
        .options(&[1, 1, 1, 0])
        .tcp(40_000, 80)
        .flags(SYN | CWR)
        .seq(7)
        .window(512)
        .tcp_options(&[2, 4, 5, 0xb4])
        .build();
    assert_eq!(
        describe(&syn),
        "00:00:07 > ee:ee:ee | 10.0.0.1 > 10.0.0.2 ttl 3 len 48 class 0xb8 options 4 id 0x0009 df \
         | tcp 40000 > 80 [SC] seq 7 win 512 len 0"
    );
    let ping = between(C, D)
        .class(1)
        .extension(60, &[0; 8])
        .echo_request(7, 2)
        .filled(56)
        .build();
    assert_eq!(
        describe(&ping),
        "00:00:01 > 00:00:02 | 2001:db8::1 > 2001:db8::2 hop 64 len 112 class 0x01 extensions 8 \
         | icmp6 echo-request id 7 seq 2 len 56"
    );
    let tunnelled = between(C, D).vxlan(4096, &ping).build();
    assert_eq!(
        describe(&tunnelled),
        format!(
            "00:00:01 > 00:00:02 | 2001:db8::1 > 2001:db8::2 hop 64 len 182 \
             | udp 50000 > 4789 len 134 | vxlan 4096 | {}",
            describe(&ping)
        )
    );
}

#[test]
fn fragments_are_the_whole_in_pieces() {
    for builder in [between(A, B), between(C, D)] {
        let builder = builder.udp(5, 6).filled(3000).id(77);
        let (whole, pieces) = (builder.build(), builder.fragments(1480));
        let expected = packet(&whole);
        assert_eq!(pieces.len(), 3);
        let joined: Vec<u8> = pieces
            .iter()
            .flat_map(|piece| &piece[packet(piece).transport..])
            .copied()
            .collect();
        assert_eq!(joined, whole[expected.transport..]);
        let kinds = pieces.iter().map(|piece| packet(piece).fragment);
        assert!(kinds.eq([Fragment::First, Fragment::Later, Fragment::Later]));
    }
}

#[test]
fn a_super_frame_names_the_places_of_its_headers() {
    for (builder, gso_type, hdr_len, offset) in [
        (between(A, B).tcp(1, 2), vnet::GSO_TCPV4, 54, 16),
        (between(C, D).tcp(1, 2), vnet::GSO_TCPV6, 74, 16),
        (between(C, D).udp(1, 2), vnet::GSO_UDP_L4, 62, 6),
    ] {
        let builder = builder.filled(5000);
        let (header, mut frame) = builder.super_frame(1400);
        let expected = VnetHeader {
            flags: vnet::NEEDS_CSUM,
            gso_type,
            hdr_len,
            gso_size: 1400,
            csum_start: word(packet(&frame).transport),
            csum_offset: offset,
        };
        assert_eq!(header, expected);
        assert_ne!(frame, builder.build());
        let (start, offset) = (usize::from(header.csum_start), usize::from(offset));
        let udp = gso_type == vnet::GSO_UDP_L4;
        assert!(checksum::complete_partial(&mut frame, start, offset, udp));
        assert_eq!(frame, builder.build());
    }
}

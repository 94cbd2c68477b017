use std::net::{Ipv4Addr, Ipv6Addr};

use weft_testkit::frames::between;
use weft_wire::{Ethernet, checksum, parse, protocol};

use super::*;

const PODS: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(10, 1, 0, 1)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 1)),
];
const OUTSIDE: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)),
    IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1)),
];

fn packet(frame: &[u8]) -> Packet {
    match parse(frame) {
        Ok(Ethernet::Ip(packet)) => packet,
        other => panic!("{other:?} is no packet"),
    }
}

fn take(fragments: &mut Fragments, frame: &[u8], now: Instant) -> Taken {
    fragments.take(frame, &packet(frame), now)
}

fn pieces(family: usize, id: u16, len: usize) -> Vec<Vec<u8>> {
    let whole = between(PODS[family], OUTSIDE[family]).id(id).ttl(9);
    whole.udp(1000, 2000).filled(len).fragments(1400)
}

#[test]
fn pieces_in_any_order_are_the_packet_again() {
    for family in [0, 1] {
        let whole = between(PODS[family], OUTSIDE[family]).udp(1000, 2000);
        let whole = whole.filled(8192).build();
        let whole = &whole[packet(&whole).transport..];
        let in_order = pieces(family, 7, 8192);
        let mut backwards = in_order.clone();
        backwards.reverse();
        let mut turned = in_order.clone();
        turned.rotate_left(3);
        for all in [in_order, backwards, turned] {
            let mut fragments = Fragments::default();
            let (last, first) = all.split_last().expect("pieces");
            for piece in first {
                let taken = take(&mut fragments, piece, Instant::now());
                let nothing = Taken {
                    whole: None,
                    lost: 0,
                };
                assert_eq!(taken, nothing);
            }
            let taken = take(&mut fragments, last, Instant::now());
            let frame = taken.whole.expect("it is whole");
            let joined = packet(&frame);
            assert_eq!(joined.fragment, Fragment::Whole);
            assert_eq!((joined.key.src, joined.hop_limit), (PODS[family], 9));
            assert_eq!((joined.key.src_port, joined.key.dst_port), (1000, 2000));
            assert_eq!(&frame[joined.transport..], whole);
            assert!(checksum::verify(&frame, &joined));
            assert!(fragments.waiting.is_empty());
        }
    }
}

#[test]
fn of_a_packet_whose_pieces_overlap_nothing_is_kept() {
    for family in [0, 1] {
        let all = pieces(family, 7, 8192);
        let mut fragments = Fragments::default();
        let now = Instant::now();
        take(&mut fragments, &all[0], now);
        take(&mut fragments, &all[2], now);
        assert_eq!(take(&mut fragments, &all[2], now).lost, 3);
        for piece in &all {
            let lost = Taken {
                whole: None,
                lost: 1,
            };
            assert_eq!(take(&mut fragments, piece, now), lost);
        }
        // In time the number may be used again.
        let next = pieces(family, 7, 3000);
        let late = |piece: &Vec<u8>| take(&mut fragments, piece, now + LIFETIME);
        assert!(
            next.iter()
                .map(late)
                .last()
                .expect("pieces")
                .whole
                .is_some()
        );
    }
}

#[test]
fn what_takes_too_long_is_forgotten() {
    let all = pieces(0, 7, 3000);
    let mut fragments = Fragments::default();
    let now = Instant::now();
    take(&mut fragments, &all[0], now);
    take(&mut fragments, &all[1], now);
    let late = take(&mut fragments, &all[2], now + LIFETIME);
    let expected = Taken {
        whole: None,
        lost: 2,
    };
    assert_eq!(late, expected);
}

#[test]
fn one_pod_takes_no_room_from_others() {
    let mut fragments = Fragments::default();
    let now = Instant::now();
    let other = between(Ipv4Addr::new(10, 1, 0, 2), Ipv4Addr::new(192, 0, 2, 1));
    let other = other.id(1).udp(1, 2).filled(3000).fragments(1400);
    take(&mut fragments, &other[0], now);
    take(&mut fragments, &other[1], now);
    let mut lost = 0;
    for id in 0..1000 {
        lost += take(&mut fragments, &pieces(0, id, 3000)[0], now).lost;
    }
    assert_eq!(fragments.waiting.len(), WAITING_OF_POD + 1);
    assert_eq!(lost, 1000 - WAITING_OF_POD as u64);
    assert!(take(&mut fragments, &other[2], now).whole.is_some());
}

#[test]
fn no_more_wait_than_may() {
    let mut fragments = Fragments::default();
    let now = Instant::now();
    for pod in 0..=255 {
        let piece = between(Ipv4Addr::new(10, 1, 1, pod), Ipv4Addr::new(192, 0, 2, 1));
        let piece = piece.udp(1, 2).filled(60_000).fragments(1400);
        take(&mut fragments, piece.last().expect("pieces"), now);
    }
    assert_eq!(fragments.waiting.len(), WAITING);
}

#[test]
fn what_is_cut_is_the_packet_again() {
    let key = Key {
        src: PODS[1],
        dst: OUTSIDE[1],
        protocol: protocol::UDP,
        src_port: 1000,
        dst_port: 2000,
    };
    let whole = between(OUTSIDE[1], PODS[1]).udp(2000, 1000).filled(8192);
    let whole = whole.build();
    let content = &whole[packet(&whole).transport..];
    let mut fragments = Fragments::default();
    let mut joined = None;
    for (len, write) in cut(&key, protocol::UDP, 9, content, 1280) {
        assert!(len <= 1280);
        let mut frame = vec![0; ETHERNET_LEN + len];
        frame[12..14].copy_from_slice(&ethertype::IPV6.to_be_bytes());
        write(&mut frame[ETHERNET_LEN..]);
        joined = take(&mut fragments, &frame, Instant::now()).whole;
    }
    let joined = joined.expect("it is whole");
    assert_eq!(&joined[packet(&joined).transport..], content);
}

//! What fragments and quotes say of packets that are not there whole.

use proptest::{collection::vec, prelude::*, sample::select};
use weft_testkit::{
    frames::{FrameBuilder, between},
    fuzz,
};
use weft_wire::{ETHERNET_LEN, Ethernet, Key, Packet, parse, piece, piece::Piece, quote};

const A: [u16; 8] = [0xfd00, 0, 0, 0, 0, 0, 0, 1];
const B: [u16; 8] = [0xfd00, 0, 0, 0, 0, 0, 0, 2];

fn packet(frame: &[u8]) -> Packet {
    match parse(frame) {
        Ok(Ethernet::Ip(packet)) => packet,
        other => panic!("{other:?} is no packet"),
    }
}

fn v4() -> FrameBuilder {
    between([10, 0, 0, 1], [10, 0, 0, 2]).udp(7, 53).filled(100)
}

fn v6() -> FrameBuilder {
    between(A, B).udp(7, 53).filled(100)
}

#[test]
fn pieces_bear_their_datagrams_number_and_the_first_its_ports() {
    for (datagram, id) in [(v4().id(0x1234), 0x1234), (v6().id(0x4321), 0x4321)] {
        let whole = datagram.build();
        assert_eq!(piece::of(&whole, &packet(&whole)), None);
        let pieces = datagram.fragments(48);
        assert_eq!(pieces.len(), 3);
        for (place, bytes) in pieces.iter().enumerate() {
            let parsed = packet(bytes);
            let (from, to) = (place * 48, (place * 48 + 48).min(108));
            assert_eq!(piece::of(bytes, &parsed), Some(Piece { id, from, to }));
            let key = piece::whole_key(bytes, &parsed);
            assert_eq!(key, (place == 0).then(|| packet(&whole).key));
        }
    }
}

/// The error that a host sends about a frame's packet, of which it quotes
/// `len` bytes.
fn error(about: &FrameBuilder, kind: u8, len: usize) -> Vec<u8> {
    let frame = about.build();
    let quoted = packet(&frame).key;
    let quote = &frame[ETHERNET_LEN..];
    between(quoted.dst, quoted.src)
        .icmp(kind, 0, [0; 4])
        .payload(&quote[..len.min(quote.len())])
        .build()
}

fn about(error: &[u8]) -> Option<Key> {
    quote::about(error, &packet(error))
}

#[test]
fn an_error_is_about_what_it_quotes() {
    let hop_by_hop = v6().extension(0, &[0, 0, 1, 4, 0, 0, 0, 0]);
    let pings = [v4().echo_request(9, 1), v6().echo_request(9, 1)];
    let tcp = [v4().tcp(9, 80), v6().tcp(9, 80)];
    let with_options = v4().options(&[1; 8]);
    let all = pings
        .into_iter()
        .chain(tcp)
        .chain([hop_by_hop, with_options]);
    for original in all {
        let frame = original.build();
        let its = packet(&frame).key;
        let kind = if its.src.is_ipv4() { 3 } else { 1 };
        for len in [packet(&frame).transport - ETHERNET_LEN + 8, 200] {
            let error = error(&original, kind, len);
            assert!(quote::is_error(&error, &packet(&error)));
            assert_eq!(about(&error), Some(its), "{len} bytes");
        }
    }
}

#[test]
fn a_quote_that_ends_early_or_is_of_no_error_is_about_nothing() {
    for len in 0..24 {
        assert_eq!(about(&error(&v4(), 3, len)), None, "{len} bytes");
    }
    for len in 0..44 {
        assert_eq!(about(&error(&v6(), 1, len)), None, "{len} bytes");
    }
    assert!(about(&error(&v4(), 3, 24)).is_some());
    for (original, kind) in [(v4(), 5), (v4(), 8), (v6(), 137), (v6(), 128)] {
        assert_eq!(about(&error(&original, kind, 100)), None);
    }
    let later = &v4().fragments(48)[1];
    let of_later = between([10, 0, 0, 2], [10, 0, 0, 1])
        .icmp(3, 3, [0; 4])
        .payload(&later[ETHERNET_LEN..])
        .build();
    assert_eq!(about(&of_later), None);
    let of_another_family = between([10, 0, 0, 2], [10, 0, 0, 1])
        .icmp(3, 3, [0; 4])
        .payload(&v6().build()[ETHERNET_LEN..])
        .build();
    assert_eq!(about(&of_another_family), None);
}

proptest! {
    /// Whatever an error quotes or a fragment says of itself.
    #[test]
    fn made_up_quotes_and_pieces_do_no_harm(
        is_v4: bool,
        kind in select(vec![1, 3, 11]),
        quote in vec(any::<u8>(), 1..80),
        next in select(vec![0, 6, 43, 44, 51, 58, 60]),
    ) {
        let frame = if is_v4 {
            between([10, 0, 0, 2], [10, 0, 0, 1])
        } else {
            between(B, A)
        };
        let mut quote = quote;
        if let Some(first) = quote.first_mut() {
            *first = if is_v4 { 0x40 | *first & 0x0f } else { 0x60 };
        }
        if let Some(header) = quote.get_mut(6).filter(|_| !is_v4) {
            *header = next;
        }
        fuzz::parse(&frame.clone().icmp(kind, 0, [0; 4]).payload(&quote).build());
        fuzz::parse(&frame.extension(next, &quote).udp(1, 2).build());
    }
}

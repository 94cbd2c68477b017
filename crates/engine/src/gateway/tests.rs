//! What the responders' tests share, and that no bytes can harm them.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
};

use proptest::{collection::vec, prelude::*, sample::select};
use weft_wire::{Ethernet, Mac, Packet, checksum, edit, parse};

use super::{
    arp,
    icmp::{self, Complaint},
    ndp,
};
use crate::{DropReason, Gateway, Port, PortId, counters::Traffic};

pub(super) const POD_MAC: Mac = [2, 0, 0, 0, 0, 10];
pub(super) const POD_V4: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 10);
pub(super) const POD_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 10);
pub(super) const GATEWAY: Gateway = Gateway {
    mac: [0xee; 6],
    v4: Ipv4Addr::new(169, 254, 1, 1),
    v6: Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1),
};

pub(super) fn port() -> Port {
    Port {
        id: PortId(0),
        mac: POD_MAC,
        addresses: vec![POD_V4.into(), POD_V6.into()],
        mtu: 1430,
        takes_udp: true,
        takes_tcp: true,
        host: None,
        from_pod_shaper: None,
        to_pod_shaper: None,
        from_pod_packets: None,
        to_pod_packets: None,
        connections: Arc::default(),
        from_pod: Arc::new(Traffic::default()),
        to_pod: Arc::new(Traffic::default()),
    }
}

/// Frames as Linux 6.18 sends them.
pub(super) mod sent {
    pub const ARP_REQUEST: &str = "ffffffffffff02000000000a0806 0001080006040001
        02000000000a0a00000a 000000000000a9fe0101";
    pub const SOLICITATION: &str = "3333ff00000102000000000a86dd 6000000000203aff
        20010db800000000000000000000000a ff0200000000000000000001ff000001
        87004b4f00000000 fe800000000000000000000000000001 010102000000000a";
    /// Of the pod's own address, with a nonce option.
    pub const PROBE: &str = "3333ff00000a02000000000a86dd 6000000000203aff
        00000000000000000000000000000000 ff0200000000000000000001ff00000a
        8700e6c400000000 20010db800000000000000000000000a 0e01c35ac6c8cde9";
    pub const ROUTER_SOLICITATION: &str = "33330000000202000000000a86dd 6000000000103aff
        fe80000000000000000000fffe00000a ff020000000000000000000000000002
        85007b1a00000000 010102000000000a";
    pub const LISTENER_REPORT: &str = "33330000001602000000000a86dd 6000000000240001
        fe80000000000000000000fffe00000a ff020000000000000000000000000016
        3a00050200000100 8f0071f500000001 04000000ff0200000000000000000001ff00000a";
    pub const PING_V4: &str = "eeeeeeeeeeee02000000000a0800 4500003201864000
        4001843c0a00000aa9fe0101 0800ce1489180001
        776566742070696e6773207468652067617465776179";
    pub const PING_V6: &str = "eeeeeeeeeeee02000000000a86dd 600237d5001e3a40
        fe80000000000000000000fffe00000a fe800000000000000000000000000001
        800059ae89190001 776566742070696e6773207468652067617465776179";
}

pub(super) fn bytes(hex: &str) -> Vec<u8> {
    let digits: String = hex.split_whitespace().collect();
    let byte = |at| u8::from_str_radix(&digits[at..at + 2], 16).expect("hex digits");
    (0..digits.len()).step_by(2).map(byte).collect()
}

pub(super) fn packet(frame: &[u8]) -> Packet {
    match parse(frame) {
        Ok(Ethernet::Ip(packet)) => packet,
        other => panic!("{other:?} is no IP packet"),
    }
}

/// Makes the checksums of an edited frame right.
pub(super) fn mend(frame: &mut [u8]) {
    let header_end = 14 + usize::from(frame[14] & 0x0f) * 4;
    if frame[14] >> 4 == 4 && (34..=frame.len()).contains(&header_end) {
        edit::refresh_ipv4_checksum(&mut frame[14..header_end]);
    }
    if let Ok(Ethernet::Ip(packet)) = parse(frame) {
        checksum::complete(frame, &packet);
    }
}

/// The packet in a reply, which must be sound.
pub(super) fn sound(reply: &[u8]) -> Packet {
    let packet = packet(reply);
    assert!(checksum::verify(reply, &packet));
    assert_eq!(packet.end, reply.len());
    packet
}

/// Shows `frame` to every responder that its kind allows.
fn show_to_all(frame: &[u8], complaint: Complaint) {
    let mut reply = b"left over".to_vec();
    match arp::answer(frame, &GATEWAY, &port(), &mut reply) {
        Ok(()) => assert_eq!(parse(&reply), Ok(Ethernet::Arp)),
        Err(_) => assert!(reply.is_empty()),
    }
    let Ok(Ethernet::Ip(packet)) = parse(frame) else {
        return;
    };
    let check = |answered: Result<(), DropReason>, reply: &[u8]| match answered {
        Ok(()) => assert_eq!(sound(reply).key.src.is_ipv4(), packet.is_v4()),
        Err(_) => assert!(reply.is_empty()),
    };
    check(
        ndp::answer(frame, &packet, &GATEWAY, &port(), &mut reply),
        &reply,
    );
    check(icmp::echo(frame, &packet, &mut reply), &reply);
    for source in [IpAddr::V4(GATEWAY.v4), IpAddr::V6(GATEWAY.v6)] {
        let (dst, src) = (POD_MAC, GATEWAY.mac);
        let answered = icmp::complain(complaint, frame, &packet, source, dst, src, &mut reply);
        let answered = answered.then_some(()).ok_or(DropReason::GatewayUnserved);
        check(answered, &reply);
    }
}

fn complaint() -> impl Strategy<Value = Complaint> {
    prop_oneof![
        Just(Complaint::HopLimit),
        any::<usize>().prop_map(|mtu| Complaint::TooBig { mtu }),
        Just(Complaint::NoRoute),
        Just(Complaint::PortUnreachable),
    ]
}

proptest! {
    #[test]
    fn arbitrary_bytes_do_no_harm(
        mut frame in vec(any::<u8>(), 0..1600),
        kind in select(vec![[8, 0, 0x45], [8, 0, 0x4f], [8, 6, 0], [0x86, 0xdd, 0x60]]),
        mended: bool,
        complaint in complaint(),
    ) {
        if let Some(head) = frame.get_mut(12..15) {
            head.copy_from_slice(&kind);
            if mended && frame.len() >= 34 {
                let len = u16::try_from(frame.len() - 14).expect("below 1600");
                let at = if kind[0] == 8 { 16 } else { 18 };
                let len = if kind[0] == 8 { len } else { len.saturating_sub(40) };
                frame[at..at + 2].copy_from_slice(&len.to_be_bytes());
                mend(&mut frame);
            }
        }
        show_to_all(&frame, complaint);
    }

    #[test]
    fn damaged_frames_do_no_harm(
        hex in select(vec![
            sent::ARP_REQUEST, sent::SOLICITATION, sent::PROBE, sent::ROUTER_SOLICITATION,
            sent::LISTENER_REPORT, sent::PING_V4, sent::PING_V6,
        ]),
        edits in vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        cut in 0..24_usize,
        mended: bool,
        complaint in complaint(),
    ) {
        let mut frame = bytes(hex);
        for (at, value) in edits {
            let at = at.index(frame.len());
            frame[at] = value;
        }
        frame.truncate(frame.len() - cut);
        if mended && frame.len() >= 34 {
            mend(&mut frame);
        }
        show_to_all(&frame, complaint);
    }
}

use super::*;
use crate::gateway::tests::{GATEWAY, POD_MAC, POD_V4, bytes, mend, packet, sent, sound};

const UDP_V4: &str = "eeeeeeeeeeee02000000000a0800 4500001e0001400001110000
    0a00000a0a090909 1f9000350009 0000 00 00";
const UDP_V6: &str = "eeeeeeeeeeee02000000000a86dd 60000000000a1101
    20010db800000000000000000000000a 20010db8000000000000000000000099
    1f900035000a0000 0000";

fn udp_v4() -> Vec<u8> {
    let mut frame = bytes(UDP_V4);
    frame[39] = 10;
    mend(&mut frame);
    frame
}

fn udp_v6() -> Vec<u8> {
    let mut frame = bytes(UDP_V6);
    mend(&mut frame);
    frame
}

fn edited(mut frame: Vec<u8>, at: usize, with: &[u8]) -> Vec<u8> {
    frame[at..at + with.len()].copy_from_slice(with);
    mend(&mut frame);
    frame
}

fn ping(frame: &[u8]) -> Result<Vec<u8>, DropReason> {
    let mut reply = Vec::new();
    echo(frame, &packet(frame), &mut reply).map(|()| reply)
}

fn tell(complaint: Complaint, frame: &[u8]) -> Option<Vec<u8>> {
    let packet = packet(frame);
    let source = match packet.is_v4() {
        true => IpAddr::V4(GATEWAY.v4),
        false => IpAddr::V6(GATEWAY.v6),
    };
    let mut reply = Vec::new();
    let (dst, src) = (POD_MAC, GATEWAY.mac);
    complain(complaint, frame, &packet, source, dst, src, &mut reply).then_some(reply)
}

#[test]
fn a_ping_comes_back() {
    for hex in [sent::PING_V4, sent::PING_V6] {
        let request = bytes(hex);
        let reply = ping(&request).expect("an answer");
        let (asked, answered) = (packet(&request), sound(&reply));
        assert_eq!(answered.key.src, asked.key.dst);
        assert_eq!(answered.key.dst, asked.key.src);
        assert_eq!(answered.hop_limit, 64);
        assert_eq!(reply[..6], POD_MAC);
        assert_eq!(reply[6..12], GATEWAY.mac);
        let kind = if asked.is_v4() { 0 } else { 129 };
        assert_eq!(reply[answered.transport..][..2], [kind, 0]);
        assert_eq!(
            reply[answered.transport + 4..],
            request[asked.transport + 4..]
        );
    }
}

#[test]
fn a_ping_whose_checksum_is_not_complete_comes_back_with_one() {
    for hex in [sent::PING_V4, sent::PING_V6] {
        let mut request = bytes(hex);
        let at = packet(&request).transport + 2;
        request[at..at + 2].fill(0x5a);
        sound(&ping(&request).expect("an answer"));
    }
}

#[test]
fn ip_options_and_ethernet_padding_are_left_out_of_the_answer() {
    let mut request = bytes(sent::PING_V4);
    request.splice(34..34, [1, 1, 1, 0]);
    request[14] = 0x46;
    request[17] += 4;
    request.extend([0xaa; 5]);
    mend(&mut request);
    let reply = ping(&request).expect("an answer");
    let plain = ping(&bytes(sent::PING_V4)).expect("an answer");
    assert_eq!(reply, plain);
}

#[test]
fn the_largest_ping_comes_back() {
    let mut request = bytes(sent::PING_V6);
    request.resize(weft_wire::FRAME_MAX, 7);
    request[18..20].copy_from_slice(&(65_535_u16 - 40).to_be_bytes());
    mend(&mut request);
    let reply = ping(&request).expect("an answer");
    assert_eq!(reply.len(), request.len());
    sound(&reply);
}

#[test]
fn only_whole_requests_from_one_host_to_one_host_are_echoed() {
    let v4 = || bytes(sent::PING_V4);
    let v6 = || bytes(sent::PING_V6);
    for frame in [
        edited(v4(), 34, &[0]),
        edited(v4(), 35, &[1]),
        edited(v4(), 34, &[13]),
        edited(v4(), 20, &[0x20, 0]),
        edited(v4(), 20, &[0, 1]),
        edited(v4(), 23, &[58]),
        edited(v4(), 0, &[0xff; 6]),
        edited(v4(), 30, &[224, 0, 0, 1]),
        edited(v4(), 26, &[0; 4]),
        edited(v6(), 54, &[129]),
        edited(v6(), 54, &[135]),
        edited(v6(), 20, &[1]),
        edited(v6(), 38, &[0xff, 2]),
        edited(v6(), 22, &[0xff, 2]),
        edited(v6(), 22, &[0; 16]),
        udp_v4(),
        udp_v6(),
    ] {
        assert_eq!(ping(&frame), Err(DropReason::GatewayUnserved), "{frame:x?}");
    }
}

#[test]
fn each_complaint_has_its_type_and_code() {
    let mtu = Complaint::TooBig { mtu: 1450 };
    for (complaint, v4, v6) in [
        (Complaint::HopLimit, [11, 0], [3, 0]),
        (mtu, [3, 4], [2, 0]),
        (Complaint::NoRoute, [3, 1], [1, 3]),
        (Complaint::PortUnreachable, [3, 3], [1, 4]),
    ] {
        for (frame, expected) in [(udp_v4(), v4), (udp_v6(), v6)] {
            let reply = tell(complaint, &frame).expect("an error");
            let packet = sound(&reply);
            let message = &reply[packet.transport..];
            assert_eq!(message[..2], expected);
            let rest = if complaint == mtu {
                [0, 0, 5, 0xaa]
            } else {
                [0; 4]
            };
            assert_eq!(message[4..8], rest);
            assert_eq!(message[8..], frame[14..]);
            assert_eq!(
                packet.key.dst,
                crate::gateway::tests::packet(&frame).key.src
            );
            assert_eq!(reply[..6], POD_MAC);
            assert_eq!(reply[6..12], GATEWAY.mac);
        }
    }
}

#[test]
fn an_mtu_beyond_the_field_is_the_most_it_holds() {
    let mtu = Complaint::TooBig { mtu: usize::MAX };
    let v4 = tell(mtu, &udp_v4()).expect("an error");
    assert_eq!(v4[38..42], [0, 0, 0xff, 0xff]);
    let v6 = tell(mtu, &udp_v6()).expect("an error");
    assert_eq!(v6[58..62], [0xff; 4]);
}

#[test]
fn a_quote_leaves_the_error_small() {
    for (mut frame, at, header, most) in [(udp_v4(), 16, 0, 576), (udp_v6(), 18, 40, 1280)] {
        frame.resize(14 + 60_000, 3);
        let len = u16::try_from(60_000 - header).expect("16 bits");
        frame[at..at + 2].copy_from_slice(&len.to_be_bytes());
        mend(&mut frame);
        let reply = tell(Complaint::HopLimit, &frame).expect("an error");
        assert_eq!(sound(&reply).ip_len(), most);
    }
}

#[test]
fn ethernet_padding_is_not_quoted() {
    let mut frame = udp_v4();
    let plain = tell(Complaint::NoRoute, &frame);
    frame.extend([0xaa; 16]);
    assert_eq!(tell(Complaint::NoRoute, &frame), plain);
}

#[test]
fn there_is_no_error_about_these() {
    let v4 = || bytes(sent::PING_V4);
    let v6 = || bytes(sent::PING_V6);
    let mut silent: Vec<_> = [3, 4, 5, 11, 12, 6, 200]
        .iter()
        .map(|kind| edited(v4(), 34, &[*kind]))
        .collect();
    silent.extend([1, 2, 3, 4, 100, 127, 133, 134, 135, 136, 137].map(|k| edited(v6(), 54, &[k])));
    silent.extend([
        edited(udp_v4(), 20, &[0, 1]),
        edited(udp_v4(), 0, &[0xff; 6]),
        edited(udp_v4(), 0, &[0x01, 0, 0x5e]),
        edited(udp_v4(), 30, &[224, 0, 0, 251]),
        edited(udp_v4(), 30, &[255; 4]),
        edited(udp_v4(), 26, &[0, 0, 0, 7]),
        edited(udp_v4(), 26, &[127, 0, 0, 1]),
        edited(udp_v4(), 26, &[224, 0, 0, 1]),
        edited(udp_v4(), 26, &[255; 4]),
        edited(udp_v6(), 0, &[0x33, 0x33]),
        edited(udp_v6(), 38, &[0xff, 2]),
        edited(udp_v6(), 22, &[0; 16]),
        edited(udp_v6(), 22, &[0xff, 2]),
        edited(udp_v6(), 22, &std::net::Ipv6Addr::LOCALHOST.octets()),
    ]);
    for frame in silent {
        assert_eq!(tell(Complaint::NoRoute, &frame), None, "{frame:x?}");
    }
}

#[test]
fn queries_of_icmp_and_first_fragments_are_told() {
    for frame in [
        bytes(sent::PING_V4),
        bytes(sent::PING_V6),
        edited(udp_v4(), 20, &[0x20, 0]),
    ] {
        assert!(tell(Complaint::HopLimit, &frame).is_some());
    }
}

#[test]
fn packet_too_big_alone_is_told_about_groups_in_ipv6() {
    let mtu = Complaint::TooBig { mtu: 1280 };
    let v6 = edited(udp_v6(), 38, &[0xff, 2]);
    assert!(tell(mtu, &v6).is_some());
    assert!(tell(mtu, &edited(v6, 0, &[0x33, 0x33])).is_some());
    assert_eq!(tell(mtu, &edited(udp_v4(), 30, &[224, 0, 0, 251])), None);
}

#[test]
fn an_error_comes_from_an_address_of_the_packets_family() {
    let frame = udp_v6();
    let mut reply = Vec::new();
    let source = IpAddr::V4(POD_V4);
    let packet = packet(&frame);
    let (dst, src) = (POD_MAC, GATEWAY.mac);
    let told = complain(
        Complaint::NoRoute,
        &frame,
        &packet,
        source,
        dst,
        src,
        &mut reply,
    );
    assert!(!told && reply.is_empty());
}

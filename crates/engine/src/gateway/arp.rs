//! ARP (RFC 826): the gateway holds every address but the pod's own.
//!
//! That is proxy ARP as pods know it from Calico: whatever next hop a pod is
//! given, its frames reach the gateway. The pod's own addresses stay
//! unanswered, or it would find them taken (RFC 5227).

use std::net::{IpAddr, Ipv4Addr};

use smoltcp::wire::{
    ArpOperation, ArpPacket, ArpRepr, EthernetAddress, EthernetFrame, EthernetProtocol,
    EthernetRepr,
};
use weft_wire::{ETHERNET_LEN, parse::src_mac};

use crate::{DropReason, Gateway, Port};

/// Answers the request in `frame`, which came from `port`.
pub fn answer(
    frame: &[u8],
    gateway: &Gateway,
    port: &Port,
    reply: &mut Vec<u8>,
) -> Result<(), DropReason> {
    reply.clear();
    let body = frame
        .get(ETHERNET_LEN..)
        .ok_or(DropReason::MalformedEthernet)?;
    let packet = ArpPacket::new_checked(body).map_err(|_| DropReason::MalformedEthernet)?;
    // Hardware and protocols other than Ethernet and IPv4 are not spoken.
    let ArpRepr::EthernetIpv4 {
        operation,
        source_hardware_addr: sender_mac,
        source_protocol_addr: sender,
        target_protocol_addr: target,
        ..
    } = ArpRepr::parse(&packet).map_err(|_| DropReason::GatewayUnserved)?
    else {
        return Err(DropReason::GatewayUnserved);
    };
    if src_mac(frame) != port.mac || sender_mac.0 != port.mac {
        return Err(DropReason::SpoofedMac);
    }
    if !sender.is_unspecified() && !port.addresses.contains(&IpAddr::V4(sender)) {
        return Err(DropReason::SpoofedAddress);
    }
    if operation != ArpOperation::Request || !is_held(target, port) {
        return Err(DropReason::GatewayUnserved);
    }
    let response = ArpRepr::EthernetIpv4 {
        operation: ArpOperation::Reply,
        source_hardware_addr: EthernetAddress(gateway.mac),
        source_protocol_addr: target,
        target_hardware_addr: sender_mac,
        target_protocol_addr: sender,
    };
    write(&response, EthernetAddress(gateway.mac), sender_mac, reply);
    Ok(())
}

/// Whether the gateway answers for `target`.
fn is_held(target: Ipv4Addr, port: &Port) -> bool {
    let is_a_host = !target.is_unspecified()
        && !target.is_loopback()
        && !target.is_multicast()
        && !target.is_broadcast();
    is_a_host && !port.addresses.contains(&IpAddr::V4(target))
}

fn write(response: &ArpRepr, src: EthernetAddress, dst: EthernetAddress, reply: &mut Vec<u8>) {
    reply.resize(ETHERNET_LEN + response.buffer_len(), 0);
    let mut frame = EthernetFrame::new_unchecked(&mut reply[..]);
    let header = EthernetRepr {
        src_addr: src,
        dst_addr: dst,
        ethertype: EthernetProtocol::Arp,
    };
    header.emit(&mut frame);
    response.emit(&mut ArpPacket::new_unchecked(frame.payload_mut()));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gateway::tests::{GATEWAY, POD_MAC, bytes, port, sent};

    const OPERATION: usize = 21;
    const SENDER_MAC: usize = 22;
    const SENDER: usize = 28;
    const TARGET: usize = 38;

    fn ask(frame: &[u8]) -> Result<Vec<u8>, DropReason> {
        let mut reply = Vec::new();
        answer(frame, &GATEWAY, &port(), &mut reply).map(|()| reply)
    }

    fn edited(at: usize, with: &[u8]) -> Vec<u8> {
        let mut frame = bytes(sent::ARP_REQUEST);
        frame[at..at + with.len()].copy_from_slice(with);
        frame
    }

    #[test]
    fn the_gateway_holds_its_address_and_any_other() {
        let expected = "02000000000aeeeeeeeeeeee0806 0001080006040002
            eeeeeeeeeeeea9fe0101 02000000000a0a00000a";
        assert_eq!(ask(&bytes(sent::ARP_REQUEST)), Ok(bytes(expected)));

        let reply = ask(&edited(TARGET, &[10, 9, 9, 9])).expect("an answer");
        assert_eq!(reply[28..32], [10, 9, 9, 9]);
        assert_eq!(reply[22..28], GATEWAY.mac);
    }

    #[test]
    fn a_probe_for_another_address_is_told_that_it_is_taken() {
        let reply = ask(&edited(SENDER, &[0; 4])).expect("an answer");
        assert_eq!(reply[..6], POD_MAC);
        assert_eq!(reply[38..42], [0; 4]);
    }

    #[test]
    fn the_pod_keeps_its_own_address() {
        let announcement = edited(TARGET, &[10, 0, 0, 10]);
        let mut probe = announcement.clone();
        probe[SENDER..SENDER + 4].fill(0);
        for frame in [announcement, probe] {
            assert_eq!(ask(&frame), Err(DropReason::GatewayUnserved));
        }
    }

    #[test]
    fn only_requests_for_a_host_by_ethernet_are_answered() {
        for (at, with) in [
            (OPERATION, &[2][..]),
            (OPERATION, &[9]),
            (TARGET, &[0, 0, 0, 0]),
            (TARGET, &[127, 0, 0, 1]),
            (TARGET, &[224, 0, 0, 1]),
            (TARGET, &[255, 255, 255, 255]),
            (14, &[0, 6]),
            (16, &[0x86, 0xdd]),
            (19, &[3]),
        ] {
            assert_eq!(ask(&edited(at, with)), Err(DropReason::GatewayUnserved));
        }
    }

    #[test]
    fn nobody_else_may_be_the_sender() {
        for at in [6, SENDER_MAC] {
            let frame = edited(at, &[2, 0, 0, 0, 0, 11]);
            assert_eq!(ask(&frame), Err(DropReason::SpoofedMac));
        }
        let frame = edited(SENDER, &[10, 0, 0, 11]);
        assert_eq!(ask(&frame), Err(DropReason::SpoofedAddress));
    }

    #[test]
    fn what_is_cut_short_is_malformed() {
        let frame = bytes(sent::ARP_REQUEST);
        for len in 0..frame.len() {
            assert_eq!(ask(&frame[..len]), Err(DropReason::MalformedEthernet));
        }
        let lies = edited(18, &[200]);
        assert_eq!(ask(&lies), Err(DropReason::MalformedEthernet));
    }
}

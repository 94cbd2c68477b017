//! Neighbour discovery (RFC 4861): the gateway holds every address but the
//! pod's own, and is the pod's router.
//!
//! The pod's kernel also has a link-local address that nobody tells us of.
//! So any link-local source is taken, if the MAC is the pod's, and a
//! duplicate-address probe is answered only for the gateway's own address.

use std::net::{IpAddr, Ipv6Addr};

use smoltcp::{
    time::Duration,
    wire::{
        EthernetAddress, Icmpv6Message, Icmpv6Packet, NdiscNeighborFlags, NdiscRepr,
        NdiscRouterFlags,
    },
};
use weft_wire::{Mac, Packet, checksum, parse::Fragment, parse::src_mac, protocol};

use super::envelope::Envelope;
use crate::{DropReason, Gateway, Port};

const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
/// RFC 2464 section 7 over [`ALL_NODES`].
const ALL_NODES_MAC: Mac = [0x33, 0x33, 0, 0, 0, 1];
/// Neighbour discovery neither leaves nor enters a link (RFC 4861 section
/// 7.1.1), which this hop limit proves.
const ON_LINK: u8 = 255;
/// `AdvDefaultLifetime` (RFC 4861 section 6.2.1).
const ROUTER_LIFETIME: Duration = Duration::from_secs(1800);
/// `AdvCurHopLimit` (RFC 4861 section 6.2.1).
const HOP_LIMIT: u8 = 64;
const SOURCE_LINK_LAYER: u8 = 1;

/// Whether the packet is of neighbour discovery. Fragments never are (RFC
/// 6980).
pub fn is_ndp(packet: &Packet, frame: &[u8]) -> bool {
    !packet.is_v4()
        && packet.key.protocol == protocol::ICMPV6
        && packet.fragment == Fragment::Whole
        && Icmpv6Message::from(frame[packet.transport]).is_ndisc()
}

/// Answers the solicitation in `frame`, which came from `port`.
pub fn answer(
    frame: &[u8],
    packet: &Packet,
    gateway: &Gateway,
    port: &Port,
    reply: &mut Vec<u8>,
) -> Result<(), DropReason> {
    reply.clear();
    let IpAddr::V6(src) = packet.key.src else {
        return Err(DropReason::GatewayUnserved);
    };
    if !is_ndp(packet, frame) {
        return Err(DropReason::GatewayUnserved);
    }
    admit(frame, src, port)?;
    let message = Icmpv6Message::from(frame[packet.transport]);
    let fixed_len = match message {
        Icmpv6Message::NeighborSolicit => 24,
        // The node has its own routers, and would take the gateway for one.
        Icmpv6Message::RouterSolicit if port.host.is_none() => 8,
        _ => return Err(DropReason::GatewayUnserved),
    };
    let options = valid_options(frame, packet, fixed_len)?;
    match source_link_layer(options)? {
        Some(_) if src.is_unspecified() => return Err(DropReason::MalformedTransport),
        Some(address) if address != port.mac => return Err(DropReason::SpoofedMac),
        Some(_) | None => {}
    }
    let advertisement = match message {
        Icmpv6Message::RouterSolicit => router_advertisement(gateway, port),
        _ => neighbour_advertisement(frame, packet, gateway, port)?,
    };
    send(&advertisement, src, gateway, port, reply);
    Ok(())
}

fn admit(frame: &[u8], src: Ipv6Addr, port: &Port) -> Result<(), DropReason> {
    if src_mac(frame) != port.mac {
        return Err(DropReason::SpoofedMac);
    }
    let is_own = src.is_unspecified()
        || src.is_unicast_link_local()
        || port.addresses.contains(&IpAddr::V6(src));
    is_own.then_some(()).ok_or(DropReason::SpoofedAddress)
}

/// The options behind `fixed_len` bytes of a solicitation that passes the
/// checks of RFC 4861 sections 6.1.1 and 7.1.1.
fn valid_options<'a>(
    frame: &'a [u8],
    packet: &Packet,
    fixed_len: usize,
) -> Result<&'a [u8], DropReason> {
    let message = &frame[packet.transport..packet.end];
    let is_valid = packet.hop_limit == ON_LINK
        && message.len() >= fixed_len
        && message[1] == 0
        && checksum::verify(frame, packet);
    is_valid
        .then(|| &message[fixed_len..])
        .ok_or(DropReason::MalformedTransport)
}

fn source_link_layer(mut options: &[u8]) -> Result<Option<Mac>, DropReason> {
    let mut found = None;
    while !options.is_empty() {
        // Lengths count 8 bytes, the two of type and length included.
        let len = options.get(1).map_or(0, |&len| usize::from(len) * 8);
        if len == 0 || len > options.len() {
            return Err(DropReason::MalformedTransport);
        }
        if options[0] == SOURCE_LINK_LAYER {
            found = options[2..8].try_into().ok();
        }
        options = &options[len..];
    }
    Ok(found)
}

fn neighbour_advertisement(
    frame: &[u8],
    packet: &Packet,
    gateway: &Gateway,
    port: &Port,
) -> Result<NdiscRepr<'static>, DropReason> {
    let target = Icmpv6Packet::new_unchecked(&frame[packet.transport..packet.end]).target_addr();
    let IpAddr::V6(dst) = packet.key.dst else {
        return Err(DropReason::GatewayUnserved);
    };
    let is_probe = packet.key.src.is_unspecified();
    if target.is_multicast() || (is_probe && !is_solicited_node(dst)) {
        return Err(DropReason::MalformedTransport);
    }
    let is_held = match is_probe {
        true => target == gateway.v6,
        false => !target.is_unspecified() && !port.addresses.contains(&IpAddr::V6(target)),
    };
    if !is_held {
        return Err(DropReason::GatewayUnserved);
    }
    let mut flags = NdiscNeighborFlags::ROUTER | NdiscNeighborFlags::OVERRIDE;
    // An answer to all nodes is not solicited (RFC 4861 section 7.2.4).
    flags.set(NdiscNeighborFlags::SOLICITED, !is_probe);
    Ok(NdiscRepr::NeighborAdvert {
        flags,
        target_addr: target,
        lladdr: Some(EthernetAddress(gateway.mac).into()),
    })
}

/// Whether `address` lies in ff02::1:ff00:0/104 (RFC 4291 section 2.7.1).
fn is_solicited_node(address: Ipv6Addr) -> bool {
    matches!(
        address.segments(),
        [0xff02, 0, 0, 0, 0, 1, 0xff00..=0xffff, _]
    )
}

/// Names the gateway as default router and the link's MTU. There is no
/// prefix: pods get whole addresses, not the means to make some up.
fn router_advertisement(gateway: &Gateway, port: &Port) -> NdiscRepr<'static> {
    NdiscRepr::RouterAdvert {
        hop_limit: HOP_LIMIT,
        flags: NdiscRouterFlags::empty(),
        router_lifetime: ROUTER_LIFETIME,
        reachable_time: Duration::ZERO,
        retrans_time: Duration::ZERO,
        lladdr: Some(EthernetAddress(gateway.mac).into()),
        mtu: u32::try_from(port.mtu).ok(),
        prefix_info: None,
    }
}

fn send(
    advertisement: &NdiscRepr<'static>,
    asker: Ipv6Addr,
    gateway: &Gateway,
    port: &Port,
    reply: &mut Vec<u8>,
) {
    let (dst, dst_mac) = match asker.is_unspecified() {
        true => (ALL_NODES, ALL_NODES_MAC),
        false => (asker, port.mac),
    };
    let envelope = Envelope {
        dst_mac,
        src_mac: gateway.mac,
        src: gateway.v6.into(),
        dst: dst.into(),
        hop_limit: ON_LINK,
    };
    envelope.write(advertisement.buffer_len(), reply, |message| {
        advertisement.emit(&mut Icmpv6Packet::new_unchecked(message));
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gateway::tests::{GATEWAY, POD_MAC, POD_V6, bytes, mend, packet, port, sent, sound};

    const SRC: usize = 22;
    const DST: usize = 38;
    const TYPE: usize = 54;
    const CODE: usize = 55;
    const TARGET: usize = 62;
    const OPTION: usize = 78;

    fn ask(frame: &[u8]) -> Result<Vec<u8>, DropReason> {
        let mut reply = Vec::new();
        answer(frame, &packet(frame), &GATEWAY, &port(), &mut reply).map(|()| reply)
    }

    /// The frame with bytes replaced and its checksum right.
    fn edited(hex: &str, edits: &[(usize, &[u8])]) -> Vec<u8> {
        let mut frame = bytes(hex);
        for (at, with) in edits {
            frame[*at..at + with.len()].copy_from_slice(with);
        }
        mend(&mut frame);
        frame
    }

    fn advertisement(reply: &[u8]) -> NdiscRepr<'_> {
        let packet = sound(reply);
        assert_eq!(packet.hop_limit, ON_LINK);
        let message = Icmpv6Packet::new_checked(&reply[packet.transport..]).expect("ICMPv6");
        NdiscRepr::parse(&message).expect("neighbour discovery")
    }

    fn claim(target: Ipv6Addr, flags: NdiscNeighborFlags) -> NdiscRepr<'static> {
        NdiscRepr::NeighborAdvert {
            flags,
            target_addr: target,
            lladdr: Some(EthernetAddress(GATEWAY.mac).into()),
        }
    }

    #[test]
    fn a_solicitation_is_answered_for_every_other_address() {
        let reply = ask(&bytes(sent::SOLICITATION)).expect("an answer");
        let flags = NdiscNeighborFlags::all();
        assert_eq!(advertisement(&reply), claim(GATEWAY.v6, flags));
        assert_eq!(packet(&reply).key.dst, IpAddr::V6(POD_V6));
        assert_eq!(reply[..6], POD_MAC);
        assert_eq!(reply[6..12], GATEWAY.mac);

        let other: Ipv6Addr = "2001:db8::99".parse().expect("an address");
        let reply = ask(&edited(sent::SOLICITATION, &[(TARGET, &other.octets())]));
        assert_eq!(
            advertisement(&reply.expect("an answer")),
            claim(other, flags)
        );
    }

    #[test]
    fn the_pods_link_local_address_may_ask() {
        let link_local: Ipv6Addr = "fe80::ff:fe00:a".parse().expect("an address");
        let frame = edited(sent::SOLICITATION, &[(SRC, &link_local.octets())]);
        let reply = ask(&frame).expect("an answer");
        assert_eq!(packet(&reply).key.dst, IpAddr::V6(link_local));
    }

    #[test]
    fn probes_are_answered_only_for_the_gateways_address() {
        assert_eq!(ask(&bytes(sent::PROBE)), Err(DropReason::GatewayUnserved));
        let other = edited(sent::PROBE, &[(TARGET + 15, &[11])]);
        assert_eq!(ask(&other), Err(DropReason::GatewayUnserved));

        let frame = edited(sent::PROBE, &[(TARGET, &GATEWAY.v6.octets())]);
        let reply = ask(&frame).expect("a defence");
        let flags = NdiscNeighborFlags::ROUTER | NdiscNeighborFlags::OVERRIDE;
        assert_eq!(advertisement(&reply), claim(GATEWAY.v6, flags));
        assert_eq!(packet(&reply).key.dst, IpAddr::V6(ALL_NODES));
        assert_eq!(reply[..6], ALL_NODES_MAC);
    }

    #[test]
    fn the_pod_keeps_its_own_address() {
        let frame = edited(sent::SOLICITATION, &[(TARGET, &POD_V6.octets())]);
        assert_eq!(ask(&frame), Err(DropReason::GatewayUnserved));
    }

    #[test]
    fn a_router_solicitation_gets_the_router_and_the_mtu() {
        let reply = ask(&bytes(sent::ROUTER_SOLICITATION)).expect("an answer");
        let expected = NdiscRepr::RouterAdvert {
            hop_limit: 64,
            flags: NdiscRouterFlags::empty(),
            router_lifetime: Duration::from_secs(1800),
            reachable_time: Duration::ZERO,
            retrans_time: Duration::ZERO,
            lladdr: Some(EthernetAddress(GATEWAY.mac).into()),
            mtu: Some(1430),
            prefix_info: None,
        };
        assert_eq!(advertisement(&reply), expected);
        assert_eq!(packet(&reply).key.src, IpAddr::V6(GATEWAY.v6));
        assert_eq!(reply[..6], POD_MAC);
    }

    #[test]
    fn a_router_solicitation_from_nobody_is_answered_to_all() {
        // Without the option, which only a source may carry.
        let mut frame = bytes(sent::ROUTER_SOLICITATION);
        frame.truncate(OPTION - 16);
        frame[19] = 8;
        frame[SRC..DST].fill(0);
        mend(&mut frame);
        let reply = ask(&frame).expect("an answer");
        assert_eq!(packet(&reply).key.dst, IpAddr::V6(ALL_NODES));
        assert_eq!(reply[..6], ALL_NODES_MAC);
    }

    #[test]
    fn what_rfc_4861_says_is_invalid_is_refused() {
        let to_unicast = (DST, &GATEWAY.v6.octets()[..]);
        for (hex, edit) in [
            (sent::SOLICITATION, (21, &[254][..])),
            (sent::SOLICITATION, (CODE, &[1])),
            (sent::SOLICITATION, (TARGET, &[0xff])),
            (sent::SOLICITATION, (OPTION + 1, &[0])),
            (sent::SOLICITATION, (OPTION + 1, &[2])),
            (sent::SOLICITATION, (SRC, &[0; 16])),
            (sent::PROBE, to_unicast),
            (sent::ROUTER_SOLICITATION, (21, &[64])),
            (sent::ROUTER_SOLICITATION, (SRC, &[0; 16])),
        ] {
            let frame = edited(hex, &[edit]);
            assert_eq!(ask(&frame), Err(DropReason::MalformedTransport), "{edit:?}");
        }
        let mut frame = bytes(sent::SOLICITATION);
        frame[57] ^= 1;
        assert_eq!(ask(&frame), Err(DropReason::MalformedTransport));
        let mut frame = bytes(sent::SOLICITATION);
        frame[19] = 23;
        mend(&mut frame);
        assert_eq!(ask(&frame), Err(DropReason::MalformedTransport));
    }

    #[test]
    fn nobody_else_may_be_the_sender() {
        let other_mac: &[u8] = &[2, 0, 0, 0, 0, 11];
        for at in [6, OPTION + 2] {
            let frame = edited(sent::SOLICITATION, &[(at, other_mac)]);
            assert_eq!(ask(&frame), Err(DropReason::SpoofedMac));
        }
        let frame = edited(sent::SOLICITATION, &[(SRC + 15, &[11])]);
        assert_eq!(ask(&frame), Err(DropReason::SpoofedAddress));
    }

    #[test]
    fn what_only_routers_and_neighbours_say_is_not_served() {
        for kind in [134, 136, 137] {
            let frame = edited(sent::SOLICITATION, &[(TYPE, &[kind])]);
            assert!(is_ndp(&packet(&frame), &frame));
            assert_eq!(ask(&frame), Err(DropReason::GatewayUnserved));
        }
        let report = bytes(sent::LISTENER_REPORT);
        assert!(!is_ndp(&packet(&report), &report));
        assert_eq!(ask(&report), Err(DropReason::GatewayUnserved));
        let ping = bytes(sent::PING_V4);
        assert_eq!(ask(&ping), Err(DropReason::GatewayUnserved));
    }

    #[test]
    fn a_fragment_is_no_neighbour_discovery() {
        let mut frame = bytes(sent::SOLICITATION);
        frame.splice(TYPE..TYPE, [58, 0, 0, 1, 0, 0, 0, 1]);
        frame[20] = 44;
        frame[19] += 8;
        assert!(!is_ndp(&packet(&frame), &frame));
        assert_eq!(ask(&frame), Err(DropReason::GatewayUnserved));
    }
}

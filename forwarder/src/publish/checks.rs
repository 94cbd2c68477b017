//! What one record must satisfy by itself, whatever else is there. Each
//! check answers with what it was given, or says what is wrong with it.

use std::net::IpAddr;

use ipnet::IpNet;
use weft_api::{
    forwarder::{Attach, Code, Error, GATEWAY_MAC, GATEWAY_V4, GATEWAY_V6, Node, PortMapping, Way},
    names::Mac,
};

use super::{refusal, ways::is_l3};

/// Least MTU that IPv4 works with (RFC 791) and IPv6 (RFC 8200 section 5).
const MTU_MIN_V4: u16 = 68;
const MTU_MIN_V6: u16 = 1280;

pub fn attach(spec: &Attach) -> Result<(), Error> {
    let invalid = |problem: String, hint: &str| {
        refusal(
            Code::Invalid,
            format!("attach port {}: {problem}", spec.name),
            hint,
        )
    };
    unicast_mac(spec.mac).map_err(|problem| invalid(problem, "give the pod link's own MAC"))?;
    if spec.mac == GATEWAY_MAC {
        let problem = format!("{GATEWAY_MAC} is the gateway's MAC");
        return Err(invalid(problem, "give the pod another"));
    }
    if let Some(host) = &spec.host {
        let pools = host.pools.iter().try_for_each(block);
        pools.map_err(|problem| invalid(problem, "correct the pools"))?;
        if !spec.capabilities.is_plain() {
            let problem = "the host port has no capabilities".to_owned();
            return Err(invalid(problem, "leave them out"));
        }
    } else if spec.addresses.is_empty() {
        let problem = "it has no address, so it could neither send nor be sent to".to_owned();
        return Err(invalid(problem, "give at least one"));
    }
    for (place, &address) in spec.addresses.iter().enumerate() {
        pod_address(address)
            .map_err(|problem| invalid(problem, "give global unicast addresses only"))?;
        if spec.addresses[..place].contains(&address) {
            return Err(invalid(
                format!("{address} stands there twice"),
                "give it once",
            ));
        }
    }
    let v6 = spec.addresses.iter().any(IpAddr::is_ipv6);
    let least = if v6 { MTU_MIN_V6 } else { MTU_MIN_V4 };
    if spec.mtu < least {
        let problem = format!("MTU {} is below {least}", spec.mtu);
        return Err(invalid(problem, "IPv4 needs 68 bytes, IPv6 1280"));
    }
    let mappings = &spec.capabilities.port_mappings;
    if let Some((first, second)) = PortMapping::collision(mappings) {
        let [first, second] = [first, second].map(|place| mappings[place]);
        let problem = format!("port mappings {first} and {second} publish the same");
        return Err(invalid(problem, "publish it once"));
    }
    Ok(())
}

pub fn node(node: &Node) -> Result<(), Error> {
    let invalid = |problem: String, hint: &str| {
        refusal(
            Code::Invalid,
            format!("node {}: {problem}", node.name),
            hint,
        )
    };
    underlay(&node.underlay)
        .map_err(|problem| invalid(problem, "list the addresses that other nodes reach it by"))?;
    unicast_mac(node.vtep_mac)
        .map_err(|problem| invalid(problem, "give the MAC of the node's tunnel endpoint"))?;
    if node.port == 0 {
        return Err(invalid("port 0 is none".to_owned(), "give its VXLAN port"));
    }
    one_of_each_family(&node.tunnel)
        .and_then(|()| {
            node.tunnel
                .iter()
                .try_for_each(|&address| pod_address(address))
        })
        .map_err(|problem| invalid(problem, "correct the node's tunnel addresses"))?;
    for (place, net) in node.blocks.iter().enumerate() {
        block(net).map_err(|problem| invalid(problem, "correct the node's blocks"))?;
        if node.blocks[..place].contains(net) {
            return Err(invalid(
                format!("block {net} stands there twice"),
                "list it once",
            ));
        }
    }
    ways(node).map_err(|problem| invalid(problem, "correct the ways of the node's blocks"))
}

fn ways(node: &Node) -> Result<(), String> {
    let stray = |net: &&IpNet| !node.blocks.contains(net);
    if let Some(net) = node.ways.keys().find(stray) {
        return Err(format!("{net} has a way and is none of its blocks"));
    }
    let plain = |net: &&IpNet| node.ways.get(*net).is_none_or(|way| *way == Way::Vxlan);
    if is_l3(node)
        && let Some(net) = node.blocks.iter().find(plain)
    {
        return Err(format!(
            "{net} is behind vxlan and others are behind vxlan-l3"
        ));
    }
    let mut by_ipip = node.ways.iter().filter(|(_, way)| **way == Way::Ipip);
    match by_ipip.find(|(net, _)| matches!(net, IpNet::V6(_))) {
        Some((net, _)) => Err(format!("ipip carries IPv4 only, and {net} is IPv6")),
        None => Ok(()),
    }
}

/// At most one of each family, each one that a datagram can be sent to.
pub fn underlay(addresses: &[IpAddr]) -> Result<(), String> {
    one_of_each_family(addresses)?;
    addresses.iter().try_for_each(|&address| {
        let scoped = matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local());
        if scoped {
            return Err(format!(
                "{address} is link-local and means nothing without its link"
            ));
        }
        unicast(address)
    })
}

pub fn unicast_mac(mac: Mac) -> Result<Mac, String> {
    if mac.0[0] & 1 == 1 || mac.0 == [0; 6] {
        return Err(format!("{mac} is not a unicast MAC"));
    }
    Ok(mac)
}

fn pod_address(address: IpAddr) -> Result<(), String> {
    unicast(address)?;
    if address == IpAddr::V4(GATEWAY_V4) || address == IpAddr::V6(GATEWAY_V6) {
        return Err(format!("{address} is the gateway's"));
    }
    let link_local = match address {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    if link_local || address.is_loopback() {
        return Err(format!("{address} is not carried beyond its host"));
    }
    Ok(())
}

fn unicast(address: IpAddr) -> Result<(), String> {
    let mapped = matches!(address, IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some());
    if mapped {
        return Err(format!("{address} is an IPv4 address in IPv6 clothes"));
    }
    // 240.0.0.0/4, the limited broadcast in it: RFC 1112 section 4.
    let reserved = matches!(address, IpAddr::V4(v4) if v4.octets()[0] >= 240);
    if address.is_unspecified() || address.is_multicast() || reserved {
        return Err(format!("{address} is not a unicast address"));
    }
    Ok(())
}

pub fn block(net: &IpNet) -> Result<(), String> {
    let canonical = net.trunc();
    if *net != canonical {
        return Err(format!(
            "block {net} has bits set behind its length; write {canonical}"
        ));
    }
    let first = net.network();
    if first.is_multicast() || first.is_loopback() {
        return Err(format!("block {net} holds addresses that no pod can have"));
    }
    Ok(())
}

fn one_of_each_family(addresses: &[IpAddr]) -> Result<(), String> {
    for (place, address) in addresses.iter().enumerate() {
        let same = |earlier: &IpAddr| earlier.is_ipv4() == address.is_ipv4();
        if addresses[..place].iter().any(same) {
            return Err(format!("{address} is the second of its family"));
        }
    }
    Ok(())
}

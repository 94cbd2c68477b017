//! What an address, a block and a MAC have to be for a node to have them. A
//! problem is a sentence that names the value.

use std::net::IpAddr;

use ipnet::IpNet;

use super::{GATEWAY_V4, GATEWAY_V6};
use crate::names::Mac;

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

pub fn pod_address(address: IpAddr) -> Result<(), String> {
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

pub fn one_of_each_family(addresses: &[IpAddr]) -> Result<(), String> {
    for (place, address) in addresses.iter().enumerate() {
        let same = |earlier: &IpAddr| earlier.is_ipv4() == address.is_ipv4();
        if addresses[..place].iter().any(same) {
            return Err(format!("{address} is the second of its family"));
        }
    }
    Ok(())
}

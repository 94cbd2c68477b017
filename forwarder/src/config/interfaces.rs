//! What this machine's interfaces tell of its addresses.

use std::{io, net::IpAddr};

use ipnet::IpNet;
use nix::ifaddrs::getifaddrs;

/// The names of those that hold the addresses.
pub(super) fn interfaces_of(addresses: &[IpAddr]) -> io::Result<Vec<String>> {
    let holds = |storage: Option<nix::sys::socket::SockaddrStorage>| {
        let Some(storage) = storage else { return false };
        let v4 = storage.as_sockaddr_in().map(|a| IpAddr::from(a.ip()));
        let v6 = storage.as_sockaddr_in6().map(|a| IpAddr::from(a.ip()));
        v4.or(v6)
            .is_some_and(|address| addresses.contains(&address))
    };
    let found = getifaddrs()?
        .filter(|i| holds(i.address))
        .map(|i| i.interface_name);
    Ok(found.collect())
}

/// Each with the prefix that its interface has, or alone.
pub(super) fn subnets_of(addresses: &[IpAddr]) -> io::Result<Vec<IpNet>> {
    let ip = |storage: Option<nix::sys::socket::SockaddrStorage>| {
        let storage = storage?;
        let v4 = storage.as_sockaddr_in().map(|a| IpAddr::from(a.ip()));
        let v6 = storage.as_sockaddr_in6().map(|a| IpAddr::from(a.ip()));
        v4.or(v6)
    };
    let found: Vec<_> = getifaddrs()?
        .filter_map(|one| IpNet::with_netmask(ip(one.address)?, ip(one.netmask)?).ok())
        .collect();
    let subnet = |address: &IpAddr| {
        let known = found.iter().find(|net| net.addr() == *address);
        known.copied().unwrap_or_else(|| IpNet::from(*address))
    };
    Ok(addresses.iter().map(subnet).collect())
}

//! What is put on a link: its settings, addresses, routes and neighbours. What
//! is there already stays.

use std::{fs, net::IpAddr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use nix::errno::Errno;
use weft_api::forwarder::{GATEWAY_MAC, GATEWAY_V4, GATEWAY_V6};

use super::{ALIAS, LinkError, Role, Wiring};
use crate::netlink::{LinkChange, Netlink, NetlinkError, Route};

const GATEWAYS: [IpAddr; 2] = [IpAddr::V4(GATEWAY_V4), IpAddr::V6(GATEWAY_V6)];

/// To be called inside the link's namespace.
pub(super) fn set_up(netlink: &Netlink, index: u32, wiring: &Wiring) -> Result<(), LinkError> {
    let up = LinkChange {
        up: true,
        ..LinkChange::default()
    };
    let is_pod = wiring.role == Role::Pod;
    if is_pod && let Some(loopback) = netlink.index("lo")? {
        netlink.change(loopback, &up)?;
    }
    let own = LinkChange {
        mac: Some(wiring.mac),
        mtu: Some(wiring.mtu),
        alias: Some(ALIAS),
        gso: wiring.gso,
        // The node speaks from addresses that others can answer.
        no_link_local: !is_pod,
        ..up
    };
    netlink.change(index, &own)?;
    let behind = behind(wiring);
    let addresses = wiring.addresses.iter();
    let mut used = addresses.copied().chain(behind.iter().map(IpNet::addr));
    if used.any(|address| address.is_ipv6()) {
        let links: &[&str] = if is_pod {
            &["lo", &wiring.interface]
        } else {
            &[&wiring.interface]
        };
        enable_ipv6(links);
    }
    for &address in &wiring.addresses {
        netlink.add_address(index, IpNet::from(address))?;
    }
    let wait = || {
        let mut addresses = wiring.addresses.iter();
        addresses.try_for_each(|&address| netlink.wait_for_address(address))
    };
    if !is_pod {
        // The source of a route has to be in use.
        wait()?;
    }
    for gateway in GATEWAYS {
        route_by(netlink, index, gateway, &behind, wiring)?;
    }
    Ok(wait()?)
}

/// Whether nothing is missing of the link's addresses and routes.
pub(super) fn has_all(
    netlink: &Netlink,
    index: u32,
    wiring: &Wiring,
) -> Result<bool, NetlinkError> {
    let addresses = netlink.addresses(index)?;
    let routes = netlink.routes_by(index)?;
    let behind = behind(wiring);
    let mut wanted = wiring.addresses.iter().copied().map(IpNet::from);
    let has_v4 = behind.iter().any(|net| net.addr().is_ipv4());
    let gateway = has_v4.then(|| IpNet::from(IpAddr::V4(GATEWAY_V4)));
    let mut ways = behind.iter().chain(&gateway);
    Ok(wanted.all(|address| addresses.contains(&address)) && ways.all(|net| routes.contains(net)))
}

/// What is reached by the link.
fn behind(wiring: &Wiring) -> Vec<IpNet> {
    let has = |v4| {
        wiring
            .addresses
            .iter()
            .any(|address| address.is_ipv4() == v4)
    };
    let all: [IpNet; 2] = [Ipv4Net::default().into(), Ipv6Net::default().into()];
    match &wiring.role {
        Role::Pod => all
            .into_iter()
            .filter(|all| has(all.addr().is_ipv4()))
            .collect(),
        Role::Host { pools, .. } => pools.clone(),
    }
}

/// Sends what of the gateway's family lies behind the link to the gateway,
/// whose place on the link needs no asking.
fn route_by(
    netlink: &Netlink,
    index: u32,
    gateway: IpAddr,
    behind: &[IpNet],
    wiring: &Wiring,
) -> Result<(), LinkError> {
    let same_family = |address: IpAddr| address.is_ipv4() == gateway.is_ipv4();
    let behind: Vec<_> = behind
        .iter()
        .filter(|net| same_family(net.addr()))
        .collect();
    if behind.is_empty() {
        return Ok(());
    }
    let is_host = wiring.role != Role::Pod;
    let there = if is_host {
        netlink.routes_by(index)?
    } else {
        Vec::new()
    };
    // Every IPv6 link of a pod has a route to link-local addresses.
    let own = gateway.is_ipv4().then(|| (IpNet::from(gateway), None));
    let others: &[IpAddr] = match &wiring.role {
        Role::Pod => &[],
        Role::Host { sources, .. } => sources,
    };
    let mut sources = wiring.addresses.iter().chain(others).copied();
    let src = sources.find(|a| same_family(*a));
    for (to, via) in own
        .into_iter()
        .chain(behind.into_iter().map(|net| (*net, Some(gateway))))
    {
        if there.contains(&to) {
            continue;
        }
        let added = netlink.add_route(&Route {
            to,
            index,
            via,
            onlink: is_host && via.is_some(),
            src: src.filter(|_| is_host && via.is_some()),
        });
        match added {
            Err(error) if is_host && error.is(Errno::EEXIST) => {
                let interface = wiring.interface.clone();
                return Err(LinkError::RouteTaken { to, interface });
            }
            added => added?,
        }
    }
    Ok(netlink.add_neighbour(index, gateway, GATEWAY_MAC)?)
}

/// Some runtimes start pods with IPv6 off. Where this cannot turn it on, the
/// kernel refuses the address and the caller hears of it.
fn enable_ipv6(links: &[&str]) {
    for link in links {
        let path = format!("/proc/sys/net/ipv6/conf/{link}/disable_ipv6");
        if fs::read(&path).is_ok_and(|state| state.starts_with(b"1")) {
            let _ = fs::write(&path, "0");
        }
    }
}

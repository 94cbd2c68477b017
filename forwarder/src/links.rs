//! Which links of this thread's network namespace hold which addresses.

use std::{io, net::IpAddr};

use ipnet::IpNet;
use nix::{ifaddrs::getifaddrs, sys::socket::SockaddrStorage};

use crate::sys;

/// An address and the link that holds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    pub link: String,
    /// The address, with its prefix's length.
    pub net: IpNet,
}

pub fn held() -> io::Result<Vec<Held>> {
    let found = getifaddrs()?.filter_map(|one| {
        let address = ip(one.address?)?;
        let mask = one.netmask.and_then(ip);
        let net = mask.and_then(|mask| IpNet::with_netmask(address, mask).ok());
        Some(Held {
            link: unlabelled(&one.interface_name).to_owned(),
            net: net.unwrap_or_else(|| IpNet::from(address)),
        })
    });
    Ok(found.collect())
}

/// Each with the prefix that its link has, or alone.
pub fn subnets_of(addresses: &[IpAddr]) -> io::Result<Vec<IpNet>> {
    let held = held()?;
    let subnet = |address: &IpAddr| {
        let known = held.iter().find(|held| held.net.addr() == *address);
        known.map_or_else(|| IpNet::from(*address), |held| held.net)
    };
    Ok(addresses.iter().map(subnet).collect())
}

/// The least MTU among the links that hold any of the addresses.
pub fn mtu_of(addresses: &[IpAddr]) -> io::Result<Option<u16>> {
    let held = held()?;
    let holds = |held: &&Held| addresses.contains(&held.net.addr());
    let mtus = held.iter().filter(holds);
    Ok(mtus
        .filter_map(|held| sys::link::mtu(&held.link).ok())
        .min())
}

fn ip(storage: SockaddrStorage) -> Option<IpAddr> {
    let v4 = storage.as_sockaddr_in().map(|a| IpAddr::from(a.ip()));
    v4.or(storage.as_sockaddr_in6().map(|a| IpAddr::from(a.ip())))
}

/// An address may bear a label, as eth0:1, which is told for the link's name.
/// Names themselves have no colon (dev_valid_name).
fn unlabelled(name: &str) -> &str {
    name.split_once(':').map_or(name, |(link, _)| link)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_is_no_link() {
        assert_eq!(unlabelled("eth0:1"), "eth0");
        assert_eq!(unlabelled("eth0.7"), "eth0.7");
    }
}

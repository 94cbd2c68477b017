//! The prefixes of the node's own addresses.

use std::{io, net::IpAddr};

use ipnet::IpNet;

use crate::links;

/// Each with the prefix that its interface has, or alone.
pub(super) fn subnets_of(addresses: &[IpAddr]) -> io::Result<Vec<IpNet>> {
    let held = links::held()?;
    let subnet = |address: &IpAddr| {
        let known = held.iter().find(|held| held.net.addr() == *address);
        known.map_or_else(|| IpNet::from(*address), |held| held.net)
    };
    Ok(addresses.iter().map(subnet).collect())
}

//! Where the underlay's addresses are, seen from this network namespace.

use std::net::IpAddr;

use anyhow::Context;
use weft_forwarder::links;

#[derive(Debug)]
pub struct Underlay {
    /// What a link here holds.
    pub addresses: Vec<IpAddr>,
    pub links: Vec<String>,
    elsewhere: Vec<IpAddr>,
}

impl Underlay {
    pub fn look(underlay: &[IpAddr]) -> anyhow::Result<Self> {
        let held = links::held().context("look at the addresses of this node's links")?;
        let is_here = |address: &IpAddr| held.iter().any(|held| held.net.addr() == *address);
        let (addresses, elsewhere) = underlay.iter().partition(|address| is_here(address));
        let carries = held
            .iter()
            .filter(|held| underlay.contains(&held.net.addr()));
        let mut links: Vec<_> = carries.map(|held| held.link.clone()).collect();
        links.sort_unstable();
        links.dedup();
        Ok(Self {
            addresses,
            links,
            elsewhere,
        })
    }

    /// A warning for each address that is not here.
    pub fn missing(&self) -> String {
        let warning = |address: &IpAddr| {
            format!(
                "warn: no link here holds {address} of the underlay\n  \
                 so: its link is left as it is, and may not forward\n  \
                 do: run weft host up in the node's network namespace\n"
            )
        };
        self.elsewhere.iter().map(warning).collect()
    }
}

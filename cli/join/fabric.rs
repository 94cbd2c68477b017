//! The kernel's routes to blocks that are reached without a tunnel: a peer on
//! one of this node's links is the gateway of its own. For others the fabric's
//! owner tells the kernel. What is lent out of such a block, to this node or to
//! one behind a tunnel, is by weft0 again.
//!
//! Invariant: only routes with [`PROTOCOL`] are changed or removed, and they
//! stay when the command ends, as the forwarder's nodes do.

use std::{collections::BTreeMap, net::IpAddr};

use anyhow::ensure;
use ipnet::IpNet;
use nix::errno::Errno;
use weft_api::forwarder::{GATEWAY_V4, GATEWAY_V6, HOST_LINK, Node, Nodes, PortState, Way};
use weft_cni::{
    forwarder::Client,
    netlink::{Hop, LinkState, Netlink, NetlinkError},
};

/// By which address each net is reached.
pub type Gateways = BTreeMap<IpNet, IpAddr>;

/// The mark of routes that were made here (`rtm_protocol` of rtnetlink(7)):
/// none of /etc/iproute2/rt_protos.
const PROTOCOL: u8 = 87;

const RIGHT: &str = "run weft join with CAP_NET_ADMIN";
const NO_HOST_LINK: &str = "weft0, by which plain packets leave and come, is not up in this \
                            network namespace; run weft host up here";

#[derive(Debug)]
pub struct Fabric {
    netlink: Netlink,
    /// Whether there may be routes of ours, if of an earlier run.
    laid: bool,
}

/// That blocks can be reached without a tunnel: weft0 is here, and routes may
/// be made.
pub fn check(forwarder: &mut Client) -> anyhow::Result<()> {
    let netlink = Netlink::open()?;
    let mut ports = forwarder.ports()?.into_iter();
    let has_port = ports.any(|port| port.host.is_some() && port.state == PortState::Up);
    ensure!(has_port && host_link(&netlink)?.is_some(), "{NO_HOST_LINK}");
    // The kernel looks at the rights first (rtnetlink_rcv_msg).
    let nobody = IpAddr::from([255; 4]);
    let nowhere = Hop::new(IpNet::from(nobody), nobody, 1, PROTOCOL);
    let removed = netlink.remove_hop(&nowhere);
    let may = !removed.is_err_and(|error| error.is(Errno::EPERM));
    ensure!(
        may,
        "this process may not make routes in this network namespace; {RIGHT}"
    );
    Ok(())
}

/// weft0's index, if it is up.
fn host_link(netlink: &Netlink) -> Result<Option<u32>, NetlinkError> {
    let link = netlink.link(HOST_LINK)?;
    Ok(link
        .filter(|link| link.up)
        .map(|LinkState { index, .. }| index))
}

/// Whether a link of this node reaches the address without a gateway. What
/// cannot be asked is no.
pub fn is_near(netlink: &Netlink, address: IpAddr) -> bool {
    match netlink.link_to(address) {
        Ok(link) => link.is_some(),
        Err(error) => {
            tracing::warn!(%address, %error, "it is taken for one behind a gateway");
            false
        }
    }
}

/// The peers' blocks without a tunnel by the peers, and by weft0 what lies in
/// one of them and is elsewhere: the longer prefix wins.
pub fn gateways(Nodes { node: own, peers }: &Nodes) -> Gateways {
    let mut direct = Gateways::new();
    let mut others: Vec<_> = own.blocks.iter().collect();
    for peer in peers {
        for block in &peer.blocks {
            match peer.ways.get(block) {
                Some(Way::Direct) => direct.extend(Some(*block).zip(gateway(peer, block))),
                _ => others.push(block),
            }
        }
    }
    let inside = |block: &&IpNet| {
        let mut around = std::iter::successors(block.supernet(), IpNet::supernet);
        around.any(|net| direct.contains_key(&net))
    };
    let by_weft0: Vec<_> = others.into_iter().filter(inside).collect();
    direct.extend(by_weft0.into_iter().map(|block| (*block, weft0(block))));
    direct
}

fn gateway(peer: &Node, block: &IpNet) -> Option<IpAddr> {
    let mut underlay = peer.underlay.iter().copied();
    underlay.find(|via| via.is_ipv4() == block.addr().is_ipv4())
}

/// The gateway behind weft0.
fn weft0(to: &IpNet) -> IpAddr {
    match to {
        IpNet::V4(_) => GATEWAY_V4.into(),
        IpNet::V6(_) => GATEWAY_V6.into(),
    }
}

impl Fabric {
    pub fn open() -> Result<Self, NetlinkError> {
        Ok(Self {
            netlink: Netlink::open()?,
            laid: true,
        })
    }

    /// Sees that there are these routes, as far as links reach. Returns what is
    /// wrong.
    pub fn lay(&mut self, gateways: &Gateways) -> Vec<String> {
        if gateways.is_empty() {
            return Vec::new();
        }
        self.laid = true;
        self.try_lay(gateways)
            .unwrap_or_else(|error| vec![remedied(&error)])
    }

    fn try_lay(&self, gateways: &Gateways) -> Result<Vec<String>, NetlinkError> {
        let mut wrong = Vec::new();
        let host_link = host_link(&self.netlink)?;
        if host_link.is_none() {
            wrong.push(NO_HOST_LINK.to_owned());
        }
        let mut there = BTreeMap::<IpNet, Vec<Hop>>::new();
        for hop in self.netlink.hops()? {
            there.entry(hop.to).or_default().push(hop);
        }
        for (&to, &via) in gateways {
            let there = there.get(&to).map_or(&[][..], Vec::as_slice);
            // Of equal ones the kernel names the one that counts first.
            let used = there.iter().min_by_key(|hop| hop.metric);
            // Whoever made it, it is good.
            if used.is_some_and(|used| used.via == Some(via)) {
                continue;
            }
            let link = match via == weft0(&to) {
                true => host_link,
                false => self.netlink.link_to(via)?,
            };
            let Some(link) = link else {
                continue;
            };
            let hop = Hop::new(to, via, link, PROTOCOL);
            let beats = |used: &Hop| used.protocol != PROTOCOL && used.metric <= hop.metric;
            if used.is_some_and(beats) {
                wrong.push(taken(to, via));
                continue;
            }
            let ours = there.iter().any(|hop| hop.protocol == PROTOCOL);
            wrong.extend(self.put(&hop, via, ours).err());
        }
        Ok(wrong)
    }

    /// `ours`: in place of one of ours.
    fn put(&self, hop: &Hop, via: IpAddr, ours: bool) -> Result<(), String> {
        let put = match ours {
            true => self.netlink.replace_hop(hop),
            false => self.netlink.add_hop(hop),
        };
        put.map_err(|error| match error.is(Errno::EEXIST) {
            true => taken(hop.to, via),
            false => remedied(&error),
        })
    }

    /// Removes all routes of ours but these. Returns what is wrong.
    pub fn lift(&mut self, gateways: &Gateways) -> Vec<String> {
        if !self.laid {
            return Vec::new();
        }
        let hops = match self.netlink.hops() {
            Ok(hops) => hops,
            Err(error) => return vec![remedied(&error)],
        };
        let mut wrong = Vec::new();
        let ours = hops.iter().filter(|hop| hop.protocol == PROTOCOL);
        for hop in ours.filter(|hop| hop.via.is_none() || gateways.get(&hop.to) != hop.via.as_ref())
        {
            match self.netlink.remove_hop(hop) {
                Err(error) if !error.is(Errno::ESRCH) => wrong.push(remedied(&error)),
                _ => {}
            }
        }
        self.laid = !(gateways.is_empty() && wrong.is_empty());
        wrong
    }
}

fn taken(to: IpNet, via: IpAddr) -> String {
    format!(
        "{to} has another route than via {via}; delete it (ip route del {to}), and weft makes \
         that one"
    )
}

fn remedied(error: &NetlinkError) -> String {
    match error.is(Errno::EPERM) {
        true => format!("{error}; {RIGHT}"),
        false => format!("{error}; it is tried again"),
    }
}

#[cfg(test)]
mod tests;

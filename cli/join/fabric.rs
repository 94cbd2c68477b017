//! The kernel's routes to blocks that are reached without a tunnel: a peer on
//! one of this node's links is the gateway of its own. For others the fabric's
//! owner tells the kernel.
//!
//! Invariant: only routes with [`PROTOCOL`] are changed or removed, and they
//! stay when the command ends, as the forwarder's nodes do.

use std::{collections::BTreeMap, net::IpAddr};

use anyhow::ensure;
use ipnet::IpNet;
use nix::errno::Errno;
use weft_api::forwarder::{HOST_LINK, Node, PortState, Way};
use weft_cni::{
    forwarder::Client,
    netlink::{Hop, Netlink, NetlinkError},
};

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
    ensure!(has_port && host_link_is_up(&netlink)?, "{NO_HOST_LINK}");
    // The kernel looks at the rights first (rtnetlink_rcv_msg).
    let nowhere = Hop {
        to: IpNet::from(IpAddr::from([255; 4])),
        via: IpAddr::from([255; 4]),
        link: 1,
        protocol: PROTOCOL,
    };
    let removed = netlink.remove_hop(&nowhere);
    let may = !removed.is_err_and(|error| error.is(Errno::EPERM));
    ensure!(
        may,
        "this process may not make routes in this network namespace; {RIGHT}"
    );
    Ok(())
}

fn host_link_is_up(netlink: &Netlink) -> Result<bool, NetlinkError> {
    Ok(netlink.link(HOST_LINK)?.is_some_and(|link| link.up))
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

/// What of the peers' is reached without a tunnel, and by which address.
pub fn direct(peers: &[Node]) -> BTreeMap<IpNet, IpAddr> {
    let mut direct = BTreeMap::new();
    for peer in peers {
        let blocks = peer.ways.iter().filter(|(_, way)| **way == Way::Direct);
        direct.extend(blocks.filter_map(|(block, _)| {
            let same_family = |via: &&IpAddr| via.is_ipv4() == block.addr().is_ipv4();
            Some((*block, *peer.underlay.iter().find(same_family)?))
        }));
    }
    direct
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
    pub fn lay(&mut self, direct: &BTreeMap<IpNet, IpAddr>) -> Vec<String> {
        if direct.is_empty() {
            return Vec::new();
        }
        self.laid = true;
        self.try_lay(direct)
            .unwrap_or_else(|error| vec![error.to_string()])
    }

    fn try_lay(&self, direct: &BTreeMap<IpNet, IpAddr>) -> Result<Vec<String>, NetlinkError> {
        let mut wrong = Vec::new();
        if !host_link_is_up(&self.netlink)? {
            wrong.push(NO_HOST_LINK.to_owned());
        }
        let mut there = BTreeMap::<IpNet, Vec<Hop>>::new();
        for hop in self.netlink.hops()? {
            there.entry(hop.to).or_default().push(hop);
        }
        for (&to, &via) in direct {
            let there = there.get(&to).map_or(&[][..], Vec::as_slice);
            // Whoever made it, it is good.
            if there.iter().any(|hop| hop.via == via) {
                continue;
            }
            let Some(link) = self.netlink.link_to(via)? else {
                continue;
            };
            let hop = Hop {
                to,
                via,
                link,
                protocol: PROTOCOL,
            };
            let ours = there.iter().any(|hop| hop.protocol == PROTOCOL);
            wrong.extend(self.put(&hop, ours).err());
        }
        Ok(wrong)
    }

    /// `ours`: in place of one of ours.
    fn put(&self, hop: &Hop, ours: bool) -> Result<(), String> {
        let put = match ours {
            true => self.netlink.replace_hop(hop),
            false => self.netlink.add_hop(hop),
        };
        put.map_err(|error| match hop {
            Hop { to, via, .. } if error.is(Errno::EEXIST) => format!(
                "{to} has another route than via {via}; delete it (ip route del {to}), and weft \
                 makes that one"
            ),
            _ if error.is(Errno::EPERM) => format!("{error}; {RIGHT}"),
            _ => error.to_string(),
        })
    }

    /// Removes all routes of ours but these. Returns what is wrong.
    pub fn lift(&mut self, direct: &BTreeMap<IpNet, IpAddr>) -> Vec<String> {
        if !self.laid {
            return Vec::new();
        }
        let hops = match self.netlink.hops() {
            Ok(hops) => hops,
            Err(error) => return vec![error.to_string()],
        };
        let mut wrong = Vec::new();
        let ours = hops.iter().filter(|hop| hop.protocol == PROTOCOL);
        for hop in ours.filter(|hop| direct.get(&hop.to) != Some(&hop.via)) {
            match self.netlink.remove_hop(hop) {
                Err(error) if !error.is(Errno::ESRCH) => wrong.push(format!("{error}; {RIGHT}")),
                _ => {}
            }
        }
        self.laid = !(direct.is_empty() && wrong.is_empty());
        wrong
    }
}

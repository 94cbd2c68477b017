//! What the kernel holds of a link, for whoever compares.

use std::net::IpAddr;

use futures_util::TryStreamExt;
use ipnet::IpNet;
use nix::errno::Errno;
use rtnetlink::packet_route::{
    address::AddressAttribute,
    link::{InfoKind, LinkAttribute, LinkFlags, LinkInfo},
    route::{RouteAddress, RouteAttribute, RouteMessage},
};
use weft_api::names::Mac;

use super::{Netlink, NetlinkError};

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinkState {
    pub index: u32,
    pub mac: Option<Mac>,
    pub mtu: Option<u32>,
    pub alias: Option<String>,
    /// A tun or tap: it lives as long as somebody holds its fds.
    pub tap: bool,
    pub up: bool,
}

impl Netlink {
    pub fn link(&self, name: &str) -> Result<Option<LinkState>, NetlinkError> {
        let get = self.handle.link().get().match_name(name).execute();
        let found = self.ask(format!("look at link {name}"), async move {
            std::pin::pin!(get).try_next().await
        });
        let link = match found {
            Ok(Some(link)) => link,
            Ok(None) => return Ok(None),
            Err(error) if error.is(Errno::ENODEV) => return Ok(None),
            Err(error) => return Err(error),
        };
        let mut state = LinkState {
            index: link.header.index,
            mac: None,
            mtu: None,
            alias: None,
            tap: false,
            up: link.header.flags.contains(LinkFlags::Up),
        };
        for attribute in link.attributes {
            match attribute {
                LinkAttribute::Address(bytes) => state.mac = bytes.try_into().ok().map(Mac),
                LinkAttribute::Mtu(mtu) => state.mtu = Some(mtu),
                LinkAttribute::IfAlias(alias) => state.alias = Some(alias),
                LinkAttribute::LinkInfo(info) => {
                    state.tap = info.contains(&LinkInfo::Kind(InfoKind::Tun));
                }
                _ => {}
            }
        }
        Ok(Some(state))
    }

    pub fn addresses(&self, index: u32) -> Result<Vec<IpNet>, NetlinkError> {
        let get = self.handle.address().get();
        let get = get.set_link_index_filter(index).execute();
        let messages: Vec<_> = self.ask(format!("list the addresses of link {index}"), async {
            get.try_collect().await
        })?;
        let address = |message: &rtnetlink::packet_route::address::AddressMessage| {
            let prefix = message.header.prefix_len;
            message
                .attributes
                .iter()
                .find_map(|attribute| match attribute {
                    AddressAttribute::Address(address) => IpNet::new(*address, prefix).ok(),
                    _ => None,
                })
        };
        Ok(messages.iter().filter_map(address).collect())
    }

    /// Where the link's default routes of both families lead.
    pub fn default_gateways(&self, index: u32) -> Result<Vec<IpAddr>, NetlinkError> {
        let routes = self.routes()?;
        let gateways = routes.iter().filter_map(|route| default_by(route, index));
        Ok(gateways.collect())
    }
}

fn default_by(route: &RouteMessage, index: u32) -> Option<IpAddr> {
    if route.header.destination_prefix_length != 0 {
        return None;
    }
    let mut gateway = None;
    let mut here = false;
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::Gateway(RouteAddress::Inet(v4)) => gateway = Some(IpAddr::V4(*v4)),
            RouteAttribute::Gateway(RouteAddress::Inet6(v6)) => gateway = Some(IpAddr::V6(*v6)),
            RouteAttribute::Oif(link) => here = *link == index,
            _ => {}
        }
    }
    gateway.filter(|_| here)
}

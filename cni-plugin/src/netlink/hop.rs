//! Routes that lead by another node, and how an address is reached.

use std::net::IpAddr;

use futures_util::TryStreamExt;
use ipnet::IpNet;
use rtnetlink::{
    RouteMessageBuilder,
    packet_route::route::{
        RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteType,
    },
};

use super::{Netlink, NetlinkError};

/// A route of the main table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hop {
    pub to: IpNet,
    /// None: it has no gateway, or several.
    pub via: Option<IpAddr>,
    pub link: Option<u32>,
    /// Of a net's routes the one with the lowest counts.
    pub metric: u32,
    /// Who made it (`ip route` shows it as `proto`).
    pub protocol: u8,
}

impl Hop {
    /// With the metric that the kernel gives where nobody names one
    /// (`IP6_RT_PRIO_USER` of net/ip6_route.h).
    pub fn new(to: IpNet, via: IpAddr, link: u32, protocol: u8) -> Self {
        Self {
            to,
            via: Some(via),
            link: Some(link),
            metric: if to.addr().is_ipv4() { 0 } else { 1024 },
            protocol,
        }
    }
}

impl Netlink {
    /// The link that reaches the address without a gateway. None: it is this
    /// node's own, or behind a gateway, or the kernel has no way to it.
    pub fn link_to(&self, address: IpAddr) -> Result<Option<u32>, NetlinkError> {
        let route = match self.way_to(address) {
            Err(NetlinkError::Refused { .. }) | Ok(None) => return Ok(None),
            Ok(Some(route)) if route.header.kind != RouteType::Unicast => return Ok(None),
            Ok(Some(route)) => route,
            Err(error) => return Err(error),
        };
        let mut link = None;
        for attribute in &route.attributes {
            match attribute {
                RouteAttribute::Oif(index) => link = Some(*index),
                RouteAttribute::Gateway(_)
                | RouteAttribute::Via(_)
                | RouteAttribute::MultiPath(_) => return Ok(None),
                _ => {}
            }
        }
        Ok(link)
    }

    /// The route that a packet to the address would take.
    pub(super) fn way_to(&self, address: IpAddr) -> Result<Option<RouteMessage>, NetlinkError> {
        let request = format!("ask for the way to {address}");
        let all = if address.is_ipv4() { 32 } else { 128 };
        let message = RouteMessageBuilder::<IpAddr>::new().destination_prefix(address, all);
        let message = message.map_err(|error| NetlinkError::Confused {
            request: request.clone(),
            answer: error.to_string(),
        })?;
        let get = self.handle.route().get(message.build()).execute();
        self.ask(request, async move { std::pin::pin!(get).try_next().await })
    }

    pub fn hops(&self) -> Result<Vec<Hop>, NetlinkError> {
        Ok(self.routes()?.iter().filter_map(hop).collect())
    }

    /// EEXIST: the net has a route already.
    pub fn add_hop(&self, hop: &Hop) -> Result<(), NetlinkError> {
        let add = self.handle.route().add(message("add", hop)?);
        self.ask(told("add", hop), add.execute())
    }

    /// In place of the one that the net has, in one step.
    pub fn replace_hop(&self, hop: &Hop) -> Result<(), NetlinkError> {
        let replace = self.handle.route().add(message("replace", hop)?);
        self.ask(told("replace", hop), replace.replace().execute())
    }

    /// ESRCH: there is none.
    pub fn remove_hop(&self, hop: &Hop) -> Result<(), NetlinkError> {
        let remove = self.handle.route().del(message("remove", hop)?);
        self.ask(told("remove", hop), remove.execute())
    }
}

fn told(verb: &str, hop: &Hop) -> String {
    let via = hop.via.map(|via| format!(" via {via}")).unwrap_or_default();
    let link = hop.link.map(|link| format!(" on link {link}"));
    format!("{verb} route {}{via}{}", hop.to, link.unwrap_or_default())
}

fn message(verb: &str, hop: &Hop) -> Result<RouteMessage, NetlinkError> {
    let message = RouteMessageBuilder::<IpAddr>::new()
        .protocol(RouteProtocol::from(hop.protocol))
        .priority(hop.metric)
        .destination_prefix(hop.to.addr(), hop.to.prefix_len())
        .and_then(|message| match hop.via {
            Some(via) => message.gateway(via),
            None => Ok(message),
        });
    let message = message.map_err(|error| NetlinkError::Confused {
        request: told(verb, hop),
        answer: error.to_string(),
    })?;
    Ok(match hop.link {
        Some(link) => message.output_interface(link).build(),
        None => message.build(),
    })
}

fn hop(route: &RouteMessage) -> Option<Hop> {
    let (mut to, mut via, mut link, mut metric) = (None, None, None, 0);
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::Destination(address) => to = ip(address),
            RouteAttribute::Gateway(address) => via = ip(address),
            RouteAttribute::Oif(index) => link = Some(*index),
            RouteAttribute::Priority(priority) => metric = *priority,
            _ => {}
        }
    }
    let main = route.header.table == RouteHeader::RT_TABLE_MAIN;
    let to = IpNet::new(to?, route.header.destination_prefix_length).ok()?;
    Some(Hop {
        to,
        via,
        link,
        metric,
        protocol: route.header.protocol.into(),
    })
    .filter(|_| main)
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(v4) => Some(IpAddr::V4(*v4)),
        RouteAddress::Inet6(v6) => Some(IpAddr::V6(*v6)),
        _ => None,
    }
}

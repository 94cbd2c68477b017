//! Routes of a link.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use futures_util::TryStreamExt;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use rtnetlink::{
    RouteMessageBuilder,
    packet_route::route::{RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteScope},
};

use super::{Netlink, NetlinkError};

#[derive(Debug, Clone)]
pub struct Route {
    pub to: IpNet,
    pub index: u32,
    pub via: Option<IpAddr>,
    /// Take the gateway as reachable, whatever the other routes say.
    pub onlink: bool,
    /// Whom packets come from that name no source themselves.
    pub src: Option<IpAddr>,
}

impl Netlink {
    pub fn add_route(&self, route: &Route) -> Result<(), NetlinkError> {
        let message = match route.to {
            IpNet::V4(to) => v4(to, route),
            IpNet::V6(to) => v6(to, route),
        };
        let request = match route.via {
            Some(via) => format!("add route {} via {via} on link {}", route.to, route.index),
            None => format!("add route {} on link {}", route.to, route.index),
        };
        self.ask(request, self.handle.route().add(message).execute())
    }

    /// What the main table sends out by the link.
    pub fn routes_by(&self, index: u32) -> Result<Vec<IpNet>, NetlinkError> {
        let routes = self.routes()?;
        Ok(routes.iter().filter_map(|route| to(route, index)).collect())
    }

    pub(super) fn routes(&self) -> Result<Vec<RouteMessage>, NetlinkError> {
        let mut routes = Vec::new();
        for message in [
            RouteMessageBuilder::<Ipv4Addr>::new().build(),
            RouteMessageBuilder::<Ipv6Addr>::new().build(),
        ] {
            let get = self.handle.route().get(message).execute();
            let found: Vec<_> = self.ask("list the routes".to_owned(), async {
                get.try_collect().await
            })?;
            routes.extend(found);
        }
        Ok(routes)
    }
}

fn v4(to: Ipv4Net, route: &Route) -> RouteMessage {
    let mut message = RouteMessageBuilder::<Ipv4Addr>::new()
        .destination_prefix(to.addr(), to.prefix_len())
        .output_interface(route.index);
    match route.via {
        Some(IpAddr::V4(via)) => message = message.gateway(via),
        Some(IpAddr::V6(via)) => message = message.via(via),
        None => message = message.scope(RouteScope::Link),
    }
    if let Some(IpAddr::V4(src)) = route.src {
        message = message.pref_source(src);
    }
    if route.onlink {
        message = message.onlink();
    }
    message.build()
}

fn v6(to: Ipv6Net, route: &Route) -> RouteMessage {
    let mut message = RouteMessageBuilder::<Ipv6Addr>::new()
        .destination_prefix(to.addr(), to.prefix_len())
        .output_interface(route.index);
    if let Some(IpAddr::V6(via)) = route.via {
        message = message.gateway(via);
    }
    if let Some(IpAddr::V6(src)) = route.src {
        message = message.pref_source(src);
    }
    if route.onlink {
        message = message.onlink();
    }
    message.build()
}

fn to(route: &RouteMessage, index: u32) -> Option<IpNet> {
    let mut net = None;
    let mut here = false;
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::Destination(RouteAddress::Inet(v4)) => net = Some(IpAddr::V4(*v4)),
            RouteAttribute::Destination(RouteAddress::Inet6(v6)) => net = Some(IpAddr::V6(*v6)),
            RouteAttribute::Oif(link) => here = *link == index,
            _ => {}
        }
    }
    let main = route.header.table == RouteHeader::RT_TABLE_MAIN;
    IpNet::new(net?, route.header.destination_prefix_length)
        .ok()
        .filter(|_| here && main)
}

//! The one user of rtnetlink: links, addresses, routes and neighbours of one
//! network namespace, each request one blocking call.

use std::{
    io,
    net::IpAddr,
    os::fd::AsRawFd,
    thread,
    time::{Duration, Instant},
};

use futures_util::TryStreamExt;
use ipnet::IpNet;
use nix::errno::Errno;
use rtnetlink::{
    Handle, LinkBridge, LinkMessageBuilder, LinkUnspec, LinkVeth, LinkVxlan,
    packet_core::ErrorMessage,
    packet_route::{
        address::{AddressAttribute, AddressFlags},
        link::{
            AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InfoData, InfoKind, InfoVeth, InfoVxlan,
            LinkAttribute,
        },
        neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourState},
        route::RouteType,
    },
};
use tokio::runtime::Runtime;
use weft_api::names::Mac;

use crate::{
    gso::Gso,
    netns::{Netns, NetnsError},
};

mod hop;
mod route;
mod state;

pub use hop::Hop;
pub use route::Route;
pub use state::LinkState;

#[derive(Debug, thiserror::Error)]
pub enum NetlinkError {
    #[error("open a netlink socket: {0}")]
    Open(io::Error),
    /// The kernel's own answer.
    #[error("{request}: {error}")]
    Refused { request: String, error: io::Error },
    #[error("{request}: the answer makes no sense: {answer}")]
    Confused { request: String, answer: String },
    #[error(
        "address {address} is not in use {} s after it was added; is its link up?",
        ADDRESS_DEADLINE.as_secs()
    )]
    Late { address: IpAddr },
}

/// The kernel needs microseconds, and longer only where it gets no processor,
/// or where a hundred pods at once want its lock.
const ADDRESS_DEADLINE: Duration = Duration::from_secs(10);

impl NetlinkError {
    pub fn is(&self, errno: Errno) -> bool {
        match self {
            Self::Refused { error, .. } => error.raw_os_error() == Some(errno as i32),
            Self::Open(_) | Self::Confused { .. } | Self::Late { .. } => false,
        }
    }
}

/// A netlink socket. It speaks for the namespace in which it was opened,
/// from wherever it is used.
pub struct Netlink {
    runtime: Runtime,
    handle: Handle,
}

impl std::fmt::Debug for Netlink {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Netlink").finish_non_exhaustive()
    }
}

/// What to change on a link; what is not named stays.
#[derive(Debug, Clone, Default)]
pub struct LinkChange {
    pub mac: Option<Mac>,
    pub mtu: Option<u16>,
    /// A note for whoever looks at the link.
    pub alias: Option<&'static str>,
    pub gso: Option<Gso>,
    /// The bridge to join.
    pub bridge: Option<u32>,
    /// No IPv6 link-local address of the link's own.
    pub no_link_local: bool,
    pub up: bool,
}

#[derive(Debug, Clone)]
pub struct Vxlan {
    pub name: String,
    pub vni: u32,
    pub port: u16,
    pub local: IpAddr,
    pub mac: Mac,
    pub mtu: u16,
}

impl Netlink {
    /// A socket of the calling thread's namespace.
    pub fn open() -> Result<Self, NetlinkError> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .build()
            .map_err(NetlinkError::Open)?;
        let inside = runtime.enter();
        let (connection, handle, _) = rtnetlink::new_connection().map_err(NetlinkError::Open)?;
        drop(inside);
        runtime.spawn(connection);
        Ok(Self { runtime, handle })
    }

    pub fn open_in(netns: &Netns) -> Result<Result<Self, NetlinkError>, NetnsError> {
        netns.run(Self::open)
    }

    /// The index of link `name`, if there is one.
    pub fn index(&self, name: &str) -> Result<Option<u32>, NetlinkError> {
        let get = self.handle.link().get().match_name(name).execute();
        let found = self.ask(format!("look for link {name}"), async move {
            let mut links = std::pin::pin!(get);
            links.try_next().await
        });
        match found {
            Ok(link) => Ok(link.map(|link| link.header.index)),
            Err(error) if error.is(Errno::ENODEV) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// A veth pair: `name` here, `peer` at once in `peer_netns`.
    pub fn add_veth(&self, name: &str, peer: &str, peer_netns: &Netns) -> Result<(), NetlinkError> {
        let peer_link = LinkMessageBuilder::<LinkUnspec>::new()
            .name(peer)
            .setns_by_fd(peer_netns.as_raw_fd())
            .build();
        let link = LinkMessageBuilder::<LinkVeth>::new_with_info_kind(InfoKind::Veth)
            .name(name)
            .set_info_data(InfoData::Veth(InfoVeth::Peer(peer_link)))
            .build();
        self.ask(
            format!(
                "add veth {name} with peer {peer} in {:?}",
                peer_netns.path()
            ),
            self.handle.link().add(link).execute(),
        )
    }

    pub fn add_bridge(&self, name: &str) -> Result<(), NetlinkError> {
        let link = LinkBridge::new(name).mcast_snooping(false).build();
        self.ask(
            format!("add bridge {name}"),
            self.handle.link().add(link).execute(),
        )
    }

    /// A VXLAN device that learns nothing: peers come by [`Netlink::add_fdb`].
    pub fn add_vxlan(&self, vxlan: &Vxlan) -> Result<(), NetlinkError> {
        let link = LinkVxlan::new(&vxlan.name, vxlan.vni)
            .port(vxlan.port)
            .append_info_data(InfoVxlan::Learning(false))
            .append_info_data(match vxlan.local {
                IpAddr::V4(local) => InfoVxlan::Local(local),
                IpAddr::V6(local) => InfoVxlan::Local6(local),
            })
            .address(vxlan.mac.0.to_vec())
            .mtu(u32::from(vxlan.mtu))
            .build();
        self.ask(
            format!("add vxlan {} on port {}", vxlan.name, vxlan.port),
            self.handle.link().add(link).execute(),
        )
    }

    pub fn change(&self, index: u32, change: &LinkChange) -> Result<(), NetlinkError> {
        if change.no_link_local {
            // The kernel would set the flags of a joint message first, and
            // a link that comes up gets its address at once.
            let mode = AfSpecInet6::AddrGenMode(In6AddrGenMode::None);
            self.change_link(index, |link| {
                link.append_extra_attribute(LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet6(
                    vec![mode],
                )]))
            })?;
        }
        self.change_link(index, |mut link| {
            if let Some(mac) = change.mac {
                link = link.address(mac.0.to_vec());
            }
            if let Some(mtu) = change.mtu {
                link = link.mtu(u32::from(mtu));
            }
            if let Some(alias) = change.alias {
                link = link.alias(alias);
            }
            if let Some(gso) = change.gso {
                link = link
                    .append_extra_attribute(LinkAttribute::GsoMaxSegs(gso.segments))
                    .append_extra_attribute(LinkAttribute::GsoMaxSize(gso.v6))
                    .append_extra_attribute(LinkAttribute::GsoIpv4MaxSize(gso.v4));
            }
            if let Some(bridge) = change.bridge {
                link = link.controller(bridge);
            }
            if change.up { link.up() } else { link }
        })
    }

    fn change_link(
        &self,
        index: u32,
        with: impl FnOnce(LinkMessageBuilder<LinkUnspec>) -> LinkMessageBuilder<LinkUnspec>,
    ) -> Result<(), NetlinkError> {
        let link = with(LinkUnspec::new_with_index(index)).build();
        self.ask(
            format!("change link {index}"),
            self.handle.link().change(link).execute(),
        )
    }

    pub fn delete(&self, index: u32) -> Result<(), NetlinkError> {
        self.ask(
            format!("delete link {index}"),
            self.handle.link().del(index).execute(),
        )
    }

    /// It is no error that the link has it. IPv6 skips duplicate detection. Once [`Netlink::wait_for_address`] has
    /// returned, the address is in use.
    pub fn add_address(&self, index: u32, address: IpNet) -> Result<(), NetlinkError> {
        let mut request = self
            .handle
            .address()
            .add(index, address.addr(), address.prefix_len())
            .replace();
        if address.addr().is_ipv6() {
            let flags = AddressAttribute::Flags(AddressFlags::Nodad);
            request.message_mut().attributes.push(flags);
        }
        self.ask(
            format!("add address {address} to link {index}"),
            request.execute(),
        )
    }

    /// Waits until packets to an address of a link that is up are taken in.
    /// IPv6 addresses get there in the background, without duplicate
    /// detection too (net/ipv6/addrconf.c, `addrconf_dad_work`).
    pub fn wait_for_address(&self, address: IpAddr) -> Result<(), NetlinkError> {
        let until = Instant::now() + ADDRESS_DEADLINE;
        while !self.is_local(address)? {
            if Instant::now() > until {
                return Err(NetlinkError::Late { address });
            }
            thread::sleep(Duration::from_micros(200));
        }
        Ok(())
    }

    fn is_local(&self, address: IpAddr) -> Result<bool, NetlinkError> {
        match self.way_to(address) {
            Ok(route) => Ok(route.is_some_and(|route| route.header.kind == RouteType::Local)),
            Err(error) if error.is(Errno::ENETUNREACH) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Says for good where `address` is on the link.
    pub fn add_neighbour(&self, index: u32, address: IpAddr, mac: Mac) -> Result<(), NetlinkError> {
        let add = self
            .handle
            .neighbours()
            .add(index, address)
            .link_layer_address(&mac.0)
            .replace();
        self.ask(
            format!("add neighbour {address} at {mac} to link {index}"),
            add.execute(),
        )
    }

    /// Says behind which underlay address of VXLAN link `index` a MAC is.
    pub fn add_fdb(&self, index: u32, mac: Mac, remote: IpAddr) -> Result<(), NetlinkError> {
        let mut add = self
            .handle
            .neighbours()
            .add_bridge(index, &mac.0)
            .state(NeighbourState::Permanent)
            .flags(NeighbourFlags::Own)
            .replace();
        let remote_address = match remote {
            IpAddr::V4(v4) => NeighbourAddress::Inet(v4),
            IpAddr::V6(v6) => NeighbourAddress::Inet6(v6),
        };
        add.message_mut()
            .attributes
            .push(NeighbourAttribute::Destination(remote_address));
        self.ask(
            format!("put {mac} behind {remote} on link {index}"),
            add.execute(),
        )
    }

    fn ask<T>(
        &self,
        request: String,
        answer: impl Future<Output = Result<T, rtnetlink::Error>>,
    ) -> Result<T, NetlinkError> {
        self.runtime.block_on(answer).map_err(|error| match error {
            rtnetlink::Error::NetlinkError(error) => NetlinkError::Refused {
                request,
                error: refusal(&error),
            },
            other => NetlinkError::Confused {
                request,
                answer: other.to_string(),
            },
        })
    }
}

fn refusal(error: &ErrorMessage) -> io::Error {
    io::Error::from_raw_os_error(error.raw_code().saturating_abs())
}

//! The link of a pod, or of the node itself: its device, addresses, routes and
//! neighbours, and the fds through which a forwarder speaks with it.
//!
//! Everything is made inside the owner's namespace except the host end of a
//! veth, which appears in the caller's. The caller closes the fds or hands
//! them on; a tap lives exactly as long as they do.

use std::{io, net::IpAddr, os::fd::OwnedFd};

use ipnet::IpNet;
use nix::{errno::Errno, net::if_::if_nametoindex};
use weft_api::{
    forwarder::{Driver, QUEUES_MAX},
    names::{Mac, Name},
};

use crate::{
    gso::Gso,
    netlink::{LinkChange, LinkState, Netlink, NetlinkError},
    netns::{Netns, NetnsError},
    sys,
};
use tap::TUN;

mod configure;
mod tap;

pub use tap::has_left;

/// The mark on pods' links that were made here (`ip -d link` shows it).
const ALIAS: &str = "weft";

/// Everything that makes a link.
#[derive(Debug, Clone)]
pub struct Wiring {
    /// The link's name in the pod.
    pub interface: String,
    pub mac: Mac,
    /// The owner's addresses, each a host of its own (/32, /128).
    pub addresses: Vec<IpAddr>,
    pub mtu: u16,
    pub attach: Attach,
    /// The largest super-frames that the pod may make; `None` leaves the
    /// kernel's own limit.
    pub gso: Option<Gso>,
    pub role: Role,
}

/// Whose the link is, and so what lies behind it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Role {
    /// A pod's: everything.
    Pod,
    /// The node's own: the pods of these pools, whatever their node.
    Host {
        pools: Vec<IpNet>,
        /// Whom the node speaks from where the link has no address.
        sources: Vec<IpAddr>,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Attach {
    /// A tap with a vnet header; `Basic` where the kernel refuses its flags.
    Tap { queues: usize },
    /// A tap of one queue without header or offloads.
    Basic,
    /// A veth whose host end is read and written by AF_PACKET.
    Veth,
}

/// A device made for a pod, not yet anybody's port.
#[derive(Debug)]
pub struct Device {
    pub driver: Driver,
    pub fds: Vec<OwnedFd>,
}

#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    #[error(transparent)]
    Netns(#[from] NetnsError),
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    #[error("{interface} exists in {netns}; detach the pod first, or choose another interface")]
    Exists { interface: String, netns: String },
    #[error("there is no link {interface} in {netns}; something else deleted it")]
    Vanished { interface: String, netns: String },
    #[error(
        "{to} has a route by another link than {interface}; delete it (ip route del {to}), or \
         leave the pool out"
    )]
    RouteTaken { to: IpNet, interface: String },
    #[error("look for link {interface}: {error}")]
    Look { interface: String, error: io::Error },
    #[error("{queues} tap queues asked for {interface}; ask for 1 to {QUEUES_MAX}")]
    Queues { interface: String, queues: usize },
    #[error("open {TUN}: {error}; load the tun module, and let this user read and write the node")]
    Tun { error: io::Error },
    #[error("make tap {interface}: {error}; this takes CAP_NET_ADMIN in the pod's user namespace")]
    Tap { interface: String, error: io::Error },
    #[error("set the offloads of tap {interface}: {error}")]
    Offloads { interface: String, error: io::Error },
    #[error(
        "make tap {interface}: the kernel refuses a vnet header, and this build has no basic \
         driver; build with feature basic-tap"
    )]
    NoBasicDriver { interface: String },
    #[error("open a packet socket on {host_end}: {error}; this takes CAP_NET_RAW")]
    Packet { host_end: String, error: io::Error },
    #[error("{error}; undoing it failed too: {undo}; delete the link by hand")]
    Undo {
        error: Box<LinkError>,
        undo: Box<LinkError>,
    },
}

/// Makes the device and everything on it. What was made is undone before an
/// error returns.
pub fn add(netns: &Netns, port: &Name, wiring: &Wiring) -> Result<Device, LinkError> {
    let interface = wiring.interface.as_str();
    match wiring.attach {
        Attach::Tap { queues } => add_inside(netns, wiring, || tap::add_tap(interface, queues)),
        Attach::Basic => add_inside(netns, wiring, || tap::basic(interface)),
        Attach::Veth => {
            refuse_taken(is_there(netns, interface)?, netns, interface)?;
            let device = add_veth(netns, wiring, port)?;
            netns.run(|| configure(netns, wiring))??;
            Ok(device)
        }
    }
}

/// One visit for all steps: each visit has a thread to start.
fn add_inside(
    netns: &Netns,
    wiring: &Wiring,
    make: impl FnOnce() -> Result<Device, LinkError> + Send,
) -> Result<Device, LinkError> {
    netns.run(|| {
        let interface = wiring.interface.as_str();
        refuse_taken(exists(interface)?, netns, interface)?;
        let device = make()?;
        configure(netns, wiring)?;
        Ok(device)
    })?
}

fn refuse_taken(taken: bool, netns: &Netns, interface: &str) -> Result<(), LinkError> {
    match taken {
        false => Ok(()),
        true => Err(LinkError::Exists {
            interface: interface.to_owned(),
            netns: netns.path().display().to_string(),
        }),
    }
}

fn undo(netns: &Netns, interface: &str, error: LinkError) -> LinkError {
    match remove(netns, interface) {
        Ok(()) => error,
        Err(undo) => LinkError::Undo {
            error: Box::new(error),
            undo: Box::new(undo),
        },
    }
}

/// Deletes the pod's link. It is no error that there is none.
pub fn remove(netns: &Netns, interface: &str) -> Result<(), LinkError> {
    delete(&Netlink::open_in(netns)??, interface)
}

/// Whether the namespace has a link of that name, whoever's it is. The kernel
/// tells by name alone, without a netlink socket.
pub fn is_there(netns: &Netns, interface: &str) -> Result<bool, LinkError> {
    netns.run(|| exists(interface))?
}

/// As [`is_there`], of the calling thread's namespace.
fn exists(interface: &str) -> Result<bool, LinkError> {
    match if_nametoindex(interface) {
        Ok(_) => Ok(true),
        Err(Errno::ENODEV) => Ok(false),
        Err(error) => Err(LinkError::Look {
            interface: interface.to_owned(),
            error: error.into(),
        }),
    }
}

/// The link if it bears our mark: of another plugin's link of that name,
/// nothing is known.
pub fn ours(netns: &Netns, interface: &str) -> Result<Option<LinkState>, LinkError> {
    let link = Netlink::open_in(netns)??.link(interface)?;
    Ok(link.filter(|link| link.alias.as_deref() == Some(ALIAS)))
}

/// Deletes the veth whose host end is that port's, wherever its other end
/// is, and though nothing marks it: making it may have been cut short.
pub fn remove_host_end(port: &Name) -> Result<(), LinkError> {
    delete(&Netlink::open()?, &host_end(port))
}

fn delete(netlink: &Netlink, link: &str) -> Result<(), LinkError> {
    let Some(index) = netlink.index(link)? else {
        return Ok(());
    };
    match netlink.delete(index) {
        Err(error) if !error.is(Errno::ENODEV) => Err(error.into()),
        _ => Ok(()),
    }
}

/// The name of the veth end that port `port` has on the node: the same
/// whenever it is asked, and short enough for the kernel (IFNAMSIZ is 16).
pub fn host_end(port: &Name) -> String {
    // FNV-1a (64 bits), of which 44 stay.
    let hash = port
        .as_str()
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
        });
    format!("weft{:011x}", hash >> 20)
}

fn add_veth(netns: &Netns, wiring: &Wiring, port: &Name) -> Result<Device, LinkError> {
    let host_end = host_end(port);
    let node = Netlink::open()?;
    node.add_veth(&host_end, &wiring.interface, netns)?;
    match open_host_end(&node, &host_end, wiring.mtu) {
        Ok(socket) => Ok(Device {
            driver: Driver::Veth,
            fds: vec![socket],
        }),
        Err(error) => Err(undo(netns, &wiring.interface, error)),
    }
}

fn open_host_end(node: &Netlink, host_end: &str, mtu: u16) -> Result<OwnedFd, LinkError> {
    let index = node.index(host_end)?.ok_or_else(|| LinkError::Vanished {
        interface: host_end.to_owned(),
        netns: "the node's namespace".to_owned(),
    })?;
    let change = LinkChange {
        mtu: Some(mtu),
        no_link_local: true,
        up: true,
        ..LinkChange::default()
    };
    node.change(index, &change)?;
    packet_socket(index).map_err(|error| LinkError::Packet {
        host_end: host_end.to_owned(),
        error,
    })
}

fn packet_socket(index: u32) -> io::Result<OwnedFd> {
    // Room for a burst of super-frames; the kernel's default holds three.
    const BUFFER: i32 = 4 << 20;

    let socket = sys::packet_socket()?;
    for option in [
        sys::PACKET_VNET_HDR,
        sys::PACKET_QDISC_BYPASS,
        sys::PACKET_IGNORE_OUTGOING,
    ] {
        sys::packet_option(&socket, option, 1)?;
    }
    sys::socket_buffers(&socket, BUFFER)?;
    sys::packet_bind(&socket, index)?;
    Ok(socket)
}

/// Whether the link is up and has its MAC, MTU, addresses and routes.
pub fn is_whole(netns: &Netns, wiring: &Wiring) -> Result<bool, LinkError> {
    let netlink = Netlink::open_in(netns)??;
    let Some(link) = netlink.link(&wiring.interface)? else {
        return Ok(false);
    };
    Ok(link.up
        && link.mac == Some(wiring.mac)
        && link.mtu == Some(wiring.mtu.into())
        && configure::has_all(&netlink, link.index, wiring)?)
}

/// Puts everything on the link again that is missing.
pub fn renew(netns: &Netns, wiring: &Wiring) -> Result<(), LinkError> {
    netns.run(|| set_up(netns, wiring))?
}

/// Configures the link from inside its namespace, or takes it away.
fn configure(netns: &Netns, wiring: &Wiring) -> Result<(), LinkError> {
    set_up(netns, wiring).map_err(|error| undo(netns, &wiring.interface, error))
}

fn set_up(netns: &Netns, wiring: &Wiring) -> Result<(), LinkError> {
    let netlink = Netlink::open()?;
    let index = netlink.index(&wiring.interface)?;
    let index = index.ok_or_else(|| LinkError::Vanished {
        interface: wiring.interface.clone(),
        netns: netns.path().display().to_string(),
    })?;
    configure::set_up(&netlink, index, wiring)
}

fn is(error: &io::Error, errno: Errno) -> bool {
    error.raw_os_error() == Some(errno as i32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_ends_fit_the_kernel_and_differ() {
        let name = |text: &str| Name::new(text).expect("a good name");
        let (one, two) = (host_end(&name("n1/p1")), host_end(&name("n1/p2")));
        assert_ne!(one, two);
        assert_eq!(one, host_end(&name("n1/p1")));
        assert_eq!(one.len(), 15);
    }
}

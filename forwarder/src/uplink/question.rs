//! Sends probes, and asks the kernel what it knows of a path. Unlike pods'
//! datagrams they leave with DF set and never in fragments, whatever the kernel
//! believes of the path (`IP_PMTUDISC_PROBE`).

use std::{
    io,
    net::{IpAddr, SocketAddr, UdpSocket},
    os::fd::{AsRawFd, OwnedFd},
    sync::Arc,
};

use nix::{
    errno::Errno,
    sys::socket::{MsgFlags, SockaddrStorage, sendto, setsockopt, sockopt},
};
use weft_engine::{DropReason, Way, outbox::Send};

use super::{Sender, UplinkConfig, UplinkError, open, send::reason};
use crate::sys;

#[derive(Debug)]
pub struct Questioner {
    addresses: Vec<IpAddr>,
    /// One for each address.
    sockets: Vec<OwnedFd>,
    /// Its raw socket sets DF always.
    sender: Arc<Sender>,
}

impl Questioner {
    pub fn open(config: &UplinkConfig, sender: Arc<Sender>) -> Result<Self, UplinkError> {
        let open_one = |&address: &IpAddr| {
            let socket = open(address, 0)?;
            set_df(&socket, address.is_ipv4()).map_err(|error| UplinkError::Open {
                address,
                port: 0,
                error,
            })?;
            // Nobody reads it.
            let _ = setsockopt(&socket, sockopt::RcvBuf, &0);
            Ok(socket)
        };
        Ok(Self {
            addresses: config.addresses.clone(),
            sockets: config
                .addresses
                .iter()
                .map(open_one)
                .collect::<Result<_, _>>()?,
            sender,
        })
    }

    /// Sends what is in the form of `way`, to a node's underlay address.
    pub fn send(&self, way: Way, bytes: Vec<u8>, to: SocketAddr) -> Result<(), DropReason> {
        match (way, to.ip()) {
            (Way::Ipip, IpAddr::V4(to)) => {
                let send = Send::one(way, bytes);
                let ipip = self.sender.ipip().ok_or(DropReason::NoUplink)?;
                ipip.send(&send, to)
                    .lost
                    .map_or(Ok(()), |(reason, _)| Err(reason))
            }
            (Way::Ipip, IpAddr::V6(_)) => Err(DropReason::NoUplink),
            (Way::Vxlan | Way::VxlanL3, _) => self.send_udp(&bytes, to),
        }
    }

    fn send_udp(&self, bytes: &[u8], to: SocketAddr) -> Result<(), DropReason> {
        let place = self.place(to.ip()).ok_or(DropReason::NoUplink)?;
        let fd = self.sockets[place].as_raw_fd();
        let to = SockaddrStorage::from(to);
        loop {
            match sendto(fd, bytes, &to, MsgFlags::MSG_DONTWAIT) {
                Err(Errno::EINTR) => {}
                result => return result.map(drop).map_err(reason),
            }
        }
    }

    /// Bytes of the largest IP packet that goes to `peer` whole, as the kernel
    /// knows it: of the link, the route, or what routers have told. None where
    /// there is no way.
    pub fn mtu_to(&self, peer: IpAddr) -> Option<usize> {
        let own = self.addresses[self.place(peer)?];
        let (level, name) = match own {
            IpAddr::V4(_) => (libc::IPPROTO_IP, libc::IP_MTU),
            IpAddr::V6(_) => (libc::IPPROTO_IPV6, libc::IPV6_MTU),
        };
        let socket = UdpSocket::bind((own, 0)).ok()?;
        // Any port: nothing is sent.
        socket.connect((peer, 9)).ok()?;
        usize::try_from(sys::option(&socket, level, name).ok()?).ok()
    }

    fn place(&self, peer: IpAddr) -> Option<usize> {
        let same_family = |own: &IpAddr| own.is_ipv4() == peer.is_ipv4();
        self.addresses.iter().position(same_family)
    }
}

fn set_df(socket: &OwnedFd, v4: bool) -> io::Result<()> {
    if v4 {
        let value = libc::IP_PMTUDISC_PROBE;
        return sys::set_option(socket, libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, value);
    }
    let value = libc::IPV6_PMTUDISC_PROBE;
    sys::set_option(socket, libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, value)?;
    sys::set_option(socket, libc::IPPROTO_IPV6, libc::IPV6_DONTFRAG, 1)
}

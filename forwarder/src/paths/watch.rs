//! Whether links or routes of this network namespace have changed, by what
//! the kernel tells of them (rtnetlink(7)).

use std::{
    io,
    os::fd::{AsRawFd, OwnedFd},
};

use nix::{
    errno::Errno,
    sys::socket::{
        AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, socket,
    },
};

/// `RTMGRP_LINK`, `RTMGRP_IPV4_ROUTE`, `RTMGRP_IPV6_ROUTE` (linux/rtnetlink.h).
const GROUPS: u32 = 0x1 | 0x40 | 0x400;

#[derive(Debug)]
pub(super) struct Watch(OwnedFd);

impl Watch {
    pub fn open() -> io::Result<Self> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let route = SockProtocol::NetlinkRoute;
        let fd = socket(AddressFamily::Netlink, SockType::Raw, flags, route)?;
        bind(fd.as_raw_fd(), &NetlinkAddr::new(0, GROUPS))?;
        Ok(Self(fd))
    }

    pub fn fd(&self) -> i32 {
        self.0.as_raw_fd()
    }

    /// Whether there was news. What exactly has changed is of no use: a way
    /// may go by any link.
    pub fn has_news(&self) -> bool {
        let mut message = [0; 8192];
        let mut any = false;
        loop {
            match recv(self.fd(), &mut message, MsgFlags::MSG_DONTWAIT) {
                // The kernel had more to tell than there was room for.
                Ok(_) | Err(Errno::ENOBUFS) => any = true,
                Err(Errno::EINTR) => {}
                Err(_) => return any,
            }
        }
    }
}

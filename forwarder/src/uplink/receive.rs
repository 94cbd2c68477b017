//! Receives: trains of datagrams, as many in one read as there are.

use std::{
    io, mem,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
};

use weft_engine::{Inbox, Way, inbox::Train};

use super::{UplinkConfig, UplinkError, open};
use crate::sys;

/// Most trains in one read.
pub const TRAINS: usize = 8;

/// One worker's receiving sockets, one for each underlay address.
#[derive(Debug)]
pub struct Receiver {
    sockets: Vec<(OwnedFd, Way)>,
    gro: bool,
}

/// Room for the control messages of one train: its segment size and its
/// traffic class.
const CONTROL: usize = 64;

#[repr(align(8))]
#[derive(Clone, Copy)]
struct Control([u8; CONTROL]);

impl Receiver {
    pub fn open(config: &UplinkConfig) -> Result<Self, UplinkError> {
        let mut receiver = Self {
            sockets: Vec::new(),
            gro: config.gro,
        };
        for &address in &config.addresses {
            let socket = open(address, config.port)?;
            if receiver.gro && sys::set_option(&socket, libc::SOL_UDP, libc::UDP_GRO, 1).is_err() {
                receiver.gro = false;
                tracing::warn!("the kernel has no UDP_GRO; datagrams are received singly");
            }
            let (level, name) = if address.is_ipv4() {
                (libc::IPPROTO_IP, libc::IP_RECVTOS)
            } else {
                (libc::IPPROTO_IPV6, libc::IPV6_RECVTCLASS)
            };
            sys::set_option(&socket, level, name, 1).map_err(|error| UplinkError::Open {
                address,
                port: config.port,
                error,
            })?;
            receiver.sockets.push((socket, Way::Vxlan));
        }
        Ok(receiver)
    }

    /// Receives IP-in-IP packets too, from a raw socket.
    pub fn add_ipip(&mut self, socket: OwnedFd) {
        self.sockets.push((socket, Way::Ipip));
    }

    pub fn sockets(&self) -> usize {
        self.sockets.len()
    }

    pub fn socket(&self, place: usize) -> BorrowedFd<'_> {
        self.sockets[place].0.as_fd()
    }

    /// Whether the kernel merges datagrams into trains.
    pub fn gro(&self) -> bool {
        self.gro
    }

    /// Reads what is there into the inbox. Says whether there may be more.
    pub fn receive(&self, place: usize, inbox: &mut Inbox) -> io::Result<bool> {
        let mut names = [const { mem::MaybeUninit::<libc::sockaddr_storage>::zeroed() }; TRAINS];
        let mut controls = [Control([0; CONTROL]); TRAINS];
        let mut slots = [const { mem::MaybeUninit::<libc::iovec>::zeroed() }; TRAINS];
        // SAFETY: an all-zero mmsghdr is a valid value of that plain C struct.
        let mut messages: [libc::mmsghdr; TRAINS] = unsafe { mem::zeroed() };
        for (place, slot) in inbox.slots().take(TRAINS).enumerate() {
            slots[place].write(libc::iovec {
                iov_base: slot.as_mut_ptr().cast(),
                iov_len: slot.len(),
            });
            let header = &mut messages[place].msg_hdr;
            header.msg_name = names[place].as_mut_ptr().cast();
            header.msg_namelen = size_of::<libc::sockaddr_storage>() as libc::socklen_t;
            header.msg_iov = slots[place].as_mut_ptr();
            header.msg_iovlen = 1;
            header.msg_control = controls[place].0.as_mut_ptr().cast();
            header.msg_controllen = CONTROL as _;
        }
        let read = loop {
            // SAFETY: each message points at a name, a control buffer and an
            // inbox slot that outlive the call, with their true lengths;
            // those past the inbox's slots have no buffer at all.
            let read = unsafe {
                libc::recvmmsg(
                    self.socket(place).as_raw_fd(),
                    messages.as_mut_ptr(),
                    TRAINS as libc::c_uint,
                    libc::MSG_DONTWAIT as _,
                    std::ptr::null_mut(),
                )
            };
            match usize::try_from(read) {
                Ok(read) => break read,
                Err(_) => match io::Error::last_os_error() {
                    error if error.kind() == io::ErrorKind::Interrupted => {}
                    error if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                    error => return Err(error),
                },
            }
        };
        let (_, way) = self.sockets[place];
        for (place, message) in messages[..read].iter().enumerate() {
            // SAFETY: the kernel has filled the name, which was zeroed before.
            let name = unsafe { names[place].assume_init_ref() };
            inbox.trains.extend(train(place, way, message, name));
        }
        Ok(read == TRAINS)
    }
}

fn train(
    place: usize,
    way: Way,
    message: &libc::mmsghdr,
    name: &libc::sockaddr_storage,
) -> Option<Train> {
    let len = message.msg_len as usize;
    let (segment, ecn) = controls(&message.msg_hdr);
    Some(Train {
        start: Inbox::start(place),
        len,
        stride: segment.unwrap_or(len).max(1),
        from: address(name)?,
        way,
        ecn,
        truncated: message.msg_hdr.msg_flags & libc::MSG_TRUNC != 0,
    })
}

/// The size of a train's datagrams, if there are several, and the outer
/// header's ECN bits.
fn controls(header: &libc::msghdr) -> (Option<usize>, u8) {
    let (mut segment, mut ecn) = (None, 0);
    // SAFETY: the kernel has written whole control messages into the header's
    // control buffer and set its length; CMSG_NXTHDR stays within.
    unsafe {
        let mut at = libc::CMSG_FIRSTHDR(header);
        while let Some(message) = at.as_ref() {
            let data = libc::CMSG_DATA(at);
            match (message.cmsg_level, message.cmsg_type) {
                (libc::SOL_UDP, libc::UDP_GRO) => {
                    let size = data.cast::<libc::c_int>().read_unaligned();
                    segment = usize::try_from(size).ok();
                }
                (libc::IPPROTO_IP, libc::IP_TOS) => ecn = data.read() & 0x03,
                (libc::IPPROTO_IPV6, libc::IPV6_TCLASS) => {
                    let class = data.cast::<libc::c_int>().read_unaligned();
                    ecn = u8::try_from(class & 0x03).unwrap_or_default();
                }
                _ => {}
            }
            at = libc::CMSG_NXTHDR(header, at);
        }
    }
    (segment, ecn)
}

fn address(name: &libc::sockaddr_storage) -> Option<IpAddr> {
    match i32::from(name.ss_family) {
        libc::AF_INET => {
            // SAFETY: the family says that the storage holds a sockaddr_in.
            let name = unsafe { &*(&raw const *name).cast::<libc::sockaddr_in>() };
            Some(Ipv4Addr::from(u32::from_be(name.sin_addr.s_addr)).into())
        }
        libc::AF_INET6 => {
            // SAFETY: the family says that the storage holds a sockaddr_in6.
            let name = unsafe { &*(&raw const *name).cast::<libc::sockaddr_in6>() };
            Some(Ipv6Addr::from(name.sin6_addr.s6_addr).into())
        }
        _ => None,
    }
}

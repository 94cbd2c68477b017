//! IP-in-IP (RFC 2003) by a raw socket, which needs CAP_NET_RAW at the start
//! and nothing later. The kernel makes the outer header: DF set, as its own
//! tunnel device has it, and a TTL that reaches across the underlay.

use std::{
    io, mem,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    os::fd::{AsRawFd, OwnedFd},
};

use nix::{
    errno::Errno,
    sys::socket::{SockaddrStorage, bind, setsockopt, sockopt},
};
use weft_engine::outbox::{SEGMENTS_MAX, Send};
use weft_wire::protocol;

use super::{
    BUFFER, UplinkConfig,
    send::{Sent, reason},
};
use crate::sys;

/// The outer header's TTL: what IANA recommends for IP (RFC 1700).
const TTL: libc::c_int = 64;

#[derive(Debug)]
pub struct Ipip {
    socket: OwnedFd,
}

/// The control message that sets the outer TOS byte, as long as the kernel
/// reads it.
const CONTROL: usize = 32;

#[repr(align(8))]
struct Control([u8; CONTROL]);

impl Ipip {
    /// None where nobody wants it, the node has no IPv4 underlay, or the
    /// kernel refuses the socket.
    pub fn open(config: &UplinkConfig) -> Option<Self> {
        let v4 = |address: &IpAddr| match address {
            IpAddr::V4(address) => Some(*address),
            IpAddr::V6(_) => None,
        };
        let address = config.addresses.iter().find_map(v4)?;
        if !config.ipip {
            return None;
        }
        match try_open(address) {
            Ok(socket) => Some(Self { socket }),
            Err(error) => {
                tracing::info!(
                    %error,
                    "no raw socket on {address}: blocks behind ipip are out of reach; \
                     CAP_NET_RAW at the start would let them in"
                );
                None
            }
        }
    }

    /// A second descriptor of the socket, to read from. A raw socket hears
    /// every packet of its protocol, so one worker alone may have it.
    pub fn reader(&self) -> io::Result<OwnedFd> {
        self.socket.try_clone()
    }

    /// Sends packets to one peer, in as few system calls as the kernel
    /// allows.
    pub fn send(&self, send: &Send, to: Ipv4Addr) -> Sent {
        let packets: Vec<_> = send.datagrams().collect();
        let mut sent = Sent::default();
        let mut rest = &packets[..];
        while !rest.is_empty() {
            sent.system_calls += 1;
            let gone = match self.send_some(rest, to, send.ecn) {
                Ok(gone) => {
                    for packet in &rest[..gone] {
                        sent.carried(packet, packet.len().max(1));
                    }
                    gone
                }
                Err(Errno::EINTR) => 0,
                Err(error) => {
                    sent.lost(reason(error), rest[0], rest[0].len().max(1));
                    1
                }
            };
            rest = &rest[gone..];
        }
        sent
    }

    /// How many of the packets, of which there is one at least, have left.
    fn send_some(&self, packets: &[&[u8]], to: Ipv4Addr, ecn: u8) -> Result<usize, Errno> {
        let mut name = destination(to);
        let (mut control, control_len) = tos(ecn);
        let mut pieces = [const { mem::MaybeUninit::<libc::iovec>::zeroed() }; SEGMENTS_MAX];
        // SAFETY: an all-zero mmsghdr is a valid value of that plain C struct.
        let mut messages: [libc::mmsghdr; SEGMENTS_MAX] = unsafe { mem::zeroed() };
        let count = packets.len().min(SEGMENTS_MAX);
        for (place, packet) in packets[..count].iter().enumerate() {
            pieces[place].write(libc::iovec {
                iov_base: packet.as_ptr().cast_mut().cast(),
                iov_len: packet.len(),
            });
            let header = &mut messages[place].msg_hdr;
            header.msg_name = (&raw mut name).cast();
            header.msg_namelen = size_of::<libc::sockaddr_in>() as libc::socklen_t;
            header.msg_iov = pieces[place].as_mut_ptr();
            header.msg_iovlen = 1;
            if ecn != 0 {
                header.msg_control = control.0.as_mut_ptr().cast();
                header.msg_controllen = control_len as _;
            }
        }
        // SAFETY: the first `count` messages point at a name, a packet and a
        // control message that outlive the call, with their true lengths; the
        // kernel only reads them.
        let gone = unsafe {
            libc::sendmmsg(
                self.socket.as_raw_fd(),
                messages.as_mut_ptr(),
                count as libc::c_uint,
                libc::MSG_DONTWAIT as _,
            )
        };
        usize::try_from(gone).map_err(|_| Errno::last())
    }
}

fn try_open(address: Ipv4Addr) -> io::Result<OwnedFd> {
    let socket = sys::raw_socket(protocol::IPIP)?;
    if setsockopt(&socket, sockopt::RcvBufForce, &BUFFER).is_err() {
        setsockopt(&socket, sockopt::RcvBuf, &BUFFER)?;
    }
    setsockopt(&socket, sockopt::SndBuf, &BUFFER)?;
    for (name, value) in [
        (libc::IP_TTL, TTL),
        (libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_DO),
        (libc::IP_RECVTOS, 1),
    ] {
        sys::set_option(&socket, libc::IPPROTO_IP, name, value)?;
    }
    bind(
        socket.as_raw_fd(),
        &SockaddrStorage::from(SocketAddr::new(address.into(), 0)),
    )?;
    Ok(socket)
}

fn destination(to: Ipv4Addr) -> libc::sockaddr_in {
    // SAFETY: an all-zero sockaddr_in is a valid value of that plain C struct.
    let mut name: libc::sockaddr_in = unsafe { mem::zeroed() };
    name.sin_family = libc::AF_INET as libc::sa_family_t;
    name.sin_addr.s_addr = u32::from(to).to_be();
    name
}

/// A control message that sets the outer header's ECN bits, and its length.
fn tos(ecn: u8) -> (Control, usize) {
    let mut control = Control([0; CONTROL]);
    let value = libc::c_int::from(ecn);
    let len = size_of::<libc::c_int>() as libc::c_uint;
    // SAFETY: the buffer is aligned for a cmsghdr and longer than CMSG_SPACE
    // of an int, which is 24 bytes.
    let space = unsafe {
        let message = control.0.as_mut_ptr().cast::<libc::cmsghdr>();
        (*message).cmsg_level = libc::IPPROTO_IP;
        (*message).cmsg_type = libc::IP_TOS;
        (*message).cmsg_len = libc::CMSG_LEN(len) as _;
        libc::CMSG_DATA(message)
            .cast::<libc::c_int>()
            .write_unaligned(value);
        libc::CMSG_SPACE(len)
    };
    (control, space as usize)
}

#[cfg(test)]
mod tests {
    use std::thread;

    use caps::{CapSet, Capability};
    use weft_socket::confine::confine;

    use super::*;

    fn config(address: &str, ipip: bool) -> UplinkConfig {
        UplinkConfig {
            addresses: vec![address.parse().expect("an address")],
            port: 4789,
            mtu: 1500,
            mtu_of_links: false,
            entropy_ports: 1,
            gso: true,
            gro: true,
            ipip,
        }
    }

    #[test]
    fn it_takes_the_capability_the_wish_and_an_ipv4_underlay() {
        let may = caps::has_cap(None, CapSet::Effective, Capability::CAP_NET_RAW);
        let open = |address, ipip| Ipip::open(&config(address, ipip)).is_some();
        assert_eq!(open("127.0.0.1", true), may.expect("readable"));
        assert!(!open("127.0.0.1", false));
        assert!(!open("::1", true));
        let without = thread::spawn(move || {
            confine().expect("confined");
            Ipip::open(&config("127.0.0.1", true)).is_some()
        });
        assert!(!without.join().expect("it ends"));
    }
}

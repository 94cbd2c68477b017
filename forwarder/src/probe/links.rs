//! Kinds of link that labs are made of and compared with.

use std::{io, os::fd::AsRawFd};

use nix::{
    errno::Errno,
    sys::socket::{
        AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, send,
        socket,
    },
};

use super::{Check, namespaces};

const LAB: &str = "veth and bridge";
const KERNEL: &str = "kernel VXLAN";

pub fn check() -> Vec<Check> {
    if let Err(fault) = namespaces::enter() {
        let finding = format!("not tried: no network namespace to try in: {fault}");
        let consequence = "labs and the demo do not run";
        return vec![Check::fail(
            LAB,
            finding,
            consequence,
            "see the check of user namespaces",
        )];
    }
    let lab = match make("veth", &[]).and_then(|()| make("bridge", &[])) {
        Ok(()) => Check::ok(LAB, "can be made"),
        Err(fault) => {
            let consequence = "labs and the demo cannot join their nodes, pods cannot have a veth";
            let remedy = "load the drivers: modprobe veth bridge";
            Check::fail(LAB, fault.to_string(), consequence, remedy)
        }
    };
    // A VNI (IFLA_VXLAN_ID) is all that the driver demands.
    let id = attribute(1, &1_u32.to_ne_bytes());
    let kernel = match make("vxlan", &id) {
        Ok(()) => Check::ok(KERNEL, "can be made"),
        Err(fault) => {
            let consequence = "the demo has nothing to compare weft with";
            Check::warn(
                KERNEL,
                fault.to_string(),
                consequence,
                "load the driver: modprobe vxlan",
            )
        }
    };
    vec![lab, kernel]
}

/// Makes a link of the kind with RTM_NEWLINK (rtnetlink(7)); it goes with
/// this process's namespace.
fn make(kind: &str, data: &[u8]) -> io::Result<()> {
    let fd = socket(
        AddressFamily::Netlink,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::NetlinkRoute,
    )?;
    bind(fd.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
    send(fd.as_raw_fd(), &new_link(kind, data), MsgFlags::empty())?;
    let mut answer = [0; 4096];
    let bytes = recv(fd.as_raw_fd(), &mut answer, MsgFlags::empty())?;
    // An nlmsgerr: the negated errno stands behind the message's header.
    let code = answer[..bytes]
        .get(16..20)
        .and_then(|code| code.try_into().ok());
    match code.map(i32::from_ne_bytes) {
        Some(0) => Ok(()),
        Some(code) => Err(io::Error::other(format!(
            "{kind}: {}",
            Errno::from_raw(-code).desc()
        ))),
        None => Err(io::Error::other(format!(
            "{kind}: the kernel's answer is cut short"
        ))),
    }
}

fn new_link(kind: &str, data: &[u8]) -> Vec<u8> {
    const IFLA_LINKINFO: u16 = 18;
    const IFLA_INFO_KIND: u16 = 1;
    const IFLA_INFO_DATA: u16 = 2;
    let mut info = attribute(IFLA_INFO_KIND, kind.as_bytes());
    info.extend(attribute(IFLA_INFO_DATA, data));
    // An ifinfomsg of zeroes: any family, any index, down.
    let mut body = vec![0; 16];
    body.extend(attribute(IFLA_LINKINFO, &info));
    let flags = libc::NLM_F_REQUEST | libc::NLM_F_ACK | libc::NLM_F_CREATE | libc::NLM_F_EXCL;
    let length = u32::try_from(16 + body.len()).unwrap_or(u32::MAX);
    let mut message = length.to_ne_bytes().to_vec();
    message.extend(libc::RTM_NEWLINK.to_ne_bytes());
    message.extend(u16::try_from(flags).unwrap_or_default().to_ne_bytes());
    // Sequence number and port id: the kernel fills in the latter.
    message.extend([0; 8]);
    message.extend(body);
    message
}

/// One attribute, padded to four bytes.
fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let length = u16::try_from(4 + value.len()).unwrap_or(u16::MAX);
    let mut bytes = length.to_ne_bytes().to_vec();
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

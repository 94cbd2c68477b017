//! Sockets: packet sockets with a virtio-net header, and trains of UDP
//! datagrams sent and received in one call.

use std::{
    io::{self, IoSliceMut},
    net::{Ipv4Addr, UdpSocket},
    os::fd::AsRawFd,
    time::Duration,
};

use nix::{
    cmsg_space,
    sys::socket::{
        AddressFamily, ControlMessageOwned, MsgFlags, SockFlag, SockProtocol, SockType, recvmsg,
        setsockopt, socket, sockopt,
    },
};

use super::{Check, namespaces};
use crate::sys;

const PACKET: &str = "packet sockets";
const GSO: &str = "UDP GSO";
const GRO: &str = "UDP GRO";

/// Datagrams of the probe's train and their size.
const TRAIN: usize = 4;
const SIZE: usize = 1000;

pub fn check() -> Vec<Check> {
    if let Err(fault) = namespaces::enter() {
        let finding = format!("not tried: no network namespace to try in: {fault}");
        let remedy = "see the check of user namespaces";
        let consequence = "unknown whether pods can be attached by veth";
        return vec![Check::warn(PACKET, finding, consequence, remedy)];
    }
    let mut checks = vec![check_packet()];
    checks.extend(check_trains().unwrap_or_else(|fault| {
        let finding = format!("UDP on loopback: {fault}");
        let consequence = "no other node can be reached";
        vec![Check::fail(
            GSO,
            finding,
            consequence,
            "use a kernel with IPv4",
        )]
    }));
    checks
}

fn check_packet() -> Check {
    let tried = socket(
        AddressFamily::Packet,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::EthAll,
    )
    .map_err(io::Error::from)
    .and_then(|fd| sys::set_option(&fd, libc::SOL_PACKET, libc::PACKET_VNET_HDR, 1));
    match tried {
        Ok(()) => Check::ok(PACKET, "with a virtio-net header"),
        Err(fault) => {
            let finding = format!("with a virtio-net header: {fault}");
            let consequence = "pods cannot be attached by veth";
            Check::warn(
                PACKET,
                finding,
                consequence,
                "attach them by tap, which is faster too",
            )
        }
    }
}

/// Sends a train of datagrams in one call and looks how it arrives.
fn check_trains() -> io::Result<Vec<Check>> {
    let receiver = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    receiver.set_read_timeout(Some(Duration::from_secs(2)))?;
    let sender = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    sender.connect(receiver.local_addr()?)?;
    let gro = setsockopt(&receiver, sockopt::UdpGroSegment, &true);
    let size = libc::c_int::try_from(SIZE).map_err(io::Error::other)?;
    let gso = setsockopt(&sender, sockopt::UdpGsoSegment, &size)
        .map_err(io::Error::from)
        .and_then(|()| sender.send(&[0; TRAIN * SIZE]));
    let gso = match gso {
        Ok(_) => Check::ok(GSO, "one call sends a train of datagrams"),
        Err(fault) => return Ok(vec![no_gso(&fault), no_gro("not tried without UDP GSO")]),
    };
    let gro = match gro {
        Err(fault) => no_gro(&fault.to_string()),
        Ok(()) => match receive(&receiver)? {
            (bytes, Some(_)) if bytes == TRAIN * SIZE => {
                Check::ok(GRO, "one call receives a train of datagrams")
            }
            (bytes, _) => no_gro(&format!(
                "{bytes} of {} bytes came in one call",
                TRAIN * SIZE
            )),
        },
    };
    Ok(vec![gso, gro])
}

/// How many bytes one call received, and their segments' size if it came.
fn receive(socket: &UdpSocket) -> io::Result<(usize, Option<i32>)> {
    let mut buffer = [0; TRAIN * SIZE];
    let mut slices = [IoSliceMut::new(&mut buffer)];
    let mut ancillary = cmsg_space!(i32);
    let message = recvmsg::<()>(
        socket.as_raw_fd(),
        &mut slices,
        Some(&mut ancillary),
        MsgFlags::empty(),
    )?;
    let size = message.cmsgs()?.find_map(|cmsg| match cmsg {
        ControlMessageOwned::UdpGroSegments(size) => Some(size),
        _ => None,
    });
    Ok((message.bytes, size))
}

fn no_gso(fault: &io::Error) -> Check {
    let consequence = "every datagram to another node costs a call of its own";
    Check::warn(
        GSO,
        fault.to_string(),
        consequence,
        "use Linux 4.18 or newer",
    )
}

fn no_gro(finding: &str) -> Check {
    let consequence = "every datagram from another node costs a call of its own";
    Check::warn(GRO, finding, consequence, "use Linux 5.0 or newer")
}

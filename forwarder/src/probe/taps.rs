//! The tap device: whether it can be made, and what it takes whole.

use std::{
    fs::{File, Metadata, OpenOptions},
    io::{self, ErrorKind},
    os::{
        fd::AsFd,
        unix::fs::{FileTypeExt, MetadataExt, PermissionsExt},
    },
};

use super::{Check, namespaces};
use crate::sys;

const NODE: &str = "/dev/net/tun";
const NODE_NAME: &str = "tun node";
const TAP_NAME: &str = "tap";
const OFFLOADS_NAME: &str = "tap offloads";

/// What makes the node everybody's.
const NODE_MODE: &str = "chmod 0666 /dev/net/tun, as udev does; or attach pods by veth";

const NO_TAPS: &str = "no pod can have a tap";

/// `TUN_F_UDP_TUNNEL_GSO` and its checksum (linux/if_tun.h), which the C
/// library's crate does not name.
const TUNNEL: libc::c_uint = 0x80 | 0x100;

pub fn check() -> Vec<Check> {
    let node = check_node();
    if let Err(fault) = namespaces::enter() {
        let finding = format!("not tried: no network namespace to try in: {fault}");
        let remedy = "see the check of user namespaces";
        return vec![node, Check::fail(TAP_NAME, finding, NO_TAPS, remedy)];
    }
    let [vnet, plain] = [libc::IFF_VNET_HDR | libc::IFF_MULTI_QUEUE, 0].map(|more| {
        open().and_then(|tun| sys::make_tap(tun, libc::IFF_TAP | libc::IFF_NO_PI | more))
    });
    match (vnet, plain) {
        (Ok(tap), _) => {
            let finding = "virtio-net header and several queues";
            vec![node, Check::ok(TAP_NAME, finding), check_offloads(&tap)]
        }
        (Err(fault), Ok(_)) => {
            let finding = format!("plain only; with a virtio-net header: {fault}");
            let consequence =
                "pods get the basic driver: one queue, no super-frames, a seventh of the speed";
            let remedy = "use a kernel whose tun driver has IFF_VNET_HDR, or attach pods by veth";
            vec![node, Check::warn(TAP_NAME, finding, consequence, remedy)]
        }
        (Err(fault), Err(_)) => {
            let finding = format!("making one: {fault}");
            vec![
                node,
                Check::fail(TAP_NAME, finding, NO_TAPS, "see the check of the tun node"),
            ]
        }
    }
}

fn open() -> io::Result<File> {
    OpenOptions::new().read(true).write(true).open(NODE)
}

fn check_node() -> Check {
    let metadata = match std::fs::metadata(NODE) {
        Ok(metadata) if metadata.file_type().is_char_device() => metadata,
        Ok(_) => {
            let finding = format!("{NODE} is no device");
            return Check::fail(NODE_NAME, finding, NO_TAPS, &make_node());
        }
        Err(fault) => {
            let finding = format!("{NODE}: {fault}");
            return Check::fail(NODE_NAME, finding, NO_TAPS, &make_node());
        }
    };
    let described = describe(&metadata);
    match open() {
        Ok(_) if metadata.permissions().mode() & 0o006 == 0o006 => Check::ok(NODE_NAME, described),
        Ok(_) => {
            let consequence = "other users' rootless pods cannot have a tap";
            Check::warn(NODE_NAME, described, consequence, NODE_MODE)
        }
        Err(fault) if fault.kind() == ErrorKind::PermissionDenied => {
            let finding = format!("{described}; this user may not open it");
            Check::fail(NODE_NAME, finding, NO_TAPS, NODE_MODE)
        }
        Err(fault) => {
            let finding = format!("{described}; opening it: {fault}");
            Check::fail(NODE_NAME, finding, NO_TAPS, "load the driver: modprobe tun")
        }
    }
}

fn describe(metadata: &Metadata) -> String {
    let mode = metadata.permissions().mode() & 0o777;
    format!("{NODE}, mode {mode:04o}, owner {}", metadata.uid())
}

fn make_node() -> String {
    format!("mkdir -p /dev/net && mknod -m 0666 {NODE} c 10 200, or pass it into the container")
}

fn check_offloads(tap: &File) -> Check {
    let takes = |mask| sys::set_tap_offload(tap.as_fd(), mask).is_ok();
    let (checksum, tcp) = (sys::CHECKSUM, sys::CHECKSUM | sys::TCP);
    let all = tcp | sys::UDP;
    if !takes(tcp) {
        let finding = if takes(checksum) {
            "checksums only"
        } else {
            "none"
        };
        let consequence = "every TCP segment crosses the tap by itself, at a seventh of the speed";
        return Check::warn(OFFLOADS_NAME, finding, consequence, "use a newer kernel");
    }
    if !takes(all) {
        let finding = "checksums, TCP over IPv4 and IPv6; no UDP (USO)";
        let consequence = "runs of UDP datagrams are written to pods one by one";
        return Check::warn(
            OFFLOADS_NAME,
            finding,
            consequence,
            "use Linux 6.2 or newer",
        );
    }
    let tunnel = if takes(all | TUNNEL) {
        "has"
    } else {
        "has not"
    };
    let finding = format!(
        "checksums, TCP and UDP over IPv4 and IPv6; the kernel {tunnel} tunnel offload, which weft needs not"
    );
    Check::ok(OFFLOADS_NAME, finding)
}

//! A node whose VXLAN is the kernel's, and the wire between it and ours.

use std::{fs, os::fd::AsRawFd, process};

use weft_cni::netns::Netns;
use weft_lab::workshop::run;

/// The underlay: one wire, and a second address on our end that came first.
/// A node has a default route; it is what proxy ARP answers by.
pub fn join(ours: &Netns, theirs: &Netns) {
    let command = format!(
        "ip link add eth0 type veth peer name eth0 netns {}",
        path(theirs)
    );
    run(ours, &command).expect("a wire");
    for (node, addresses) in [
        (
            ours,
            &[
                "192.0.2.101/24",
                "192.0.2.1/24",
                "2001:db8::1/64",
                "2001:db8::101/64",
            ][..],
        ),
        (theirs, &["192.0.2.2/24", "2001:db8::2/64"]),
    ] {
        all(node, &["ip link set lo up", "ip link set eth0 mtu 1500 up"]);
        for address in addresses {
            let nodad = if address.contains(':') { "nodad" } else { "" };
            run(node, &format!("ip address add {address} dev eth0 {nodad}")).expect("an address");
        }
    }
    run(theirs, "ip route add default via 192.0.2.254").expect("a route");
}

pub fn route_packets() {
    for (knob, value) in [
        ("ipv4/ip_forward", "1"),
        // Strict: the way back must be the way that it came.
        ("ipv4/conf/all/rp_filter", "1"),
        ("ipv4/conf/default/rp_filter", "1"),
        ("ipv6/conf/all/forwarding", "1"),
    ] {
        fs::write(format!("/proc/sys/net/{knob}"), value).expect("sysctl");
    }
}

pub fn all(netns: &Netns, commands: &[&str]) {
    for command in commands {
        run(netns, command).unwrap_or_else(|error| panic!("{error:#}"));
    }
}

pub fn path(netns: &Netns) -> String {
    format!("/proc/{}/fd/{}", process::id(), netns.as_raw_fd())
}

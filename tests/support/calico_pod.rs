//! A pod of a node whose packets the kernel carries, as Calico wires it.

use std::fs;

use weft_cni::netns::Netns;
use weft_lab::Pod;

use super::kernel_node::{all, path};

/// Calico's pods are hosts of their own, and the node answers ARP for all.
pub fn add_pod_with_proxy_arp(node: &Netns, pod: &Pod, mtu: u16) {
    let cali = format!("cali{}", pod.v4().octets()[3]);
    all(
        node,
        &[
            &format!(
                "ip link add {cali} type veth peer name eth0 netns {}",
                path(&pod.netns)
            ),
            &format!("ip link set {cali} address ee:ee:ee:ee:ee:ee mtu {mtu} up"),
            &format!("ip route add {} dev {cali} scope link", pod.v4()),
            &format!("ip route add {} dev {cali}", pod.v6()),
        ],
    );
    node.run(|| {
        for (knob, value) in [("conf", "proxy_arp", "1"), ("neigh", "proxy_delay", "0")]
            .map(|(kind, knob, value)| (format!("ipv4/{kind}/{cali}/{knob}"), value))
        {
            fs::write(format!("/proc/sys/net/{knob}"), value).expect("sysctl");
        }
    })
    .expect("enter");
    all(
        &pod.netns,
        &[
            "ip link set lo up",
            &format!("ip link set eth0 address {} mtu {mtu} up", pod.plan.mac),
            &format!("ip address add {} dev eth0", pod.v4()),
            &format!("ip address add {} dev eth0 nodad", pod.v6()),
            "ip route add 169.254.1.1 dev eth0 scope link",
            "ip route add default via 169.254.1.1 dev eth0",
            "ip -6 route add default via fe80::ecee:eeff:feee:eeee dev eth0",
        ],
    );
}

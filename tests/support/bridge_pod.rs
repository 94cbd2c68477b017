//! A pod of a node whose packets the kernel carries, behind a bridge.

use std::net::{Ipv4Addr, Ipv6Addr};

use weft_cni::netns::Netns;
use weft_lab::Pod;

use super::kernel_node::{all, path};

/// flannel leaves pods to the bridge plugin.
pub fn add_pod_to_bridge(node: &Netns, pod: &Pod, mtu: u16) {
    // The second address of the subnet is the bridge's.
    let [a, b, c, _] = pod.v4().octets();
    let v4 = Ipv4Addr::new(a, b, c, 1);
    let subnet = u128::from(pod.v6()) >> 64 << 64;
    let v6 = Ipv6Addr::from(subnet + 1);
    all(
        node,
        &[
            "ip link add cni0 type bridge mcast_snooping 0",
            &format!("ip link set cni0 mtu {mtu} up"),
            &format!("ip address add {v4}/24 dev cni0"),
            &format!("ip address add {v6}/64 dev cni0 nodad"),
            &format!(
                "ip link add veth1 type veth peer name eth0 netns {}",
                path(&pod.netns)
            ),
            &format!("ip link set veth1 mtu {mtu} master cni0 up"),
        ],
    );
    all(
        &pod.netns,
        &[
            "ip link set lo up",
            &format!("ip link set eth0 address {} mtu {mtu} up", pod.plan.mac),
            &format!("ip address add {}/24 dev eth0", pod.v4()),
            &format!("ip address add {}/64 dev eth0 nodad", pod.v6()),
            &format!("ip route add default via {v4}"),
            &format!("ip -6 route add default via {v6}"),
        ],
    );
}

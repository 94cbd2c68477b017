//! A pod of a node whose packets the kernel carries, behind a bridge.

use weft_cni::netns::Netns;
use weft_lab::Pod;

use super::kernel_node::{all, path};

/// flannel leaves pods to the bridge plugin.
pub fn add_pod_to_bridge(node: &Netns, pod: &Pod, mtu: u16) {
    all(
        node,
        &[
            "ip link add cni0 type bridge mcast_snooping 0",
            &format!("ip link set cni0 mtu {mtu} up"),
            "ip address add 10.244.2.1/24 dev cni0",
            "ip address add fd00:10:244:2::1/64 dev cni0 nodad",
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
            "ip route add default via 10.244.2.1",
            "ip -6 route add default via fd00:10:244:2::1",
        ],
    );
}

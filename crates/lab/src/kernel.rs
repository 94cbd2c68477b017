//! The baseline: the kernel's own pod network, laid out as flannel does. A
//! bridge and veths on each node, a VXLAN device that learns nothing, and a
//! route, a neighbour and a forwarding entry per peer.

use anyhow::Context;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use weft_api::{forwarder::DEFAULT_PORT, names::Vni};
use weft_cni::{
    netlink::{LinkChange, Netlink, Route, Vxlan},
    netns::Netns,
};

use crate::spec::{NodePlan, PodPlan, Spec};

const BRIDGE: &str = "cni0";
const VXLAN: &str = "vxlan0";

/// Turns the namespace into a node whose pods are in `pods`.
pub(crate) fn set_up(
    spec: &Spec,
    plan: &[NodePlan],
    node: &NodePlan,
    netns: &Netns,
    pods: &[Netns],
) -> anyhow::Result<()> {
    netns.run(route_packets)??;
    let netlink = Netlink::open_in(netns)??;
    let up = LinkChange {
        mtu: Some(spec.pod_mtu()),
        up: true,
        ..LinkChange::default()
    };

    netlink
        .add_bridge(BRIDGE)
        .context("this kernel has no bridge device")?;
    let bridge = netlink.index(BRIDGE)?.context("the bridge vanished")?;
    netlink.change(bridge, &up)?;
    for address in node.bridge_nets() {
        netlink.add_address(bridge, address)?;
    }
    for (pod, pod_netns) in node.pods.iter().zip(pods) {
        add_pod(&netlink, bridge, node, pod, pod_netns, &up)
            .with_context(|| format!("set up pod {}", pod.name))?;
    }
    if plan.len() > 1 {
        add_tunnel(spec, plan, node, &netlink).context("set up the kernel's VXLAN")?;
    }
    Ok(())
}

fn route_packets() -> anyhow::Result<()> {
    for (path, value) in [
        ("/proc/sys/net/ipv4/ip_forward", "1"),
        ("/proc/sys/net/ipv4/conf/all/rp_filter", "0"),
        ("/proc/sys/net/ipv4/conf/default/rp_filter", "0"),
        ("/proc/sys/net/ipv6/conf/all/forwarding", "1"),
    ] {
        std::fs::write(path, value)
            .with_context(|| format!("write {value} to {path}; it must be writable"))?;
    }
    Ok(())
}

fn add_pod(
    node: &Netlink,
    bridge: u32,
    plan: &NodePlan,
    pod: &PodPlan,
    netns: &Netns,
    up: &LinkChange,
) -> anyhow::Result<()> {
    let host_end = format!("veth-{}", pod.name);
    node.add_veth(&host_end, "eth0", netns)?;
    let index = node.index(&host_end)?.context("the veth vanished")?;
    node.change(
        index,
        &LinkChange {
            bridge: Some(bridge),
            no_link_local: true,
            ..up.clone()
        },
    )?;

    fill_pod(plan, pod, netns, up)
}

fn fill_pod(plan: &NodePlan, pod: &PodPlan, netns: &Netns, up: &LinkChange) -> anyhow::Result<()> {
    let inside = Netlink::open_in(netns)??;
    let loopback = inside.index("lo")?.context("no loopback device")?;
    inside.change(
        loopback,
        &LinkChange {
            up: true,
            ..LinkChange::default()
        },
    )?;
    let index = inside.index("eth0")?.context("the pod's link vanished")?;
    inside.change(
        index,
        &LinkChange {
            mac: Some(pod.mac),
            ..up.clone()
        },
    )?;
    let nets = [
        IpNet::from(Ipv4Net::new_assert(pod.v4, 24)),
        Ipv6Net::new_assert(pod.v6, 64).into(),
    ];
    let everywhere = [IpNet::from(Ipv4Net::default()), Ipv6Net::default().into()];
    for ((net, to), gateway) in nets.into_iter().zip(everywhere).zip(plan.bridge_nets()) {
        inside.add_address(index, net)?;
        inside.add_route(&Route {
            to,
            index,
            via: Some(gateway.addr()),
            onlink: false,
            src: None,
        })?;
        inside.wait_for_address(net.addr())?;
    }
    Ok(())
}

fn add_tunnel(
    spec: &Spec,
    plan: &[NodePlan],
    node: &NodePlan,
    netlink: &Netlink,
) -> anyhow::Result<()> {
    netlink.add_vxlan(&Vxlan {
        name: VXLAN.to_owned(),
        vni: Vni::DEFAULT.value(),
        port: DEFAULT_PORT,
        local: node.underlay[0],
        mac: node.vtep_mac,
        mtu: spec.pod_mtu(),
    })?;
    let index = netlink.index(VXLAN)?.context("the VXLAN device vanished")?;
    for address in node.tunnel {
        netlink.add_address(index, address.into())?;
    }
    let up = LinkChange {
        no_link_local: true,
        up: true,
        ..LinkChange::default()
    };
    netlink.change(index, &up)?;
    for peer in plan.iter().filter(|peer| peer.number != node.number) {
        netlink.add_fdb(index, peer.vtep_mac, peer.underlay[0])?;
        for (block, tunnel) in peer.blocks.into_iter().zip(peer.tunnel) {
            netlink.add_neighbour(index, tunnel, peer.vtep_mac)?;
            netlink.add_route(&Route {
                to: block,
                index,
                via: Some(tunnel),
                onlink: true,
                src: None,
            })?;
        }
    }
    Ok(())
}

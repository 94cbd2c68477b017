//! The nodes' namespaces and the wire between them: one veth pair for two
//! nodes, a bridge in a namespace of its own for more.

use std::fs;

use anyhow::Context;
use weft_cni::{
    ethtool,
    netlink::{LinkChange, Netlink},
    netns::{Netns, NetnsError},
};

use crate::spec::{NodePlan, Spec};

/// The node's end of the underlay.
const LINK: &str = "eth0";

/// What a device must do for a tunnel's super-frames to cross it whole.
const TUNNEL_OFFLOADS: [&str; 2] = ["tx-udp_tnl-segmentation", "tx-udp_tnl-csum-segmentation"];

#[derive(Debug)]
pub(crate) struct Underlay {
    /// As many as nodes, in their order.
    pub nodes: Vec<Netns>,
    /// Where the bridge is, if there is one.
    pub fabric: Option<Netns>,
}

pub(crate) fn lay(spec: &Spec, plan: &[NodePlan]) -> anyhow::Result<Underlay> {
    let nodes: Vec<Netns> = plan
        .iter()
        .map(|node| make_node(&node.name))
        .collect::<Result<_, _>>()?;
    let fabric = match &nodes[..] {
        [_] => None,
        [one, two] => {
            Netlink::open_in(one)??.add_veth(LINK, LINK, two)?;
            None
        }
        more => Some(bridge(spec, more).context("join the nodes by a bridge")?),
    };
    for (node, netns) in plan.iter().zip(&nodes) {
        configure(spec, node, netns).with_context(|| format!("set up node {}", node.name))?;
    }
    Ok(Underlay { nodes, fabric })
}

/// A namespace whose links have their link-local addresses at once: until
/// then a node asks for no neighbour on behalf of the pods behind it.
pub(crate) fn make_node(name: &str) -> Result<Netns, NetnsError> {
    let netns = Netns::make(name)?;
    netns.run(|| {
        for knob in ["accept_dad", "dad_transmits"] {
            // Without it, all that is lost is the second that detection takes.
            let _ = fs::write(format!("/proc/sys/net/ipv6/conf/default/{knob}"), "0");
        }
    })?;
    Ok(netns)
}

fn bridge(spec: &Spec, nodes: &[Netns]) -> anyhow::Result<Netns> {
    let fabric = Netns::make("fabric")?;
    let netlink = Netlink::open_in(&fabric)??;
    netlink.add_bridge("bridge")?;
    let bridge = netlink.index("bridge")?.context("the bridge vanished")?;
    let up = LinkChange {
        mtu: Some(spec.mtu),
        no_link_local: true,
        up: true,
        ..LinkChange::default()
    };
    netlink.change(bridge, &up)?;
    for (number, node) in nodes.iter().enumerate() {
        let port = format!("port{}", number + 1);
        netlink.add_veth(&port, LINK, node)?;
        let index = netlink.index(&port)?.context("a bridge port vanished")?;
        netlink.change(
            index,
            &LinkChange {
                bridge: Some(bridge),
                ..up.clone()
            },
        )?;
        if !spec.underlay_offload {
            fabric.run(|| without_offload(&port))??;
        }
    }
    Ok(fabric)
}

fn configure(spec: &Spec, node: &NodePlan, netns: &Netns) -> anyhow::Result<()> {
    let netlink = Netlink::open_in(netns)??;
    let up = LinkChange {
        up: true,
        ..LinkChange::default()
    };
    let loopback = netlink.index("lo")?.context("no loopback device")?;
    netlink.change(loopback, &up)?;
    let Some(index) = netlink.index(LINK)? else {
        // The only node of a lab has no underlay link; its addresses still
        // have to be somewhere.
        for address in node.underlay {
            netlink.add_address(loopback, address.into())?;
        }
        return Ok(());
    };
    netlink.change(
        index,
        &LinkChange {
            mtu: Some(spec.mtu),
            ..up
        },
    )?;
    for address in node.underlay_nets() {
        netlink.add_address(index, address)?;
        netlink.wait_for_address(address.addr())?;
    }
    if !spec.underlay_offload {
        netns.run(|| without_offload(LINK))??;
    }
    Ok(())
}

fn without_offload(link: &str) -> Result<(), ethtool::FeatureError> {
    TUNNEL_OFFLOADS
        .into_iter()
        .try_for_each(|feature| ethtool::set_feature(link, feature, false))
}

//! What a lab is to be, and the plan that follows from it: every name,
//! address and MAC. Pure.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    num::NonZero,
};

use anyhow::ensure;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};
use weft_api::names::Mac;

/// The last byte of an underlay address.
pub const NODES_MAX: usize = 250;
/// Pods are 11 to 250 in the last byte of their block.
pub const PODS_MAX: usize = 240;
/// Leaves the pods IPv6's least MTU, 1280 (RFC 8200 section 5).
pub const MTU_MIN: u16 = 1350;

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Spec {
    pub name: String,
    pub nodes: usize,
    /// On each node.
    pub pods: usize,
    /// The underlay's MTU; the pods' is smaller by the tunnel's headers.
    pub mtu: u16,
    pub attach: Attach,
    pub kind: Kind,
    /// Workers of each forwarder; where `None`, the nodes share out the
    /// machine's processors.
    pub workers: Option<usize>,
    /// Whether the underlay segments tunnelled super-frames, as the best
    /// NICs do and virtual machines' do not.
    pub underlay_offload: bool,
    pub outer: Outer,
    /// The IPAM server's `gc_grace_seconds`; `None` leaves its own.
    #[serde(default)]
    pub gc_grace_seconds: Option<u32>,
    /// The IPAM server's `store`; where `None`, a file of the lab's own.
    #[serde(default)]
    pub store: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Attach {
    Tap,
    Veth,
}

/// Who carries the pods' packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// One forwarder a node.
    Weft,
    /// The kernel's bridge, veth and VXLAN devices, laid out as flannel does.
    Kernel,
}

/// The family in which nodes speak with each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outer {
    V4,
    V6,
}

impl Default for Spec {
    fn default() -> Self {
        Self {
            name: "lab".to_owned(),
            nodes: 2,
            pods: 2,
            mtu: 1500,
            attach: Attach::Tap,
            kind: Kind::Weft,
            workers: None,
            underlay_offload: true,
            outer: Outer::V4,
            gc_grace_seconds: None,
            store: None,
        }
    }
}

impl Spec {
    pub fn check(&self) -> anyhow::Result<()> {
        let named = |c: char| c.is_ascii_alphanumeric() || "-_".contains(c);
        ensure!(
            (1..=32).contains(&self.name.len()) && self.name.chars().all(named),
            "lab name {:?}: use 1 to 32 letters, digits, '-' and '_'",
            self.name
        );
        ensure!(
            (1..=NODES_MAX).contains(&self.nodes),
            "{} nodes: a lab has 1 to {NODES_MAX}",
            self.nodes
        );
        ensure!(
            (1..=PODS_MAX).contains(&self.pods),
            "{} pods a node: a node has 1 to {PODS_MAX}",
            self.pods
        );
        ensure!(
            self.mtu >= MTU_MIN,
            "underlay MTU {}: IPv6 in the pods needs at least {MTU_MIN}",
            self.mtu
        );
        ensure!(
            self.workers != Some(0),
            "0 workers carry nothing; ask for 1 or more"
        );
        Ok(())
    }

    /// Workers of each forwarder.
    pub fn workers(&self) -> usize {
        let processors = std::thread::available_parallelism().map_or(1, NonZero::get);
        self.workers.unwrap_or((processors / self.nodes).max(1))
    }

    pub fn pod_mtu(&self) -> u16 {
        self.mtu - self.outer.overhead()
    }

    /// All nodes, `n1` first.
    pub fn plan(&self) -> Vec<NodePlan> {
        (1..=self.nodes)
            .map(|number| NodePlan::new(self, number))
            .collect()
    }
}

impl Outer {
    /// What VXLAN costs of each outer packet: IP + 8 (UDP) + 8 (VXLAN) + 14
    /// (inner Ethernet).
    fn overhead(self) -> u16 {
        match self {
            Self::V4 => 20 + 8 + 8 + 14,
            Self::V6 => 40 + 8 + 8 + 14,
        }
    }
}

/// One node: `n1`, `n2`, …
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct NodePlan {
    pub name: String,
    /// From 1.
    pub number: u8,
    /// Of both families, the one that tunnels use first.
    pub underlay: [IpAddr; 2],
    pub vtep_mac: Mac,
    pub blocks: [IpNet; 2],
    /// The node's own addresses in the pod network, v4 and v6.
    pub tunnel: [IpAddr; 2],
    pub pods: Vec<PodPlan>,
}

/// One pod: `n1p1`, `n1p2`, …
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct PodPlan {
    pub name: String,
    pub mac: Mac,
    pub v4: Ipv4Addr,
    pub v6: Ipv6Addr,
}

impl NodePlan {
    fn new(spec: &Spec, number: usize) -> Self {
        let node = u8::try_from(number).expect("checked: at most NODES_MAX");
        let v4 = IpAddr::V4(Ipv4Addr::new(192, 0, 2, node));
        let v6 = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, as_read(node)));
        let (tunnel_v4, tunnel_v6) = (pod_v4(node, 0), pod_v6(node, 0));
        Self {
            name: format!("n{node}"),
            number: node,
            underlay: match spec.outer {
                Outer::V4 => [v4, v6],
                Outer::V6 => [v6, v4],
            },
            vtep_mac: Mac([0x02, 0x77, 0x65, 0x66, 0x00, node]),
            blocks: [
                IpNet::V4(Ipv4Net::new_assert(tunnel_v4, 24)),
                IpNet::V6(Ipv6Net::new_assert(tunnel_v6, 64)),
            ],
            tunnel: [tunnel_v4.into(), tunnel_v6.into()],
            pods: (1..=spec.pods).map(|pod| PodPlan::new(node, pod)).collect(),
        }
    }

    /// The underlay addresses with their prefixes.
    pub fn underlay_nets(&self) -> [IpNet; 2] {
        self.underlay.map(|address| match address {
            IpAddr::V4(v4) => Ipv4Net::new_assert(v4, 24).into(),
            IpAddr::V6(v6) => Ipv6Net::new_assert(v6, 64).into(),
        })
    }

    /// Where the kernel kind's bridge sits in the node's block.
    pub fn bridge_nets(&self) -> [IpNet; 2] {
        [
            Ipv4Net::new_assert(pod_v4(self.number, 1), 24).into(),
            Ipv6Net::new_assert(pod_v6(self.number, 1), 64).into(),
        ]
    }
}

impl PodPlan {
    pub(crate) fn new(node: u8, number: usize) -> Self {
        let host = u8::try_from(10 + number).expect("checked: at most PODS_MAX");
        Self {
            name: format!("n{node}p{number}"),
            mac: Mac([0x02, 0x70, 0x6f, 0x64, node, host]),
            v4: pod_v4(node, host),
            v6: pod_v6(node, host),
        }
    }

    pub fn addresses(&self) -> [IpAddr; 2] {
        [self.v4.into(), self.v6.into()]
    }
}

fn pod_v4(node: u8, host: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 244, node, host)
}

fn pod_v6(node: u8, host: u8) -> Ipv6Addr {
    Ipv6Addr::new(0xfd00, 0x10, 0x244, as_read(node), 0, 0, 0, as_read(host))
}

/// The group that reads in hexadecimal as `number` does in decimal, so that
/// both addresses of a pod end alike.
fn as_read(number: u8) -> u16 {
    let number = u16::from(number);
    number / 100 * 0x100 + number / 10 % 10 * 0x10 + number % 10
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_read_as_the_names_do() {
        let plan = Spec {
            nodes: 12,
            pods: 240,
            ..Spec::default()
        }
        .plan();
        let node = &plan[11];
        assert_eq!(node.name, "n12");
        assert_eq!(
            node.underlay.map(|a| a.to_string()),
            ["192.0.2.12", "2001:db8::12"]
        );
        assert_eq!(
            node.tunnel.map(|a| a.to_string()),
            ["10.244.12.0", "fd00:10:244:12::"]
        );
        assert_eq!(
            node.blocks.map(|b| b.to_string()),
            ["10.244.12.0/24", "fd00:10:244:12::/64"]
        );
        let pod = &node.pods[239];
        assert_eq!(pod.name, "n12p240");
        assert_eq!(
            pod.addresses().map(|a| a.to_string()),
            ["10.244.12.250", "fd00:10:244:12::250"]
        );
    }

    #[test]
    fn the_outer_family_leads_and_sets_the_mtu() {
        let v4 = Spec::default();
        assert_eq!(
            (v4.pod_mtu(), v4.plan()[0].underlay[0].is_ipv4()),
            (1450, true)
        );
        let v6 = Spec {
            outer: Outer::V6,
            ..Spec::default()
        };
        assert_eq!(
            (v6.pod_mtu(), v6.plan()[0].underlay[0].is_ipv6()),
            (1430, true)
        );
    }

    #[test]
    fn what_no_lab_can_be_is_refused() {
        let good = Spec::default();
        good.check().expect("the default is good");
        for bad in [
            Spec {
                name: String::new(),
                ..good.clone()
            },
            Spec {
                name: "../lab".to_owned(),
                ..good.clone()
            },
            Spec {
                nodes: 0,
                ..good.clone()
            },
            Spec {
                nodes: NODES_MAX + 1,
                ..good.clone()
            },
            Spec {
                pods: PODS_MAX + 1,
                ..good.clone()
            },
            Spec {
                mtu: 1349,
                ..good.clone()
            },
            Spec {
                workers: Some(0),
                ..good
            },
        ] {
            assert!(bad.check().is_err(), "{bad:?}");
        }
    }
}

//! A Calico node whose VXLAN is the kernel's: its records stand in etcd as
//! Calico's own would, and its kernel is programmed by the others' records as
//! felix does it, and by nothing else.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    process::Command,
};

use ipnet::IpNet;
use serde_json::{Value as Json, json};
use weft_cni::netns::Netns;

use super::{
    etcd::Etcd,
    kernel_node::{all, route_packets},
};

pub const NODES: &str = "/calico/resources/v3/projectcalico.org/nodes/";
const POOLS: &str = "/calico/resources/v3/projectcalico.org/ippools/";
pub const BLOCKS: &str = "/calico/ipam/v2/assignment/";

/// By family: device, suffix of what the MAC is derived from, overhead.
const DEVICES: [(&str, &str, u16); 2] = [("vxlan.calico", "", 50), ("vxlan-v6.calico", "-v6", 70)];

pub struct Felix<'a> {
    name: &'a str,
    node: &'a Netns,
    etcd: &'a Etcd,
}

impl<'a> Felix<'a> {
    /// Of one that started.
    pub fn of(name: &'a str, node: &'a Netns, etcd: &'a Etcd) -> Self {
        Self { name, node, etcd }
    }

    /// Of a node with an address, a tunnel address and a block of each family.
    pub fn start(
        name: &'a str,
        node: &'a Netns,
        etcd: &'a Etcd,
        underlay: [&str; 2],
        tunnels: [&str; 2],
        blocks: [&str; 2],
    ) -> Self {
        node.run(route_packets).expect("enter");
        for (at, (device, suffix, overhead)) in DEVICES.into_iter().enumerate() {
            let mac = derived_mac(&format!("{name}{suffix}"));
            let (local, tunnel, block) = (underlay[at], tunnels[at], blocks[at]);
            let local = local.split('/').next().expect("an address");
            let len = if at == 0 { 32 } else { 128 };
            all(
                node,
                &[
                    &format!(
                        "ip link add {device} address {mac} mtu {} type vxlan id 4096 local {local} \
                         dev eth0 dstport 4789 nolearning",
                        1500 - overhead
                    ),
                    &format!("ip link set {device} addrgenmode none up"),
                    &format!("ip address add {tunnel}/{len} dev {device}"),
                    &format!("ip route add blackhole {block}"),
                ],
            );
            let v6 = at == 1;
            let handle = format!("vxlan-{}tunnel-addr-{name}", if v6 { "v6-" } else { "" });
            let kind = if v6 {
                "vxlanV6TunnelAddress"
            } else {
                "vxlanTunnelAddress"
            };
            let held = json!({"handle_id": handle, "secondary": {"node": name, "type": kind}});
            put_block(etcd, block, Some(name), &[(tunnel, held)]);
        }
        etcd.put(&format!("{NODES}{name}"), &record(name, underlay, tunnels));
        Self::of(name, node, etcd)
    }

    /// Programs the kernel by every record but its own.
    pub fn follow(&self) {
        for (key, value) in self.etcd.rows(NODES) {
            let node: Json = serde_json::from_str(&value).expect("JSON");
            let name = node["metadata"]["name"].as_str().expect("a name");
            assert_eq!(key, format!("{NODES}{name}"));
            if name == self.name {
                continue;
            }
            let spec = &node["spec"];
            for (at, (device, suffix, _)) in DEVICES.into_iter().enumerate() {
                let [address, tunnel, mac] = [
                    ["ipv4Address", "ipv6Address"][at],
                    ["ipv4VXLANTunnelAddr", "ipv6VXLANTunnelAddr"][at],
                    ["vxlanTunnelMACAddr", "vxlanTunnelMACAddrV6"][at],
                ];
                let text = |json: &Json| json.as_str().map(str::to_owned);
                let (Some(address), Some(tunnel)) =
                    (text(&spec["bgp"][address]), text(&spec[tunnel]))
                else {
                    continue;
                };
                let address = address.split('/').next().expect("an address");
                let mac =
                    text(&spec[mac]).unwrap_or_else(|| derived_mac(&format!("{name}{suffix}")));
                all(
                    self.node,
                    &[
                        &format!(
                            "ip neigh replace {tunnel} lladdr {mac} dev {device} nud permanent"
                        ),
                        &format!(
                            "bridge fdb replace {mac} dev {device} dst {address} self permanent"
                        ),
                    ],
                );
                for net in self.places(name, at) {
                    let route = match self.is_plain(&net, address) {
                        true => format!("ip route replace {net} via {address} dev eth0"),
                        false => format!("ip route replace {net} via {tunnel} dev {device} onlink"),
                    };
                    all(self.node, &[&route]);
                }
            }
        }
    }

    /// Whether the net's pool has CrossSubnet, and the address is in this
    /// node's subnet.
    fn is_plain(&self, net: &str, address: &str) -> bool {
        let address: IpAddr = address.parse().expect("an address");
        let first: IpAddr = net
            .split('/')
            .next()
            .and_then(|a| a.parse().ok())
            .expect("a net");
        let cross = self.etcd.rows(POOLS).into_iter().any(|(_, value)| {
            let pool: Json = serde_json::from_str(&value).expect("JSON");
            let cidr: IpNet = pool["spec"]["cidr"]
                .as_str()
                .and_then(|c| c.parse().ok())
                .expect("a CIDR");
            cidr.contains(&first) && pool["spec"]["vxlanMode"] == "CrossSubnet"
        });
        let own = self.etcd.rows(&format!("{NODES}{}", self.name));
        let own: Json = serde_json::from_str(&own[0].1).expect("JSON");
        let own = &own["spec"]["bgp"][if address.is_ipv4() {
            "ipv4Address"
        } else {
            "ipv6Address"
        }];
        let own: IpNet = own
            .as_str()
            .and_then(|own| own.parse().ok())
            .expect("a subnet");
        cross && own.contains(&address)
    }

    /// The blocks of a node in a family, and what others lent it.
    fn places(&self, node: &str, at: usize) -> Vec<String> {
        let version = ["ipv4", "ipv6"][at];
        let mut places = Vec::new();
        for (_, value) in self.etcd.rows(&format!("{BLOCKS}{version}/block/")) {
            let Ok(block) = serde_json::from_str::<Json>(&value) else {
                continue;
            };
            let cidr = block["cidr"].as_str().expect("a CIDR");
            let own = block["affinity"] == format!("host:{node}");
            if own {
                places.push(cidr.to_owned());
            }
            let first = cidr.split('/').next().expect("an address").parse();
            let slots = block["allocations"].as_array().into_iter().flatten();
            for (ordinal, index) in slots.enumerate() {
                let Some(index) = index.as_u64() else {
                    continue;
                };
                let held = &block["attributes"][usize::try_from(index).expect("small")];
                if held["secondary"]["node"] == node && !own {
                    let first = first.clone().expect("an address");
                    places.push(nth(first, u32::try_from(ordinal).expect("small")).to_string());
                }
            }
        }
        places
    }
}

/// A node as calico/node writes it.
pub fn record(name: &str, [v4, v6]: [&str; 2], [tunnel_v4, tunnel_v6]: [&str; 2]) -> String {
    json!({
        "kind": "Node",
        "apiVersion": "projectcalico.org/v3",
        "metadata": {
            "name": name,
            "uid": "7cbf2a0c-3f3e-4c1e-9d2f-0d6a3c1b2a10",
            "creationTimestamp": "2026-01-31T12:00:00Z",
        },
        "spec": {
            "bgp": {"ipv4Address": v4, "ipv6Address": v6},
            "ipv4VXLANTunnelAddr": tunnel_v4,
            "ipv6VXLANTunnelAddr": tunnel_v6,
        },
        "status": {},
    })
    .to_string()
}

/// A block as Calico writes it, with what is held of it.
pub fn put_block(etcd: &Etcd, cidr: &str, node: Option<&str>, held: &[(&str, Json)]) {
    let (first, len) = cidr.split_once('/').expect("a CIDR");
    let first: IpAddr = first.parse().expect("an address");
    let bits = if first.is_ipv4() { 32 } else { 128 };
    let size = 1u32 << (bits - len.parse::<u32>().expect("a length"));
    let mut slots = vec![Json::Null; usize::try_from(size).expect("small")];
    let mut numbers = serde_json::Map::new();
    for (index, (address, _)) in held.iter().enumerate() {
        let address: IpAddr = address.parse().expect("an address");
        let ordinal = (0..size).find(|n| nth(first, *n) == address);
        let ordinal = usize::try_from(ordinal.expect("in the block")).expect("small");
        slots[ordinal] = index.into();
        numbers.insert(ordinal.to_string(), 1_769_860_800_000_000_000u64.into());
    }
    let free = (0..slots.len()).filter(|ordinal| slots[*ordinal].is_null());
    let block = json!({
        "cidr": cidr,
        "affinity": node.map(|node| format!("host:{node}")),
        "affinity_claim_time": "2026-01-31T12:00:00Z",
        "unallocated": free.collect::<Vec<_>>(),
        "allocations": slots,
        "attributes": held.iter().map(|(_, attribute)| attribute.clone()).collect::<Vec<_>>(),
        "sequenceNumber": 1_769_860_800_000_000_001u64,
        "sequenceNumberForAllocation": numbers,
        "deleted": false,
    });
    let version = if first.is_ipv4() { "ipv4" } else { "ipv6" };
    let name = cidr.replace('/', "-");
    etcd.put(
        &format!("{BLOCKS}{version}/block/{name}"),
        &block.to_string(),
    );
    if let Some(node) = node {
        let affinity = format!("/calico/ipam/v2/host/{node}/{version}/block/{name}");
        etcd.put(&affinity, r#"{"state":"confirmed","deleted":false}"#);
    }
}

fn nth(first: IpAddr, ordinal: u32) -> IpAddr {
    match first {
        IpAddr::V4(v4) => Ipv4Addr::from(u32::from(v4) + ordinal).into(),
        IpAddr::V6(v6) => Ipv6Addr::from(u128::from(v6) + u128::from(ordinal)).into(),
    }
}

fn derived_mac(text: &str) -> String {
    let script = format!("printf %s {text} | sha1sum");
    let output = Command::new("sh").args(["-c", &script]).output();
    let hash = String::from_utf8(output.expect("sha1sum runs").stdout).expect("text");
    let bytes: Vec<_> = (0..5).map(|at| &hash[2 * at..2 * at + 2]).collect();
    format!("66:{}", bytes.join(":"))
}

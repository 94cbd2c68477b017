//! Who lives where in the two nodes' world: addresses, MACs and tables.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
};

use ipnet::IpNet;
use weft_engine::{
    Epoch, Gateway, Host, Ipip, Peer, Peers, Port, PortId, Reach, Snapshot, Vtep, Way,
};
use weft_wire::{ETHERNET_LEN, Mac};

pub const GATEWAY: Gateway = Gateway {
    mac: [0xee; 6],
    v4: Ipv4Addr::new(169, 254, 1, 1),
    v6: Ipv6Addr::new(0xfe80, 0, 0, 0, 0xecee, 0xeeff, 0xfeee, 0xeeee),
};
pub const VNI: u32 = 4096;
pub const VXLAN_PORT: u16 = 4789;
/// The pods' MTU, and that of the way between the nodes.
pub const MTU: usize = 1450;

pub fn underlay(node: usize) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(192, 0, 2, byte(node) + 1))
}

pub fn pod_v4(node: usize, pod: usize) -> Ipv4Addr {
    Ipv4Addr::new(10, 244, byte(node), byte(pod) + 10)
}

pub fn pod_v6(node: usize, pod: usize) -> Ipv6Addr {
    Ipv6Addr::new(
        0xfd00,
        0x10,
        0x244,
        byte(node).into(),
        0,
        0,
        0,
        u16::from(byte(pod)) + 0x10,
    )
}

/// The node's own address in the pod network.
pub fn tunnel_v4(node: usize) -> Ipv4Addr {
    Ipv4Addr::new(10, 244, byte(node), 0)
}

pub fn pod_mac(node: usize, pod: usize) -> Mac {
    [2, 0, 0, 0, byte(node), byte(pod)]
}

pub fn vtep_mac(node: usize) -> Mac {
    [2, 1, 0, 0, 0, byte(node)]
}

pub(super) fn byte(place: usize) -> u8 {
    u8::try_from(place).expect("a test has few nodes and pods")
}

pub fn port(node: usize, pod: usize) -> Arc<Port> {
    Arc::new(pod_port(node, pod))
}

fn pod_port(node: usize, pod: usize) -> Port {
    let addresses = vec![pod_v4(node, pod).into(), pod_v6(node, pod).into()];
    port_with(PortId(byte(pod).into()), pod_mac(node, pod), addresses)
}

/// A pod's, with all offloads and no limit.
pub fn port_with(id: PortId, mac: Mac, addresses: Vec<IpAddr>) -> Port {
    Port {
        id,
        mac,
        addresses,
        mtu: MTU,
        takes_udp: true,
        takes_tcp: true,
        host: None,
        from_pod_shaper: None,
        to_pod_shaper: None,
        from_pod_packets: None,
        to_pod_packets: None,
        connections: Arc::default(),
        from_pod: Arc::default(),
        to_pod: Arc::default(),
    }
}

fn blocks(node: usize) -> Vec<IpNet> {
    let texts = [
        format!("10.244.{node}.0/24"),
        format!("fd00:10:244:{node}::/64"),
    ];
    texts.map(|text| text.parse().expect("a prefix")).into()
}

pub(super) fn peer(node: usize) -> Arc<Peer> {
    Arc::new(Peer {
        remote: Some(SocketAddr::new(underlay(node), VXLAN_PORT)),
        underlay: vec![underlay(node)],
        mac: vtep_mac(node),
        vni: VNI,
        mtu: MTU,
        l3: false,
        ipip: None,
        blocks: blocks(node)
            .into_iter()
            .map(|block| (block, Way::Vxlan.into()))
            .collect(),
        to_peer: Arc::default(),
        from_peer: Arc::default(),
    })
}

/// Makes IP-in-IP the way to the peer's IPv4 blocks, by an underlay that has
/// the MTU which VXLAN's comes from.
pub fn by_ipip(peer: &mut Peer) {
    let Some(SocketAddr::V4(remote)) = peer.remote else {
        panic!("the peer has no IPv4 underlay");
    };
    peer.ipip = Some(Ipip {
        remote: *remote.ip(),
        mtu: peer.mtu + 50 - 20,
    });
    for (block, reach) in &mut peer.blocks {
        *reach = match block {
            IpNet::V4(_) => Way::Ipip.into(),
            IpNet::V6(_) => Way::Vxlan.into(),
        };
    }
}

/// Makes VXLAN without Ethernet the way to all of the peer's blocks.
pub fn by_vxlan_l3(peer: &mut Peer) {
    peer.l3 = true;
    peer.mtu += ETHERNET_LEN;
    for (_, reach) in &mut peer.blocks {
        *reach = Way::VxlanL3.into();
    }
}

/// Leaves all of the peer's blocks to the host port.
pub fn direct(peer: &mut Peer) {
    for (_, reach) in &mut peer.blocks {
        *reach = Reach::Direct;
    }
}

/// The place of the host port, behind those of the pods.
pub const HOST: usize = 2;
/// That of the nodes' underlay.
pub const HOST_MTU: usize = 1500;

pub fn host_mac(node: usize) -> Mac {
    [2, 2, 0, 0, 0, byte(node)]
}

pub(super) fn host(node: usize) -> Arc<Port> {
    let pools = ["10.244.0.0/16", "fd00:10:244::/48"];
    Arc::new(Port {
        id: PortId(byte(HOST).into()),
        mac: host_mac(node),
        addresses: vec![underlay(node)],
        mtu: HOST_MTU,
        host: Some(Host {
            pools: pools.map(|pool| pool.parse().expect("a prefix")).into(),
        }),
        ..pod_port(node, HOST)
    })
}

/// The tables of a node whose pods and peer are as usual.
pub fn tables(node: usize, epoch: u64) -> Snapshot {
    tables_of(
        node,
        epoch,
        vec![port(node, 0), port(node, 1)],
        vec![peer(1 - node)],
    )
}

pub fn tables_of(
    node: usize,
    epoch: u64,
    ports: Vec<Arc<Port>>,
    peers: Vec<Arc<Peer>>,
) -> Snapshot {
    let vtep = Vtep {
        mac: vtep_mac(node),
        port: VXLAN_PORT,
        addresses: vec![tunnel_v4(node).into()],
        blocks: blocks(node),
    };
    let ports = ports.into_iter().map(Some).collect();
    let peers = Peers::build(&vtep.blocks, peers).expect("nothing is held twice");
    Snapshot::build(Epoch(epoch), GATEWAY, vtep, ports, Arc::new(peers))
        .expect("nothing is held twice")
}

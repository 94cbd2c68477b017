//! The forwarder's control protocol: one JSON object a line in each
//! direction, one answer per request, in order. The queue fds of an `attach`
//! travel as SCM_RIGHTS beside the line's first byte.
//!
//! A request that cannot be taken gets an [`Error`] and changes nothing.

use std::{collections::BTreeMap, net::IpAddr, num::NonZeroU32};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::names::{Mac, Name, Vni};

mod bandwidth;
mod flows;
mod mapping;
mod packets;
mod path;
mod policy;
pub mod sound;
mod status;

pub use bandwidth::{Bandwidth, Limit};
pub use flows::{Changed, FlowEnd, Flows, LoggedFlow, Trial};
pub use mapping::{PortMapping, Protocol};
pub use packets::{PacketLimit, PacketRate};
pub use path::{Path, PathState, RoundTrip};
pub use policy::{
    Decision, Denied, DeniedFlow, Explain, Explanation, Nearest, ObjectRef, Policies, PolicyChange,
    PolicyRow, PolicySource, Rules,
};
pub use status::{Ipam, NodesFile, Status};

/// Longest request line in bytes, newline included.
pub const REQUEST_MAX: usize = 8 << 20;

/// Most queue fds that one `attach` may carry.
pub const QUEUES_MAX: usize = 64;

/// The gateway's MAC on every pod link, as Calico's.
pub const GATEWAY_MAC: Mac = Mac([0xee; 6]);

/// The gateway's IPv4 address on every pod link, as Calico's.
pub const GATEWAY_V4: std::net::Ipv4Addr = std::net::Ipv4Addr::new(169, 254, 1, 1);

/// The gateway's IPv6 address: the EUI-64 link-local of [`GATEWAY_MAC`].
pub const GATEWAY_V6: std::net::Ipv6Addr =
    std::net::Ipv6Addr::new(0xfe80, 0, 0, 0, 0xecee, 0xeeff, 0xfeee, 0xeeee);

/// The node's own link.
pub const HOST_LINK: &str = "weft0";

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Request {
    /// Adopt the device of a pod, or of the node itself. Its fds come with the
    /// line.
    Attach(Attach),
    /// Let a port go: no worker uses its fds when the answer arrives, and they
    /// are closed soon after.
    Detach { name: Name },
    /// All ports.
    List,
    /// All peers.
    Peers,
    /// Replace this node's view of the other nodes, whole. Refused where the
    /// forwarder follows an IPAM server or keeps to a file.
    Apply(Nodes),
    /// All counters.
    Counters,
    /// The drops by reason, with their sentences.
    Drops,
    /// Who answers: version, workers, uplink.
    Status,
    /// Replace all objects of one source, in one part or many.
    Policies(Policies),
    /// Change some objects of one source.
    PolicyChange(PolicyChange),
    /// Forget a source and all its objects. Without any source there are no
    /// rules.
    PolicyDrop { source: Name },
    /// The policies in force.
    PolicyList,
    /// One policy, as it was given, and the pods it selects.
    PolicyShow { policy: ObjectRef },
    /// Judge a flow and say why.
    Explain(Explain),
    /// The flows that policies denied of late.
    Denied,
    /// A page of the flow log, which goes on while it is read. Without `after`
    /// it begins.
    Flows {
        #[serde(default, skip_serializing_if = "Option::is_none")]
        after: Option<u64>,
    },
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Attach {
    /// Unique on this forwarder. Attaching a taken name is an error.
    pub name: Name,
    pub driver: Driver,
    /// The pod's own MAC; frames from any other are dropped.
    pub mac: Mac,
    /// The pod's addresses; packets from any other are dropped.
    pub addresses: Vec<IpAddr>,
    /// The pod link's MTU in bytes of IP packet.
    pub mtu: u16,
    #[serde(default, skip_serializing_if = "Capabilities::is_plain")]
    pub capabilities: Capabilities,
    /// The port is the node's own, of which there is one at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<Host>,
}

/// What the host port leads to: the node, what its kernel routes, and so all
/// that no pool holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Host {
    /// What pods' addresses come from, on whatever node.
    pub pools: Vec<IpNet>,
}

/// What a port is to do besides carrying frames, by the names that CNI has
/// for it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Capabilities {
    #[serde(default, skip_serializing_if = "Bandwidth::is_unlimited")]
    pub bandwidth: Bandwidth,
    #[serde(default, skip_serializing_if = "PacketRate::is_unlimited")]
    pub packets: PacketRate,
    /// Most connections that are tracked for the pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connections: Option<NonZeroU32>,
    /// No two ports may publish the same. Kept for whoever leads there: the
    /// node's kernel, as the plugin programs it, or a process.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub port_mappings: Vec<PortMapping>,
}

impl Capabilities {
    /// Whether the port carries frames, and no more is asked.
    pub fn is_plain(&self) -> bool {
        *self == Self::default()
    }
}

/// How the fds of a port speak.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Driver {
    /// Tap queues with a virtio-net header (IFF_VNET_HDR).
    Tap,
    /// One tap queue without header or offloads.
    Basic,
    /// AF_PACKET sockets with PACKET_VNET_HDR, bound to the host end of a veth.
    Veth,
    /// Ends of AF_UNIX SOCK_SEQPACKET pairs, each message a virtio-net header
    /// and a frame, with all offloads: a process instead of a link.
    Packets,
}

/// The node this forwarder serves and all the others.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Nodes {
    pub node: Node,
    #[serde(default)]
    pub peers: Vec<Node>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Node {
    pub name: Name,
    /// Underlay addresses, at most one of each family. Datagrams to a peer
    /// take the first whose family both nodes have; those from it are taken
    /// from any.
    pub underlay: Vec<IpAddr>,
    /// The MAC that inner frames to this node are addressed to.
    pub vtep_mac: Mac,
    /// Of a peer: the VNI on the way to it, in both directions; it has to
    /// name the same for this node.
    #[serde(default = "default_vni")]
    pub vni: Vni,
    #[serde(default = "default_port")]
    pub port: u16,
    /// Address blocks that live on the node.
    #[serde(default)]
    pub blocks: Vec<IpNet>,
    /// How packets for a block get to the node, if not by VXLAN. Of the own
    /// node it says nothing.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub ways: BTreeMap<IpNet, Way>,
    /// The node's own addresses in the pod network (Calico's tunnel address,
    /// flannel's first address of the block), at most one of each family.
    #[serde(default)]
    pub tunnel: Vec<IpAddr>,
}

/// The form that packets have on the underlay.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Way {
    /// The Ethernet frame in a VXLAN datagram (RFC 7348).
    #[default]
    Vxlan,
    /// The IP packet in a VXLAN datagram, without an Ethernet header, as VPP
    /// has it in layer 3 mode. A node has it for all its blocks that go by
    /// VXLAN, or for none.
    VxlanL3,
    /// The IPv4 packet in an IPv4 packet (RFC 2003).
    Ipip,
    /// The IP packet as it is: the node's kernel and the fabric route it. It
    /// takes the host port.
    Direct,
}

fn default_vni() -> Vni {
    Vni::DEFAULT
}

/// The VXLAN port (RFC 7348 section 8), Calico's and weft's default.
pub const DEFAULT_PORT: u16 = 4789;

fn default_port() -> u16 {
    DEFAULT_PORT
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Answer {
    Ok(Reply),
    Error(Error),
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reply {
    /// The change is in force on every worker.
    Done {
        epoch: u64,
    },
    Ports(Vec<Port>),
    Peers(Vec<Peer>),
    Counters(Box<Counters>),
    Drops(Vec<Drop>),
    Status(Box<Status>),
    /// All objects of a source are in force; so many that it gave before are
    /// not any more.
    Given {
        withdrawn: usize,
        epoch: u64,
    },
    /// A part was taken; nothing is in force before the last.
    Taken {
        objects: usize,
    },
    Rules(Rules),
    Policy(Box<PolicyRow>),
    Explanation(Box<Explanation>),
    Denied(Denied),
    Flows(Flows),
    Trial(Trial),
}

pub type Error = crate::Error<Code>;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Code {
    /// The line is not JSON, or not a request.
    Malformed,
    /// The line is longer than [`REQUEST_MAX`].
    Oversized,
    /// No such operation.
    Unknown,
    /// A value is out of its range, or contradicts another.
    Invalid,
    /// The name, MAC, address, block, published port or object belongs to
    /// somebody else.
    Taken,
    /// No port, policy, source or pod of that name.
    NotFound,
    /// The fds do not fit the request, or are not what they should be.
    Descriptor,
    /// The caller may not do this.
    Forbidden,
    /// The nodes come from an IPAM server or a file, and from nobody else.
    Ruled,
    /// All places for clients are in use.
    Busy,
    /// A fault inside the forwarder or of the kernel.
    Internal,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Port {
    pub name: Name,
    pub driver: Driver,
    pub state: PortState,
    pub mac: Mac,
    pub addresses: Vec<IpAddr>,
    pub mtu: u16,
    pub queues: usize,
    /// Whether whole UDP super-frames can be written to the pod (USO).
    pub uso: bool,
    #[serde(default, skip_serializing_if = "Capabilities::is_plain")]
    pub capabilities: Capabilities,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<Host>,
    /// Packets dropped for the bandwidth; none without one.
    #[serde(default)]
    pub over_bandwidth: OverBandwidth,
    /// How long ago it was attached, by a clock that nobody sets.
    pub age_ms: u64,
    pub from_pod: Traffic,
    pub to_pod: Traffic,
}

/// Packets by direction.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OverBandwidth {
    pub from_pod: u64,
    pub to_pod: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PortState {
    Up,
    /// The pod's link was deleted; detach the port to free its name.
    Gone,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Peer {
    #[serde(flatten)]
    pub node: Node,
    pub to_peer: Traffic,
    pub from_peer: Traffic,
    #[serde(default)]
    pub path: Path,
}

/// Packets count as they would on a wire: a super-frame is as many as it
/// carries segments. Bytes are those of the inner Ethernet frames.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Traffic {
    pub packets: u64,
    pub bytes: u64,
}

/// What `came` is what `went`, at any quiet moment.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Counters {
    /// Packets received or made here.
    pub came: u64,
    /// Packets sent, consumed or dropped.
    pub went: u64,
    /// Every counter by its metric name without the `weft_` prefix and the
    /// `_total` suffix, in packets unless the name says otherwise.
    pub values: BTreeMap<String, u64>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Drop {
    /// The reason's name, as in metrics.
    pub reason: String,
    pub severity: String,
    /// The reason in a sentence.
    pub sentence: String,
    pub packets: u64,
}

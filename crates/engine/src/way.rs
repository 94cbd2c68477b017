//! How packets for a block get to its node. Blocks of one node may have
//! different ways, since the pools that they come from may.

/// How a block is reached.
///
/// What a peer may send through the tunnel does not depend on it: while nodes
/// learn that a pool's way is another, its packets come by the old way and by
/// the new.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reach {
    Tunnel(Way),
    /// The node's kernel and the fabric route the packets as they are: they
    /// leave and come by the host port.
    Direct,
}

/// The forms that a packet may have in the tunnel.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum Way {
    /// The Ethernet frame in a VXLAN datagram (RFC 7348).
    #[default]
    Vxlan,
    /// The IP packet in a VXLAN datagram, without an Ethernet header, as VPP
    /// has it in layer 3 mode.
    VxlanL3,
    /// The IPv4 packet in an IPv4 packet (RFC 2003). Sends leave without the
    /// outer header, which the kernel makes; arrivals come with it.
    Ipip,
}

impl From<Way> for Reach {
    fn from(way: Way) -> Self {
        Self::Tunnel(way)
    }
}

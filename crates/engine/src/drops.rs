//! The one table of drop reasons. Counters, metrics, the command line's text
//! and `docs/drops.md` come from it; nothing else may lose a frame.

/// How much a reason should worry an operator.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Severity {
    /// Happens on a healthy network.
    Normal,
    /// Somebody sends what they may not, or what nobody can use.
    Suspect,
    /// Capacity or the machine's state costs packets.
    Trouble,
}

impl Severity {
    pub fn name(self) -> &'static str {
        match self {
            Self::Normal => "normal",
            Self::Suspect => "suspect",
            Self::Trouble => "trouble",
        }
    }
}

macro_rules! reasons {
    ($($(#[$doc:meta])* $variant:ident $name:literal $severity:ident $sentence:literal;)*) => {
        /// Why a frame was lost.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum DropReason { $(#[doc = $sentence] $variant,)* }

        impl DropReason {
            pub const ALL: &[Self] = &[$(Self::$variant,)*];

            /// The name in metrics and in JSON.
            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }

            pub fn severity(self) -> Severity {
                match self { $(Self::$variant => Severity::$severity,)* }
            }

            /// What happened, for people.
            pub fn sentence(self) -> &'static str {
                match self { $(Self::$variant => $sentence,)* }
            }
        }
    };
}

reasons! {
    // What a frame says of itself.
    MalformedEthernet "malformed_ethernet" Suspect "The frame is shorter than an Ethernet header, or its ARP message is cut short.";
    MalformedIp "malformed_ip" Suspect "The IP header is cut short, lies about its length or version, or its checksum is wrong.";
    MalformedTransport "malformed_transport" Suspect "The TCP, UDP, SCTP or ICMP header is cut short, lies about its length, or breaks a rule of neighbour discovery.";
    MalformedOffload "malformed_offload" Suspect "The virtio-net header names places outside the frame, or a super-frame that is none.";
    UnsupportedEthertype "unsupported_ethertype" Normal "Only IPv4, IPv6 and ARP are carried.";

    // Admission of a pod's frame.
    SpoofedMac "spoofed_mac" Suspect "A pod sent from a MAC that is not its own.";
    SpoofedAddress "spoofed_address" Suspect "A pod sent from an IP address that is not its own, or the node from one that is not behind it.";
    ForgedTunnel "forged_tunnel" Suspect "A pod sent IP-in-IP, or UDP to the VXLAN port, to a node's underlay address: only nodes speak so to each other.";
    NotForGateway "not_for_gateway" Suspect "A pod sent to a MAC that is not the gateway's.";

    // The gateway and the way on.
    Multicast "multicast" Normal "Multicast and broadcast are not carried beyond the pod's link.";
    LinkLocal "link_local" Normal "A link-local address other than the gateway's is not carried.";
    Loopback "loopback" Suspect "127.0.0.0/8, 0.0.0.0/8, ::1 and :: are no place on any other host.";
    GatewayUnserved "gateway_unserved" Normal "The gateway answers ARP, neighbour discovery and ping only; the sender was told by ICMP.";
    NoRoute "no_route" Normal "Nobody holds the destination address.";
    ReplyLost "reply_lost" Trouble "There was no room for what the gateway had to say.";
    HopLimit "hop_limit" Normal "TTL or hop limit ran out.";
    TooBig "too_big" Normal "The packet exceeds the way's MTU; the sender was told by ICMP.";
    PolicyEgress "policy_egress" Suspect "The sending pod's policies do not let it open this connection.";
    PolicyIngress "policy_ingress" Suspect "The receiving pod's policies do not let this connection in.";
    ConntrackFull "conntrack_full" Trouble "As many connections are tracked as may be, and none was found that could make room.";
    ConntrackLimit "conntrack_limit" Normal "A pod has opened or accepted as many connections as it may, and none of them was found that could make room.";
    ConntrackUnrelated "conntrack_unrelated" Normal "An ICMP error or an echo reply belongs to no connection.";
    FragmentAlone "fragment_alone" Normal "A fragment came without the first of its datagram, by which alone policies can judge.";
    FragmentOverlap "fragment_overlap" Suspect "A fragment would write over the first of its datagram, by which alone policies can judge.";
    NoHostPort "no_host_port" Trouble "The destination is reached without a tunnel, by the node itself, and this node has no host port: run weft host up.";
    HostLoop "host_loop" Trouble "The node sent what would leave by the node: its own route to the destination is missing.";
    OutsideSource "outside_source" Trouble "The node sent into a tunnel what is neither from its own addresses nor from its blocks, and the peer would refuse: masquerade it.";
    NoUplink "no_uplink" Trouble "This node and the peer have no underlay address family in common.";
    BandwidthFromPod "bandwidth_from_pod" Normal "A pod sent more than its bandwidth allows.";
    BandwidthToPod "bandwidth_to_pod" Normal "A pod was sent more than its bandwidth allows.";
    PacketsFromPod "packets_from_pod" Normal "A pod sent more packets than it may.";
    PacketsToPod "packets_to_pod" Normal "A pod was sent more packets than it may be.";

    // What comes out of the tunnel.
    UnknownPeer "unknown_peer" Suspect "A datagram or an IP-in-IP packet came from an underlay address that is no peer's.";
    VxlanTruncated "vxlan_truncated" Suspect "The datagram is shorter than a VXLAN header.";
    VxlanNoVni "vxlan_no_vni" Suspect "The VXLAN header does not mark its VNI as valid.";
    VxlanReserved "vxlan_reserved" Suspect "The VXLAN header has a reserved bit set.";
    WrongVni "wrong_vni" Suspect "The VXLAN header bears another network's VNI.";
    WrongVtep "wrong_vtep" Suspect "The inner frame is addressed to a MAC that is not this node's.";
    ForeignSource "foreign_source" Suspect "The inner source address lies outside the peer's blocks.";
    NotHere "not_here" Normal "A peer sent a packet whose destination is not on this node; it is not sent on.";
    ForgedAnswer "forged_answer" Suspect "An answer to a probe of this node bears no token of its, or does not come from the node that was asked.";
    CongestionUnmarked "congestion_unmarked" Trouble "The underlay marked congestion on a packet that cannot bear the mark (RFC 6040).";
    DatagramTruncated "datagram_truncated" Trouble "A datagram was larger than any that this node accepts.";

    // What the kernel would not take.
    PortFull "port_full" Trouble "The pod's receive queue is full, or its veth has no carrier.";
    PortDown "port_down" Trouble "The pod's link is down or gone.";
    PortRefused "port_refused" Trouble "The kernel refused a frame for the pod.";
    UplinkFull "uplink_full" Trouble "The uplink socket's send buffer is full.";
    UplinkDown "uplink_down" Trouble "The underlay is down or has no route to the peer.";
    UplinkTooBig "uplink_too_big" Trouble "The datagram exceeds the underlay's MTU.";
    UplinkRefused "uplink_refused" Trouble "The kernel refused a datagram for the peer.";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_has_a_name_and_a_place_of_its_own() {
        let mut names: Vec<_> = DropReason::ALL.iter().map(|r| r.name()).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), DropReason::ALL.len());
        for (place, reason) in DropReason::ALL.iter().enumerate() {
            assert_eq!(*reason as usize, place);
            assert!(reason.sentence().ends_with('.'));
        }
    }
}

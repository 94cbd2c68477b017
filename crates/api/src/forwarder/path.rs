//! What a forwarder has found out about the underlay between it and a peer.

use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Path {
    pub state: PathState,
    /// Bytes of the largest outer IP packet.
    pub mtu: u16,
    /// Bytes of the largest packet of a pod that fits a VXLAN datagram to the
    /// peer.
    pub inner_mtu: u16,
    /// How long answers took; none before the first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub round_trip: Option<RoundTrip>,
    /// Of the last questions: how many there were, and how many of them stayed
    /// without an answer.
    pub asked: u64,
    pub lost: u64,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PathState {
    /// Nobody asks: probes are off, or one of the nodes has no address in the
    /// pod network that is reached by the tunnel.
    #[default]
    Unasked,
    /// Nothing was ever answered.
    Unknown,
    /// The peer answers, and what the path carries is being found out.
    Searching,
    /// The path carries what the underlay says that it does.
    Good,
    /// Larger packets vanish, and nobody says so.
    BlackHole,
    /// The peer has answered, and does no more.
    Silent,
}

impl PathState {
    pub const ALL: [Self; 6] = [
        Self::Unasked,
        Self::Unknown,
        Self::Searching,
        Self::Good,
        Self::BlackHole,
        Self::Silent,
    ];

    /// As in metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Unasked => "unasked",
            Self::Unknown => "unknown",
            Self::Searching => "searching",
            Self::Good => "good",
            Self::BlackHole => "black_hole",
            Self::Silent => "silent",
        }
    }
}

/// In microseconds, of the last answers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RoundTrip {
    pub last_us: u64,
    pub least_us: u64,
    pub mean_us: u64,
    /// The mean difference between one and the next.
    pub jitter_us: u64,
}

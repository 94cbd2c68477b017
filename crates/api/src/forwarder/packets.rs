//! How many packets a port may send and be sent.

use std::num::NonZeroU32;

use serde::{Deserialize, Serialize};

/// Limits of a port; a direction without one has none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PacketRate {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from_pod: Option<PacketLimit>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to_pod: Option<PacketLimit>,
}

/// A token bucket over packets, as they would be on a wire: each segment of a
/// super-frame is one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PacketLimit {
    /// Packets per second in the long run.
    pub rate: NonZeroU32,
    /// Packets that may come at once after a rest.
    pub burst: NonZeroU32,
}

impl PacketRate {
    pub fn is_unlimited(&self) -> bool {
        *self == Self::default()
    }
}

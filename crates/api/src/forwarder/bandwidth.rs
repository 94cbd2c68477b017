//! How fast a port may be, in each direction.

use std::num::NonZeroU64;

use serde::{Deserialize, Serialize};

/// Limits of a port; a direction without one is as fast as it can be.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Bandwidth {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from_pod: Option<Limit>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to_pod: Option<Limit>,
}

/// A token bucket over the bytes of Ethernet frames, as they would be on a
/// wire: each segment of a super-frame bears its headers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limit {
    /// Bits per second in the long run.
    pub rate: NonZeroU64,
    /// Bits that may come at once after a rest.
    pub burst: NonZeroU64,
}

impl Bandwidth {
    pub fn is_unlimited(&self) -> bool {
        *self == Self::default()
    }
}

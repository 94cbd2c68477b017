//! The `probes` table: whether and when peers are asked what the path to them
//! carries.

use std::time::Duration;

use serde::Deserialize;
use weft_engine::path::Pace;

use super::{ConfigError, within};
use crate::paths::ProbesConfig;

const INTERVAL_DEFAULT: u64 = 5_000;
/// Faster, and a round would not be over before the next; slower, and a path
/// that went bad would go unnoticed.
const INTERVAL_MIN: u64 = 200;
const INTERVAL_MAX: u64 = 3_600_000;
/// `PMTU_RAISE_TIMER` of RFC 8899 section 5.1.1.
const RAISE_DEFAULT: u64 = 600;
const RAISE_MAX: u64 = 86_400;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Probes {
    enabled: bool,
    interval_ms: u64,
    raise_seconds: u64,
}

impl Default for Probes {
    fn default() -> Self {
        Self {
            enabled: true,
            interval_ms: INTERVAL_DEFAULT,
            raise_seconds: RAISE_DEFAULT,
        }
    }
}

impl Probes {
    pub(super) fn complete(self) -> Result<ProbesConfig, ConfigError> {
        let interval = within(
            "probes.interval_ms",
            self.interval_ms,
            INTERVAL_MIN,
            INTERVAL_MAX,
        )?;
        let raise = within("probes.raise_seconds", self.raise_seconds, 1, RAISE_MAX)?;
        Ok(ProbesConfig {
            enabled: self.enabled,
            pace: Pace {
                interval: Duration::from_millis(interval),
                raise: Duration::from_secs(raise),
            },
        })
    }
}

//! The versions of the CNI specification that are spoken.

use std::{fmt, str::FromStr};

use serde_json::{Value, json};

use super::{Failure, code};

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Version {
    V0_3_1,
    V0_4_0,
    V1_0_0,
    V1_1_0,
}

impl Version {
    pub const ALL: [Self; 4] = [Self::V0_3_1, Self::V0_4_0, Self::V1_0_0, Self::V1_1_0];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::V0_3_1 => "0.3.1",
            Self::V0_4_0 => "0.4.0",
            Self::V1_0_0 => "1.0.0",
            Self::V1_1_0 => "1.1.0",
        }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Version {
    type Err = Failure;
    fn from_str(text: &str) -> Result<Self, Failure> {
        let known = Self::ALL.into_iter().find(|known| known.as_str() == text);
        known.ok_or_else(|| {
            let spoken = Self::ALL.map(Self::as_str).join(", ");
            Failure::new(
                code::VERSION,
                format!("cniVersion {text:?} is not spoken; write one of {spoken}"),
            )
        })
    }
}

/// The answer to VERSION. What was `asked` is echoed, spoken or not, as the
/// specification says; silence gets the newest.
pub fn versions(asked: Option<&str>) -> Value {
    json!({
        "cniVersion": asked.unwrap_or(Version::V1_1_0.as_str()),
        "supportedVersions": Version::ALL.map(Version::as_str),
    })
}

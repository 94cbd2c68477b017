//! Names that cross a process boundary, each with its rule. A value of one
//! of these types has been checked; parse at the edge, trust inside.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Longest port or node name, in bytes.
pub const NAME_MAX: usize = 128;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    #[error("name {0:?} has {len} bytes; use 1 to {NAME_MAX}", len = .0.len())]
    Length(String),
    #[error(
        "name {0:?} holds a character other than letters, digits, '.', '-', '_' and '/'; rename it"
    )]
    Character(String),
    #[error("handle {0:?} has {len} bytes; use 1 to {HANDLE_MAX}", len = .0.len())]
    HandleLength(String),
    #[error("handle {0:?} holds a space or a character that is not ASCII; rename it")]
    HandleCharacter(String),
    #[error("MAC address {0:?} is not six hexadecimal bytes joined by ':'")]
    Mac(String),
    #[error("VNI {0} is above 16777215, the largest 24-bit number (RFC 7348 section 5)")]
    Vni(u32),
}

/// The name of a port or of a node.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Name(String);

impl Name {
    pub fn new(name: impl Into<String>) -> Result<Self, NameError> {
        let name = name.into();
        if name.is_empty() || name.len() > NAME_MAX {
            return Err(NameError::Length(name));
        }
        let allowed = |c: char| c.is_ascii_alphanumeric() || ".-_/".contains(c);
        if !name.chars().all(allowed) {
            return Err(NameError::Character(name));
        }
        Ok(Self(name))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for Name {
    type Error = NameError;
    fn try_from(name: String) -> Result<Self, NameError> {
        Self::new(name)
    }
}

impl From<Name> for String {
    fn from(name: Name) -> Self {
        name.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Longest handle, in bytes.
pub const HANDLE_MAX: usize = 3 * NAME_MAX + 2;

/// Whose an address is: a string of visible ASCII. A pod's is
/// `network/container/interface`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Handle(String);

impl Handle {
    pub fn new(handle: impl Into<String>) -> Result<Self, NameError> {
        let handle = handle.into();
        if handle.is_empty() || handle.len() > HANDLE_MAX {
            return Err(NameError::HandleLength(handle));
        }
        if !handle.chars().all(|c| c.is_ascii_graphic()) {
            return Err(NameError::HandleCharacter(handle));
        }
        Ok(Self(handle))
    }

    /// The names joined by `/`.
    pub fn of(names: [&Name; 3]) -> Self {
        Self(names.map(Name::as_str).join("/"))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for Handle {
    type Error = NameError;
    fn try_from(handle: String) -> Result<Self, NameError> {
        Self::new(handle)
    }
}

impl From<Handle> for String {
    fn from(handle: Handle) -> Self {
        handle.0
    }
}

impl fmt::Display for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A MAC address, written as `aa:bb:cc:dd:ee:ff`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Mac(pub [u8; 6]);

impl std::str::FromStr for Mac {
    type Err = NameError;
    fn from_str(text: &str) -> Result<Self, NameError> {
        let wrong = || NameError::Mac(text.to_owned());
        let mut bytes = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            let part = parts.next().filter(|p| p.len() == 2).ok_or_else(wrong)?;
            *byte = u8::from_str_radix(part, 16).map_err(|_| wrong())?;
        }
        match parts.next() {
            None => Ok(Self(bytes)),
            Some(_) => Err(wrong()),
        }
    }
}

impl TryFrom<String> for Mac {
    type Error = NameError;
    fn try_from(text: String) -> Result<Self, NameError> {
        text.parse()
    }
}

impl From<Mac> for String {
    fn from(mac: Mac) -> Self {
        mac.to_string()
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// A VXLAN network identifier: 24 bits (RFC 7348 section 5).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub struct Vni(u32);

impl Vni {
    /// Calico's VNI and weft's own default.
    pub const DEFAULT: Self = Self(4096);

    pub fn new(vni: u32) -> Result<Self, NameError> {
        if vni > 0x00ff_ffff {
            return Err(NameError::Vni(vni));
        }
        Ok(Self(vni))
    }

    pub fn value(self) -> u32 {
        self.0
    }
}

impl TryFrom<u32> for Vni {
    type Error = NameError;
    fn try_from(vni: u32) -> Result<Self, NameError> {
        Self::new(vni)
    }
}

impl From<Vni> for u32 {
    fn from(vni: Vni) -> Self {
        vni.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mac_reads_back_as_it_was_written() {
        let mac: Mac = "02:00:5e:10:ff:01".parse().expect("valid");
        assert_eq!(mac.to_string(), "02:00:5e:10:ff:01");
    }

    #[test]
    fn bad_names_say_what_is_wrong() {
        for bad in [
            "02:00:5e:10:ff",
            "02:00:5e:10:ff:01:02",
            "2:0:5e:10:ff:1",
            "+2:00:5e:10:ff:01x",
            "",
        ] {
            assert!(bad.parse::<Mac>().is_err(), "{bad}");
        }
        assert!(matches!(Name::new(""), Err(NameError::Length(_))));
        assert!(matches!(
            Name::new("a".repeat(129)),
            Err(NameError::Length(_))
        ));
        assert!(matches!(Name::new("a b"), Err(NameError::Character(_))));
        assert_eq!(Vni::new(1 << 24), Err(NameError::Vni(1 << 24)));
    }
}

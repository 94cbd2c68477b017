//! What this kernel allows this user, tried rather than guessed: each check
//! says what was found, what follows from it, and what to do about it.
//!
//! Most probes need a namespace of their own. A namespace cannot be left
//! again, so [`Probe::run`] is for a process that ends afterwards and has no
//! other thread.

mod links;
mod namespaces;
mod packets;
mod system;
mod taps;

use serde::{Deserialize, Serialize};

pub use system::check as check_system;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Check {
    pub name: String,
    pub state: State,
    pub finding: String,
    /// What follows for weft.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub consequence: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub remedy: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    Ok,
    /// weft works, but with less.
    Warn,
    /// What weft is for does not work.
    Fail,
}

impl Check {
    pub fn ok(name: &str, finding: impl Into<String>) -> Self {
        let finding = finding.into();
        Self {
            name: name.to_owned(),
            state: State::Ok,
            finding,
            consequence: None,
            remedy: None,
        }
    }

    pub fn warn(name: &str, finding: impl Into<String>, consequence: &str, remedy: &str) -> Self {
        Self {
            state: State::Warn,
            consequence: Some(consequence.to_owned()),
            remedy: Some(remedy.to_owned()),
            ..Self::ok(name, finding)
        }
    }

    pub fn fail(name: &str, finding: impl Into<String>, consequence: &str, remedy: &str) -> Self {
        Self {
            state: State::Fail,
            ..Self::warn(name, finding, consequence, remedy)
        }
    }
}

/// The probes that take a process of their own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Probe {
    Namespaces,
    Taps,
    Packets,
    Links,
}

impl Probe {
    pub const ALL: [Self; 4] = [Self::Namespaces, Self::Taps, Self::Packets, Self::Links];

    pub fn name(self) -> &'static str {
        match self {
            Self::Namespaces => "namespaces",
            Self::Taps => "taps",
            Self::Packets => "packets",
            Self::Links => "links",
        }
    }

    /// Moves this process into namespaces of its own and tries there.
    pub fn run(self) -> Vec<Check> {
        match self {
            Self::Namespaces => vec![namespaces::check()],
            Self::Taps => taps::check(),
            Self::Packets => packets::check(),
            Self::Links => links::check(),
        }
    }
}

//! An etcd cluster as one thing to ask, over etcd's v3 JSON gateway: plain
//! HTTP, no gRPC. Requests with their deadlines, leases that are kept, and
//! watches that go on over a lost connection. What the keys mean is for whoever
//! asks.

#![forbid(unsafe_code)]

mod cluster;
mod config;
mod fault;
mod lease;
pub mod message;
mod shared;
mod watch;

pub use self::{
    cluster::{Attempts, Cluster},
    config::{ClientFiles, Config, ConfigError, Endpoint, Limits, Login, Times, Tls},
    fault::Fault,
    lease::Lease,
    watch::{Tell, Told, Watch},
};

use self::message::Bytes;

/// Names the endpoint, what happened, and what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{object}: {reason}; {hint}")]
pub struct Error {
    pub object: String,
    pub reason: String,
    pub hint: String,
    /// It was not there, or not able: the same may succeed later.
    pub away: bool,
}

/// The key of this name under the prefix; without one, where they all start.
pub fn below(prefix: &str, name: &str) -> Bytes {
    Bytes(format!("{prefix}/{name}").into_bytes())
}

/// Where all keys under the prefix have ended.
pub fn end_of(prefix: &str) -> Bytes {
    const AFTER_SLASH: char = '0';
    Bytes(format!("{prefix}{AFTER_SLASH}").into_bytes())
}

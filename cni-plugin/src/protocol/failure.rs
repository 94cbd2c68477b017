//! A refusal with the code that runtimes act on.

use serde_json::{Value, json};

/// Error codes of the CNI specification, and weft's own from 100 on.
pub mod code {
    pub const VERSION: u32 = 1;
    /// A field of the configuration is not supported; the sentence names its
    /// key and value.
    pub const UNSUPPORTED: u32 = 2;
    pub const UNKNOWN_CONTAINER: u32 = 3;
    pub const ENVIRONMENT: u32 = 4;
    pub const IO: u32 = 5;
    pub const DECODE: u32 = 6;
    pub const CONFIG: u32 = 7;
    pub const TRY_AGAIN: u32 = 11;
    /// STATUS: no ADD can be served.
    pub const NOT_AVAILABLE: u32 = 50;
    /// STATUS: nor are the pods that exist surely connected.
    pub const LIMITED: u32 = 51;
    /// The attachment or its interface exists.
    pub const EXISTS: u32 = 100;
    /// CHECK found a difference.
    pub const DIFFERS: u32 = 101;
    /// The forwarder or the IPAM server refused.
    pub const REFUSED: u32 = 102;
    /// No address is left.
    pub const EXHAUSTED: u32 = 103;
    /// The pod's link could not be made or taken away.
    pub const LINK: u32 = 104;
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{msg}")]
pub struct Failure {
    pub code: u32,
    pub msg: String,
    pub details: String,
}

impl Failure {
    pub fn new(code: u32, msg: impl Into<String>) -> Self {
        Self {
            code,
            msg: msg.into(),
            details: String::new(),
        }
    }

    #[must_use]
    pub fn with_details(mut self, details: impl Into<String>) -> Self {
        self.details = details.into();
        self
    }

    /// Several failures as one: the first one's code, all their sentences.
    pub fn all(failures: Vec<Self>) -> Option<Self> {
        let first = failures.first()?;
        let msgs: Vec<_> = failures.iter().map(|failure| &*failure.msg).collect();
        Some(Self {
            code: first.code,
            msg: msgs.join("; "),
            details: first.details.clone(),
        })
    }

    /// As a runtime reads it. `version` is the configuration's, as written.
    pub fn to_json(&self, version: &str) -> Value {
        let mut json = json!({"cniVersion": version, "code": self.code, "msg": self.msg});
        if !self.details.is_empty() {
            json["details"] = self.details.clone().into();
        }
        json
    }
}

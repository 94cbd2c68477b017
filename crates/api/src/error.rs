//! How a server refuses a request.

use std::fmt::Debug;

use serde::{Deserialize, Serialize};

/// A request was not granted, and changed nothing unless its code says so.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}; {hint}")]
pub struct Error<Code: Debug> {
    pub code: Code,
    /// What is wrong, naming the object.
    pub message: String,
    /// What to do about it.
    pub hint: String,
}

impl<Code: Debug> Error<Code> {
    pub fn new(code: Code, message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            hint: hint.into(),
        }
    }
}

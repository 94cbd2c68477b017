//! What flannel and Calico write down of their nodes, both ways: their
//! records become the forwarder's [`Node`](weft_api::forwarder::Node)s, and
//! this node becomes a record of theirs. Text in, values out: no fd, clock,
//! thread or log. [`bird`] turns the other way: weft's nodes become the
//! configuration of a routing daemon.
//!
//! Invariant: whatever text comes is taken or refused by an [`Error`] that
//! names its key; one node's bad record does not touch another's.

#![forbid(unsafe_code)]

pub mod bird;
pub mod calico;
pub mod flannel;

use std::fmt::Display;

use serde::de::DeserializeOwned;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("{key}: its name is none that {network} gives; delete it if {network} does not use it")]
    Key { key: String, network: &'static str },
    #[error("{key}: it is not JSON of the form that {network} writes: {reason}; correct it")]
    Json {
        key: String,
        network: &'static str,
        reason: String,
    },
    #[error("{key}: {field}: {problem}")]
    Field {
        key: String,
        field: &'static str,
        /// What is wrong, and what would be right.
        problem: String,
    },
    #[error("{key}: {what} is already {other}'s; release one of the two")]
    Taken {
        key: String,
        what: String,
        other: String,
    },
}

impl Error {
    fn field(key: &str, field: &'static str, problem: impl Display) -> Self {
        Self::Field {
            key: key.to_owned(),
            field,
            problem: problem.to_string(),
        }
    }
}

fn json<T: DeserializeOwned>(key: &str, network: &'static str, text: &[u8]) -> Result<T, Error> {
    serde_json::from_slice(text).map_err(|error| Error::Json {
        key: key.to_owned(),
        network,
        reason: error.to_string(),
    })
}

//! Other address managers' records as rows, to be checked: Calico's blocks,
//! affinities and handles, and host-local's directory.
//!
//! Pure, and takes any bytes: what cannot be understood is a problem of its
//! own, and leaves the rest readable. What contradicts itself is carried over
//! as it is, for [`crate::check::check`] to tell.

use weft_api::ipam::{Problem, ProblemKind};

use crate::model::{Key, Value};

mod calico;
mod host_local;

pub use calico::calico;
pub use host_local::{host_local, host_local_within};

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Imported {
    pub rows: Vec<(Key, Value)>,
    /// What only the source's own form shows.
    pub problems: Vec<Problem>,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ImportError {
    #[error("the dump is not JSON: {0}; dump it again")]
    Json(String),
    #[error(
        "the dump holds no Calico IPAM object; dump the prefix /calico with `etcdctl get --prefix -w json`, or the IPAM resources with `kubectl get -o json`"
    )]
    Nothing,
}

impl Imported {
    fn told(&mut self, kind: ProblemKind, object: impl ToString, message: String, hint: &str) {
        self.problems.push(Problem {
            kind,
            object: object.to_string(),
            message,
            hint: hint.to_owned(),
        });
    }

    fn wrong(&mut self, object: impl ToString, message: String) {
        let hint = "correct or delete the object where it came from";
        self.told(ProblemKind::Structure, object, message, hint);
    }
}

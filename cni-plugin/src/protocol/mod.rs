//! The CNI contract as data: what a runtime says by environment and stdin,
//! and what it is answered. Nothing here opens, runs or prints anything.
//!
//! Whatever the input, the answer is a value or a [`Failure`]; nothing panics.

mod capabilities;
mod config;
mod environment;
mod failure;
mod result;
mod runtime;
mod version;

pub use config::{Attach, CONFIG_MAX, Config, Ipam, VALID_ATTACHMENTS, Weft};
pub use environment::{Args, Call, Environment, Pod, Verb};
pub use failure::{Failure, code};
pub use result::{Dns, Interface, Ip, Outcome, Route};
pub use runtime::Runtime;
pub use version::{Version, versions};

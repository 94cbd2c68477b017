//! Throw-away nodes, pods and traffic, in network namespaces without names.
//!
//! ```text
//! spec ► underlay ► forwarders (weft) or kernel (the baseline) = lab
//! lab ► probe, traffic
//! ```
//!
//! Pods are wired by [`weft_cni`], the way a container runtime has them
//! wired. Whatever ends the process that holds a [`Lab`] ends the lab.

mod forwarders;
mod kernel;
mod lab;
pub mod probe;
mod role;
mod spec;
pub mod traffic;
mod underlay;

pub use forwarders::Forwarder;
pub use lab::{Lab, Node, Pod};
pub use role::{FORWARDER, KEEPER, become_forwarder};
pub use spec::{Attach, Kind, NodePlan, Outer, PodPlan, Spec};

//! Who may speak to whom.
//!
//! [`object`] reads what people write: Kubernetes' NetworkPolicy and
//! ClusterNetworkPolicy, and the pods, namespaces and nodes that they speak
//! of. What it yields holds no invalid selector, network or port.

#![forbid(unsafe_code)]

pub mod object;

pub use object::{Change, Object, ObjectName, Objects, Policy, PolicyName, ReadError, read};

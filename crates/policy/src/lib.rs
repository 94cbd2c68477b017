//! Who may speak to whom.
//!
//! [`object`] reads what people write: Kubernetes' NetworkPolicy and
//! ClusterNetworkPolicy, and the pods, namespaces and nodes that they speak
//! of. What it yields holds no invalid selector, network or port.
//!
//! [`compile`] keeps a [`Rulebook`] as the objects are, and the rulebook
//! judges a flow's first packet. [`interpret()`] judges by the objects alone,
//! slowly and straight from the specifications, to measure the other by.
//! [`explain()`] says why.
//!
//! What the specifications leave open, both decide alike: of equal rules the
//! first by name, then by place; a pod always reaches itself, and its own node
//! always reaches it; what has no ports, such as ICMP, is matched by rules
//! that name none. Answers to a flow are not judged, so whoever asks tracks
//! connections.

#![forbid(unsafe_code)]

pub mod compile;
pub mod explain;
pub mod interpret;
pub mod object;
pub mod verdict;

pub use compile::{Compiler, Rulebook};
pub use explain::{Explanation, explain};
pub use interpret::interpret;
pub use object::{
    Change, Object, ObjectName, Objects, Origin, Policy, PolicyName, ReadError, documents, read,
    read_value,
};
pub use verdict::{Decision, Flow, Reason, Transport, Verdict};

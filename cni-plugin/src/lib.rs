//! Wires a pod: its namespace, its link, its place at the forwarder.
//!
//! ```text
//! plugin ► protocol                 (environment, stdin, stdout)
//!        └► wire_pod
//! wire_pod ► link ► netlink, sys     (inside netns)
//!          └► forwarder              (the control socket)
//! plugin ► nat                       (ports of the node, in its namespace)
//! ```
//!
//! Whatever fails is undone: a pod is wired whole or not at all. Nothing
//! here sees a packet.

pub mod forwarder;
pub mod gso;
pub mod link;
pub mod nat;
pub mod netlink;
pub mod netns;
pub mod plugin;
pub mod protocol;
pub mod wire_pod;

mod sys;

pub use sys::ethtool;

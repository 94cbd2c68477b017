//! Throw-away nodes, pods and traffic, in network namespaces without names.
//!
//! ```text
//! spec ► underlay ► ipam, forwarders (weft) or kernel (the baseline) = lab
//! lab ► probe, traffic ► compare
//! workshop (a lab's parts one by one) ► exchange, icmp, ledger, numbered: for tests
//! keeper (holds a lab between commands) ► state ► session
//! ```
//!
//! Pods are wired by [`weft_cni`], the way a container runtime has them
//! wired. Whatever ends the process that holds a [`Lab`] ends the lab.

pub mod compare;
mod daemon;
pub mod etcd;
pub mod exchange;
mod forwarders;
pub mod icmp;
mod ipam;
pub mod keeper;
mod kernel;
mod lab;
mod ledger;
pub mod numbered;
pub mod probe;
mod process;
mod role;
pub mod session;
mod spec;
mod state;
pub mod stop;
mod throwaway;
mod traces;
pub mod traffic;
mod underlay;
pub mod userns;
pub mod workshop;

pub use forwarders::{Forwarder, Settings};
pub use ipam::Ipam;
pub use lab::{Lab, Node, Pod};
pub use ledger::{Ledger, OWN_WORDS};
pub use process::Process;
pub use role::{FORWARDER, IPAM, KEEPER, become_forwarder, become_ipam, use_executable};
pub use spec::{Attach, Kind, NodePlan, Outer, PodPlan, Spec};
pub use state::{ForwarderState, IpamState, NodeState, State, dir_of};

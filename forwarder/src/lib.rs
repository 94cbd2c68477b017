//! The forwarder's shell: file descriptors, threads and the clock around
//! [`weft_engine`].
//!
//! ```text
//! port/ receive ► weft_engine from_port ► outbox ► uplink/ send
//! uplink/ receive ► weft_engine from_uplink ► port/ send
//! ```
//!
//! What a port's bandwidth puts off waits before it is sent (`held`).
//!
//! A worker ([`worker`]) owns its queues and its uplink socket and runs each
//! batch to completion. The control thread ([`control`]) builds new
//! [`tables`] and publishes them; workers never wait for it. What nodes there
//! are it hears by `apply`, from an IPAM server ([`ipam`]) or from a file
//! ([`nodes`]); who may speak to whom, from the [`feeds`]. A thread of its own
//! finds out what the underlay carries to each peer ([`paths`]).

pub mod cli;
pub mod config;
pub mod control;
pub mod dispatch;
pub mod feeds;
mod held;
pub mod ipam;
pub mod links;
pub mod metrics;
pub mod nodes;
pub mod paths;
pub mod port;
pub mod probe;
pub mod publish;
pub mod steer;
mod sys;
pub mod tables;
pub mod uplink;
pub mod watched;
pub mod worker;
pub mod workers;

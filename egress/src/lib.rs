//! The way out in user space, and the way in: what pods send to addresses
//! outside their network leaves by ordinary sockets of this process, and what
//! those receive goes back to the pods. Who comes to a port of the node that is
//! published for a pod is passed on to it.
//!
//! ```text
//! forwarder ◄─ frames ─► link ─► table ─┬ tcp       smoltcp's end ◄─► a stream ◄─┐
//!     │                                 ├ datagrams UDP, ICMP echo ◄─► a socket  │
//!     │                                 └ caller    UDP ◄─► its door's socket ◄──┤
//!     └─── ports ───► watch ─────────────────────────────────► entrance ─► door ─┘
//! ```
//!
//! The process is the forwarder's host port ([`attach`]) and holds no
//! capability. One loop ([`outlet`]) serves all flows, and no frame costs more
//! because there are many: a flow is found by its key, its TCP connection is a
//! stack of its own, and only flows that something happened to are looked at.
//! Nothing is lost without being counted ([`metrics`]), but what the kernel
//! loses behind a socket.

#![forbid(unsafe_code)]

mod attach;
mod caller;
pub mod cli;
mod datagrams;
mod door;
mod entrance;
mod fragments;
mod link;
mod metrics;
mod outlet;
mod pace;
mod refusal;
mod stack;
mod table;
mod target;
mod tcp;
mod watch;

/// The names of its counters, and what they mean.
pub fn counters() -> Vec<(&'static str, &'static str)> {
    let counters = metrics::Counters::default();
    counters
        .each()
        .map(|(name, meaning, _)| (name, meaning))
        .collect()
}

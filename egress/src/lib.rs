//! The way out in user space: what pods send to addresses outside their
//! network leaves by ordinary sockets of this process, and what those receive
//! goes back to the pods.
//!
//! ```text
//! forwarder ◄─ frames ─► link ─► table ─┬ tcp       smoltcp's end ◄─► a stream
//!                                       └ datagrams UDP, ICMP echo ◄─► a socket
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
pub mod cli;
mod datagrams;
mod link;
mod metrics;
mod outlet;
mod refusal;
mod stack;
mod table;
mod target;
mod tcp;

/// The names of its counters, and what they mean.
pub fn counters() -> Vec<(&'static str, &'static str)> {
    let counters = metrics::Counters::default();
    counters
        .each()
        .map(|(name, meaning, _)| (name, meaning))
        .collect()
}

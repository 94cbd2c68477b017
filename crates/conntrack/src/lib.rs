//! Which connections there are, and what state they are in.
//!
//! [`Seen`] is what a packet says; [`Tracker::pass`] finds the connection that
//! it belongs to, in either direction, or has the caller judge whether there
//! may be one. States, timeouts and what counts as an answer are condensed as
//! the kernel's connection tracking condenses them; what is ours is said in
//! [`tcp`] and [`Timeouts`].
//!
//! Many threads share a tracker. Nothing here knows a clock, a thread or a
//! log; `now` is an argument. Invariant: a connection is found until its
//! timeout has passed in silence, unless it had to make room while it was
//! unanswered or over; it is never found afterwards.

#![forbid(unsafe_code)]

mod account;
mod connection;
mod pair;
pub mod sctp;
mod seen;
mod shard;
pub mod tcp;
mod timeouts;
mod tracker;

pub use account::{Account, Owners};
pub use connection::Direction;
pub use seen::{Says, Seen, changes_state};
pub use tcp::Segment;
pub use timeouts::Timeouts;
pub use tracker::{Config, Live, Passed, REFRESH, Refused, SHARES, Standing, Tracker};

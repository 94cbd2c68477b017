//! The packet's way, without input or output.
//!
//! ```text
//! from_port:    parse ► admit ► gateway? ► flow cache ─hit─┐
//!                                └miss► lookup ► policy ─┴► hop limit ► mtu ► bandwidth ► verdict
//! from_uplink:  peer? ► decap ► parse ► source? ► lookup ► policy ► hop limit ► bandwidth ► coalesce
//! Tunnel:       segment ► outbox
//! ```
//!
//! A port is a pod's, or the node's own: the host port, which leads to all that
//! the node's kernel routes.
//!
//! Nothing here knows a file descriptor, a clock, a thread or a log; `now`
//! is an argument. The only way to lose a frame is [`Verdict::Drop`].

#![forbid(unsafe_code)]

pub mod admit;
pub mod bandwidth;
pub mod batch;
pub mod coalesce;
pub mod counters;
pub mod denied;
pub mod drops;
pub mod engine;
pub mod flow;
pub mod flow_log;
pub mod fragment;
pub mod gateway;
mod holders;
pub mod inbox;
pub mod limit;
pub mod lookup;
pub mod outbox;
pub mod path;
pub mod pieces;
pub mod policy;
pub mod segment;
pub mod snapshot;
pub mod unfinished;
pub mod verdict;
pub mod way;

pub use bandwidth::Shaper;
pub use batch::Batch;
pub use coalesce::Runs;
pub use counters::Counters;
pub use drops::DropReason;
pub use engine::{Engine, Heard, Scene};
pub use inbox::Inbox;
pub use outbox::Outbox;
pub use policy::Policy;
pub use snapshot::{
    Epoch, Gateway, Holder, Host, Ipip, Peer, PeerId, Peers, Port, PortId, Route, Snapshot, Vtep,
};
pub use verdict::{Tunnel, Verdict};
pub use way::{Reach, Way};

//! What the engine decides about a frame, and so what the shell must do.

use crate::{
    DropReason, Way,
    snapshot::{PeerId, PortId},
};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Write the frame to the port as it is, super-frame and partial
    /// checksum included.
    Deliver(PortId),
    /// Send the frame into the tunnel, as one datagram or more.
    Tunnel(Tunnel),
    /// The gateway consumed the frame; its answer is among the replies.
    Answered,
    /// Lose the frame, and count why.
    Drop(DropReason),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tunnel {
    pub peer: PeerId,
    pub way: Way,
    /// Chooses the outer source port: the same for all packets of a flow.
    pub entropy: u16,
    /// The outer header's ECN bits: the inner header's (RFC 6040).
    pub ecn: u8,
}

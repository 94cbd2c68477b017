//! SCTP (RFC 9260), as far as the first chunk of each packet tells.
//!
//! Verification tags are not looked at: an end that may use its address may
//! abort its association.

use crate::{Direction, Timeouts};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Chunk {
    Init,
    InitAck,
    CookieEcho,
    CookieAck,
    Heartbeat,
    HeartbeatAck,
    Shutdown,
    Abort,
    ShutdownComplete,
    /// DATA, SACK and all that changes no state.
    Data,
}

#[derive(Debug)]
pub(crate) struct Sctp {
    state: State,
    answered: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Opening,
    Established,
    Closing,
    Closed,
}

impl Chunk {
    /// Of an SCTP packet; a chunk that is cut off changes nothing.
    pub(crate) fn read(packet: &[u8]) -> Self {
        const HEADER_LEN: usize = 12;
        match packet.get(HEADER_LEN) {
            Some(1) => Self::Init,
            Some(2) => Self::InitAck,
            Some(4) => Self::Heartbeat,
            Some(5) => Self::HeartbeatAck,
            Some(6) => Self::Abort,
            Some(7 | 8) => Self::Shutdown,
            Some(10) => Self::CookieEcho,
            Some(11) => Self::CookieAck,
            Some(14) => Self::ShutdownComplete,
            _ => Self::Data,
        }
    }
}

impl Sctp {
    /// None if the chunk opens nothing. What is joined midway is taken for an
    /// association, and a heartbeat for one of its further paths.
    pub fn new(chunk: Chunk) -> Option<Self> {
        let state = match chunk {
            Chunk::Init | Chunk::Heartbeat => State::Opening,
            Chunk::Abort | Chunk::ShutdownComplete | Chunk::InitAck => return None,
            Chunk::Shutdown => State::Closing,
            _ => State::Established,
        };
        let answered = false;
        Some(Self { state, answered })
    }

    pub fn advance(&mut self, direction: Direction, chunk: Chunk) -> bool {
        self.answered |= direction == Direction::Reply;
        self.state = match (self.state, chunk) {
            (_, Chunk::Abort | Chunk::ShutdownComplete) => State::Closed,
            (State::Opening | State::Established, Chunk::Shutdown) => State::Closing,
            (State::Opening, Chunk::CookieAck | Chunk::HeartbeatAck) => State::Established,
            (state, _) => state,
        };
        true
    }

    pub fn timeout(&self, timeouts: &Timeouts) -> u32 {
        match self.state {
            State::Opening => timeouts.sctp_opening,
            State::Established => timeouts.sctp_established,
            State::Closing => timeouts.sctp_closing,
            State::Closed => timeouts.sctp_closed,
        }
    }

    pub fn name(&self) -> &'static str {
        match self.state {
            State::Opening => "opening",
            State::Established => "established",
            State::Closing => "closing",
            State::Closed => "closed",
        }
    }

    pub fn is_assured(&self) -> bool {
        self.answered && self.state == State::Established
    }

    pub fn is_over(&self) -> bool {
        self.state == State::Closed
    }

    pub fn is_settled(&self) -> bool {
        self.state == State::Established
    }
}

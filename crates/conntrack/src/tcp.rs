//! TCP's states (RFC 9293 section 3.3.2) as somebody between the ends sees
//! them.
//!
//! Sequence numbers are looked at where they tell something for certain and
//! no packet is lost for them: who is between the ends does not see every
//! segment of a connection that is under way.
//!
//! * While a connection opens, an answer or a reset counts only if it
//!   acknowledges the SYN.
//! * Later a reset counts unless it lies before what its receiver has
//!   acknowledged. That is known as of a second ago, so a reset within one
//!   stream of more than 17 Gbit/s (2³¹ bytes a second) may be overlooked.
//! * A reset that counts but is false shows itself: its receiver goes on. A
//!   segment of the receiver's more than a second after the reset, so none
//!   that was under way, takes the connection back to where it was.
//!
//! A connection may be joined midway, as after a restart: who sends first is
//! taken for the one who opened it.

use crate::{Direction, Timeouts};

pub const FIN: u8 = 0x01;
pub const SYN: u8 = 0x02;
pub const RST: u8 = 0x04;
pub const ACK: u8 = 0x10;

/// Bytes of the smallest header.
const HEADER_LEN: usize = 20;

/// Seconds, of which the first may be next to nothing.
const UNDER_WAY: u32 = 2;

/// What of a segment's header is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    pub flags: u8,
    pub seq: u32,
    pub ack: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Syn,
    SynAck,
    Fin,
    Rst,
    /// All that carries data or acknowledges some.
    Ack,
}

#[derive(Debug)]
pub(crate) struct Tcp {
    state: State,
    answered: bool,
    /// Who sent the SYN and ACK, and then the first FIN.
    by: Direction,
    /// While the connection opens, what acknowledges the first SYN; then the
    /// highest acknowledgement of each side that was seen.
    acks: [Option<u32>; 2],
    /// The last reset: who sent it, when, and what state it ended.
    reset: Option<(Direction, u32, State)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    SynSent,
    /// Both ends have sent a SYN (RFC 9293 figure 7).
    Crossed,
    SynRecv,
    Established,
    FinWait,
    CloseWait,
    LastAck,
    TimeWait,
    Close,
}

impl Segment {
    /// Of a packet's TCP header, which is there whole.
    pub(crate) fn read(header: &[u8]) -> Self {
        debug_assert!(header.len() >= HEADER_LEN, "parse() saw the header");
        let word = |at: usize| {
            u32::from_be_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]])
        };
        Self {
            flags: header[13],
            seq: word(4),
            ack: word(8),
        }
    }

    /// A SYN alone, or with what nobody sends beside it.
    pub(crate) fn opens(self) -> bool {
        self.kind() == Kind::Syn
    }

    fn kind(self) -> Kind {
        let has = |flag| self.flags & flag != 0;
        match () {
            () if has(RST) => Kind::Rst,
            () if has(SYN) && has(ACK) => Kind::SynAck,
            () if has(SYN) => Kind::Syn,
            () if has(FIN) => Kind::Fin,
            () => Kind::Ack,
        }
    }

    fn acknowledges(self) -> Option<u32> {
        (self.flags & ACK != 0).then_some(self.ack)
    }
}

impl Tcp {
    /// None if the segment opens nothing.
    pub fn new(segment: Segment) -> Option<Self> {
        let state = match segment.kind() {
            Kind::Syn => State::SynSent,
            Kind::Ack => State::Established,
            Kind::Fin => State::FinWait,
            Kind::SynAck | Kind::Rst => return None,
        };
        let mut tcp = Self {
            state,
            answered: false,
            by: Direction::Original,
            acks: [segment.acknowledges(), None],
            reset: None,
        };
        if state == State::SynSent {
            tcp.expect_ack_of(segment);
        }
        Some(tcp)
    }

    pub fn advance(&mut self, direction: Direction, segment: Segment, second: u32) -> bool {
        let kind = segment.kind();
        if kind == Kind::Rst {
            self.take_reset(direction, segment, second);
            return true;
        }
        if self.state == State::Close {
            return self.doubt_reset(direction, second);
        }
        if self.is_opening() {
            self.open(direction, kind, segment);
        } else {
            self.answered |= direction == Direction::Reply;
            self.go_on(direction, kind);
        }
        if !matches!(self.state, State::SynSent | State::Crossed) {
            self.note_ack(direction, segment);
        }
        true
    }

    fn open(&mut self, direction: Direction, kind: Kind, segment: Segment) {
        self.state = match (self.state, kind) {
            (State::SynSent, Kind::Syn) if direction == Direction::Original => {
                // Sent again, or by another who has the port now.
                self.expect_ack_of(segment);
                State::SynSent
            }
            (State::SynSent, Kind::Syn) => State::Crossed,
            (State::SynSent, Kind::SynAck)
                if direction == Direction::Reply && self.is_ack_of_syn(segment) =>
            {
                self.by = direction;
                State::SynRecv
            }
            (State::Crossed, Kind::SynAck) => {
                self.by = direction;
                State::SynRecv
            }
            (State::SynRecv, Kind::SynAck | Kind::Ack) if direction != self.by => {
                self.answered = true;
                State::Established
            }
            (State::SynRecv, Kind::Fin) => {
                self.answered = true;
                self.by = direction;
                State::FinWait
            }
            (state, _) => state,
        };
    }

    fn go_on(&mut self, direction: Direction, kind: Kind) {
        let by_first = direction == self.by;
        self.state = match (self.state, kind) {
            (State::Established, Kind::Fin) => {
                self.by = direction;
                State::FinWait
            }
            (State::FinWait, Kind::Ack) if !by_first => State::CloseWait,
            (State::FinWait | State::CloseWait, Kind::Fin) if !by_first => State::LastAck,
            (State::LastAck, Kind::Ack) if by_first => State::TimeWait,
            (state, _) => state,
        };
    }

    fn take_reset(&mut self, direction: Direction, segment: Segment, second: u32) {
        let counts = match self.state {
            State::Close => false,
            State::SynSent if direction == Direction::Reply => self.is_ack_of_syn(segment),
            State::SynSent | State::Crossed => true,
            _ => {
                let expected = self.acks[side(direction.other())];
                expected.is_none_or(|expected| !is_before(segment.seq, expected))
            }
        };
        if counts {
            self.reset = Some((direction, second, self.state));
            self.state = State::Close;
        }
    }

    /// Ends on a closed connection keep it only if they show that it is not.
    fn doubt_reset(&mut self, direction: Direction, second: u32) -> bool {
        match self.reset {
            Some((by, at, before)) if by != direction && second >= at.saturating_add(UNDER_WAY) => {
                self.state = before;
                self.reset = None;
                true
            }
            _ => false,
        }
    }

    fn expect_ack_of(&mut self, syn: Segment) {
        self.acks[side(Direction::Reply)] = Some(syn.seq.wrapping_add(1));
    }

    /// Data may go with the SYN (RFC 7413) and be acknowledged with it.
    fn is_ack_of_syn(&self, segment: Segment) -> bool {
        let expected = self.acks[side(Direction::Reply)];
        match (segment.acknowledges(), expected) {
            (Some(ack), Some(expected)) => !is_before(ack, expected),
            _ => false,
        }
    }

    fn note_ack(&mut self, direction: Direction, segment: Segment) {
        let highest = &mut self.acks[side(direction)];
        if let Some(ack) = segment.acknowledges()
            && highest.is_none_or(|highest| is_before(highest, ack))
        {
            *highest = Some(ack);
        }
    }

    pub fn timeout(&self, timeouts: &Timeouts) -> u32 {
        match self.state {
            State::SynSent | State::Crossed => timeouts.tcp_syn_sent,
            State::SynRecv => timeouts.tcp_syn_recv,
            State::Established if self.answered => timeouts.tcp_established,
            State::Established => timeouts.tcp_unanswered,
            State::FinWait => timeouts.tcp_fin_wait,
            State::CloseWait => timeouts.tcp_close_wait,
            State::LastAck => timeouts.tcp_last_ack,
            State::TimeWait => timeouts.tcp_time_wait,
            State::Close => timeouts.tcp_close,
        }
    }

    pub fn name(&self) -> &'static str {
        match self.state {
            State::SynSent => "syn-sent",
            State::Crossed => "syn-crossed",
            State::SynRecv => "syn-received",
            State::Established => "established",
            State::FinWait => "fin-wait",
            State::CloseWait => "close-wait",
            State::LastAck => "last-ack",
            State::TimeWait => "time-wait",
            State::Close => "closed",
        }
    }

    pub fn is_assured(&self) -> bool {
        let is_under_way = matches!(
            self.state,
            State::Established | State::FinWait | State::CloseWait
        );
        self.answered && is_under_way
    }

    pub fn is_over(&self) -> bool {
        matches!(self.state, State::TimeWait | State::Close)
    }

    /// In the other states a bare ACK may be what ends them.
    pub fn is_settled(&self) -> bool {
        matches!(
            self.state,
            State::Established | State::CloseWait | State::TimeWait
        )
    }

    fn is_opening(&self) -> bool {
        matches!(self.state, State::SynSent | State::Crossed | State::SynRecv)
    }
}

/// In the order of sequence numbers (RFC 9293 section 3.4).
fn is_before(one: u32, other: u32) -> bool {
    one.wrapping_sub(other) > u32::MAX / 2
}

fn side(direction: Direction) -> usize {
    match direction {
        Direction::Original => 0,
        Direction::Reply => 1,
    }
}

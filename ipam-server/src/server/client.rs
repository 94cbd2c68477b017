//! One client: lines in, answers out, in order. A request is taken up only
//! when the answer before it has left, so that a client that does not read
//! holds at most one answer. A watcher that does not is cut off once too much
//! lies behind what it was first given; a snapshot itself it gets however
//! large.

use std::{
    io::{self, ErrorKind, Read},
    sync::Arc,
    time::{Duration, Instant},
};

use mio::net::UnixStream;
use weft_api::{
    framing::{Line, Lines, encode},
    ipam::{Answer, Code, Error, REQUEST_MAX, Request},
};

use crate::writer::Ticket;

use super::{
    outgoing::{self, Flow, Outgoing},
    request,
};

/// How long what is owed may wait for its client to read on, and how long a
/// line that was begun may wait for its end.
pub const PATIENCE: Duration = Duration::from_secs(5);
const STEPS: usize = 32;
const READ_LEN: usize = 64 << 10;

/// What a client needs next.
#[derive(Debug, PartialEq)]
pub enum Turn {
    Waits,
    /// Another turn, after the others had theirs.
    Again,
    Asks(Request),
    Over,
}

#[derive(Debug)]
pub struct Client {
    pub stream: UnixStream,
    lines: Lines,
    outgoing: Outgoing,
    stuck_since: Option<Instant>,
    begun_since: Option<Instant>,
    served_at: Instant,
    /// Its request is being decided; until when it waits.
    pub waits_until: Option<Instant>,
    pub watches: bool,
    /// Of nodes that live with this connection.
    pub registrations: Vec<Ticket>,
    /// It is told why, and no more.
    leaving: bool,
    ended: bool,
}

impl Client {
    pub fn new(stream: UnixStream, now: Instant) -> Self {
        Self {
            stream,
            lines: Lines::new(REQUEST_MAX),
            outgoing: Outgoing::default(),
            stuck_since: None,
            begun_since: None,
            served_at: now,
            waits_until: None,
            watches: false,
            registrations: Vec::new(),
            leaving: false,
            ended: false,
        }
    }

    /// When something is to be done about it.
    pub fn deadline(&self) -> Option<Instant> {
        let patience = |since: Instant| since + PATIENCE;
        let begun = self.begun_since.map(patience);
        let stuck = self.stuck_since.map(patience);
        [begun, stuck, self.waits_until].into_iter().flatten().min()
    }

    /// Since when nothing is owed to it; none while something is.
    pub fn idle_since(&self) -> Option<Instant> {
        let idle = self.outgoing.is_empty()
            && self.waits_until.is_none()
            && !self.watches
            && self.registrations.is_empty();
        idle.then_some(self.served_at)
    }

    pub fn owes(&self) -> bool {
        !self.outgoing.is_empty() || self.waits_until.is_some()
    }

    pub fn is_stuck(&self, now: Instant) -> bool {
        self.stuck_since
            .is_some_and(|since| since + PATIENCE <= now)
    }

    pub fn is_slow(&self, now: Instant) -> bool {
        self.begun_since
            .is_some_and(|since| since + PATIENCE <= now)
    }

    /// Bytes that are owed, but for what it is to get in any case.
    pub fn backlog(&self) -> usize {
        self.outgoing.backlog()
    }

    pub fn answer(&mut self, answer: &Answer) {
        self.waits_until = None;
        self.push(&Arc::new(line_of(answer)));
    }

    pub fn push(&mut self, lines: &outgoing::Lines) {
        if !self.leaving {
            self.outgoing.push(Arc::clone(lines), true);
        }
    }

    /// Begins a watch, or begins it anew: what was owed before is void.
    pub fn begin(&mut self, lines: &outgoing::Lines) {
        if !self.leaving {
            self.outgoing.cut();
            self.outgoing.push(Arc::clone(lines), false);
            (self.watches, self.waits_until) = (true, None);
        }
    }

    /// Says why, in place of all that is owed, and ends.
    pub fn leave(&mut self, error: Error) {
        self.outgoing.cut();
        self.push(&Arc::new(line_of(&Answer::Error(error))));
        (self.leaving, self.begun_since, self.waits_until) = (true, None, None);
    }

    /// Does what can be done without waiting. An error ends the client.
    pub fn turn(&mut self, now: Instant) -> io::Result<Turn> {
        for _ in 0..STEPS {
            match self.flush(now)? {
                Flow::All => {}
                Flow::Blocked => return Ok(Turn::Waits),
                Flow::Share => return Ok(Turn::Again),
            }
            if self.leaving {
                return Ok(Turn::Over);
            }
            if self.waits_until.is_some() {
                return Ok(Turn::Waits);
            }
            if self.watches {
                return self.ignore();
            }
            match self.lines.pop() {
                Some(Line::Whole(line)) => {
                    self.begun_since = None;
                    match request::parse(&line) {
                        Ok(request) => return Ok(Turn::Asks(request)),
                        Err(error) => self.answer(&Answer::Error(error)),
                    }
                }
                Some(Line::TooLong) => {
                    self.begun_since = None;
                    self.answer(&Answer::Error(request::oversized()));
                }
                None if self.ended && self.lines.abandon() => {
                    self.answer(&Answer::Error(request::unended()));
                }
                None if self.ended => return Ok(Turn::Over),
                None => {
                    if self.lines.has_begun() {
                        self.begun_since.get_or_insert(now);
                    }
                    if !self.read()? {
                        return Ok(Turn::Waits);
                    }
                }
            }
        }
        Ok(Turn::Again)
    }

    fn flush(&mut self, now: Instant) -> io::Result<Flow> {
        let mut moved = false;
        let flow = self.outgoing.write(&mut self.stream, &mut moved)?;
        if moved {
            (self.stuck_since, self.served_at) = (None, now);
        }
        if flow == Flow::Blocked {
            self.stuck_since.get_or_insert(now);
        }
        Ok(flow)
    }

    /// Whether anything came, the stream's end included.
    fn read(&mut self) -> io::Result<bool> {
        let mut buffer = [0; READ_LEN];
        match self.stream.read(&mut buffer) {
            Ok(bytes) => {
                self.ended = bytes == 0;
                self.lines.push(&buffer[..bytes]);
                Ok(true)
            }
            Err(e) if e.kind() == ErrorKind::WouldBlock => Ok(false),
            Err(e) if e.kind() == ErrorKind::Interrupted => Ok(true),
            Err(e) => Err(e),
        }
    }

    /// A watcher only listens: what it sends is read away, to see its end.
    fn ignore(&mut self) -> io::Result<Turn> {
        let mut buffer = [0; 4096];
        match self.stream.read(&mut buffer) {
            Ok(0) => Ok(Turn::Over),
            Ok(_) => Ok(Turn::Again),
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock) => Ok(Turn::Waits),
            Err(e) if e.kind() == ErrorKind::Interrupted => Ok(Turn::Again),
            Err(e) => Err(e),
        }
    }
}

pub fn line_of(answer: &Answer) -> Vec<u8> {
    encode(answer).unwrap_or_else(|fault| {
        let error = Error::new(Code::Internal, fault.to_string(), "report it");
        encode(&Answer::Error(error)).unwrap_or_default()
    })
}

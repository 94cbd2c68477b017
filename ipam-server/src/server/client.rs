//! One client: lines in, answers out, in order. A request is taken up only
//! when the answer before it has left, so that a client that does not read
//! holds at most one answer; a watcher that does not is cut off.

use std::{
    io::{self, ErrorKind, Read, Write},
    time::{Duration, Instant},
};

use mio::net::UnixStream;
use weft_api::{
    framing::{Line, Lines, encode},
    ipam::{Answer, Code, Error, REQUEST_MAX, Request},
};

use super::request;

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
    outgoing: Vec<u8>,
    sent: usize,
    stuck_since: Option<Instant>,
    begun_since: Option<Instant>,
    served_at: Instant,
    /// Its request is being decided; until when it waits.
    pub waits_until: Option<Instant>,
    pub watches: bool,
    /// It is told why, and no more.
    leaving: bool,
    ended: bool,
}

impl Client {
    pub fn new(stream: UnixStream, now: Instant) -> Self {
        Self {
            stream,
            lines: Lines::new(REQUEST_MAX),
            outgoing: Vec::new(),
            sent: 0,
            stuck_since: None,
            begun_since: None,
            served_at: now,
            waits_until: None,
            watches: false,
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
        let idle = self.outgoing.is_empty() && self.waits_until.is_none() && !self.watches;
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

    /// Bytes that are owed.
    pub fn backlog(&self) -> usize {
        self.outgoing.len() - self.sent
    }

    pub fn answer(&mut self, answer: &Answer) {
        self.waits_until = None;
        self.push(&line_of(answer));
    }

    pub fn push(&mut self, line: &[u8]) {
        if !self.leaving {
            self.outgoing.extend_from_slice(line);
        }
    }

    /// Says why, in place of all that is owed, and ends.
    pub fn leave(&mut self, error: Error) {
        let whole = self.sent == 0 || self.outgoing[self.sent - 1] == b'\n';
        let rest = &self.outgoing[self.sent..];
        let end = rest.iter().position(|&b| b == b'\n').map_or(0, |at| at + 1);
        self.outgoing
            .truncate(self.sent + if whole { 0 } else { end });
        self.push(&line_of(&Answer::Error(error)));
        (self.leaving, self.begun_since, self.waits_until) = (true, None, None);
    }

    /// Does what can be done without waiting. An error ends the client.
    pub fn turn(&mut self, now: Instant) -> io::Result<Turn> {
        for _ in 0..STEPS {
            if !self.flush(now)? {
                return Ok(Turn::Waits);
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

    /// Whether all has left.
    fn flush(&mut self, now: Instant) -> io::Result<bool> {
        while self.sent < self.outgoing.len() {
            match self.stream.write(&self.outgoing[self.sent..]) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(bytes) => {
                    self.sent += bytes;
                    self.stuck_since = None;
                }
                Err(e) if e.kind() == ErrorKind::WouldBlock => {
                    self.stuck_since.get_or_insert(now);
                    self.let_go();
                    return Ok(false);
                }
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        if !self.outgoing.is_empty() {
            (self.outgoing, self.sent) = (Vec::new(), 0);
            self.served_at = now;
        }
        Ok(true)
    }

    /// Drops the whole lines that have left.
    fn let_go(&mut self) {
        let gone = self.outgoing[..self.sent].iter().rposition(|&b| b == b'\n');
        if let Some(end) = gone {
            self.outgoing.drain(..=end);
            self.sent -= end + 1;
        }
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

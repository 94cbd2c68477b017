//! One client of the control socket: lines in, answers out, in order.
//!
//! A request is taken up only when the answer before it has left, so that a
//! client that does not read holds at most one answer.

use std::{
    io::{self, ErrorKind, Write},
    os::fd::{AsFd, OwnedFd},
    time::{Duration, Instant},
};

use mio::net::UnixStream;
use weft_api::{
    forwarder::{Answer, Code, Error, REQUEST_MAX, Request},
    framing::{Line, Lines, encode},
};

use super::{Turn, passed::Passed, request};
use crate::{publish::refusal, sys::passing};

/// How long an answer may wait for its client to read on.
pub const PATIENCE: Duration = Duration::from_secs(5);

/// Steps of one turn, after which others have theirs.
const STEPS: usize = 32;
const READ_LEN: usize = 64 << 10;

#[derive(Debug)]
pub struct Client {
    pub stream: UnixStream,
    lines: Lines,
    /// Bytes that the stream has brought.
    received: u64,
    passed: Passed,
    outgoing: Vec<u8>,
    /// Of `outgoing`, what has left.
    sent: usize,
    stuck_since: Option<Instant>,
    /// When its last answer left, or it came.
    served_at: Instant,
    ended: bool,
}

impl Client {
    pub fn new(stream: UnixStream, now: Instant) -> Self {
        Self {
            stream,
            lines: Lines::new(REQUEST_MAX),
            received: 0,
            passed: Passed::default(),
            outgoing: Vec::new(),
            sent: 0,
            stuck_since: None,
            served_at: now,
            ended: false,
        }
    }

    pub fn deadline(&self) -> Option<Instant> {
        self.stuck_since.map(|since| since + PATIENCE)
    }

    /// Since when nothing is owed to it; none while something is.
    pub fn idle_since(&self) -> Option<Instant> {
        self.outgoing.is_empty().then_some(self.served_at)
    }

    /// Does what can be done without waiting. An error ends the client.
    pub fn turn(
        &mut self,
        now: Instant,
        mut answer: impl FnMut(Request, Vec<OwnedFd>) -> Answer,
    ) -> io::Result<Turn> {
        for _ in 0..STEPS {
            if !self.flush(now)? {
                return Ok(Turn::Waits);
            }
            if let Some(request) = self.next_request() {
                let answer = match request {
                    Ok((request, fds)) => answer(request, fds),
                    Err(error) => Answer::Error(error),
                };
                self.outgoing = encode(&answer)?;
            } else if self.ended && self.lines.abandon() {
                self.outgoing = encode(&Answer::Error(request::unended()))?;
            } else if self.ended {
                return Ok(Turn::Over);
            } else if !self.read()? {
                return Ok(Turn::Waits);
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

    fn next_request(&mut self) -> Option<Result<(Request, Vec<OwnedFd>), Error>> {
        let line = self.lines.pop()?;
        let end = self.lines.taken();
        let Line::Whole(line) = line else {
            // Its fds, if it had any, are closed here.
            let _ = self.passed.take(end, end);
            return Some(Err(request::oversized()));
        };
        let fds = self.passed.take(end - line.len() as u64 - 1, end);
        Some(request::parse(&line).and_then(|request| {
            let fds = fds?;
            if !fds.is_empty() && !matches!(request, Request::Attach(_)) {
                let message = format!("{} fds came with a request that takes none", fds.len());
                return Err(refusal(
                    Code::Descriptor,
                    message,
                    "pass fds with attach only",
                ));
            }
            Ok((request, fds))
        }))
    }

    /// Whether anything came, the stream's end included.
    fn read(&mut self) -> io::Result<bool> {
        let mut buffer = [0; READ_LEN];
        let received = match passing::receive(self.stream.as_fd(), &mut buffer) {
            Ok(received) => received,
            Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(false),
            Err(e) if e.kind() == ErrorKind::Interrupted => return Ok(true),
            Err(e) => return Err(e),
        };
        self.ended = received.bytes == 0;
        self.lines.push(&buffer[..received.bytes]);
        let from = self.received;
        self.received += received.bytes as u64;
        self.passed.push(from, received);
        Ok(true)
    }
}

//! The thread of the socket: one loop that reads requests, hands them to the
//! writer and carries answers and events back. It waits for nobody: a store
//! that hangs costs a request its deadline, and nothing else.

use std::{
    collections::{HashMap, VecDeque},
    io::{self, ErrorKind},
    os::fd::AsRawFd,
    sync::Arc,
    time::{Duration, Instant},
};

use crossbeam::channel::{Receiver, Sender, TryRecvError, TrySendError, bounded, unbounded};
use mio::{Events, Interest, Poll, Token, Waker, net::UnixListener, unix::SourceFd};
use nix::sys::signal::Signal;
use tracing::debug;
use weft_api::ipam::{Answer, Code, Error, Event, Reply, Request};
use weft_socket::{Signals, guard::Socket};

use crate::writer::{Job, Note, Ticket};
pub use ends::Ends;

use client::{Client, Turn, line_of};
use ring::Ring;

mod client;
mod door;
mod ends;
mod outgoing;
mod request;
mod ring;

const LISTENER: Token = Token(0);
const SIGNALS: Token = Token(1);
const WRITER: Token = Token(2);
const FIRST_CLIENT: usize = 16;

/// How often a watcher hears something.
const ALIVE: Duration = Duration::from_secs(10);
/// How long a client is idle before another may have its place.
const IDLE: Duration = Duration::from_secs(1);
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Batches of notes that the writer may be ahead. A writer that is further
/// waits for this thread, which never waits for the writer.
const NOTES_MAX: usize = 16;
/// How long the end waits for what is owed.
const FAREWELL: Duration = Duration::from_secs(3);

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    pub clients: usize,
    /// Requests that wait for the writer.
    pub requests: usize,
    /// Requests that one commit answers.
    pub batch: usize,
    pub deadline: Duration,
    /// Bytes that a watcher may leave unread.
    pub backlog: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            clients: 256,
            requests: 1024,
            batch: 256,
            deadline: Duration::from_secs(10),
            backlog: 16 << 20,
        }
    }
}

#[derive(Debug)]
pub struct Server {
    poll: Poll,
    socket: Socket,
    listener: UnixListener,
    signals: Signals,
    limits: Limits,
    clients: HashMap<Token, Client>,
    next: usize,
    eager: VecDeque<Token>,
    accept_at: Option<Instant>,
    alive_at: Instant,
    /// Whose each request is; one that is late has no entry.
    waiting: HashMap<Ticket, Token>,
    next_ticket: Ticket,
    ring: Ring,
    jobs: Sender<Job>,
    notes: Receiver<Vec<Note>>,
    silenced: Sender<Ticket>,
}

impl Server {
    pub fn new(socket: Socket, signals: Signals, limits: Limits) -> io::Result<(Self, Ends)> {
        let poll = Poll::new()?;
        let mut listener = UnixListener::from_std(socket.listener.try_clone()?);
        let registry = poll.registry();
        registry.register(&mut listener, LISTENER, Interest::READABLE)?;
        let signal = signals.as_raw_fd();
        registry.register(&mut SourceFd(&signal), SIGNALS, Interest::READABLE)?;
        let waker = Arc::new(Waker::new(registry, WRITER)?);
        let (jobs, taken) = bounded(limits.requests);
        let (told, notes) = bounded(NOTES_MAX);
        let (silenced, heard_last) = unbounded();
        let server = Self {
            poll,
            socket,
            listener,
            signals,
            limits,
            clients: HashMap::new(),
            next: FIRST_CLIENT,
            eager: VecDeque::new(),
            accept_at: None,
            alive_at: Instant::now() + ALIVE,
            waiting: HashMap::new(),
            next_ticket: 0,
            ring: Ring::new(0),
            jobs,
            notes,
            silenced,
        };
        let ends = Ends {
            jobs: taken,
            notes: told,
            waker,
            silenced: heard_last,
        };
        Ok((server, ends))
    }

    /// Serves until a signal asks for the end. No event before `revision` is
    /// known.
    pub fn run(mut self, revision: u64) -> io::Result<Signal> {
        self.ring = Ring::new(revision);
        let mut events = Events::with_capacity(128);
        let mut end = None;
        loop {
            match self.poll.poll(&mut events, self.timeout(Instant::now())) {
                Err(e) if e.kind() != ErrorKind::Interrupted => return Err(e),
                _ => {}
            }
            let now = Instant::now();
            for event in &events {
                match event.token() {
                    LISTENER if end.is_none() => self.accept(now),
                    LISTENER => {}
                    SIGNALS => {
                        if let Some(signal) = self.signals.next() {
                            end.get_or_insert((signal, now + FAREWELL));
                        }
                    }
                    WRITER => {}
                    client => self.turn(client, now),
                }
            }
            self.carry(now)?;
            for _ in 0..self.eager.len() {
                if let Some(client) = self.eager.pop_front() {
                    self.turn(client, now);
                }
            }
            if self.accept_at.take_if(|at| *at <= now).is_some() {
                self.accept(now);
            }
            self.keep_time(now);
            if let Some((signal, until)) = end {
                self.clients.retain(|_, client| client.owes());
                if self.clients.is_empty() || now >= until {
                    return Ok(signal);
                }
            }
        }
    }

    fn timeout(&self, now: Instant) -> Option<Duration> {
        if !self.eager.is_empty() {
            return Some(Duration::ZERO);
        }
        let deadlines = self.clients.values().filter_map(Client::deadline);
        let next = deadlines
            .chain(self.accept_at)
            .chain([self.alive_at])
            .min()?;
        // At least as often as a farewell is over.
        Some(next.saturating_duration_since(now).min(FAREWELL))
    }

    fn turn(&mut self, token: Token, now: Instant) {
        while let Some(client) = self.clients.get_mut(&token) {
            match client.turn(now) {
                Ok(Turn::Waits) => return,
                Ok(Turn::Again) => {
                    if !self.eager.contains(&token) {
                        self.eager.push_back(token);
                    }
                    return;
                }
                Ok(Turn::Asks(request)) => self.take_up(token, request, now),
                Ok(Turn::Over) => self.dismiss(token),
                Err(fault) => {
                    debug!("a connection ended: {fault}");
                    self.dismiss(token);
                }
            }
        }
    }

    fn take_up(&mut self, token: Token, request: Request, now: Instant) {
        let Some(client) = self.clients.get_mut(&token) else {
            return;
        };
        if let Request::Watch { from: Some(from) } = request
            && let Some(events) = self.ring.since(from)
        {
            let revision = self.ring.revision;
            let events = Some(events).filter(|events| !events.is_empty());
            return client.begin(&Arc::new(events.unwrap_or_else(|| alive(revision))));
        }
        let ticket = self.next_ticket;
        self.next_ticket += 1;
        let until = now + self.limits.deadline;
        match self.jobs.try_send(Job {
            ticket,
            request,
            until,
        }) {
            Ok(()) => {
                client.waits_until = Some(until);
                self.waiting.insert(ticket, token);
            }
            Err(TrySendError::Full(_)) => {
                let message = format!("{} requests wait, the most", self.limits.requests);
                client.answer(&Answer::Error(Error::new(
                    Code::Busy,
                    message,
                    "ask again later",
                )));
            }
            Err(TrySendError::Disconnected(_)) => {
                let error = Error::new(
                    Code::Internal,
                    "the writer has ended",
                    "start weft-ipam anew",
                );
                client.answer(&Answer::Error(error));
            }
        }
    }

    /// Carries to the clients what the writer says.
    /// Fails when the writer has ended: nothing would be answered any more.
    fn carry(&mut self, now: Instant) -> io::Result<()> {
        loop {
            let notes = match self.notes.try_recv() {
                Ok(notes) => notes,
                Err(TryRecvError::Empty) => return Ok(()),
                Err(TryRecvError::Disconnected) => {
                    return Err(io::Error::other("the writer's thread ended; see the log"));
                }
            };
            for note in notes {
                match note {
                    Note::Answer(ticket, answer) => self.answer(ticket, answer, now),
                    Note::Snapshot(ticket, event) => {
                        if let Some(token) = self.waiting.remove(&ticket)
                            && let Some(client) = self.clients.get_mut(&token)
                        {
                            client.begin(&Arc::new(line_of(&Answer::Event(Box::new(event)))));
                            self.turn(token, now);
                        }
                    }
                    Note::Events(events) => {
                        let lines: Vec<u8> = events
                            .into_iter()
                            .flat_map(|event| self.ring.push(event))
                            .collect();
                        self.broadcast(&Arc::new(lines), now);
                    }
                    Note::Resync(event) => {
                        self.ring.restart(ring::revision_of(&event));
                        let line = Arc::new(line_of(&Answer::Event(Box::new(event))));
                        for token in self.watchers() {
                            if let Some(client) = self.clients.get_mut(&token) {
                                client.begin(&line);
                            }
                            self.turn(token, now);
                        }
                    }
                }
            }
        }
    }

    fn answer(&mut self, ticket: Ticket, answer: Result<Reply, Error>, now: Instant) {
        let clients = self.clients.len();
        let token = self.waiting.remove(&ticket);
        let client = token.and_then(|token| Some((token, self.clients.get_mut(&token)?)));
        let registers = matches!(answer, Ok(Reply::Registered(_)));
        let Some((token, client)) = client else {
            if registers {
                self.silence(ticket);
            }
            return;
        };
        if registers {
            client.registrations.push(ticket);
        }
        client.answer(&match answer {
            Ok(Reply::Status(mut status)) => {
                status.clients = clients;
                Answer::Ok(Box::new(Reply::Status(status)))
            }
            Ok(reply) => Answer::Ok(Box::new(reply)),
            Err(error) => Answer::Error(error),
        });
        self.turn(token, now);
    }

    fn watchers(&self) -> Vec<Token> {
        let watchers = self.clients.iter().filter(|(_, client)| client.watches);
        watchers.map(|(token, _)| *token).collect()
    }

    fn broadcast(&mut self, lines: &outgoing::Lines, now: Instant) {
        let backlog = self.limits.backlog;
        for token in self.watchers() {
            if let Some(client) = self.clients.get_mut(&token) {
                client.push(lines);
                if client.backlog() > backlog {
                    client.leave(behind());
                }
            }
            self.turn(token, now);
        }
    }

    fn keep_time(&mut self, now: Instant) {
        if self.alive_at <= now {
            self.alive_at = now + ALIVE;
            let line = Arc::new(alive(self.ring.revision));
            self.broadcast(&line, now);
        }
        let late = |client: &Client| client.deadline().is_some_and(|deadline| deadline <= now);
        let clients = self.clients.iter().filter(|(_, client)| late(client));
        let late: Vec<Token> = clients.map(|(token, _)| *token).collect();
        for token in late {
            let Some(client) = self.clients.get_mut(&token) else {
                continue;
            };
            if client.is_stuck(now) {
                debug!("a connection is closed: its other end does not read");
                self.dismiss(token);
                continue;
            }
            if client.is_slow(now) {
                let message = "the line was begun and not ended in time";
                client.leave(Error::new(Code::Deadline, message, "send whole lines"));
            } else {
                self.waiting.retain(|_, waits| *waits != token);
                let message = format!("no answer within {} s", self.limits.deadline.as_secs());
                let hint = "it may have been done: ask again to learn";
                client.answer(&Answer::Error(Error::new(Code::Deadline, message, hint)));
            }
            self.turn(token, now);
        }
    }

    fn dismiss(&mut self, token: Token) {
        if let Some(mut client) = self.clients.remove(&token) {
            // Closing the stream ends the watch in any case.
            let _ = self.poll.registry().deregister(&mut client.stream);
            for ticket in client.registrations {
                self.silence(ticket);
            }
        }
    }

    /// The registration's node is not heard any more.
    fn silence(&self, ticket: Ticket) {
        // A writer that has ended withdraws nobody.
        let _ = self.silenced.send(ticket);
    }
}

fn alive(revision: u64) -> Vec<u8> {
    line_of(&Answer::Event(Box::new(Event::Alive { revision })))
}

fn behind() -> Error {
    let message = "the watcher did not read its events in time";
    Error::new(Code::Deadline, message, "watch again, and read faster")
}

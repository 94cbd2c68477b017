//! The control thread: one loop that serves the control socket's clients and
//! the metrics address's visitors. It waits for nobody but the workers, when
//! new tables are published.

mod client;
mod closing;
mod forwarder;
mod http;
mod passed;
mod request;
mod socket;

use std::{
    collections::{HashMap, VecDeque},
    io::{self, ErrorKind, Write},
    net::SocketAddr,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use mio::{
    Events, Interest, Poll, Token, Waker,
    event::Source,
    net::{TcpListener, UnixStream},
    unix::SourceFd,
};
use nix::sys::signal::Signal;
use std::os::fd::AsRawFd;
use tracing::{debug, info, warn};
use weft_api::{
    forwarder::{Answer, Code, Error},
    framing::encode,
    ipam,
};

pub use forwarder::{Forwarder, StartError};
pub use socket::{ControlSocket, SocketError};
pub use weft_socket::Signals;

use crate::{nodes::NodesError, publish::refusal, watched};
use client::Client;
use http::Visitor;

/// Most clients of the control socket at a time: a node's CNI calls run at
/// once, and each may hold a request of 8 MiB.
const CLIENTS_MAX: usize = 64;
/// How long a client is idle before another may have its place. One that has
/// only just connected is about to ask.
const IDLE: Duration = Duration::from_secs(1);
const VISITORS_MAX: usize = 16;

/// How long to wait before accepting again after the kernel refused.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

const CONTROL: Token = Token(0);
const METRICS: Token = Token(1);
const SIGNALS: Token = Token(2);
const NEWS: Token = Token(3);
const FIRST_GUEST: usize = 16;

/// What a guest needs next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Turn {
    /// An event of its stream.
    Waits,
    /// Another turn, after the others had theirs.
    Again,
    /// Nothing: it has been served.
    Over,
}

#[derive(Debug)]
enum Guest {
    Client(Box<Client>),
    Visitor(Box<Visitor>),
}

#[derive(Debug)]
pub struct Server {
    poll: Poll,
    socket: ControlSocket,
    metrics: Option<TcpListener>,
    signals: Signals,
    guests: HashMap<Token, Guest>,
    clients: usize,
    next: usize,
    /// Guests that want another turn.
    eager: VecDeque<Token>,
    /// When to try and accept again.
    accept_at: Option<Instant>,
    /// When to look at the file that names the nodes.
    look_at: Option<Instant>,
    forwarder: Forwarder,
    /// Tells of news from the IPAM server and of the paths.
    waker: Arc<Waker>,
}

/// Listens for visitors at `address`.
pub fn listen_metrics(address: SocketAddr) -> io::Result<TcpListener> {
    TcpListener::bind(address)
}

impl Server {
    pub fn new(
        socket: ControlSocket,
        metrics: Option<TcpListener>,
        signals: Signals,
        forwarder: Forwarder,
    ) -> io::Result<Self> {
        let poll = Poll::new()?;
        let waker = Arc::new(Waker::new(poll.registry(), NEWS)?);
        forwarder.listen(Arc::clone(&waker));
        let mut server = Self {
            poll,
            waker,
            socket,
            metrics,
            signals,
            guests: HashMap::new(),
            clients: 0,
            next: FIRST_GUEST,
            eager: VecDeque::new(),
            accept_at: None,
            look_at: None,
            forwarder,
        };
        let registry = server.poll.registry();
        registry.register(&mut server.socket.listener, CONTROL, Interest::READABLE)?;
        if let Some(metrics) = &mut server.metrics {
            registry.register(metrics, METRICS, Interest::READABLE)?;
        }
        let signals = server.signals.as_raw_fd();
        registry.register(&mut SourceFd(&signals), SIGNALS, Interest::READABLE)?;
        Ok(server)
    }

    /// Takes the nodes from the IPAM server at `socket` from now on.
    /// `registration` is what that server is told of this node, if anything.
    pub fn follow(&mut self, socket: &Path, registration: Option<ipam::Node>) -> io::Result<()> {
        let waker = Arc::clone(&self.waker);
        self.forwarder.follow(socket, registration, waker)
    }

    /// Takes the nodes from the file at `path`, now and from now on.
    pub fn keep_to_file(&mut self, path: &Path) -> Result<(), NodesError> {
        self.forwarder.keep_to_file(path)?;
        self.look_at = Some(Instant::now() + watched::PAUSE);
        Ok(())
    }

    /// Serves until a signal asks for the end.
    pub fn run(mut self) -> io::Result<Signal> {
        let mut events = Events::with_capacity(128);
        loop {
            match self.poll.poll(&mut events, self.timeout(Instant::now())) {
                Err(e) if e.kind() != ErrorKind::Interrupted => return Err(e),
                _ => {}
            }
            let now = Instant::now();
            for event in &events {
                match event.token() {
                    CONTROL => self.accept_clients(now),
                    METRICS => self.accept_visitors(now),
                    SIGNALS => {
                        if let Some(signal) = self.signals.next() {
                            self.forwarder.leave();
                            return Ok(signal);
                        }
                    }
                    NEWS => {
                        self.forwarder.hear_news();
                        self.forwarder.hear_paths();
                    }
                    guest => self.turn(guest, now),
                }
            }
            for _ in 0..self.eager.len() {
                if let Some(guest) = self.eager.pop_front() {
                    self.turn(guest, now);
                }
            }
            if self.accept_at.take_if(|at| *at <= now).is_some() {
                self.accept_clients(now);
                self.accept_visitors(now);
            }
            if self.look_at.is_some_and(|at| at <= now) {
                self.forwarder.look_at_file();
                self.look_at = Some(now + watched::PAUSE);
            }
            self.dismiss_late(now);
        }
    }

    fn timeout(&self, now: Instant) -> Option<Duration> {
        if !self.eager.is_empty() {
            return Some(Duration::ZERO);
        }
        let deadlines = self.guests.values().filter_map(Guest::deadline);
        let next = deadlines.chain(self.accept_at).chain(self.look_at).min()?;
        Some(next.saturating_duration_since(now))
    }

    fn accept_clients(&mut self, now: Instant) {
        while let Some((stream, _)) =
            accepted(self.socket.listener.accept(), now, &mut self.accept_at)
        {
            let admitted = self
                .socket
                .admit(&stream)
                .and_then(|()| self.make_room(now));
            match admitted {
                Ok(()) => {
                    self.clients += 1;
                    self.admit(Guest::Client(Box::new(Client::new(stream, now))), now);
                }
                Err(error) => turn_away(stream, error),
            }
        }
    }

    /// Sees that one more client has a place: one that is idle gives way.
    fn make_room(&mut self, now: Instant) -> Result<(), Error> {
        if self.clients < CLIENTS_MAX {
            return Ok(());
        }
        let idle = self.guests.iter().filter_map(|(token, guest)| match guest {
            Guest::Client(client) => Some((client.idle_since()?, *token)),
            Guest::Visitor(_) => None,
        });
        let may_go = |(since, _): &(Instant, Token)| now - *since >= IDLE;
        let Some((_, longest)) = idle.min().filter(may_go) else {
            let message = format!("{CLIENTS_MAX} clients are being served, the most");
            return Err(refusal(Code::Busy, message, "try again later"));
        };
        info!("{CLIENTS_MAX} clients are connected; the one idle longest gives way");
        self.dismiss(longest);
        Ok(())
    }

    fn accept_visitors(&mut self, now: Instant) {
        while let Some(metrics) = &self.metrics
            && let Some((stream, from)) = accepted(metrics.accept(), now, &mut self.accept_at)
        {
            if self.guests.len() - self.clients >= VISITORS_MAX {
                debug!(%from, "{VISITORS_MAX} visitors are being served; this one is not");
                continue;
            }
            self.admit(Guest::Visitor(Box::new(Visitor::new(stream, now))), now);
        }
    }

    fn admit(&mut self, mut guest: Guest, now: Instant) {
        let token = Token(self.next);
        self.next += 1;
        let interest = Interest::READABLE | Interest::WRITABLE;
        let registered = self
            .poll
            .registry()
            .register(guest.source(), token, interest);
        self.guests.insert(token, guest);
        match registered {
            Ok(()) => self.turn(token, now),
            Err(fault) => {
                warn!("a connection cannot be watched: {fault}");
                self.dismiss(token);
            }
        }
    }

    fn turn(&mut self, token: Token, now: Instant) {
        let forwarder = &mut self.forwarder;
        let turn = match self.guests.get_mut(&token) {
            None => return,
            Some(Guest::Client(client)) => {
                client.turn(now, |request, fds| forwarder.answer(token.0, request, fds))
            }
            Some(Guest::Visitor(visitor)) => {
                visitor.turn(|| forwarder.scrape().text().unwrap_or_default())
            }
        };
        match turn {
            Ok(Turn::Waits) => {}
            Ok(Turn::Again) if self.eager.contains(&token) => {}
            Ok(Turn::Again) => self.eager.push_back(token),
            Ok(Turn::Over) => self.dismiss(token),
            Err(fault) => {
                debug!("a connection ended: {fault}");
                self.dismiss(token);
            }
        }
    }

    fn dismiss_late(&mut self, now: Instant) {
        let late = |guest: &Guest| guest.deadline().is_some_and(|deadline| deadline <= now);
        let late: Vec<Token> = self
            .guests
            .iter()
            .filter(|(_, guest)| late(guest))
            .map(|(token, _)| *token)
            .collect();
        for token in late {
            debug!("a connection is closed: its other end does not go on");
            self.dismiss(token);
        }
    }

    fn dismiss(&mut self, token: Token) {
        if let Some(mut guest) = self.guests.remove(&token) {
            self.forwarder.forget(token.0);
            // Closing the stream ends the watch in any case.
            let _ = self.poll.registry().deregister(guest.source());
            self.clients -= usize::from(matches!(guest, Guest::Client(_)));
        }
    }
}

impl Guest {
    fn source(&mut self) -> &mut dyn Source {
        match self {
            Self::Client(client) => &mut client.stream,
            Self::Visitor(visitor) => &mut visitor.stream,
        }
    }

    fn deadline(&self) -> Option<Instant> {
        match self {
            Self::Client(client) => client.deadline(),
            Self::Visitor(visitor) => Some(visitor.deadline()),
        }
    }
}

/// The next connection. When the kernel has none to give for want of fds or
/// memory, no event will tell that it has again: `retry` says when to ask.
fn accepted<T>(result: io::Result<T>, now: Instant, retry: &mut Option<Instant>) -> Option<T> {
    match result {
        Ok(connection) => Some(connection),
        Err(e) if e.kind() == ErrorKind::WouldBlock => None,
        Err(fault) => {
            warn!("accept: {fault}; trying again");
            *retry = Some(now + ACCEPT_PAUSE);
            None
        }
    }
}

/// Tells a client why it is not served, if it can be told at once.
fn turn_away(mut stream: UnixStream, error: Error) {
    info!("a client is turned away: {error}");
    if let Ok(line) = encode(&Answer::Error(error)) {
        // It may have gone already.
        let _ = stream.write(&line);
    }
}

//! One thread: poll, receive, decide, send. The only event loop of the
//! packet path.

use std::{
    io,
    os::fd::AsRawFd,
    sync::Arc,
    time::{Duration, Instant},
};

use mio::{Events, Interest, Poll, Registry, Token, unix::SourceFd};
use weft_api::forwarder::QUEUES_MAX;
use weft_engine::{Batch, Counters, Engine, Inbox, PortId, Runs, Scene, batch::SLOT};

use crate::{
    dispatch::Dispatch,
    port::{Left, Port},
    steer::Steering,
    tables::Tables,
    uplink::{Receiver, receive::TRAINS},
    workers::Shared,
};

/// Bytes that one batch of frames takes at most: a few super-frames, or some
/// hundreds of small frames. Small enough to stay in a core's cache.
const BATCH: usize = 4 * SLOT;

/// Bytes for what the gateway answers during one batch.
const REPLIES: usize = 2 * SLOT;

#[derive(Debug)]
pub struct Worker {
    steering: Steering,
    shared: Arc<Shared>,
    poll: Poll,
    tables: Arc<Tables>,
    counters: Arc<Counters>,
    receiver: Receiver,
    dispatch: Dispatch,
    engine: Engine,
    batch: Batch,
    replies: Batch,
    inbox: Inbox,
    runs: Runs,
    /// What may have more to read: mio tells of an edge only once.
    ready: Vec<Source>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Source {
    Control,
    Uplink(usize),
    Queue { port: usize, queue: usize },
}

/// Where in the token space the sources lie.
const CONTROL: Token = Token(0);
const UPLINK: usize = 1;
const QUEUES: usize = 64;

impl Source {
    fn token(self) -> Token {
        match self {
            Self::Control => CONTROL,
            Self::Uplink(place) => Token(UPLINK + place),
            Self::Queue { port, queue } => Token(QUEUES + port * QUEUES_MAX + queue),
        }
    }

    fn of(token: Token) -> Self {
        match token.0 {
            0 => Self::Control,
            place if place < QUEUES => Self::Uplink(place - UPLINK),
            place => Self::Queue {
                port: (place - QUEUES) / QUEUES_MAX,
                queue: (place - QUEUES) % QUEUES_MAX,
            },
        }
    }
}

impl Worker {
    pub fn new(
        steering: Steering,
        shared: Arc<Shared>,
        poll: Poll,
        receiver: Receiver,
        dispatch: Dispatch,
    ) -> io::Result<Self> {
        for place in 0..receiver.sockets() {
            let fd = receiver.socket(place).as_raw_fd();
            let token = Source::Uplink(place).token();
            poll.registry()
                .register(&mut SourceFd(&fd), token, Interest::READABLE)?;
        }
        let tables = shared.tables.load_full();
        register(poll.registry(), steering, &tables, None);
        Ok(Self {
            steering,
            poll,
            tables,
            counters: Arc::clone(&shared.counters[steering.index]),
            receiver,
            dispatch,
            engine: Engine::new(shared.seed).listening(shared.ears.seal.clone()),
            batch: Batch::new(BATCH),
            replies: Batch::new(REPLIES),
            inbox: Inbox::new(TRAINS),
            runs: Runs::default(),
            ready: Vec::new(),
            shared,
        })
    }

    pub fn token() -> Token {
        CONTROL
    }

    pub fn run(mut self) {
        let mut events = Events::with_capacity(256);
        while !self.shared.stopping() {
            match self.poll.poll(&mut events, self.rest()) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => {
                    tracing::error!(%error, "poll failed");
                    return;
                }
            }
            for event in &events {
                let source = Source::of(event.token());
                if !self.ready.contains(&source) {
                    self.ready.push(source);
                }
            }
            self.release();
            let mut ready = std::mem::take(&mut self.ready);
            ready.retain(|&source| self.serve(source));
            // New tables may have dropped what was ready under the old ones.
            self.ready.append(&mut ready);
        }
    }

    /// How long there is nothing to do unless something is heard.
    fn rest(&self) -> Option<Duration> {
        if !self.ready.is_empty() {
            return Some(Duration::ZERO);
        }
        let due = self.dispatch.due()?;
        Some(due.saturating_duration_since(Instant::now()))
    }

    /// Lets go what is due, and says at what moment.
    fn release(&mut self) -> Instant {
        let now = Instant::now();
        if self.dispatch.due().is_some() {
            let tables = Arc::clone(&self.tables);
            self.dispatch.release(&tables, now, &mut self.batch);
        }
        now
    }

    /// Serves one batch of a source. Says whether there may be more.
    fn serve(&mut self, source: Source) -> bool {
        match source {
            Source::Control => {
                self.take_tables();
                false
            }
            Source::Uplink(place) => self.serve_uplink(place),
            Source::Queue { port, queue } => self.serve_queue(port, queue),
        }
    }

    fn take_tables(&mut self) {
        let old = Arc::clone(&self.tables);
        self.dispatch.release_all(&old, &mut self.batch);
        let new = self.shared.tables.load_full();
        register(
            self.poll.registry(),
            self.steering,
            &new,
            Some(&self.tables),
        );
        self.tables = new;
        // A port's last owner closes its fds: let that not be this thread.
        drop(old);
        self.shared
            .acknowledge(self.steering.index, self.tables.snapshot.epoch);
    }

    fn serve_queue(&mut self, place: usize, queue: usize) -> bool {
        let tables = Arc::clone(&self.tables);
        let id = PortId(u16::try_from(place).unwrap_or(u16::MAX));
        let (Some(port), Some(row)) = (tables.port(id), tables.snapshot.port(id)) else {
            return false;
        };
        let now = self.release();
        self.batch.clear();
        self.replies.clear();
        let left = port.receive(queue, &mut self.batch);
        if left == Left::Gone {
            let fd = port.queue(queue).as_raw_fd();
            let _ = self.poll.registry().deregister(&mut SourceFd(&fd));
        }
        if !self.batch.is_empty() {
            self.counters.port_reads.add(self.batch.len() as u64);
            let mut scene = Scene {
                tables: &tables.snapshot,
                counters: &self.counters,
                replies: &mut self.replies,
                now,
            };
            self.engine.from_port(&mut scene, row, &mut self.batch);
            self.dispatch.frames(&tables, &mut self.batch);
            self.dispatch.frames(&tables, &mut self.replies);
        }
        left == Left::More
    }

    fn serve_uplink(&mut self, place: usize) -> bool {
        let tables = Arc::clone(&self.tables);
        let now = self.release();
        self.inbox.trains.clear();
        self.runs.clear();
        self.replies.clear();
        let more = self
            .receiver
            .receive(place, &mut self.inbox)
            .unwrap_or_else(|error| {
                // News of an earlier send, or of the underlay; the next read
                // goes on.
                tracing::debug!(%error, "uplink read");
                true
            });
        if !self.inbox.trains.is_empty() {
            self.counters.uplink_reads.add(1);
            let mut scene = Scene {
                tables: &tables.snapshot,
                counters: &self.counters,
                replies: &mut self.replies,
                now,
            };
            self.engine
                .from_uplink(&mut scene, &mut self.inbox, &mut self.runs);
            self.engine
                .take_heard()
                .for_each(|heard| self.shared.ears.hear(heard));
            self.dispatch.runs(&tables, &self.runs);
            self.dispatch.frames(&tables, &mut self.replies);
        }
        more
    }
}

/// Registers the queues this worker reads that are new, and lets go of those
/// of ports that are gone.
fn register(registry: &Registry, steering: Steering, new: &Tables, old: Option<&Tables>) {
    let same = |place: usize, port: &Arc<Port>, other: Option<&Tables>| {
        let other = other.and_then(|tables| tables.ports.get(place)?.as_ref());
        other.is_some_and(|other| Arc::ptr_eq(port, other))
    };
    let own = move |place: usize, port: &Port| {
        (0..port.queues()).filter(move |&queue| steering.reads(place, queue))
    };
    for (place, port) in old.into_iter().flat_map(Tables::each) {
        if !same(place, port, Some(new)) {
            for queue in own(place, port) {
                // A queue whose device is gone is no longer registered.
                let _ = registry.deregister(&mut SourceFd(&port.queue(queue).as_raw_fd()));
            }
        }
    }
    for (place, port) in new.each() {
        if !same(place, port, old) {
            for queue in own(place, port) {
                let token = Source::Queue { port: place, queue }.token();
                let fd = port.queue(queue).as_raw_fd();
                if let Err(error) = registry.register(&mut SourceFd(&fd), token, Interest::READABLE)
                {
                    tracing::error!(%error, %port, "cannot watch a queue; its frames are not read");
                }
            }
        }
    }
}

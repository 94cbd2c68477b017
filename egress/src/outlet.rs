//! The loop: frames in, flows to whom something happened, timers.

mod doors;
mod frames;

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashMap},
    io::{self, ErrorKind},
    net::IpAddr,
    os::fd::AsRawFd,
    path::Path,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::{Duration, Instant},
};

use mio::{Events, Interest, Poll, Token, Waker, event::Event, unix::SourceFd};
use nix::sys::signal::Signal;
use weft_socket::Signals;
use weft_wire::{FRAME_MAX, vnet};

use crate::{
    attach::Attached,
    datagrams,
    entrance::Entrance,
    fragments::Fragments,
    link::{Came, Link},
    metrics::Counters,
    stack::Stack,
    table::{Kind, Limits, Table},
    target::Dns,
    tcp::{self, Turn},
    watch::Watch,
};

const LINK: Token = Token(0);
const SIGNALS: Token = Token(1);
const NEWS: Token = Token(2);
const FLOWS: usize = 3;
/// There are fewer flows than that.
const DOORS: usize = usize::MAX / 2;

/// What any link holds (RFC 8200 section 5), where it is not known.
const MTU_MIN: u16 = 1280;

/// Frames that are read before the flows have their turn: a few super-frames
/// of each of some flows.
const BATCH: usize = 64;

/// Least time between two looks at a flow that nothing happened to.
const PAUSE: Duration = Duration::from_millis(1);

/// How long the link rests before it is tried again.
const RETRY: Duration = Duration::from_millis(10);

#[derive(Debug)]
pub struct Outlet {
    poll: Poll,
    link: Link,
    stack: Stack,
    table: Table,
    timers: BinaryHeap<Reverse<(Instant, usize, u64)>>,
    /// Flows that have a turn to come.
    touched: Vec<usize>,
    /// Flows that wait for the link.
    stalled: Vec<usize>,
    buffer: Box<[u8]>,
    dns: Option<Dns>,
    counters: Arc<Counters>,
    fragments: Fragments,
    watch: Watch,
    entrance: Entrance,
    /// Of the pods' links.
    mtus: HashMap<IpAddr, u16>,
    /// When it was said that sockets are short.
    warned: Option<Instant>,
}

/// What an outlet keeps to.
#[derive(Debug, Clone, Copy)]
pub struct Rules {
    pub limits: Limits,
    pub dns: Option<Dns>,
    /// What sequence numbers start from; nobody may guess it.
    pub seed: u64,
}

/// Why the loop ended.
#[derive(Debug)]
pub enum End {
    Signal(Signal),
    /// The forwarder has let the port go.
    Gone,
}

impl Outlet {
    pub fn new(
        attached: Attached,
        control: &Path,
        signals: &Signals,
        rules: Rules,
        counters: Arc<Counters>,
    ) -> io::Result<Self> {
        let poll = Poll::new()?;
        let mut link = Link::new(attached.link);
        let Rules { limits, dns, seed } = rules;
        let both = Interest::READABLE | Interest::WRITABLE;
        let registry = poll.registry();
        registry.register(&mut SourceFd(&link.as_raw_fd()), LINK, both)?;
        registry.register(
            &mut SourceFd(&signals.as_raw_fd()),
            SIGNALS,
            Interest::READABLE,
        )?;
        let watch = Watch::start(control, Waker::new(registry, NEWS)?)?;
        Ok(Self {
            stack: Stack::new(&mut link, seed, Instant::now()),
            poll,
            link,
            table: Table::new(limits),
            timers: BinaryHeap::new(),
            touched: Vec::new(),
            stalled: Vec::new(),
            buffer: vec![0; vnet::LEN + FRAME_MAX].into(),
            dns,
            fragments: Fragments::default(),
            watch,
            entrance: Entrance::new(attached.pools, Arc::clone(&counters)),
            mtus: HashMap::new(),
            warned: None,
            counters,
        })
    }

    /// Serves until a signal or the forwarder ends it.
    pub fn run(mut self, signals: &Signals) -> io::Result<End> {
        let mut events = Events::with_capacity(256);
        let mut more = true;
        loop {
            let busy = more || !self.touched.is_empty() || self.is_called();
            let rest = match busy {
                true => Some(Duration::ZERO),
                false => self.rest(),
            };
            match self.poll.poll(&mut events, rest) {
                Err(error) if error.kind() != ErrorKind::Interrupted => return Err(error),
                _ => {}
            }
            for event in &events {
                match event.token() {
                    LINK => more = true,
                    SIGNALS => {
                        if let Some(signal) = signals.next() {
                            return Ok(End::Signal(signal));
                        }
                    }
                    NEWS => {}
                    Token(token) if token >= DOORS => self.knock(token - DOORS),
                    Token(token) => self.hear(token - FLOWS, event),
                }
            }
            self.link.drain();
            let now = Instant::now();
            more = match more.then(|| self.read(now)) {
                Some(Came::Gone) => return Ok(End::Gone),
                Some(Came::Frame(_)) => true,
                Some(Came::Nothing) | None => false,
            };
            self.attend(now);
            self.expire(now);
            if self.link.is_free() {
                for slot in std::mem::take(&mut self.stalled) {
                    self.touch(slot);
                }
            }
            for slot in std::mem::take(&mut self.touched) {
                self.turn(slot, now);
            }
            self.counters.flows.store(self.table.len() as u64, Relaxed);
        }
    }

    fn rest(&self) -> Option<Duration> {
        let timer = self.timers.peek().map(|Reverse((due, ..))| *due);
        let next = timer.into_iter().chain(self.entrance.due()).min();
        let due = next.map(|due| due.saturating_duration_since(Instant::now()));
        match self.link.is_free() {
            true => due,
            // A kernel without memory does not tell when it has some again.
            false => Some(due.unwrap_or(RETRY).min(RETRY)),
        }
    }

    fn hear(&mut self, slot: usize, event: &Event) {
        let Some(flow) = self.table.flow(slot) else {
            return;
        };
        if let Kind::Tcp(tcp) = &mut flow.kind {
            let over = event.is_error() || event.is_read_closed();
            tcp.readable |= event.is_readable() || over;
            tcp.writable |= event.is_writable() || event.is_write_closed();
        }
        self.touch(slot);
    }

    fn touch(&mut self, slot: usize) {
        if let Some(flow) = self.table.flow(slot)
            && !std::mem::replace(&mut flow.touched, true)
        {
            self.touched.push(slot);
        }
    }

    fn expire(&mut self, now: Instant) {
        while let Some(Reverse((due, slot, serial))) = self.timers.peek().copied()
            && due <= now
        {
            self.timers.pop();
            if let Some(flow) = self.table.flow(slot)
                && (flow.serial, flow.timer) == (serial, Some(due))
            {
                flow.timer = None;
                self.touch(slot);
            }
        }
    }

    /// Wakes the flow then, at the latest.
    fn wake_at(&mut self, slot: usize, due: Option<Instant>) {
        let (Some(due), Some(flow)) = (due, self.table.flow(slot)) else {
            return;
        };
        if flow.timer.is_none_or(|timer| due < timer) {
            flow.timer = Some(due);
            let serial = flow.serial;
            self.timers.push(Reverse((due, slot, serial)));
        }
    }

    fn turn(&mut self, slot: usize, now: Instant) {
        let Some(flow) = self.table.flow(slot) else {
            return;
        };
        flow.touched = false;
        let key = flow.key;
        let turn = match &mut flow.kind {
            Kind::Tcp(tcp) => {
                let mut tools = tcp::Tools {
                    stack: &mut self.stack,
                    link: &mut self.link,
                    counters: &self.counters,
                    now,
                };
                tcp.turn(&mut tools, &key)
            }
            Kind::Datagrams(flow) => {
                let mut tools = datagrams::Tools {
                    link: &mut self.link,
                    counters: &self.counters,
                    now,
                    buffer: &mut self.buffer,
                    mtu: mtu(&self.mtus, key.src),
                };
                if flow.turn(&mut tools, &key) {
                    self.touch(slot);
                }
                self.datagrams_end(slot, now)
            }
            Kind::Caller(_) => self.datagrams_end(slot, now),
        };
        match turn {
            Turn::Over => self.remove(slot),
            Turn::Waits(due) => {
                if !self.link.is_free() {
                    self.stalled.push(slot);
                }
                self.wake_at(slot, due.map(|due| due.max(now + PAUSE)));
            }
        }
    }

    fn datagrams_end(&mut self, slot: usize, now: Instant) -> Turn {
        let flow = self.table.flow(slot);
        let Some(ends) = flow.and_then(|flow| flow.kind.ends(&flow.key)) else {
            return Turn::Over;
        };
        if ends > now {
            return Turn::Waits(Some(ends));
        }
        self.counters.flows_idle.add(1);
        Turn::Over
    }

    fn remove(&mut self, slot: usize) {
        let Some(flow) = self.table.remove(slot) else {
            return;
        };
        // Closing the socket ends the watch in any case.
        match flow.kind {
            Kind::Tcp(mut tcp) => {
                let _ = self.poll.registry().deregister(&mut tcp.stream);
                tcp.end(&mut self.stack);
            }
            Kind::Datagrams(flow) => {
                let _ = self
                    .poll
                    .registry()
                    .deregister(&mut SourceFd(&flow.as_raw_fd()));
            }
            Kind::Caller(caller) => {
                self.entrance.callers.remove(&caller.call);
            }
        }
    }

    /// Reads a batch of frames.
    fn read(&mut self, now: Instant) -> Came {
        let mut buffer = std::mem::take(&mut self.buffer);
        let mut came = Came::Nothing;
        for _ in 0..BATCH {
            came = self.link.receive(&mut buffer);
            let Came::Frame(bytes) = came else {
                break;
            };
            self.counters.frames_from_pods.add(1);
            self.frame(&mut buffer[..bytes], now);
        }
        self.buffer = buffer;
        came
    }
}

fn mtu(mtus: &HashMap<IpAddr, u16>, pod: IpAddr) -> usize {
    mtus.get(&pod).copied().unwrap_or(MTU_MIN).into()
}

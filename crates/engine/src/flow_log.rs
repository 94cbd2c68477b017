//! The flow log: which connections were opened and which flows were denied,
//! written while somebody reads it. A ring whose records are numbered, so that
//! each reader learns how many it missed. Who carries packets never waits.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use weft_policy::{Decision, object::Pod};
use weft_wire::Key;

/// Records that wait at most: 4 MiB of them.
const RECORDS_MAX: usize = 1 << 14;

/// Records in a page at most. Notes are lost while one is copied.
pub const PAGE_MAX: usize = 1 << 10;

/// How long the log goes on after it was read.
pub const ATTENTION: Duration = Duration::from_secs(10);

/// Records among which a flow is looked for that was denied before.
const RECENT: usize = 16;

#[derive(Debug, Default)]
pub struct FlowLog {
    is_on: AtomicBool,
    /// Records that could not be noted at once, since the last that was.
    missed: AtomicU64,
    ring: Mutex<Ring>,
}

#[derive(Debug, Default)]
struct Ring {
    /// Each with its number, ascending.
    records: VecDeque<(u64, Record)>,
    /// Of the record that comes next.
    next: u64,
    /// Numbers below it may have been read.
    read: u64,
    until: Option<Instant>,
}

/// A connection that was opened, or a flow that was denied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Of the packet that opens, or would have.
    pub key: Key,
    pub source: Option<Arc<Pod>>,
    pub destination: Option<Arc<Pod>>,
    /// None: this node does not judge for that end.
    pub egress: Option<Decision>,
    pub ingress: Option<Decision>,
    pub edition: u32,
    pub packets: u64,
    /// When the first of them came.
    pub at: Instant,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    /// Where the reader goes on.
    pub next: u64,
    /// Records since the reader's last page that it will never see.
    pub lost: u64,
    /// Earliest first.
    pub records: Vec<Record>,
}

impl Record {
    pub fn allowed(&self) -> bool {
        let mut decisions = self.egress.iter().chain(&self.ingress);
        decisions.all(|decision| decision.allowed)
    }

    /// Whether the other is a later packet of the same denied flow.
    fn goes_on_as(&self, other: &Self) -> bool {
        !self.allowed() && self.key == other.key && self.edition == other.edition
    }
}

impl FlowLog {
    pub fn is_on(&self) -> bool {
        self.is_on.load(Relaxed)
    }

    /// Nothing is kept once nobody has read for [`ATTENTION`].
    pub fn note(&self, record: Record) {
        let Ok(mut ring) = self.ring.try_lock() else {
            self.missed.fetch_add(1, Relaxed);
            return;
        };
        let missed = self.missed.swap(0, Relaxed);
        if ring.until.is_none_or(|until| until <= record.at) {
            self.is_on.store(false, Relaxed);
            ring.records = VecDeque::new();
            return;
        }
        ring.next += missed;
        ring.take(record);
    }

    /// What came since `after`, the last page's `next`; without it, turns the
    /// log on. None if the log has ended meanwhile.
    pub fn read(&self, after: Option<u64>, now: Instant) -> Option<Page> {
        let mut ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
        if after.is_some() && !self.is_on() {
            return None;
        }
        self.is_on.store(true, Relaxed);
        ring.until = Some(now + ATTENTION);
        ring.next += self.missed.swap(0, Relaxed);
        let after = after.unwrap_or(ring.next).min(ring.next);
        Some(ring.page(after))
    }
}

impl Ring {
    fn take(&mut self, record: Record) {
        let read = self.read;
        let unread = self.records.iter_mut().rev().take(RECENT);
        let mut unread = unread.take_while(|(number, _)| *number >= read);
        if let Some((_, known)) = unread.find(|(_, known)| known.goes_on_as(&record)) {
            known.packets += record.packets;
            return;
        }
        if self.records.len() == RECORDS_MAX {
            self.records.pop_front();
        }
        self.records.push_back((self.next, record));
        self.next += 1;
    }

    fn page(&mut self, after: u64) -> Page {
        let start = self.records.partition_point(|(number, _)| *number < after);
        let page = self.records.range(start..).take(PAGE_MAX);
        let records: Vec<Record> = page.map(|(_, record)| record.clone()).collect();
        let following = self.records.get(start + records.len());
        let next = following.map_or(self.next, |(number, _)| *number);
        self.read = self.read.max(next);
        Page {
            next,
            lost: next - after - records.len() as u64,
            records,
        }
    }
}

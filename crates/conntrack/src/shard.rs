//! A part of the table: connections, each with its lease.
//!
//! Connections stand in one row without gaps, and so do their leases, at the
//! same places: to look for those that have run out is to read a few KiB in
//! order.

use std::net::IpAddr;

use indexmap::IndexMap;
use rapidhash::quality::SeedableState;
use weft_wire::Key;

use crate::{Timeouts, connection::Connection};

#[derive(Debug)]
pub(crate) struct Shard {
    connections: IndexMap<Key, Connection, SeedableState<'static>>,
    leases: Vec<Lease>,
    /// Where the last search for room ended.
    hand: usize,
}

#[derive(Debug, Clone, Copy)]
struct Lease {
    /// The second from which on the connection is forgotten.
    due: u32,
    assured: bool,
}

impl Shard {
    pub fn new(hasher: SeedableState<'static>) -> Self {
        Self {
            connections: IndexMap::with_hasher(hasher),
            leases: Vec::new(),
            hand: 0,
        }
    }

    pub fn len(&self) -> usize {
        self.leases.len()
    }

    /// The place of a connection, forgotten or not; good until the next
    /// change.
    pub fn find(&self, key: &Key) -> Option<usize> {
        self.connections.get_index_of(key)
    }

    /// Seconds until it is forgotten.
    pub fn left(&self, place: usize, second: u32) -> u32 {
        self.leases[place].due.saturating_sub(second)
    }

    pub fn is_forgotten(&self, place: usize, second: u32) -> bool {
        self.leases[place].due <= second
    }

    pub fn at(&self, place: usize) -> &Connection {
        &self.connections[place]
    }

    pub fn entry(&self, place: usize) -> Option<(&Key, &Connection)> {
        self.connections.get_index(place)
    }

    pub fn at_mut(&mut self, place: usize) -> &mut Connection {
        &mut self.connections[place]
    }

    /// There must be none with this key.
    pub fn insert(&mut self, key: Key, connection: Connection) -> usize {
        let (place, _) = self.connections.insert_full(key, connection);
        self.leases.push(Lease {
            due: 0,
            assured: false,
        });
        place
    }

    /// Counts the timeout of the connection's state anew.
    pub fn renew(&mut self, place: usize, timeouts: &Timeouts, second: u32) {
        let connection = &self.connections[place];
        self.leases[place] = Lease {
            // The second that has begun does not count.
            due: second
                .saturating_add(connection.timeout(timeouts))
                .saturating_add(1),
            assured: connection.is_assured(),
        };
    }

    pub fn remove(&mut self, place: usize) {
        self.connections.swap_remove_index(place);
        self.leases.swap_remove(place);
    }

    /// Among the connections that may make room, looking at so many leases at
    /// most, the one whose lease runs out first, or has run out.
    pub fn dispensable(
        &mut self,
        second: u32,
        most: usize,
        may: impl Fn(&Connection) -> bool,
    ) -> Option<usize> {
        let all = self.len();
        let start = self.hand;
        let scanned = all.min(most);
        self.hand = (start + scanned) % all.max(1);
        let places = (start..start + scanned).map(|place| place % all);
        places
            .filter(|&place| {
                let lease = self.leases[place];
                (!lease.assured || lease.due <= second) && may(&self.connections[place])
            })
            .min_by_key(|&place| self.leases[place].due)
    }

    /// Removes connections that are forgotten, at most so many. Says how many
    /// it removed.
    pub fn sweep(&mut self, second: u32, most: usize) -> usize {
        let mut removed = 0;
        // From the end: what takes a removed one's place has been looked at.
        for place in (0..self.leases.len()).rev() {
            if removed == most {
                break;
            }
            if self.is_forgotten(place, second) {
                self.remove(place);
                removed += 1;
            }
        }
        removed
    }
}

/// The key in the one order that both directions share, and whether that
/// exchanged its ends.
pub(crate) fn ordered(key: Key) -> (Key, bool) {
    let end = |address: IpAddr, port: u16| (address, port);
    if end(key.src, key.src_port) <= end(key.dst, key.dst_port) {
        return (key, false);
    }
    (key.exchanged(), true)
}

//! The flow cache: where packets of a flow go, as looked up when its first
//! packet came. A hit skips the look-ups, and so the checks made with them.
//!
//! The cache has a fixed size. A full set gives up its oldest entry, so a
//! sprayer of flows costs the others look-ups but no memory. An entry is
//! good for the epoch it was made in and dies with it.

use std::{
    hash::{Hash, Hasher},
    time::Instant,
};

use rapidhash::quality::RapidHasher;
use weft_conntrack::changes_state;
use weft_wire::{Key, Packet};

use crate::snapshot::{Epoch, PeerId, PortId, Route};

/// Where a packet came in. Part of a flow's identity: what one port or peer
/// may send, another may not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Ingress {
    Port(PortId),
    Peer(PeerId),
}

/// Where a packet goes out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Egress {
    Port(PortId),
    Peer(Route),
}

/// What is known of a flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Known {
    pub egress: Egress,
    /// From when on its packets have to be shown to the policy again; none if
    /// there is no policy.
    pub until: Option<Instant>,
}

impl Known {
    /// Whether the packet, one of the flow's, may go without being shown to
    /// the policy.
    pub fn suffices(&self, frame: &[u8], packet: &Packet, now: Instant) -> bool {
        let settled = |until| now < until && !changes_state(frame, packet);
        self.until.is_none_or(settled)
    }
}

#[derive(Debug)]
pub struct FlowCache {
    seed: u64,
    sets: Box<[Set]>,
    /// The flow found last, and its hash. Packets come in trains, and most
    /// are of the same flow as the one before.
    last: Option<(u64, Entry)>,
}

/// 4096 sets of 4 flows: 16 384 flows in about 1.3 MiB.
const SETS: usize = 4096;
const WAYS: usize = 4;

#[derive(Debug, Clone, Default)]
struct Set {
    entries: [Option<Entry>; WAYS],
    /// The place that the next new flow takes.
    oldest: usize,
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    epoch: Epoch,
    ingress: Ingress,
    key: Key,
    known: Known,
}

impl FlowCache {
    /// `seed` keeps senders from choosing flows that share a set.
    pub fn new(seed: u64) -> Self {
        Self {
            seed,
            sets: vec![Set::default(); SETS].into(),
            last: None,
        }
    }

    /// The flow's hash: places it in the cache, and spreads flows over outer
    /// source ports.
    pub fn hash(&self, key: &Key) -> u64 {
        let mut hasher = RapidHasher::new(self.seed);
        key.hash(&mut hasher);
        hasher.finish()
    }

    /// The flow's hash, and what is known of it.
    pub fn find(&mut self, epoch: Epoch, ingress: Ingress, key: &Key) -> (u64, Option<Known>) {
        let same = |entry: &Entry| entry.is(epoch, ingress, key);
        if let Some((hash, entry)) = self.last.as_ref().filter(|(_, entry)| same(entry)) {
            return (*hash, Some(entry.known));
        }
        let hash = self.hash(key);
        let found = self.sets[place(hash)]
            .entries
            .iter()
            .flatten()
            .find(|entry| same(entry));
        self.last = found.map(|entry| (hash, *entry));
        (hash, found.map(|entry| entry.known))
    }

    /// Remembers a flow, or what has become of it.
    pub fn learn(&mut self, hash: u64, epoch: Epoch, ingress: Ingress, key: Key, known: Known) {
        let set = &mut self.sets[place(hash)];
        let entry = Entry {
            epoch,
            ingress,
            key,
            known,
        };
        let same = |old: &&mut Entry| old.is(epoch, ingress, &key);
        if let Some(old) = set.entries.iter_mut().flatten().find(same) {
            *old = entry;
        } else {
            set.entries[set.oldest] = Some(entry);
            set.oldest = (set.oldest + 1) % WAYS;
        }
        self.last = Some((hash, entry));
    }
}

impl Entry {
    fn is(&self, epoch: Epoch, ingress: Ingress, key: &Key) -> bool {
        self.epoch == epoch && self.ingress == ingress && self.key == *key
    }
}

fn place(hash: u64) -> usize {
    // The low bits place, the high bits spread: see `Tunnel::entropy`.
    (hash as usize) % SETS
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(port: u16) -> Key {
        Key {
            src: [10, 0, 0, 1].into(),
            dst: [10, 0, 0, 2].into(),
            protocol: 6,
            src_port: port,
            dst_port: 80,
        }
    }

    #[test]
    fn a_flow_is_found_in_its_epoch_and_from_its_ingress_only() {
        let mut cache = FlowCache::new(7);
        let (epoch, ingress) = (Epoch(1), Ingress::Port(PortId(3)));
        let (hash, egress) = cache.find(epoch, ingress, &key(1));
        assert_eq!((hash, egress), (cache.hash(&key(1)), None));
        let way = |port| Known {
            egress: Egress::Port(PortId(port)),
            until: None,
        };
        cache.learn(hash, epoch, ingress, key(1), way(4));
        assert_eq!(cache.find(epoch, ingress, &key(1)), (hash, Some(way(4))));
        let other = Ingress::Peer(PeerId(3));
        assert_eq!(cache.find(Epoch(2), ingress, &key(1)), (hash, None));
        assert_eq!(cache.find(epoch, other, &key(1)), (hash, None));
        assert_eq!(cache.find(epoch, ingress, &key(2)).1, None);
        // From the table, now that it was not the last.
        assert_eq!(cache.find(epoch, ingress, &key(1)), (hash, Some(way(4))));
        cache.learn(hash, epoch, ingress, key(1), way(5));
        assert_eq!(cache.find(epoch, ingress, &key(1)), (hash, Some(way(5))));
        let set = &cache.sets[place(hash)];
        assert_eq!(set.entries.iter().flatten().count(), 1);
    }

    #[test]
    fn a_full_set_gives_up_its_oldest_flow() {
        let mut cache = FlowCache::new(7);
        let (epoch, ingress) = (Epoch(1), Ingress::Port(PortId(3)));
        let set = place(cache.hash(&key(0)));
        let all = (0..u16::MAX).map(|port| (cache.hash(&key(port)), key(port)));
        let sharing: Vec<_> = all
            .filter(|(hash, _)| place(*hash) == set)
            .take(WAYS + 1)
            .collect();
        assert_eq!(sharing.len(), WAYS + 1);
        for (hash, key) in &sharing {
            let known = Known {
                egress: Egress::Port(PortId(0)),
                until: None,
            };
            cache.learn(*hash, epoch, ingress, *key, known);
        }
        let known = sharing
            .iter()
            .map(|(_, key)| cache.find(epoch, ingress, key).1.is_some());
        let known: Vec<_> = known.collect();
        assert_eq!(known, [false, true, true, true, true]);
    }
}

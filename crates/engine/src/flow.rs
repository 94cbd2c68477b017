//! The flow cache: where packets of a flow go, as looked up when its first
//! packet came. A hit skips the look-ups, and so the checks made with them.
//!
//! The cache has a fixed size. A full set gives up its oldest entry, so a
//! sprayer of flows costs the others look-ups but no memory. An entry is
//! good for the epoch it was made in and dies with it.

use std::hash::{Hash, Hasher};

use rapidhash::quality::RapidHasher;
use weft_wire::Key;

use crate::snapshot::{Epoch, PeerId, PortId};

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
    Peer(PeerId),
}

#[derive(Debug)]
pub struct FlowCache {
    seed: u64,
    sets: Box<[Set]>,
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
    egress: Egress,
}

impl FlowCache {
    /// `seed` keeps senders from choosing flows that share a set.
    pub fn new(seed: u64) -> Self {
        Self {
            seed,
            sets: vec![Set::default(); SETS].into(),
        }
    }

    /// The flow's hash: places it in the cache, and spreads flows over outer
    /// source ports.
    pub fn hash(&self, key: &Key) -> u64 {
        let mut hasher = RapidHasher::new(self.seed);
        key.hash(&mut hasher);
        hasher.finish()
    }

    pub fn find(&self, hash: u64, epoch: Epoch, ingress: Ingress, key: &Key) -> Option<Egress> {
        let set = &self.sets[place(hash)];
        set.entries
            .iter()
            .flatten()
            .find(|entry| entry.epoch == epoch && entry.ingress == ingress && entry.key == *key)
            .map(|entry| entry.egress)
    }

    /// Remembers a flow that [`Self::find`] did not find.
    pub fn learn(&mut self, hash: u64, epoch: Epoch, ingress: Ingress, key: Key, egress: Egress) {
        let set = &mut self.sets[place(hash)];
        set.entries[set.oldest] = Some(Entry {
            epoch,
            ingress,
            key,
            egress,
        });
        set.oldest = (set.oldest + 1) % WAYS;
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
        let hash = cache.hash(&key(1));
        assert_eq!(cache.find(hash, epoch, ingress, &key(1)), None);
        cache.learn(hash, epoch, ingress, key(1), Egress::Port(PortId(4)));
        assert_eq!(
            cache.find(hash, epoch, ingress, &key(1)),
            Some(Egress::Port(PortId(4)))
        );
        assert_eq!(cache.find(hash, Epoch(2), ingress, &key(1)), None);
        assert_eq!(
            cache.find(hash, epoch, Ingress::Peer(PeerId(3)), &key(1)),
            None
        );
        assert_eq!(cache.find(hash, epoch, ingress, &key(2)), None);
    }

    #[test]
    fn a_full_set_gives_up_its_oldest_flow() {
        let mut cache = FlowCache::new(7);
        let (epoch, ingress) = (Epoch(1), Ingress::Port(PortId(3)));
        for port in 0..=u16::try_from(WAYS).expect("small") {
            cache.learn(0, epoch, ingress, key(port), Egress::Port(PortId(port)));
        }
        assert_eq!(cache.find(0, epoch, ingress, &key(0)), None);
        assert!(cache.find(0, epoch, ingress, &key(1)).is_some());
        assert!(cache.find(0, epoch, ingress, &key(4)).is_some());
    }
}

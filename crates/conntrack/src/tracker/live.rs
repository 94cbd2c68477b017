//! The connections that are alive, for who wants to look at all of them.

use std::{sync::PoisonError, time::Instant};

use weft_wire::Key;

use super::Tracker;

/// A connection, and who has a say in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Live {
    /// Of the packet that opened it.
    pub key: Key,
    /// A pod of this node opened it.
    pub leaves: bool,
    /// It was opened to a pod of this node, and not by the node.
    pub comes: bool,
}

impl Tracker {
    /// Tells of each connection that is neither forgotten nor forbidden. Those
    /// of one shard are copied under its lock and told without it.
    pub fn each_live(&self, now: Instant, mut tell: impl FnMut(Live)) {
        let second = self.second(now);
        for shard in &self.shards {
            let all: Vec<Live> = {
                let shard = shard.lock().unwrap_or_else(PoisonError::into_inner);
                let places = (0..shard.len()).filter(|place| !shard.is_forgotten(*place, second));
                let live = places.filter_map(|place| shard.entry(place));
                live.filter(|(_, connection)| !connection.forbidden)
                    .map(|(key, connection)| {
                        let (leaves, comes) = connection.parties.pods(&self.node);
                        let key = if connection.flipped {
                            key.exchanged()
                        } else {
                            *key
                        };
                        Live { key, leaves, comes }
                    })
                    .collect()
            };
            all.into_iter().for_each(&mut tell);
        }
    }
}

//! What was found out, for whoever asks, and news for the control thread.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use mio::Waker;
use weft_api::names::Name;
use weft_engine::path::{State, Tally, Times};

use super::Mtus;

#[derive(Debug)]
pub struct Board {
    notes: Mutex<Notes>,
}

#[derive(Debug)]
struct Notes {
    underlay_mtu: u16,
    peers: HashMap<Name, Found>,
    is_news: bool,
    reader: Option<Arc<Waker>>,
}

/// What was found out about the path to a peer.
#[derive(Debug, Clone, Copy)]
pub struct Found {
    /// None if it is not asked.
    pub state: Option<State>,
    /// Bytes of the outer IP packet.
    pub mtu: u16,
    pub times: Option<Times>,
    pub recent: Tally,
    pub total: Tally,
}

impl Board {
    pub(super) fn new(underlay_mtu: u16) -> Self {
        let notes = Notes {
            underlay_mtu,
            peers: HashMap::new(),
            is_news: false,
            reader: None,
        };
        Self {
            notes: Mutex::new(notes),
        }
    }

    /// Wakes the reader whenever an MTU has changed.
    pub fn tell(&self, reader: Arc<Waker>) {
        self.notes().reader = Some(reader);
    }

    /// The MTU of the underlay and those of the paths, if one has changed since
    /// the last time.
    pub fn news(&self) -> Option<(u16, Mtus)> {
        let mut notes = self.notes();
        if !std::mem::take(&mut notes.is_news) {
            return None;
        }
        let mtus = notes.peers.iter();
        let mtus = mtus
            .map(|(name, found)| (name.clone(), found.mtu))
            .collect();
        Some((notes.underlay_mtu, mtus))
    }

    pub fn peer(&self, name: &Name) -> Option<Found> {
        self.notes().peers.get(name).copied()
    }

    pub(super) fn note(&self, name: &Name, found: Found) -> bool {
        let before = self.notes().peers.insert(name.clone(), found);
        before.is_none_or(|before| before.mtu != found.mtu)
    }

    pub(super) fn note_underlay(&self, mtu: u16) -> bool {
        let before = std::mem::replace(&mut self.notes().underlay_mtu, mtu);
        before != mtu
    }

    /// Forgets all peers but these.
    pub(super) fn keep(&self, is_kept: impl Fn(&Name) -> bool) {
        self.notes().peers.retain(|name, _| is_kept(name));
    }

    pub(super) fn announce(&self) {
        let mut notes = self.notes();
        notes.is_news = true;
        if let Some(reader) = &notes.reader {
            super::wake(reader);
        }
    }

    /// Nothing is left half done under the lock.
    fn notes(&self) -> MutexGuard<'_, Notes> {
        self.notes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

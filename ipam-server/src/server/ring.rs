//! The latest events, for watchers that come back.

use std::collections::VecDeque;

use weft_api::ipam::{Answer, Event};

use super::client::line_of;

const EVENTS_MAX: usize = 8192;

/// Events by their revision, which never falls.
#[derive(Debug)]
pub struct Ring {
    events: VecDeque<(u64, Vec<u8>)>,
    /// Up to here events may be missing.
    missing: u64,
    pub revision: u64,
}

impl Ring {
    /// Of a life that began with `revision`: what another life told of it
    /// may not have been all.
    pub fn new(revision: u64) -> Self {
        Self {
            events: VecDeque::new(),
            missing: revision,
            revision,
        }
    }

    pub fn push(&mut self, event: Event) -> Vec<u8> {
        let revision = revision_of(&event);
        let line = line_of(&Answer::Event(Box::new(event)));
        if self.events.len() == EVENTS_MAX
            && let Some((gone, _)) = self.events.pop_front()
        {
            self.missing = self.missing.max(gone);
        }
        self.revision = self.revision.max(revision);
        self.events.push_back((self.revision, line.clone()));
        line
    }

    pub fn restart(&mut self, revision: u64) {
        self.revision = self.revision.max(revision);
        self.missing = self.revision;
        self.events.clear();
    }

    /// The events from `from` on: its own again, as not all of them may have
    /// arrived. None where some are not known any more.
    pub fn since(&self, from: u64) -> Option<Vec<u8>> {
        if from <= self.missing || from > self.revision {
            return None;
        }
        let first = self
            .events
            .partition_point(|(revision, _)| *revision < from);
        Some(
            self.events
                .range(first..)
                .flat_map(|(_, line)| line)
                .copied()
                .collect(),
        )
    }
}

pub fn revision_of(event: &Event) -> u64 {
    match event {
        Event::Snapshot { revision, .. }
        | Event::Node { revision, .. }
        | Event::NodeGone { revision, .. }
        | Event::Route { revision, .. }
        | Event::RouteGone { revision, .. }
        | Event::Alive { revision } => *revision,
    }
}

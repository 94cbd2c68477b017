//! What this and other writers changed, and what a load shows: how the book
//! and the watchers catch up.

use std::time::Instant;

use tracing::{info, warn};
use weft_api::ipam::Event;

use super::{CATCH_UP, DELETIONS_MAX, NEWS_MAX, Note, Writer, batch::Batch};
use crate::{
    book::Book,
    model::{Key, Revision},
    routes,
    store::{News, StoreError, Update},
};

impl Writer {
    pub(super) fn durable(&mut self, batch: Batch, revision: Revision) {
        self.known = self.known.max(revision);
        if batch.revision() == revision && !batch.moves_routes(&self.book) {
            self.book.reached(revision);
            return;
        }
        let notes = &mut self.notes;
        batch.settle(&mut self.book, revision, |book, updates| {
            let events = routes::events(book, updates, revision);
            book.apply_all(updates);
            if !events.is_empty() {
                notes.push(Note::Events(events));
            }
        });
        self.book.reached(revision);
    }

    pub(super) fn publish(&mut self, updates: &[Update], revision: Revision) {
        self.known = self.known.max(revision);
        let events = routes::events(&self.book, updates, self.known);
        self.book.apply_all(updates);
        self.book.reached(revision);
        if !events.is_empty() {
            self.notes.push(Note::Events(events));
        }
    }

    /// Takes in the news that are there.
    pub(super) fn hear(&mut self) {
        let news = self.news.1.clone();
        for told in news.try_iter().take(NEWS_MAX) {
            self.learn(told);
        }
    }

    pub(super) fn learn(&mut self, news: News) {
        let (revision, mut updates) = match news {
            News::Updates { revision, updates } => (revision, updates),
            News::Missed => {
                info!("news of other servers were missed: all is loaded anew");
                self.stale = true;
                self.unwatched = true;
                if let Err(fault) = self.reload() {
                    warn!("{fault}");
                }
                return;
            }
        };
        self.heard = self.heard.max(revision);
        if revision <= self.loaded {
            return;
        }
        updates.retain(|update| {
            let known = self.book.revision_of(&update.key);
            let gone = self
                .deleted
                .iter()
                .rev()
                .find(|(key, _)| *key == update.key);
            known.max(gone.map(|(_, revision)| *revision)) < Some(revision)
        });
        self.publish(&updates, revision);
    }

    /// Hears all that others had written by now; false where that takes too
    /// long.
    pub(super) fn catch_up(&mut self) -> bool {
        let frontier = match self.store.frontier() {
            Ok(frontier) => frontier.unwrap_or(0),
            Err(fault) => {
                warn!("others were not heard: {fault}");
                return false;
            }
        };
        let until = Instant::now() + CATCH_UP;
        while self.heard < frontier {
            let Ok(news) = self.news.1.recv_deadline(until) else {
                warn!("news of other servers are late");
                return false;
            };
            self.learn(news);
        }
        true
    }

    pub(super) fn forget(&mut self, key: Key, revision: Revision) {
        if self.deleted.len() == DELETIONS_MAX {
            self.deleted.pop_front();
        }
        self.deleted.push_back((key, revision));
    }

    pub(super) fn watch(&mut self) {
        // News of a watch that has ended are not waited for.
        self.news.1.try_iter().for_each(drop);
        let news = self.news.0.clone();
        let tell = Box::new(move |told| {
            // The writer keeps the other end.
            let _ = news.send(told);
        });
        self.store.watch(self.loaded, tell);
    }

    pub(super) fn snapshot(&self) -> Event {
        let mut event = routes::snapshot(&self.book);
        if let Event::Snapshot { revision, .. } = &mut event {
            *revision = self.known;
        }
        event
    }

    /// Nobody asks: watchers are to be told all the same.
    pub(super) fn reload_stale(&mut self) {
        if self.stale
            && let Err(fault) = self.reload()
        {
            warn!("{fault}");
        }
    }

    pub(super) fn reload(&mut self) -> Result<(), StoreError> {
        let loaded = self.store.load()?;
        self.loaded = loaded.revision;
        self.heard = self.heard.max(loaded.revision);
        self.known = self.known.max(loaded.revision);
        self.book = Book::load(loaded);
        self.deleted.clear();
        self.stale = false;
        // Not before a load succeeds: the same news would be missed again.
        if std::mem::take(&mut self.unwatched) {
            self.watch();
        }
        self.notes.push(Note::Resync(self.snapshot()));
        Ok(())
    }
}

//! The nodes that registered here: their records live as long as their
//! forwarders' connections, and for a grace after that. A record that was lost
//! meanwhile, as an etcd's lease ran out while this server was not heard, is
//! written again.
//!
//! Invariant: only a record that is as this server wrote it last is taken away.
//! One that an operator or another server has written since is theirs.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use crossbeam::channel::{Receiver, never};
use tracing::{info, warn};
use weft_api::{
    ipam::{Error, Node, Reply, Request},
    names::Name,
};

use super::{Job, Ticket, Writer, batch::Batch, commit::Ended};
use crate::{
    book::Book,
    model::{Key, Revision},
    node,
    plan::Plan,
    tunnel,
};

/// How long a node stays known that is not heard, unless told otherwise: longer
/// than a forwarder or a server takes to be started anew.
pub const NODE_GRACE: Duration = Duration::from_secs(30);
/// Between two tries to write a record.
const RETRY: Duration = Duration::from_secs(1);
/// The longest between two looks for an address where there was none: they
/// double from the first on.
const PAUSE_MAX: Duration = Duration::from_secs(16);
/// Where nobody is awaited.
const IDLE: Duration = Duration::from_secs(60);

#[derive(Debug)]
pub(super) struct Members {
    grace: Duration,
    /// Registrations that nobody keeps any more.
    pub silenced: Receiver<Ticket>,
    held: BTreeMap<Name, Held>,
}

#[derive(Debug)]
struct Held {
    node: Node,
    /// Of the registration that counts; none of one before this server's start.
    ticket: Option<Ticket>,
    /// Of the record as it was written last; none: it is not this server's.
    revision: Option<Revision>,
    /// The record as it was to be written, while it is not known whether it
    /// was.
    untold: Option<Node>,
    /// There was no address for it.
    vain: Option<Vain>,
    silent_since: Option<Instant>,
    retry_at: Instant,
    /// Why the record could not be written, as it was told last.
    refusal: Option<String>,
}

/// A search for an address that found none.
#[derive(Debug, Clone, Copy)]
struct Vain {
    /// When the pools that were searched were last changed.
    pools: Revision,
    pause: Duration,
    until: Instant,
}

impl Members {
    /// A store that is not shared holds the records of this server's
    /// predecessor: their nodes are awaited for a grace.
    pub fn new(book: &Book, shared: bool) -> Self {
        let now = Instant::now();
        let nodes = book.nodes().filter(|node| node.registered.is_some());
        let orphan = |node: &Node| Held {
            node: Node {
                registered: None,
                ..node.clone()
            },
            ticket: None,
            revision: book.revision_of(&Key::Node(node.name.clone())),
            untold: None,
            vain: None,
            silent_since: Some(now),
            retry_at: now,
            refusal: None,
        };
        let held = nodes.filter(|_| !shared);
        Self {
            grace: NODE_GRACE,
            silenced: never(),
            held: held.map(|node| (node.name.clone(), orphan(node))).collect(),
        }
    }

    pub fn has(&self, name: &Name) -> bool {
        self.held.contains_key(name)
    }

    /// None: nothing will be told any more.
    pub fn silence(&mut self, ticket: Option<Ticket>) {
        let Some(ticket) = ticket else {
            self.silenced = never();
            return;
        };
        let mut held = self.held.values_mut();
        if let Some(held) = held.find(|held| held.ticket == Some(ticket)) {
            held.silent_since.get_or_insert_with(Instant::now);
        }
    }

    pub fn until_due(&self) -> Duration {
        let now = Instant::now();
        let until = |held: &Held| {
            if let Some(since) = held.silent_since {
                let due = (since + self.grace).max(held.retry_at);
                return Some(due.saturating_duration_since(now));
            }
            // What is heard and stands is looked at with the news.
            let tries = [Some(held.retry_at), held.vain.map(|vain| vain.until)];
            let due = tries.into_iter().flatten().filter(|at| *at > now).min();
            due.map(|due| due.saturating_duration_since(now))
        };
        self.held.values().filter_map(until).min().unwrap_or(IDLE)
    }
}

impl Held {
    /// When the pools were last changed that may have an address for it which
    /// its record lacks.
    fn lacks(&self, book: &Book) -> Option<Revision> {
        let own = |node: &&Node| node.registered.is_some() && self.node.tunnel.is_empty();
        let node = book.node(&self.node.name).filter(own)?;
        tunnel::may_lack(book, node)
    }

    /// It lacks one, and there may be one by now.
    fn may_gain(&self, book: &Book, now: Instant) -> bool {
        let searched =
            |pools| (self.vain).is_some_and(|vain| vain.pools == pools && vain.until > now);
        (self.lacks(book)).is_some_and(|pools| self.silent_since.is_none() && !searched(pools))
    }

    fn searched_in_vain(&mut self, book: &Book) {
        self.vain = self.lacks(book).map(|pools| {
            let before = self.vain.filter(|vain| vain.pools == pools);
            let pause = before.map_or(RETRY, |vain| (vain.pause * 2).min(PAUSE_MAX));
            let until = Instant::now() + pause;
            Vain {
                pools,
                pause,
                until,
            }
        });
    }

    /// What was untold was done after all.
    fn adopt(&mut self, book: &Book) {
        let stands = |node: &Node| book.node(&node.name) == Some(node);
        if self.untold.take_if(|node| stands(node)).is_some() {
            self.revision = book.revision_of(&Key::Node(self.node.name.clone()));
        }
    }
}

impl Writer {
    /// How long a node stays known that is not heard, and where it is told
    /// which registrations nobody keeps any more.
    #[must_use]
    pub fn with_members(mut self, grace: Duration, silenced: Receiver<Ticket>) -> Self {
        (self.members.grace, self.members.silenced) = (grace, silenced);
        self
    }

    /// Follows what was answered: who registered is kept, who left is not.
    pub(super) fn note_member(&mut self, job: &Job, answer: &Result<Reply, Error>) {
        match (&job.request, answer) {
            (Request::NodeRegister(node), Ok(Reply::Registered(told))) => {
                let key = Key::Node(node.name.clone());
                let held = Held {
                    node: (**node).clone(),
                    ticket: Some(job.ticket),
                    revision: self.book.revision_of(&key).filter(|_| !told.by_hand),
                    untold: None,
                    vain: None,
                    silent_since: None,
                    retry_at: Instant::now(),
                    refusal: None,
                };
                info!(node = %node.name, by_hand = told.by_hand, "a node registered");
                self.members.held.insert(node.name.clone(), held);
            }
            (Request::NodeLeave { name }, Ok(_)) if self.members.held.remove(name).is_some() => {
                info!(node = %name, "a node left");
            }
            _ => {}
        }
    }

    /// Withdraws who is silent for too long, and writes records again that were
    /// lost.
    pub(super) fn keep_members(&mut self) {
        let now = Instant::now();
        let grace = self.members.grace;
        let is_due = |(name, held): &(&Name, &Held)| {
            let over = held.silent_since.is_some_and(|since| since + grace <= now);
            let lost = held.silent_since.is_none() && self.book.node(name).is_none();
            let gains = || held.may_gain(&self.book, now);
            held.retry_at <= now && (over || lost || self.stale || gains())
        };
        let due = self.members.held.iter().filter(is_due);
        let due: Vec<Name> = due.map(|(name, _)| name.clone()).collect();
        for name in due {
            if let Some(held) = self.members.held.get_mut(&name) {
                held.retry_at = now + RETRY;
            }
            if self.stale
                && let Err(fault) = self.reload()
            {
                warn!("{fault}");
                continue;
            }
            self.keep(&name, now);
        }
    }

    fn keep(&mut self, name: &Name, now: Instant) {
        let Some(held) = self.members.held.get_mut(name) else {
            return;
        };
        held.adopt(&self.book);
        let key = Key::Node(name.clone());
        match held.silent_since {
            Some(since) if since + self.members.grace <= now => {
                let own = held.revision.is_some() && self.book.revision_of(&key) == held.revision;
                if own && !self.withdraw(name) {
                    return;
                }
                self.members.held.remove(name);
            }
            None if self.book.node(name).is_none() => self.restore(name),
            None if self.book.revision_of(&key) == held.revision => self.complete(name),
            _ => {}
        }
    }

    /// Gives a node what it lacks of addresses of its own, as after the first
    /// pool was made.
    fn complete(&mut self, name: &Name) {
        let now = (self.clock)();
        // What is not there by what is known needs no asking.
        let known = node::complete(&self.book, name, now);
        if known.is_some() && !self.catch_up() {
            return;
        }
        if let Some(plan) = known.and_then(|_| node::complete(&self.book, name, now)) {
            if self.write(name, plan) {
                info!(node = %name, "the addresses of a node in the pod network are others now");
            }
        } else if let Some(held) = self.members.held.get_mut(name) {
            held.searched_in_vain(&self.book);
        }
    }

    /// Commits what a plan makes of a node's record; whether it is done.
    fn write(&mut self, name: &Name, mut plan: Plan) -> bool {
        let mut batch = Batch::new(self.known + 1);
        batch.take(&mut self.book, &mut plan);
        let planned = self.book.node(name).cloned();
        let ended = self.commit(batch);
        let revision = self.book.revision_of(&Key::Node(name.clone()));
        let done = matches!(ended, Ended::Durable);
        if let Some(held) = self.members.held.get_mut(name) {
            held.untold = planned.filter(|_| matches!(ended, Ended::Untold(_)));
            if done {
                (held.revision, held.refusal, held.vain) = (revision, None, None);
            }
        }
        done
    }

    /// Whether it is done.
    fn withdraw(&mut self, name: &Name) -> bool {
        let mut batch = Batch::new(self.known + 1);
        let mut plan = node::withdraw(&self.book, name, (self.clock)());
        batch.take(&mut self.book, &mut plan);
        let done = matches!(self.commit(batch), Ended::Durable);
        if done {
            info!(node = %name, "a node is withdrawn: it was not heard for its grace");
        }
        done
    }

    fn restore(&mut self, name: &Name) {
        if !self.catch_up() {
            return;
        }
        let Some(held) = self.members.held.get_mut(name) else {
            return;
        };
        match node::register(&self.book, &held.node, (self.clock)()) {
            Ok(plan) => {
                if self.write(name, plan) {
                    info!(node = %name, "the record of a node was lost and is written again");
                }
            }
            Err(error) => {
                let refusal = error.to_string();
                if held.refusal.as_ref() != Some(&refusal) {
                    warn!(node = %name, "its record was lost and cannot be written: {refusal}");
                }
                held.refusal = Some(refusal);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::{
        model::Value,
        store::{Row, Update},
    };

    fn put(book: &mut Book, key: Key, value: Value, revision: Revision) {
        let row = Some(Row { value, revision });
        book.apply(&Update { key, row });
    }

    fn pool(book: &mut Book, revision: Revision) {
        let row = json!({"name": "p", "cidr": "10.1.0.0/24"});
        let value = Value::Pool(serde_json::from_value(row).expect("a pool"));
        put(
            book,
            Key::Pool(Name::new("p").expect("a name")),
            value,
            revision,
        );
    }

    #[test]
    fn a_search_in_vain_is_done_again_more_and_more_seldom_until_the_pools_change() {
        let row = json!({"name": "n1", "underlay": ["192.0.2.1/24"],
            "vtep_mac": "02:00:00:00:00:01", "registered": 7});
        let node: Node = serde_json::from_value(row).expect("a node");
        let mut book = Book::default();
        let key = Key::Node(node.name.clone());
        put(&mut book, key, Value::Node(node), 1);
        pool(&mut book, 2);
        let mut members = Members::new(&book, false);
        let held = members.held.values_mut().next().expect("one node");
        held.silent_since = None;
        let mut pauses = Vec::new();
        for _ in 0..6 {
            let until = held.vain.map_or_else(Instant::now, |vain| vain.until);
            assert!(held.may_gain(&book, until));
            held.searched_in_vain(&book);
            let vain = held.vain.expect("it lacks one");
            assert!(!held.may_gain(&book, vain.until - vain.pause / 2));
            pauses.push(vain.pause.as_secs());
        }
        assert_eq!(pauses, [1, 2, 4, 8, 16, 16]);
        pool(&mut book, 3);
        assert!(held.may_gain(&book, Instant::now()), "the pool is another");
        held.searched_in_vain(&book);
        assert_eq!(held.vain.map(|vain| vain.pause), Some(RETRY));
    }
}

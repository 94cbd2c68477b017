//! What frees addresses that nobody gave back: the list of what is valid on a
//! node, and the end of a cooldown.
//!
//! Invariant: whether a list may be old enough to miss an allocation is told
//! by marks alone. The wall clock, which may be set back and differs from
//! server to server, has no say.

use std::{
    collections::HashSet,
    net::IpAddr,
    time::{Duration, Instant},
};

use weft_api::ipam::{Error, Gc, Released, Reply, Time, Use, is_young};

use crate::{
    book::Book,
    claim,
    draft::Draft,
    model::{Allocation, Changes, Key, Mark, Value},
    plan::Plan,
    release,
};

/// Gives back what the node's workloads hold in the network and no listed
/// attachment does, unless it is young. Tunnel addresses live as long as the
/// node.
pub fn gc(book: &Book, gc: &Gc, now: Time) -> Result<Plan, Error> {
    let valid: HashSet<_> = gc.valid.iter().map(|one| one.handle()).collect();
    let network = format!("{}/", gc.network);
    let mark = gc
        .before
        .map_or(book.mark(), |before| before.min(book.mark()));
    let is_leaked = |held: &Allocation| {
        held.purpose == Use::Workload
            && !is_young(held.mark, mark)
            && (held.handle.as_ref()).is_some_and(|handle| {
                handle.as_str().starts_with(&network) && !valid.contains(handle)
            })
    };
    let mut draft = Draft::new(book, now);
    claim::settle(&mut draft, &gc.node);
    let leaked: Vec<IpAddr> = (book.share(&gc.node).into_iter())
        .flat_map(|share| &share.addresses)
        .filter(|address| {
            book.allocation(**address)
                .is_some_and(|held| is_leaked(held))
        })
        .copied()
        .collect();
    let mut released = Released::default();
    release::give_back(&mut draft, &leaked, false, &mut released);
    Ok(draft.plan(Reply::Released(released)))
}

/// When to raise the mark.
#[derive(Debug)]
pub struct Pace {
    every: Duration,
    mark: u64,
    /// When the mark was first seen to stand, on a clock that nobody sets.
    since: Instant,
}

impl Pace {
    /// Nothing is known of how long the mark stands by now.
    pub fn new(book: &Book, every: Duration, now: Instant) -> Self {
        Self {
            every,
            mark: book.mark(),
            since: now,
        }
    }

    /// How long there will be nothing to raise.
    pub fn left(&self, book: &Book, now: Instant) -> Duration {
        if book.mark() != self.mark || !book.may_have_young() {
            return self.every;
        }
        let stood = now.saturating_duration_since(self.since);
        self.every.saturating_sub(stood)
    }

    /// What raises the mark, once it has stood for long enough and something
    /// is to be told from what comes later. Whoever raises it, two servers
    /// never do in less time: the second finds the row changed.
    pub fn raise(&mut self, book: &Book, now: Instant) -> Changes {
        if book.mark() != self.mark {
            self.mark = book.mark();
            self.since = now;
        }
        if now.saturating_duration_since(self.since) < self.every || !book.may_have_young() {
            return Changes::new();
        }
        // Should it fail, it has time.
        self.since = now;
        let number = book.mark().saturating_add(1);
        vec![(Key::Mark, Some(Value::Mark(Mark { number })))]
    }
}

/// Frees what has rested, in at most `most` blocks. Every plan does so in the
/// blocks it touches; this is for those that no request touches.
pub fn rested(book: &Book, now: Time, most: usize) -> Changes {
    let mut draft = Draft::new(book, now);
    for cidr in book.rested(now).take(most) {
        if let Some(block) = draft.open(cidr) {
            draft.put_block(block);
            claim::tidy(&mut draft, cidr);
        }
    }
    draft.plan(Reply::Done).changes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        model::Block,
        store::{Row, Update},
    };

    const EVERY: Duration = Duration::from_secs(10);

    fn learn(book: &mut Book, key: Key, value: Value) {
        let row = Row { value, revision: 1 };
        let row = Some(row);
        book.apply(&Update { key, row });
    }

    fn with_mark(book: &mut Book, number: u64) {
        learn(book, Key::Mark, Value::Mark(Mark { number }));
    }

    /// One allocation, made under mark 5, which stands.
    fn book() -> Book {
        let mut book = Book::default();
        let cidr = "10.0.0.0/30".parse().expect("a CIDR");
        let mut block = Block::new(cidr, None, 0, 1);
        let held: Allocation = serde_json::from_str(
            r#"{"handle": "a", "sequence": 1, "node": "n1", "use": "workload", "since": 0, "mark": 5}"#,
        )
        .expect("an allocation");
        block.take(None, held, &Default::default()).expect("room");
        learn(&mut book, Key::Block(cidr), Value::Block(block.into()));
        with_mark(&mut book, 5);
        book
    }

    #[test]
    fn the_mark_is_raised_when_it_was_seen_to_stand_and_no_sooner() {
        let (mut book, start) = (book(), Instant::now());
        let mut pace = Pace::new(&book, EVERY, start);
        let at = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(pace.raise(&book, at(9)), vec![]);
        // Another server was faster: its mark stands from now on.
        with_mark(&mut book, 6);
        assert_eq!(pace.raise(&book, at(12)), vec![]);
        assert_eq!(pace.raise(&book, at(21)), vec![]);
        let raised = vec![(Key::Mark, Some(Value::Mark(Mark { number: 7 })))];
        assert_eq!(pace.raise(&book, at(22)), raised);
        // It failed: it has time.
        assert_eq!(pace.raise(&book, at(31)), vec![]);
        assert_eq!(pace.left(&book, at(31)), Duration::from_secs(1));
        assert_eq!(pace.raise(&book, at(32)), raised);
    }

    #[test]
    fn a_mark_under_which_nothing_is_young_stays() {
        let (mut book, start) = (book(), Instant::now());
        with_mark(&mut book, 7);
        let mut pace = Pace::new(&book, EVERY, start);
        assert_eq!(pace.raise(&book, start + 2 * EVERY), vec![]);
        assert_eq!(pace.left(&book, start + 2 * EVERY), EVERY);
        let mut empty = Pace::new(&Book::default(), EVERY, start);
        assert_eq!(empty.raise(&Book::default(), start + EVERY), vec![]);
    }
}

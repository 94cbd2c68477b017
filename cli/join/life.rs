//! A member's life: it takes its place, reads all records, watches them, and
//! keeps the forwarder's nodes as they are.
//!
//! Invariant: what etcd or the forwarder do not answer changes nothing; the
//! forwarder goes on with the nodes that it was told last.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use weft_etcd::{
    Cluster, Told, Watch,
    message::{Event, KeyValue},
};

use super::{
    forwarder::{Forwarder, View},
    inbox::{Inbox, Message},
};

/// How often the forwarder is asked whether it is still the one that was told,
/// and routes are looked at.
const PULSE: Duration = Duration::from_secs(2);

/// Between two tries of what failed.
const PAUSE: Duration = Duration::from_secs(1);

/// Most revisions that are taken before the forwarder hears of them.
const AT_ONCE: usize = 1000;

/// A node of a network whose records etcd holds.
pub trait Member {
    fn cluster(&self) -> &Arc<Cluster>;

    /// Takes in etcd what makes this node a member, or finds it taken.
    fn begin(&mut self) -> anyhow::Result<()>;

    fn list(&self) -> anyhow::Result<Listing>;

    /// Forgets all records for these.
    fn start(&mut self, rows: Vec<KeyValue>) -> Outcome;

    fn take(&mut self, event: Event) -> Outcome;

    fn view(&self) -> View;

    /// Whether the view follows from more than the records, and so may change
    /// without them.
    fn moves(&self) -> bool {
        false
    }

    /// Leaves in etcd what a member leaves that goes.
    fn end(&mut self);
}

/// All records at one revision.
#[derive(Debug)]
pub struct Listing {
    pub revision: u64,
    pub rows: Vec<KeyValue>,
}

/// What a record did to a member.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    Same,
    /// The nodes may be others now.
    Changed,
    /// It is none any more, and has to begin anew.
    Lost,
}

enum End {
    Stopped,
    Again,
}

/// Until a signal.
pub fn live(
    member: &mut impl Member,
    forwarder: &mut Forwarder,
    inbox: &Inbox,
) -> anyhow::Result<()> {
    member.begin()?;
    while let End::Again = term(member, forwarder, inbox) {
        while let Err(error) = member.begin() {
            tracing::error!("this node is no member: {error:#}; trying again");
            if inbox.stopped_within(PAUSE) {
                member.end();
                return Ok(());
            }
        }
    }
    member.end();
    Ok(())
}

fn term(member: &mut impl Member, forwarder: &mut Forwarder, inbox: &Inbox) -> End {
    let listing = match member.list() {
        Ok(listing) => listing,
        Err(error) => {
            tracing::error!("the records are not known: {error:#}; trying again");
            return match inbox.stopped_within(PAUSE) {
                true => End::Stopped,
                false => End::Again,
            };
        }
    };
    let since = listing.revision;
    if member.start(listing.rows) == Outcome::Lost {
        return End::Again;
    }
    let _watch = Watch::start(Arc::clone(member.cluster()), since, inbox.tell());
    forwarder.apply(member.view());
    let mut next_pulse = Instant::now() + PULSE;
    // Of what the forwarder has not heard yet.
    let mut untold = 0;
    loop {
        let deadline = match untold {
            0 => next_pulse,
            _ => Instant::now(),
        };
        match inbox.next(deadline) {
            Some(Message::Stop) => return End::Stopped,
            Some(Message::Told(told)) => match take(member, told, since) {
                Outcome::Lost => return End::Again,
                Outcome::Changed => untold += 1,
                Outcome::Same => {}
            },
            None if untold > 0 => untold = AT_ONCE,
            None => {
                look_after(forwarder, member);
                next_pulse = Instant::now() + PULSE;
            }
        }
        if untold >= AT_ONCE {
            forwarder.apply(member.view());
            untold = 0;
        }
    }
}

fn look_after(forwarder: &mut Forwarder, member: &impl Member) {
    if !forwarder.is_told() {
        return forwarder.apply(member.view());
    }
    let moved = member.moves().then(|| member.view());
    match moved.filter(|view| !forwarder.knows(view)) {
        Some(view) => forwarder.apply(view),
        None => forwarder.keep_routes(),
    }
}

fn take(member: &mut impl Member, told: Told, since: u64) -> Outcome {
    let Told::Events { revision, events } = told else {
        tracing::info!("etcd compacted what was not seen yet; reading all records anew");
        return Outcome::Lost;
    };
    // Of a watch of before.
    if revision <= since {
        return Outcome::Same;
    }
    let mut outcome = Outcome::Same;
    for event in events {
        match member.take(event) {
            Outcome::Lost => return Outcome::Lost,
            Outcome::Changed => outcome = Outcome::Changed,
            Outcome::Same => {}
        }
    }
    outcome
}

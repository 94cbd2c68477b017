//! All connections of a node, shared by its workers.
//!
//! The table is cut into shards by the hash of a connection's key, which both
//! directions share; each has a lock. A worker holds one lock at a time, for
//! some hundred nanoseconds, and established flows come here once a second.
//! Work in one call is bounded, expiry included: each shard has its turn once
//! in a [`ROUND`] if there are calls enough, taken by whoever calls first.

use std::{
    hash::BuildHasher,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use rapidhash::quality::SeedableState;
use weft_wire::Key;

use crate::{
    Account, Direction, Owners, Says, Seen, Timeouts,
    connection::Connection,
    shard::{Shard, ordered},
};

mod live;
mod room;

pub use live::Live;

/// How long a settled connection goes on without the tracker hearing of its
/// packets.
pub const REFRESH: Duration = Duration::from_secs(1);

/// In which every shard is swept once.
const ROUND: Duration = Duration::from_secs(1);

/// Connections that one sweep removes at most.
const SWEEP_MAX: usize = 256;

/// A pod that has no limit of its own may open one in so many of the
/// connections that a table holds, and may accept as many.
pub const SHARES: usize = 8;

/// Connections in a shard of a full table, about.
const SHARD_LEN: usize = 4096;
const SHARDS_MAX: usize = 256;

#[derive(Debug, Clone, Copy)]
pub struct Config {
    /// Most connections that are tracked.
    pub capacity: usize,
    pub timeouts: Timeouts,
}

#[derive(Debug)]
pub struct Tracker {
    start: Instant,
    config: Config,
    count: AtomicUsize,
    node: Arc<Account>,
    /// When a shard was swept last, in parts of a round, and whose turn is
    /// next.
    swept: AtomicU64,
    turn: AtomicUsize,
    /// Where the next search for room in other shards begins.
    search: AtomicUsize,
    hasher: SeedableState<'static>,
    shards: Box<[Mutex<Shard>]>,
}

/// The packet may go.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Passed {
    /// Packets of the same key that do not change the state
    /// ([`crate::changes_state`]) may go too, for [`REFRESH`] from now on.
    pub settled: bool,
    /// It opened a connection.
    pub opened: bool,
}

/// The packet may not go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refused<D> {
    #[error("what judged the connection forbids it")]
    Forbidden(D),
    #[error("an ICMP error or answer belongs to no connection")]
    Unrelated,
    #[error("as many connections are tracked as may be")]
    Full,
    #[error("the pod has as many connections as it may")]
    AccountFull,
}

/// What is known of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Standing {
    /// Which way a packet with the key goes in it.
    pub direction: Direction,
    /// For people.
    pub state: &'static str,
    /// It does not make room for others.
    pub assured: bool,
    /// Seconds of silence, the one that has begun among them, after which it
    /// is forgotten.
    pub left: u32,
}

/// A packet and what it is judged by.
#[derive(Debug, Clone, Copy)]
struct Visit<'a> {
    seen: &'a Seen,
    owners: Owners<'a>,
    edition: u32,
    second: u32,
    /// In the order that its two directions share.
    key: Key,
    flipped: bool,
}

/// What the rules say of a connection in which the packet goes in a direction,
/// as far as they were asked.
#[derive(Debug)]
struct Verdicts<D> {
    original: Option<Result<(), D>>,
    reply: Option<Result<(), D>>,
}

/// Why a packet may not go, or not yet.
#[derive(Debug)]
enum Stop<D> {
    /// The rules have to be asked, which no lock waits for.
    Ask(Direction),
    Refused(Refused<D>),
}

impl Tracker {
    /// `seed` should be random: it hides which connections share a shard.
    pub fn new(config: Config, seed: u64, now: Instant) -> Self {
        let hasher = SeedableState::new(seed);
        let shards = (config.capacity / SHARD_LEN).clamp(1, SHARDS_MAX);
        Self {
            start: now,
            config,
            count: AtomicUsize::new(0),
            node: Arc::new(Account::uncounted()),
            swept: AtomicU64::new(0),
            turn: AtomicUsize::new(0),
            search: AtomicUsize::new(0),
            hasher,
            shards: (0..shards)
                .map(|_| Mutex::new(Shard::new(hasher)))
                .collect(),
        }
    }

    /// The owner of what the node itself, not a pod of its, says and hears.
    pub fn node(&self) -> &Arc<Account> {
        &self.node
    }

    /// How many connections are held, those among them that have run out.
    pub fn count(&self) -> usize {
        self.count.load(Relaxed)
    }

    /// Whether a packet may go. `judge` is asked about a connection in which
    /// the packet goes in the direction that it is told: about each new one,
    /// and about each that was judged by another `edition` of the rules.
    ///
    /// * What opens no connection, such as a reset, and belongs to none is
    ///   judged as if it did and leaves no trace.
    /// * A connection opened over one that is over, that the rules forbid or
    ///   that was another pod's takes its place. One opened the other way over
    ///   one that is alive is judged, and then goes with that.
    /// * A connection that the rules no longer permit stays in the table as
    ///   forbidden, so that its packets are not taken for new connections.
    /// * What the node opens counts for nobody, and in a full table goes
    ///   untracked.
    pub fn pass<D: Copy>(
        &self,
        seen: &Seen,
        owners: Owners<'_>,
        edition: u32,
        now: Instant,
        mut judge: impl FnMut(Direction) -> Result<(), D>,
    ) -> Result<Passed, Refused<D>> {
        let (key, flipped) = ordered(seen.key);
        let visit = Visit {
            seen,
            owners,
            edition,
            second: self.second(now),
            key,
            flipped,
        };
        let mut verdicts = Verdicts::default();
        let mut has_searched = false;
        loop {
            let refused = match self.attempt(&visit, &verdicts) {
                Ok(passed) => return Ok(passed),
                Err(Stop::Ask(direction)) => {
                    *verdicts.on(direction) = Some(judge(direction));
                    continue;
                }
                Err(Stop::Refused(refused)) => refused,
            };
            match refused {
                Refused::Full | Refused::AccountFull if !has_searched => {
                    has_searched = true;
                    let any = matches!(refused, Refused::Full);
                    self.make_room(&visit, any);
                }
                Refused::Full if owners.open_uncounted() => return Ok(Passed::default()),
                _ => return Err(refused),
            }
        }
    }

    fn attempt<D: Copy>(
        &self,
        visit: &Visit<'_>,
        verdicts: &Verdicts<D>,
    ) -> Result<Passed, Stop<D>> {
        let says = visit.seen.says;
        if says == Says::Stray {
            return Err(Refused::Unrelated.into());
        }
        let mut shard = self.shard(&visit.key);
        let known = shard.find(&visit.key);
        if let Some(place) = known
            && !shard.is_forgotten(place, visit.second)
            && let Some(direction) = visit.direction_in(shard.at(place))
        {
            if visit.seen.opens() && direction == Direction::Reply {
                let judged = verdicts.of(Direction::Original)?;
                judged.map_err(Refused::Forbidden)?;
            }
            return self.follow(&mut shard, place, visit, direction, verdicts);
        }
        if matches!(says, Says::EchoReply | Says::Error) {
            return Err(Refused::Unrelated.into());
        }
        let judged = verdicts.of(Direction::Original)?;
        judged.map_err(Refused::Forbidden)?;
        Ok(self.open(&mut shard, visit, known)?)
    }

    fn follow<D: Copy>(
        &self,
        shard: &mut Shard,
        place: usize,
        visit: &Visit<'_>,
        direction: Direction,
        verdicts: &Verdicts<D>,
    ) -> Result<Passed, Stop<D>> {
        let (timeouts, second) = (&self.config.timeouts, visit.second);
        let is_error = visit.seen.says == Says::Error;
        let connection = shard.at_mut(place);
        if connection.edition != visit.edition || connection.forbidden {
            let judged = verdicts.of(direction)?;
            let has_changed = connection.forbidden != judged.is_err();
            connection.edition = visit.edition;
            connection.forbidden = judged.is_err();
            let stays = judged.is_err() && connection.stays_forbidden() && !is_error;
            if has_changed || stays {
                shard.renew(place, timeouts, second);
            }
            judged.map_err(Refused::Forbidden)?;
        }
        if is_error {
            return Ok(Passed::default());
        }
        let connection = shard.at_mut(place);
        let is_alive = connection.advance(direction, visit.seen, second);
        let settled = connection.is_settled();
        if is_alive {
            shard.renew(place, timeouts, second);
        }
        Ok(Passed {
            settled,
            opened: false,
        })
    }

    /// The connection of packets with this key.
    pub fn standing(&self, key: Key, now: Instant) -> Option<Standing> {
        let second = self.second(now);
        let (key, flipped) = ordered(key);
        let shard = self.shard(&key);
        let place = shard.find(&key)?;
        let connection = shard.at(place);
        (!shard.is_forgotten(place, second)).then(|| Standing {
            direction: connection.direction(flipped),
            state: connection.name(),
            assured: connection.is_assured(),
            left: shard.left(place, second),
        })
    }

    /// Removes connections that have run out, from one shard at most and some
    /// of them at most. To be called often, by any worker.
    pub fn sweep(&self, now: Instant) {
        let shards = self.shards.len();
        let elapsed = now.saturating_duration_since(self.start).as_nanos();
        let interval = ROUND.as_nanos() / shards as u128;
        let tick = u64::try_from(elapsed / interval).unwrap_or(u64::MAX);
        let last = self.swept.load(Relaxed);
        let is_mine = tick > last
            && self
                .swept
                .compare_exchange(last, tick, Relaxed, Relaxed)
                .is_ok();
        if !is_mine {
            return;
        }
        let turn = self.turn.fetch_add(1, Relaxed) % shards;
        if let Ok(mut shard) = self.shards[turn].try_lock() {
            let removed = shard.sweep(self.second(now), SWEEP_MAX);
            self.count.fetch_sub(removed, Relaxed);
        }
    }

    fn shard(&self, key: &Key) -> MutexGuard<'_, Shard> {
        // The low and the highest bits place a key within its shard.
        let hash = (self.hasher.hash_one(key) >> 32) as usize;
        let shard = &self.shards[hash % self.shards.len()];
        shard.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn second(&self, now: Instant) -> u32 {
        let elapsed = now.saturating_duration_since(self.start).as_secs();
        u32::try_from(elapsed).unwrap_or(u32::MAX)
    }
}

impl Visit<'_> {
    /// Which way the packet goes in a connection with its key; none if that is
    /// another pod's, or makes way for the one that the packet opens.
    fn direction_in(&self, connection: &Connection) -> Option<Direction> {
        let direction = connection.direction(self.flipped);
        let is_its = connection.parties.are(self.owners, direction);
        let makes_way = self.seen.opens() && (connection.is_over() || connection.forbidden);
        (is_its && !makes_way).then_some(direction)
    }
}

impl<D: Copy> Verdicts<D> {
    fn of(&self, direction: Direction) -> Result<Result<(), D>, Stop<D>> {
        let known = match direction {
            Direction::Original => self.original,
            Direction::Reply => self.reply,
        };
        known.ok_or(Stop::Ask(direction))
    }

    fn on(&mut self, direction: Direction) -> &mut Option<Result<(), D>> {
        match direction {
            Direction::Original => &mut self.original,
            Direction::Reply => &mut self.reply,
        }
    }
}

impl<D> Default for Verdicts<D> {
    fn default() -> Self {
        Self {
            original: None,
            reply: None,
        }
    }
}

impl<D> From<Refused<D>> for Stop<D> {
    fn from(refused: Refused<D>) -> Self {
        Self::Refused(refused)
    }
}

//! The one thread that owns book and store. It takes all requests that wait,
//! decides each on the book, makes all that they change durable in one
//! commit, and only then answers.
//!
//! Invariant: between batches the book says what the store was last known to
//! hold, or `stale` is set and nothing is decided before it was loaded anew.

use std::time::{Duration, Instant};

use crossbeam::channel::{Receiver, Sender, bounded, select};
use weft_api::ipam::{Error, Event, Pool, Reply, Request, Status, Time};

use crate::{
    book::Book,
    check,
    model::Revision,
    plan::{Plan, plan},
    store::{Loaded, News, Store, StoreError},
    sweep::Pace,
};
use answers::{contended, is_doubtful, needs_all, unavailable};
use batch::Batch;
use commit::Ended;
pub use mark::GRACE;
use members::Members;
pub use members::NODE_GRACE;
pub use pools::FirstError;

mod answers;
mod batch;
mod commit;
mod mark;
mod members;
mod news;
mod parts;
mod pools;
mod sweep;

/// How often a batch is planned while other servers change the same rows.
const TRIES: usize = 100;
/// News of other writers that may wait; more hold up whoever brings them.
const NEWS_MAX: usize = 1024;
/// Deletions that are remembered, so that old news do not bring rows back.
const DELETIONS_MAX: usize = 4096;

/// How long a refusal waits for news that may make it void.
const CATCH_UP: Duration = Duration::from_secs(2);

/// Whom an answer is for.
pub type Ticket = u64;

#[derive(Debug)]
pub struct Job {
    pub ticket: Ticket,
    pub request: Request,
    /// When nobody waits for the answer any more.
    pub until: Instant,
}

#[derive(Debug)]
pub enum Note {
    Answer(Ticket, Result<Reply, Error>),
    /// Answers a watch; what comes after it follows from it.
    Snapshot(Ticket, Event),
    Events(Vec<Event>),
    /// Some changes were missed: this is for every watcher.
    Resync(Event),
}

pub type Clock = Box<dyn Fn() -> Time + Send>;
/// Takes notes away, in order.
pub type Tell = Box<dyn FnMut(Vec<Note>) + Send>;

pub struct Writer {
    store: Box<dyn Store>,
    book: Book,
    clock: Clock,
    tell: Tell,
    notes: Vec<Note>,
    batch_max: usize,
    stale: bool,
    /// The store's watch has ended.
    unwatched: bool,
    turn: sweep::Turn,
    /// All before it is in the book.
    loaded: Revision,
    /// News up to here were heard.
    heard: Revision,
    /// The highest revision that the store is known to have had.
    known: Revision,
    deleted: std::collections::VecDeque<(crate::model::Key, Revision)>,
    news: (Sender<News>, Receiver<News>),
    pace: Pace,
    members: Members,
    /// To be made once the store was loaded.
    pools: Vec<Pool>,
}

impl std::fmt::Debug for Writer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Writer")
            .field("store", &self.store.name())
            .finish_non_exhaustive()
    }
}

impl Writer {
    /// Loads the store. A batch holds at most `batch_max` requests.
    pub fn start(
        mut store: Box<dyn Store>,
        clock: Clock,
        batch_max: usize,
        tell: Tell,
    ) -> Result<Self, StoreError> {
        let loaded = store.load()?;
        let mut writer = Self::new(store, Some(loaded), clock, batch_max, tell);
        writer.watch();
        Ok(writer)
    }

    /// Has not loaded the store, and decides nothing before it has.
    pub fn awaiting(store: Box<dyn Store>, clock: Clock, batch_max: usize, tell: Tell) -> Self {
        Self::new(store, None, clock, batch_max, tell)
    }

    fn new(
        store: Box<dyn Store>,
        loaded: Option<Loaded>,
        clock: Clock,
        batch_max: usize,
        tell: Tell,
    ) -> Self {
        let stale = loaded.is_none();
        let loaded = loaded.unwrap_or_default();
        let revision = loaded.revision;
        let book = Book::load(loaded);
        let members = Members::new(&book, store.is_shared());
        let turn = sweep::Turn::new(store.is_shared());
        Self {
            pace: mark::pace(&book, GRACE, store.is_shared()),
            store,
            book,
            members,
            clock,
            tell,
            notes: Vec::new(),
            batch_max: batch_max.max(1),
            stale,
            unwatched: stale,
            turn,
            loaded: revision,
            heard: revision,
            known: revision,
            deleted: std::collections::VecDeque::new(),
            news: bounded(NEWS_MAX),
            pools: Vec::new(),
        }
    }

    /// The revision that was loaded: no event before it is known.
    pub fn revision(&self) -> Revision {
        self.loaded
    }

    /// Decides one request of this server's own.
    pub fn decide(&mut self, request: Request) -> Result<Reply, Error> {
        self.flush();
        let until = Instant::now() + Duration::from_secs(3600);
        self.serve(vec![Job {
            ticket: 0,
            request,
            until,
        }]);
        let is_answer = |note: &Note| matches!(note, Note::Answer(..));
        let place = self.notes.iter().position(is_answer);
        match place.map(|place| self.notes.remove(place)) {
            Some(Note::Answer(_, answer)) => answer,
            _ => Err(unavailable("nothing was decided".into())),
        }
    }

    /// Serves until nobody can ask any more.
    pub fn run(mut self, jobs: &Receiver<Job>) {
        let news = self.news.1.clone();
        loop {
            let silenced = self.members.silenced.clone();
            let pause = self.until_due().min(self.members.until_due());
            select! {
                recv(news) -> told => if let Ok(told) = told { self.learn(told) },
                recv(jobs) -> job => {
                    let Ok(job) = job else { return };
                    let rest = jobs.try_iter().take(self.batch_max - 1);
                    let batch = std::iter::once(job).chain(rest).collect();
                    self.serve(batch);
                    self.flush();
                }
                recv(silenced) -> ticket => self.members.silence(ticket.ok()),
                default(pause) => self.reload_stale(),
            }
            self.make_pools_late();
            self.keep_members();
            self.raise_mark();
            self.sweep();
            self.flush();
        }
    }

    fn flush(&mut self) {
        if !self.notes.is_empty() {
            (self.tell)(std::mem::take(&mut self.notes));
        }
    }

    /// Answers each of the batch's jobs that is still waited for.
    fn serve(&mut self, mut jobs: Vec<Job>) {
        let now = Instant::now();
        jobs.retain(|job| job.until > now);
        let (mut tries, mut most) = (0, jobs.len());
        let mut caught_up = false;
        while !jobs.is_empty() {
            // A conflict tells of its rows only.
            self.hear();
            if self.stale
                && let Err(fault) = self.reload()
            {
                return self.refuse(&jobs, &unavailable(fault.to_string()));
            }
            if !caught_up && jobs.iter().any(|job| needs_all(&job.request)) {
                if !self.catch_up() {
                    self.refuse_deaf(&mut jobs);
                }
                caught_up = true;
                continue;
            }
            let (batch, answers) = self.draft(&jobs[..most.min(jobs.len())]);
            if answers.iter().any(is_doubtful) && !caught_up {
                batch.roll_back(&mut self.book);
                self.catch_up();
                caught_up = true;
                continue;
            }
            match self.commit(batch) {
                Ended::Durable => {
                    tries = 0;
                    for (job, answer) in jobs.drain(..answers.len()).zip(answers) {
                        self.answer(&job, answer);
                    }
                }
                Ended::TooLarge if most > 1 => most = most.min(jobs.len()).div_ceil(2),
                Ended::TooLarge => {
                    let job = jobs.remove(0);
                    let answer = self.in_parts(&job.request);
                    self.answer(&job, answer);
                }
                Ended::Again if tries < TRIES => {
                    // Whoever was faster may have written more than it tells.
                    (tries, caught_up) = (tries + 1, false);
                }
                Ended::Again => return self.refuse(&jobs, &contended()),
                Ended::Refused(error) => return self.settle_without_store(&jobs, &error),
                Ended::Untold(error) => return self.settle_untold(&jobs, &error),
            }
            // The last notes are the caller's.
            if !jobs.is_empty() {
                self.flush();
            }
        }
    }

    fn draft(&mut self, jobs: &[Job]) -> (Batch, Vec<Result<Reply, Error>>) {
        let now = (self.clock)();
        let mut batch = Batch::new(self.known + 1);
        let answers = jobs.iter().map(|job| {
            let mut plan = self.plan(&job.request, now)?;
            if !(plan.changes.is_empty() && plan.guards.is_empty()) {
                batch.take(&mut self.book, &mut plan);
            }
            Ok(plan.reply)
        });
        let answers = answers.collect();
        (batch, answers)
    }

    fn plan(&self, request: &Request, now: Time) -> Result<Plan, Error> {
        match request {
            Request::Watch { .. } => Ok(Plan::answer(Reply::Done)),
            Request::Check { in_use } => {
                let report = check::check(self.book.rows(), in_use.as_deref(), now);
                Ok(Plan::answer(Reply::Report(report)))
            }
            Request::NodeLeave { name } if !self.members.has(name) => Ok(Plan::answer(Reply::Done)),
            Request::Status => Ok(Plan::answer(Reply::Status(self.status()))),
            _ => plan(&self.book, request, now),
        }
    }

    fn status(&self) -> Status {
        let counts = self.book.counts();
        Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            store: self.store.name().to_owned(),
            revision: self.known,
            mark: self.book.mark(),
            pools: counts.pools,
            blocks: counts.blocks,
            allocations: counts.allocations,
            nodes: counts.nodes,
            clients: 0,
        }
    }
}

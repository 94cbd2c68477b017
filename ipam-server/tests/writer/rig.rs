//! A running writer over rows in memory, behind a store that does what a
//! script says.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use crossbeam::channel::{Receiver, Sender, unbounded};
use serde_json::{Value, json};
use weft_api::ipam::{Code, Error, Event, Released, Reply, Request, Time};
use weft_ipam::{
    check::check,
    model::{self, Key, Mark, Revision},
    store::{Change, CommitError, Guard, Loaded, News, Outcome, Store, StoreError, memory::Memory},
    writer::{Job, Note, Writer},
};

pub const NOW: Time = 1_770_000_000_000;
pub const PATIENCE: Duration = Duration::from_secs(20);

/// What the next commit comes to.
pub enum Step {
    /// The rows are said to be others, and are not.
    Conflict,
    Failed,
    UnknownDone,
    UnknownUndone,
    /// It is done, and the store will not be able to tell.
    UntoldDone,
    /// As any other.
    Pass,
    /// Somebody else commits this first.
    After(Request),
    /// Likewise, and no row is told.
    AfterAndConflict(Request),
}

pub type Tell = Box<dyn FnMut(News) + Send>;

/// Rows in memory behind a script; clones share both.
#[derive(Clone, Default)]
pub struct Scripted {
    pub rows: Memory,
    pub steps: Arc<Mutex<VecDeque<Step>>>,
    /// What became of the commit that was not answered.
    pub outcome: Arc<Mutex<Option<Outcome>>>,
    /// Loads and questions that fail before one succeeds.
    pub deaf: Arc<AtomicU64>,
    /// Changes that one commit holds; none: any number.
    pub room: Option<usize>,
    /// Commits that met another server's.
    pub conflicts: Arc<AtomicU64>,
    pub watches: Arc<Mutex<Vec<Tell>>>,
    /// The rows' own news are told, besides what the test tells.
    pub news: bool,
    /// They come no earlier than the writer asks how far they are.
    pub late: Option<Arc<Mutex<Vec<News>>>>,
    /// How far they are is not told.
    pub silent: bool,
}

pub fn trouble() -> StoreError {
    StoreError::Backend {
        object: "script".into(),
        reason: "as written".into(),
        hint: "read on".into(),
    }
}

impl Store for Scripted {
    fn name(&self) -> &'static str {
        "memory"
    }

    fn is_shared(&self) -> bool {
        self.news
    }

    fn load(&mut self) -> Result<Loaded, StoreError> {
        self.listen()?;
        self.rows.load()
    }

    fn fitting(&self, changes: &[Change], _: &[Guard]) -> usize {
        let fits = |change: &&Change| change.key.to_string() != "reservation/huge";
        let fitting = changes.iter().take_while(fits).count();
        fitting.min(self.room.unwrap_or(usize::MAX))
    }

    fn settle(&mut self) -> Result<Outcome, StoreError> {
        self.listen()?;
        Ok(self.outcome().take().unwrap_or(Outcome::Unknown))
    }

    fn commit(&mut self, changes: &[Change], guards: &[Guard]) -> Result<Revision, CommitError> {
        let step = self.steps.lock().expect("whole").pop_front();
        match step {
            None | Some(Step::Pass) => {
                let ended = self.rows.commit(changes, guards);
                if matches!(ended, Err(CommitError::Conflict(_))) {
                    self.conflicts.fetch_add(1, Ordering::SeqCst);
                }
                ended
            }
            Some(Step::Conflict) => Err(CommitError::Conflict(Vec::new())),
            Some(Step::Failed) => Err(CommitError::Failed(trouble())),
            Some(Step::UnknownUndone) => {
                *self.outcome() = Some(Outcome::NotMade);
                Err(CommitError::Unknown(trouble()))
            }
            Some(Step::UnknownDone) => {
                let revision = self.rows.commit(changes, guards)?;
                *self.outcome() = Some(Outcome::Made(revision));
                Err(CommitError::Unknown(trouble()))
            }
            Some(Step::UntoldDone) => {
                self.rows.commit(changes, guards)?;
                Err(CommitError::Unknown(trouble()))
            }
            Some(Step::AfterAndConflict(request)) => {
                other(&self.rows, request);
                Err(CommitError::Conflict(Vec::new()))
            }
            Some(Step::After(request)) => {
                other(&self.rows, request);
                self.rows.commit(changes, guards)
            }
        }
    }

    fn frontier(&mut self) -> Result<Option<Revision>, StoreError> {
        if self.silent {
            return Err(trouble());
        }
        let Some(late) = &self.late else {
            return Ok(None);
        };
        let late = std::mem::take(&mut *late.lock().expect("whole"));
        for tell in self.watches.lock().expect("whole").iter_mut() {
            late.iter().for_each(|news| tell(again(news)));
        }
        self.rows.frontier()
    }

    fn watch(&mut self, revision: Revision, tell: Tell) {
        if let Some(late) = self.late.clone() {
            let keep = move |news| late.lock().expect("whole").push(news);
            self.rows.watch(revision, Box::new(keep));
        }
        if self.news {
            return self.rows.watch(revision, tell);
        }
        self.watches.lock().expect("whole").push(tell);
    }
}

impl Scripted {
    fn listen(&self) -> Result<(), StoreError> {
        let fails = self
            .deaf
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1));
        match fails {
            Ok(_) => Err(trouble()),
            Err(_) => Ok(()),
        }
    }

    fn outcome(&self) -> MutexGuard<'_, Option<Outcome>> {
        self.outcome.lock().expect("whole")
    }
}

pub fn again(news: &News) -> News {
    match news {
        News::Missed => News::Missed,
        News::Updates { revision, updates } => News::Updates {
            revision: *revision,
            updates: updates.clone(),
        },
    }
}

/// Another server's request on the same rows.
pub fn other(rows: &Memory, request: Request) {
    let store = Box::new(rows.clone());
    let mut writer =
        Writer::start(store, Box::new(|| NOW), 8, Box::new(drop)).expect("memory loads");
    writer.decide(request).expect("it is granted");
}

/// A running writer.
pub struct Rig {
    pub jobs: Sender<Job>,
    pub notes: Receiver<Note>,
    pub ticket: u64,
    /// What was told besides answers.
    pub heard: Vec<Event>,
    pub clock: Arc<AtomicU64>,
    pub script: Scripted,
}

impl Rig {
    pub fn start(script: &Scripted) -> Self {
        Self::with(script, Vec::new())
    }

    /// The first requests are one batch.
    pub fn with(script: &Scripted, first: Vec<Request>) -> Self {
        Self::run(script, first, |writer| writer)
    }

    /// Nodes that are silent for `grace` are withdrawn.
    pub fn with_members(script: &Scripted, grace: Duration, silenced: Receiver<u64>) -> Self {
        let members = |writer: Writer| writer.with_members(grace, silenced);
        Self::run(script, Vec::new(), members)
    }

    fn run(script: &Scripted, first: Vec<Request>, change: impl FnOnce(Writer) -> Writer) -> Self {
        let clock = Arc::new(AtomicU64::new(NOW));
        let now = Arc::clone(&clock);
        let (told, notes) = unbounded();
        let tell = Box::new(move |some: Vec<Note>| {
            for note in some {
                // The test may be over.
                let _ = told.send(note);
            }
        });
        let clock_of = Box::new(move || now.load(Ordering::SeqCst));
        let writer = Writer::start(Box::new(script.clone()), clock_of, 64, tell).expect("it loads");
        let writer = change(writer);
        let (jobs, taken) = unbounded();
        let mut rig = Self {
            jobs,
            notes,
            ticket: 0,
            heard: Vec::new(),
            clock,
            script: script.clone(),
        };
        for request in first {
            rig.send(request);
        }
        thread::spawn(move || writer.run(&taken));
        rig
    }

    pub fn send(&mut self, request: Request) {
        self.ticket += 1;
        let job = Job {
            ticket: self.ticket,
            request,
            until: Instant::now() + PATIENCE,
        };
        self.jobs.send(job).expect("the writer runs");
    }

    pub fn answer(&mut self) -> Result<Reply, Error> {
        loop {
            match self.notes.recv_timeout(PATIENCE).expect("a note") {
                Note::Answer(_, answer) => return answer,
                Note::Events(events) => self.heard.extend(events),
                Note::Resync(event) | Note::Snapshot(_, event) => self.heard.push(event),
            }
        }
    }

    pub fn ask(&mut self, request: Request) -> Result<Reply, Error> {
        self.send(request);
        self.answer()
    }

    pub fn granted(&mut self, request: Request) -> Reply {
        self.ask(request).expect("it is granted")
    }

    pub fn refused(&mut self, request: Request) -> Code {
        self.ask(request).expect_err("it is refused").code
    }

    pub fn steps(&self, steps: impl IntoIterator<Item = Step>) {
        self.script.steps.lock().expect("whole").extend(steps);
    }

    pub fn pooled(script: &Scripted) -> Self {
        let mut rig = Self::start(script);
        rig.granted(pool("10.1.0.0/24"));
        rig
    }

    /// How many are live; that all agree on it, and are sound.
    pub fn live(&mut self) -> usize {
        let Reply::Status(status) = self.granted(request(json!({"op": "status"}))) else {
            panic!("a status");
        };
        let rows = self.script.rows.load().expect("memory loads").rows;
        let rows = rows.iter().map(|(key, row)| (key, &row.value));
        let report = check(rows, None, self.clock.load(Ordering::SeqCst));
        assert_eq!(report.problems, []);
        assert_eq!(report.allocations, status.allocations);
        report.allocations
    }

    /// As another server does in time, until this one has heard.
    pub fn raise_mark(&mut self, number: u64) {
        let rows = self.script.rows.load().expect("memory loads").rows;
        let row = rows.iter().find(|(key, _)| *key == Key::Mark);
        let raised = Change {
            key: Key::Mark,
            value: Some(model::Value::Mark(Mark { number })),
            expected: row.map(|(_, row)| row.revision),
        };
        self.script.rows.commit(&[raised], &[]).expect("raised");
        let status = || request(json!({"op": "status"}));
        while !matches!(self.granted(status()), Reply::Status(status) if status.mark == number) {
            thread::yield_now();
        }
    }

    pub fn resyncs(&self) -> usize {
        let resync = |event: &&Event| matches!(event, Event::Snapshot { .. });
        self.heard.iter().filter(resync).count()
    }
}

pub fn request(value: Value) -> Request {
    serde_json::from_value(value).expect("a request")
}

pub fn pool(cidr: &str) -> Request {
    request(json!({"op": "pool-create", "name": "default", "cidr": cidr}))
}

pub fn node(name: &str, n: u8) -> Request {
    request(of_node("node-put", name, n))
}

/// As the node itself asks.
pub fn registration(name: &str, n: u8) -> Request {
    request(of_node("node-register", name, n))
}

fn of_node(op: &str, name: &str, n: u8) -> Value {
    json!({"op": op, "name": name, "underlay": [format!("192.0.2.{n}/24")],
        "vtep_mac": format!("02:00:00:00:00:{n:02x}")})
}

pub fn allocate(container: &str) -> Request {
    request(
        json!({"op": "allocate", "node": "n1", "families": ["v4"], "attachment":
        {"network": "pods", "container": container, "interface": "eth0"}}),
    )
}

pub fn release(container: &str) -> Request {
    request(
        json!({"op": "release", "by": "attachment", "network": "pods",
        "container": container, "interface": "eth0"}),
    )
}

pub fn address(reply: &Reply) -> String {
    match reply {
        Reply::Allocated(given) => given.addresses[0].address.to_string(),
        other => panic!("{other:?}"),
    }
}

pub fn address_of(text: &str) -> std::net::IpAddr {
    text.parse().expect("an address")
}

pub fn released(reply: Reply) -> Released {
    match reply {
        Reply::Released(released) => released,
        other => panic!("{other:?}"),
    }
}

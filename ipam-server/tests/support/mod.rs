//! Rows in memory that several servers share, each with a book that may be
//! behind, and short ways to ask.

#![allow(dead_code, reason = "each test uses its part")]

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Instant,
};

use weft_api::{
    ipam::{
        Allocate, Allocated, Allocation, Attachment, Code, ConfigChange, Error, Family, Gc, Node,
        Pool, Problem, Release, Released, Reply, Request, Reservation, Time, Use,
    },
    names::{Mac, Name, Vni},
};
use weft_ipam::{
    book::Book,
    check::check,
    model::{Key, Revision, Value},
    plan::{Plan, plan},
    store::{Row, Update},
    sweep::Pace,
    writer::GRACE,
};

/// 2026 in milliseconds.
pub const NOW: Time = 1_770_000_000_000;

/// What all servers write to.
#[derive(Debug, Default)]
pub struct Rows {
    pub revision: Revision,
    pub rows: BTreeMap<Key, Row>,
    log: Vec<Update>,
}

impl Rows {
    /// All changes or none; a key stands once.
    pub fn commit(&mut self, book: &Book, plan: &Plan) -> bool {
        let mut merged: BTreeMap<&Key, &Option<Value>> = BTreeMap::new();
        merged.extend(plan.changes.iter().map(|(key, value)| (key, value)));
        let keys = merged.keys().copied().chain(&plan.guards);
        let same = |key: &Key| self.rows.get(key).map(|row| row.revision) == book.revision_of(key);
        if !keys.into_iter().all(same) {
            return false;
        }
        if !merged.is_empty() {
            self.revision += 1;
        }
        for (key, value) in merged {
            self.write(key, value);
        }
        true
    }

    fn write(&mut self, key: &Key, value: &Option<Value>) {
        let row = value.clone().map(|value| Row {
            // What is read back is what was stored.
            value: Value::read(key, &value.encode()),
            revision: self.revision,
        });
        match &row {
            Some(row) => self.rows.insert(key.clone(), row.clone()),
            None => self.rows.remove(key),
        };
        self.log.push(Update {
            key: key.clone(),
            row,
        });
    }

    /// By a foreign hand.
    pub fn edit(&mut self, edit: impl Fn(&Key, &mut serde_json::Value)) {
        for (key, row) in self.rows.clone() {
            let mut json = serde_json::from_slice(&row.value.encode()).expect("JSON");
            edit(&key, &mut json);
            let bytes = serde_json::to_vec(&json).expect("JSON");
            self.put(&key, Value::read(&key, &bytes));
        }
    }

    pub fn put(&mut self, key: &Key, value: Value) {
        self.revision += 1;
        self.write(key, &Some(value));
    }

    pub fn problems(&self, now: Time) -> Vec<Problem> {
        check(
            self.rows.iter().map(|(key, row)| (key, &row.value)),
            None,
            now,
        )
        .problems
    }
}

#[derive(Debug, Default)]
pub struct Server {
    pub book: Book,
    seen: usize,
}

impl Server {
    pub fn sync(&mut self, rows: &Rows) {
        for update in &rows.log[self.seen..] {
            self.book.apply(update);
        }
        self.seen = rows.log.len();
    }

    pub fn unheard(&self, rows: &Rows) -> Vec<Update> {
        rows.log[self.seen..].to_vec()
    }

    /// As a server does it: on a conflict it looks again.
    pub fn ask(&mut self, rows: &mut Rows, request: &Request, now: Time) -> Result<Reply, Error> {
        loop {
            let plan = match plan(&self.book, request, now) {
                Ok(plan) => plan,
                // A refusal may come of what the book has not heard of.
                Err(_) if self.seen < rows.log.len() => {
                    self.sync(rows);
                    continue;
                }
                Err(error) => return Err(error),
            };
            if rows.commit(&self.book, &plan) {
                self.sync(rows);
                return Ok(plan.reply);
            }
            self.sync(rows);
        }
    }

    /// One row at a time, as on a store without transactions, and only the
    /// first `most`. False if the plan went through before that.
    pub fn crash(&mut self, rows: &mut Rows, request: &Request, now: Time, most: usize) -> bool {
        let Ok(plan) = plan(&self.book, request, now) else {
            return false;
        };
        let crashed = most < plan.changes.len();
        let mut mine = BTreeSet::new();
        for (key, value) in plan.changes.iter().take(most) {
            let same = rows.rows.get(key).map(|row| row.revision) == self.book.revision_of(key);
            if !same && !mine.contains(key) {
                break;
            }
            mine.insert(key.clone());
            rows.revision += 1;
            rows.write(key, value);
        }
        crashed
    }
}

/// Rows, and one server that is never behind.
#[derive(Debug, Default)]
pub struct Cluster {
    pub rows: Rows,
    pub server: Server,
}

impl Cluster {
    pub fn with_pools(pools: &[(&str, &str, u8)]) -> Self {
        let mut cluster = Self::default();
        for (name, cidr, size) in pools {
            cluster.done(Request::PoolCreate(Box::new(pool(name, cidr, *size))));
        }
        cluster
    }

    pub fn ask(&mut self, request: &Request, now: Time) -> Result<Reply, Error> {
        self.server.sync(&self.rows);
        self.server.ask(&mut self.rows, request, now)
    }

    pub fn done(&mut self, request: Request) {
        self.ask(&request, NOW).expect("it is allowed");
    }

    pub fn refused(&mut self, request: &Request, now: Time) -> Code {
        self.ask(request, now).expect_err("it is refused").code
    }

    pub fn give(&mut self, request: &Request, now: Time) -> Allocated {
        match self.ask(request, now) {
            Ok(Reply::Allocated(allocated)) => allocated,
            other => panic!("{other:?}"),
        }
    }

    pub fn address(&mut self, node: &str, container: &str) -> String {
        first(&self.give(&want(node, container), NOW))
    }

    pub fn release(&mut self, release: Release, now: Time) -> Result<Released, Error> {
        self.ask(&Request::Release(release), now)
            .map(|reply| match reply {
                Reply::Released(released) => released,
                other => panic!("{other:?}"),
            })
    }

    pub fn drop_container(&mut self, container: &str, now: Time) -> Released {
        self.release(Release::Attachment(attachment(container)), now)
            .expect("no refusal")
    }

    pub fn held(&mut self, address: &str) -> Option<Allocation> {
        let address = address.parse().expect("an address");
        match self.ask(&Request::Address { address }, NOW) {
            Ok(Reply::Address(info)) => info.allocation,
            other => panic!("{other:?}"),
        }
    }

    /// What was allocated so far is old.
    pub fn age(&mut self) {
        for _ in 0..2 {
            self.server.sync(&self.rows);
            assert!(raise(&mut self.server, &mut self.rows));
        }
    }

    pub fn clean(&self, now: Time) {
        assert_eq!(self.rows.problems(now), vec![]);
    }
}

/// As a server does it when the mark has stood for long. False where another
/// was faster.
pub fn raise(server: &mut Server, rows: &mut Rows) -> bool {
    let start = Instant::now();
    let mut pace = Pace::new(&server.book, GRACE, start);
    let plan = Plan {
        changes: pace.raise(&server.book, start + GRACE),
        ..Plan::answer(Reply::Done)
    };
    assert!(!plan.changes.is_empty(), "nothing is young");
    let raised = rows.commit(&server.book, &plan);
    server.sync(rows);
    raised
}

pub fn first(allocated: &Allocated) -> String {
    allocated.addresses[0].address.to_string()
}

pub fn name(text: &str) -> Name {
    Name::new(text).expect("a name")
}

pub fn attachment(container: &str) -> Attachment {
    Attachment {
        network: name("net"),
        container: name(container),
        interface: name("eth0"),
    }
}

pub fn ask(node: &str, container: &str) -> Allocate {
    Allocate {
        attachment: attachment(container),
        node: name(node),
        families: vec![Family::V4],
        purpose: Use::Workload,
        addresses: vec![],
        pools: vec![],
        identity: None,
        pod: None,
        namespace_labels: Default::default(),
    }
}

pub fn want(node: &str, container: &str) -> Request {
    Request::Allocate(Box::new(ask(node, container)))
}

pub fn want_with(node: &str, container: &str, edit: impl FnOnce(&mut Allocate)) -> Request {
    let mut ask = ask(node, container);
    edit(&mut ask);
    Request::Allocate(Box::new(ask))
}

pub fn pool(text: &str, cidr: &str, size: u8) -> Pool {
    Pool {
        name: name(text),
        cidr: cidr.parse().expect("a range"),
        block_size: Some(size),
        node_selector: String::new(),
        namespace_selector: String::new(),
        uses: vec![Use::Workload, Use::Tunnel],
        manual: false,
        disabled: false,
        nat_outgoing: false,
        encapsulation: Default::default(),
        when: Default::default(),
    }
}

pub fn node(number: u8, labels: &[(&str, &str)]) -> Node {
    let text = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
    Node {
        name: name(&format!("n{number}")),
        underlay: vec![format!("192.0.2.{number}/24").parse().expect("a range")],
        vtep_mac: Mac([2, 0, 0, 0, 0, number]),
        vni: Vni::DEFAULT,
        port: 4789,
        tunnel: vec![],
        labels: labels.iter().map(text).collect(),
        registered: None,
    }
}

pub fn node_put(number: u8, labels: &[(&str, &str)]) -> Request {
    Request::NodePut(Box::new(node(number, labels)))
}

pub fn reserve(text: &str, cidrs: &[&str]) -> Request {
    Request::Reserve(Reservation {
        name: name(text),
        cidrs: cidrs
            .iter()
            .map(|cidr| cidr.parse().expect("a range"))
            .collect(),
    })
}

pub fn gc(node: &str, valid: &[&str]) -> Request {
    gc_before(node, valid, None)
}

pub fn gc_before(node: &str, valid: &[&str], before: Option<u64>) -> Request {
    Request::Gc(Gc {
        network: name("net"),
        node: name(node),
        valid: valid
            .iter()
            .map(|container| attachment(container))
            .collect(),
        before,
    })
}

pub fn strict() -> ConfigChange {
    ConfigChange {
        strict_affinity: Some(true),
        ..ConfigChange::default()
    }
}

pub fn cooldown(seconds: u32) -> ConfigChange {
    ConfigChange {
        cooldown_seconds: Some(seconds),
        ..ConfigChange::default()
    }
}

//! The socket's thread alone; the test is its writer.

use std::{io, thread, time::Instant};

use nix::sys::signal::Signal;
use serde_json::json;
use weft_api::ipam::{Event, Node, Reply};
use weft_ipam::{
    model::Revision,
    server::{Ends, Limits, Server},
    store::{Change, CommitError, Guard, Loaded, Store, StoreError},
    writer::{Note, Ticket, Writer},
};
use weft_socket::{
    Signals,
    guard::{Access, Socket},
};

use crate::{Client, PATIENCE, code};

/// Much more than a socket holds.
const NODES: usize = 20_000;

struct Rig {
    ends: Ends,
    thread: thread::JoinHandle<io::Result<Signal>>,
    folder: tempfile::TempDir,
}

impl Rig {
    fn start(backlog: usize) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("ipam.sock");
        let socket = Socket::bind(&path, &Access::default()).expect("a socket");
        let signals = Signals::block().expect("signals");
        let limits = Limits {
            backlog,
            ..Limits::default()
        };
        let (server, ends) = Server::new(socket, signals, limits).expect("a server");
        Self {
            ends,
            thread: thread::spawn(move || server.run(1)),
            folder,
        }
    }

    fn client(&self) -> Client {
        Client::connect(&self.folder.path().join("ipam.sock"))
    }

    fn tell(&self, note: Note) {
        self.ends.notes.send(vec![note]).expect("the server runs");
        self.ends.waker.wake().expect("it polls");
    }

    /// Of the next request.
    fn ticket(&self) -> Ticket {
        let job = self.ends.jobs.recv_timeout(PATIENCE);
        job.expect("a request").ticket
    }

    /// A watcher that has read its first snapshot, of one node.
    fn watcher(&self) -> Client {
        let mut watcher = self.client();
        watcher.send("{\"op\":\"watch\"}\n");
        self.tell(Note::Snapshot(self.ticket(), snapshot(1, 1)));
        assert_eq!(nodes(&mut watcher), 1);
        watcher
    }

    /// All that was told before has been carried out: a request came through.
    fn settle(&self) {
        let mut client = self.client();
        client.send("{\"op\":\"nodes\"}\n");
        self.tell(Note::Answer(self.ticket(), Ok(Reply::Nodes(Vec::new()))));
        client.answer();
    }
}

fn node(number: usize) -> Node {
    serde_json::from_value(json!({"name": format!("n{number}"),
        "underlay": ["192.0.2.1/24"], "vtep_mac": "02:00:00:00:00:01"}))
    .expect("a node")
}

fn snapshot(revision: u64, count: usize) -> Event {
    Event::Snapshot {
        revision,
        nodes: (0..count).map(node).collect(),
        routes: Vec::new(),
    }
}

fn event(revision: u64) -> Note {
    let node = node(0);
    Note::Events(vec![Event::Node { revision, node }])
}

/// Of the snapshot that comes next.
fn nodes(watcher: &mut Client) -> usize {
    let answer = watcher.answer();
    let nodes = answer["event"]["snapshot"]["nodes"].as_array();
    nodes.expect("a snapshot").len()
}

#[test]
fn a_snapshot_arrives_however_large_it_is() {
    let rig = Rig::start(1000);
    let mut first = rig.client();
    first.send("{\"op\":\"watch\"}\n");
    rig.tell(Note::Snapshot(rig.ticket(), snapshot(1, NODES)));
    rig.tell(event(2));
    rig.settle();
    assert_eq!(nodes(&mut first), NODES);
    assert_eq!(first.answer()["event"]["node"]["revision"], 2);
    // In the middle of a watch too, and the last one counts.
    rig.tell(Note::Resync(snapshot(3, NODES)));
    rig.tell(event(4));
    rig.tell(Note::Resync(snapshot(5, NODES + 1)));
    rig.tell(Note::Resync(snapshot(6, NODES + 2)));
    rig.tell(event(7));
    rig.settle();
    assert_eq!(nodes(&mut first), NODES, "it was begun");
    assert_eq!(nodes(&mut first), NODES + 2);
    assert_eq!(first.answer()["event"]["node"]["revision"], 7);
}

#[test]
fn what_piles_up_behind_a_snapshot_is_bounded() {
    let rig = Rig::start(1000);
    let (mut deaf, mut other) = (rig.watcher(), rig.watcher());
    rig.tell(Note::Resync(snapshot(2, NODES)));
    assert_eq!(nodes(&mut other), NODES);
    for revision in 3..20 {
        rig.tell(event(revision));
        assert_eq!(other.answer()["event"]["node"]["revision"], revision);
    }
    assert_eq!(nodes(&mut deaf), NODES, "the line that was begun");
    assert_eq!(code(&deaf.answer()), "deadline");
    assert_eq!(deaf.line(), None);
}

#[test]
fn a_writer_that_is_ahead_waits() {
    let rig = Rig::start(1 << 20);
    let most = rig.ends.notes.capacity();
    assert!(most.is_some_and(|most| most < 100), "{most:?}");
    let begun = Instant::now();
    for revision in 2..10_000 {
        rig.tell(event(revision));
    }
    assert!(begun.elapsed() < PATIENCE, "it waits for ever");
    rig.settle();
}

/// A store that nobody expected.
struct Broken;

impl Store for Broken {
    fn name(&self) -> &'static str {
        "memory"
    }

    fn load(&mut self) -> Result<Loaded, StoreError> {
        Ok(Loaded::default())
    }

    fn commit(&mut self, _: &[Change], _: &[Guard]) -> Result<Revision, CommitError> {
        panic!("as the test wants it");
    }
}

#[test]
fn a_server_ends_with_its_writer() {
    let Rig {
        ends,
        thread,
        folder,
    } = Rig::start(1 << 20);
    let (jobs, tell) = ends.split();
    let writer = Writer::start(Box::new(Broken), Box::new(|| 0), 8, tell).expect("it loads");
    let writer = thread::spawn(move || writer.run(&jobs));
    let mut client = Client::connect(&folder.path().join("ipam.sock"));
    client.revision();
    client.send(format!("{}\n", crate::node("n1", 1)));
    assert!(writer.join().is_err(), "it panicked");
    let fault = thread.join().expect("no panic").expect_err("it ends");
    let told = fault.to_string();
    assert!(told.contains("writer's thread ended"), "{told}");
    assert_eq!(client.line(), None);
}

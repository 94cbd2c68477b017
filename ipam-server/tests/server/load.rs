//! The server is killed in the middle of its work, again and again.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{BufRead, BufReader, Write},
    os::unix::net::UnixStream,
    path::Path,
    thread,
    time::Duration,
};

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::{Client, PATIENCE, Server, allocate, attachment, pool};

const CLIENTS: usize = 32;
const KILLS: u64 = 10;

/// What a client knows of an attachment.
#[derive(Debug, Clone, PartialEq)]
enum Known {
    Held(String),
    Released,
    /// It was asked for or given back, and no answer came.
    Unsure,
}

#[derive(Debug, Default)]
struct Worker {
    number: usize,
    next: u32,
    known: BTreeMap<String, Known>,
    answers: u32,
}

impl Worker {
    /// Allocates and releases until the server is gone.
    fn work(&mut self, socket: &Path) {
        let stream = UnixStream::connect(socket).expect("it listens");
        stream.set_read_timeout(Some(PATIENCE)).expect("a socket");
        let mut stream = BufReader::new(stream);
        loop {
            self.next += 1;
            // Two of three addresses go again.
            let held = self
                .known
                .iter()
                .find(|(_, known)| matches!(known, Known::Held(_)));
            let (container, request) = match held {
                Some((container, _)) if self.next % 5 > 2 => {
                    (container.clone(), release(container))
                }
                _ => {
                    let container = format!("w{}-{}", self.number, self.next);
                    let node = format!("n{}", self.number % 4);
                    (container.clone(), allocate(&container, &node))
                }
            };
            self.known.insert(container.clone(), Known::Unsure);
            let Some(answer) = exchange(&mut stream, &request) else {
                return;
            };
            self.answers += 1;
            self.known.insert(container, known_from(&answer));
        }
    }

    /// Holds what is known against what the server has; learns what is not.
    fn compare(&mut self, held: &BTreeMap<String, String>) {
        for (container, known) in &mut self.known {
            let now = held.get(&format!("pods/{container}/eth0"));
            match known {
                Known::Held(address) => assert_eq!(now, Some(&*address), "{container} lost it"),
                Known::Released => assert_eq!(now, None, "{container} gave it back"),
                Known::Unsure => *known = now.map_or(Known::Released, |a| Known::Held(a.clone())),
            }
        }
    }
}

fn release(container: &str) -> Value {
    let mut request = attachment(container);
    request["op"] = json!("release");
    request["by"] = json!("attachment");
    request
}

fn exchange(stream: &mut BufReader<UnixStream>, request: &Value) -> Option<Value> {
    let line = format!("{request}\n");
    stream.get_mut().write_all(line.as_bytes()).ok()?;
    let mut answer = String::new();
    stream.read_line(&mut answer).ok()?;
    answer
        .ends_with('\n')
        .then(|| serde_json::from_str(&answer).expect("a whole line is JSON"))
}

fn known_from(answer: &Value) -> Known {
    if let Some(address) = answer["ok"]["allocated"]["addresses"][0]["address"].as_str() {
        return Known::Held(address.to_owned());
    }
    let released = answer["ok"]["released"]["released"].as_array();
    assert_eq!(released.map(Vec::len), Some(1), "{answer}");
    Known::Released
}

/// Addresses by handle, each of both once.
fn allocations(client: &mut Client) -> BTreeMap<String, String> {
    let answer = client.ask(json!({"op": "allocations"}));
    let all = answer["ok"]["allocations"].as_array().expect("a list");
    let text = |value: &Value| value.as_str().expect("a string").to_owned();
    let held: BTreeMap<_, _> = all
        .iter()
        .map(|one| (text(&one["handle"]), text(&one["address"])))
        .collect();
    let addresses: BTreeSet<_> = held.values().collect();
    assert_eq!(
        (held.len(), addresses.len()),
        (all.len(), all.len()),
        "one is doubled"
    );
    held
}

#[test]
fn what_was_acknowledged_outlives_kills_under_load() {
    let mut server = Server::start();
    server.client().done(pool("default", "10.0.0.0/12"));
    let mut workers: Vec<Worker> = (0..CLIENTS)
        .map(|number| Worker {
            number,
            ..Worker::default()
        })
        .collect();
    for round in 0..KILLS {
        let socket = server.socket();
        thread::scope(|scope| {
            for worker in &mut workers {
                scope.spawn(|| worker.work(&socket));
            }
            // Spread over a second, and over the parts of a commit.
            thread::sleep(Duration::from_micros(200_000 + round * 617_377 % 800_000));
            server.signal(Signal::SIGKILL);
        });
        server.wait();
        server = server.again();
        let mut client = server.client();
        assert_eq!(client.problems(), Vec::<Value>::new(), "after kill {round}");
        let held = allocations(&mut client);
        for worker in &mut workers {
            worker.compare(&held);
        }
        let known = workers.iter().flat_map(|worker| worker.known.values());
        let known = known
            .filter(|known| matches!(known, Known::Held(_)))
            .count();
        assert_eq!(held.len(), known, "somebody holds what nobody asked for");
    }
    let least = workers.iter().map(|worker| worker.answers).min();
    assert!(least > Some(20), "{least:?}: that was no load");
}

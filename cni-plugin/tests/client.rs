//! The control socket's client against forwarders that misbehave.

use std::{
    io::{Read, Write},
    os::unix::net::UnixListener,
    path::PathBuf,
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use nix::sys::socket::{Backlog, listen};
use tempfile::TempDir;
use weft_api::{
    forwarder::{Answer, Code, Error, Reply, Request},
    framing::encode,
};
use weft_cni::forwarder::{Client, ClientError};
use weft_socket::line::LineError;

const SOON: Duration = Duration::from_millis(100);
/// What ends within this did not wait for ever.
const LIMIT: Duration = Duration::from_secs(5);

struct Place {
    _dir: TempDir,
    path: PathBuf,
}

fn listener() -> (Place, UnixListener) {
    let dir = TempDir::new().expect("a directory");
    let path = dir.path().join("forwarder.sock");
    let listener = UnixListener::bind(&path).expect("bind");
    (Place { _dir: dir, path }, listener)
}

#[test]
fn a_forwarder_that_says_nothing_is_given_up() {
    let (place, _listener) = listener();
    let started = Instant::now();
    let mut client = Client::connect_within(&place.path, SOON).expect("connect");
    let error = client.request(&Request::List).expect_err("no answer");
    assert!(
        matches!(error, ClientError::Line(LineError::Deadline { .. })),
        "{error}"
    );
    assert!(started.elapsed() < LIMIT);
}

#[test]
fn a_forwarder_that_accepts_nobody_is_given_up() {
    let (place, listener) = listener();
    listen(&listener, Backlog::new(0).expect("a backlog")).expect("listen");
    let started = Instant::now();
    let mut waiting = Vec::new();
    let error = loop {
        assert!(waiting.len() < 10, "a full queue lets nobody in");
        match Client::connect_within(&place.path, SOON) {
            Ok(client) => waiting.push(client),
            Err(error) => break error,
        }
    };
    assert!(
        matches!(error, ClientError::Line(LineError::Deadline { .. })),
        "{error}"
    );
    assert!(started.elapsed() < LIMIT);
}

#[test]
fn a_late_answer_is_not_taken_for_the_next() {
    let (place, listener) = listener();
    let (late, when) = mpsc::channel::<()>();
    let peer = thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("accept");
        when.recv().expect("the word");
        let answer = encode(&Answer::Ok(Reply::Done { epoch: 1 })).expect("encodes");
        stream.write_all(&answer).expect("write");
        stream
    });
    let mut client = Client::connect_within(&place.path, SOON).expect("connect");
    let error = client.request(&Request::List).expect_err("too late");
    assert!(
        matches!(error, ClientError::Line(LineError::Deadline { .. })),
        "{error}"
    );
    late.send(()).expect("the peer listens");
    let _stream = peer.join().expect("it has answered");
    let error = client.request(&Request::Status).expect_err("broken");
    assert!(
        matches!(error, ClientError::Line(LineError::Broken { .. })),
        "{error}"
    );
}

#[test]
fn who_is_turned_away_learns_why() {
    let (place, listener) = listener();
    let mut client = Client::connect(&place.path).expect("connect");
    let (mut stream, _) = listener.accept().expect("accept");
    let refusal = Error {
        code: Code::Forbidden,
        message: "uid 7 may not give orders here".to_owned(),
        hint: "list it".to_owned(),
    };
    let answer = encode(&Answer::Error(refusal.clone())).expect("encodes");
    stream.write_all(&answer).expect("write");
    drop(stream);
    let error = client.request(&Request::List).expect_err("turned away");
    assert!(
        matches!(&error, ClientError::Refused(found) if *found == refusal),
        "{error}"
    );
}

#[test]
fn no_forwarder_and_no_sense_are_told_apart() {
    let (place, listener) = listener();
    let nobody = place.path.with_file_name("absent.sock");
    let absent = Client::connect(&nobody).expect_err("nobody there");
    assert!(
        matches!(absent, ClientError::Line(LineError::Connect { .. })),
        "{absent}"
    );
    assert!(
        absent.to_string().contains("is the server running?"),
        "{absent}"
    );

    let odd = thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("accept");
        stream.write_all(b"what?\n").expect("write");
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest).expect("read");
    });
    let mut client = Client::connect(&place.path).expect("connect");
    let error = client.request(&Request::List).expect_err("no sense");
    assert!(
        matches!(error, ClientError::Line(LineError::Confused { .. })),
        "{error}"
    );
    drop(client);
    odd.join().expect("the odd peer ends");
}

#[test]
fn who_may_not_connect_is_told_how_to() {
    let error = ClientError::Line(LineError::Connect {
        path: "/run/weft/forwarder.sock".into(),
        error: std::io::ErrorKind::PermissionDenied.into(),
    });
    let said = error.to_string();
    assert!(
        said.contains("weft-forwarder") && said.contains("mode and uids"),
        "{said}"
    );
    assert!(!said.contains("running?"), "{said}");
}

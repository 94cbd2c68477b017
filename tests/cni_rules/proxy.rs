//! Stands between the plugin and a daemon on a Unix socket, passes requests
//! (and fds) and answers on, and kills the plugin at a chosen one.

use std::{
    io::{BufRead, BufReader, IoSlice, IoSliceMut, Write},
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
        unix::net::{UnixListener, UnixStream},
    },
    path::Path,
    sync::{Arc, Mutex},
    thread,
};

use nix::{
    cmsg_space,
    sys::{
        signal::{Signal, kill},
        socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg},
    },
    unistd::Pid,
};
use serde_json::Value;

/// The messages of one ADD, in order, over all its sockets.
pub struct Points {
    kill_at: usize,
    victim: Mutex<Option<Pid>>,
    passed: Mutex<Vec<String>>,
}

impl Points {
    pub fn new(kill_at: usize) -> Arc<Self> {
        Arc::new(Self {
            kill_at,
            victim: Mutex::default(),
            passed: Mutex::default(),
        })
    }

    /// The plugin to kill; it may not have sent anything yet.
    pub fn aim(&self, pid: u32) {
        let pid = i32::try_from(pid).expect("a pid");
        *self.victim.lock().expect("no panic") = Some(Pid::from_raw(pid));
    }

    pub fn passed(&self) -> Vec<String> {
        self.passed.lock().expect("no panic").clone()
    }

    /// Whether the message goes on.
    fn pass(&self, what: String) -> bool {
        let mut passed = self.passed.lock().expect("no panic");
        passed.push(what);
        if passed.len() != self.kill_at + 1 {
            return true;
        }
        let victim = self
            .victim
            .lock()
            .expect("no panic")
            .expect("somebody is aimed at");
        kill(victim, Signal::SIGKILL).expect("it runs: it waits for an answer");
        false
    }
}

/// Listens at `path` for as long as the process runs.
pub fn start(path: &Path, server: &Path, points: &Arc<Points>) {
    let listener = UnixListener::bind(path).expect("bind");
    let (server, points) = (server.to_owned(), points.clone());
    thread::spawn(move || {
        for client in listener.incoming() {
            let server = UnixStream::connect(&server).expect("the daemon listens");
            let points = points.clone();
            thread::spawn(move || carry(client.expect("a client"), server, &points));
        }
    });
}

fn carry(mut client: UnixStream, server: UnixStream, points: &Points) {
    let mut answers = BufReader::new(server.try_clone().expect("dup"));
    while let Some((line, fds)) = receive(&client) {
        let request: Value = serde_json::from_slice(&line).expect("a request");
        let operation = request["op"].as_str().expect("an operation");
        if !points.pass(format!("before {operation}")) {
            return;
        }
        send(&server, &line, &fds);
        drop(fds);
        let mut answer = Vec::new();
        answers.read_until(b'\n', &mut answer).expect("an answer");
        if !points.pass(format!("after {operation}")) {
            return;
        }
        // It may have been killed by the clock.
        let _ = client.write_all(&answer);
    }
}

/// A request is short, and nothing else is sent before its answer.
fn receive(stream: &UnixStream) -> Option<(Vec<u8>, Vec<OwnedFd>)> {
    let (mut line, mut fds) = (Vec::new(), Vec::new());
    while line.last() != Some(&b'\n') {
        let mut bytes = [0; 4096];
        let mut space = cmsg_space!([RawFd; 64]);
        let mut slices = [IoSliceMut::new(&mut bytes)];
        let socket = stream.as_raw_fd();
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        let received = recvmsg::<()>(socket, &mut slices, Some(&mut space), flags).ok()?;
        for message in received.cmsgs().expect("whole control messages") {
            if let ControlMessageOwned::ScmRights(raw) = message {
                // SAFETY: the kernel made these fds for this process just now.
                fds.extend(
                    raw.into_iter()
                        .map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }),
                );
            }
        }
        let read = received.bytes;
        if read == 0 {
            return None;
        }
        line.extend_from_slice(&bytes[..read]);
    }
    Some((line, fds))
}

fn send(stream: &UnixStream, line: &[u8], fds: &[OwnedFd]) {
    let raw: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&raw)];
    let rights = if raw.is_empty() { &[] } else { &rights[..] };
    let slices = [IoSlice::new(line)];
    let sent = sendmsg::<()>(stream.as_raw_fd(), &slices, rights, MsgFlags::empty(), None);
    assert_eq!(sent.expect("sent"), line.len());
}

//! The lab's etcd as tests speak to it, and processes that end with the test.

use std::{
    process::Child,
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use weft_lab::etcd;

/// Killed when dropped.
pub struct Running(pub Child);

impl Running {
    pub fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.0.id()).expect("a pid");
        kill(Pid::from_raw(pid), signal).expect("it lives");
    }

    pub fn stop(&mut self) {
        self.signal(Signal::SIGTERM);
        assert!(self.0.wait().expect("a status").success());
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What fails here, fails the test.
pub struct Etcd(pub etcd::Etcd);

impl Etcd {
    pub fn start() -> Self {
        Self(etcd::Etcd::start().expect("an etcd"))
    }

    pub fn restart(&mut self) {
        self.0.restart().expect("the etcd again");
    }

    pub fn url(&self) -> String {
        self.0.url()
    }

    pub fn control(&self, arguments: &[&str]) -> String {
        self.0.control(arguments).expect("etcdctl succeeds")
    }

    pub fn put(&self, key: &str, value: &str) {
        self.control(&["put", "--", key, value]);
    }

    /// Those whose key starts so.
    pub fn rows(&self, prefix: &str) -> Vec<(String, String)> {
        let text = self.control(&["get", "--prefix", prefix]);
        let lines: Vec<_> = text.lines().collect();
        let pairs = lines.chunks_exact(2);
        pairs
            .map(|pair| (pair[0].to_owned(), pair[1].to_owned()))
            .collect()
    }

    /// Forgets all that was before now, but for what the keys have.
    pub fn compact(&self) {
        self.0.compact().expect("compacted");
    }
}

pub fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(30);
    while !holds() {
        assert!(Instant::now() < end, "not within 30 s: {what}");
        thread::sleep(Duration::from_millis(20));
    }
}

//! A real etcd, and processes that end with the test.

use std::{
    fs::File,
    net::TcpListener,
    path::Path,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value as Json;
use tempfile::TempDir;

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

pub struct Etcd {
    pub port: u16,
    peer: u16,
    pub process: Running,
    directory: TempDir,
}

impl Etcd {
    pub fn start() -> Self {
        let listeners = [0, 1].map(|_| TcpListener::bind("127.0.0.1:0").expect("a free port"));
        let [port, peer] = listeners
            .each_ref()
            .map(|l| l.local_addr().expect("bound").port());
        drop(listeners);
        let directory = TempDir::new().expect("a temporary directory");
        let process = spawn(directory.path(), port, peer);
        let etcd = Self {
            port,
            peer,
            process: Running(process),
            directory,
        };
        etcd.wait_ready();
        etcd
    }

    pub fn restart(&mut self) {
        let _ = self.process.0.kill();
        let _ = self.process.0.wait();
        self.process = Running(spawn(self.directory.path(), self.port, self.peer));
        self.wait_ready();
    }

    fn wait_ready(&self) {
        eventually("etcd answers", || {
            self.try_control(&["endpoint", "status"]).is_some()
        });
    }

    fn try_control(&self, arguments: &[&str]) -> Option<String> {
        let output = Command::new("etcdctl")
            .env("ETCDCTL_API", "3")
            .arg(format!("--endpoints=127.0.0.1:{}", self.port))
            .args(arguments)
            .output()
            .expect("etcdctl is installed");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        output.status.success().then_some(text)
    }

    pub fn control(&self, arguments: &[&str]) -> String {
        self.try_control(arguments).expect("etcdctl succeeds")
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
        let text = self.control(&["get", "-w", "json", "/"]);
        let json: Json = serde_json::from_str(&text).expect("JSON");
        let revision = json["header"]["revision"].to_string();
        self.control(&["compact", &revision]);
    }
}

fn spawn(directory: &Path, port: u16, peer: u16) -> Child {
    let log = File::create(directory.join("log")).expect("a log file");
    let (client, peer) = (
        format!("http://127.0.0.1:{port}"),
        format!("http://127.0.0.1:{peer}"),
    );
    Command::new("etcd")
        .arg("--data-dir")
        .arg(directory.join("data"))
        .args([
            "--listen-client-urls",
            &client,
            "--advertise-client-urls",
            &client,
        ])
        .args([
            "--listen-peer-urls",
            &peer,
            "--initial-advertise-peer-urls",
            &peer,
        ])
        .arg(format!("--initial-cluster=default={peer}"))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
        .expect("Debian's etcd-server is installed")
}

pub fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(30);
    while !holds() {
        assert!(Instant::now() < end, "not within 30 s: {what}");
        thread::sleep(Duration::from_millis(20));
    }
}

//! The real server, asked over its socket.

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use tempfile::TempDir;

mod disk;
mod life;
mod load;
mod members;
mod notes;
mod page;
mod protocol;

/// Longer than anything here takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

#[derive(Debug)]
pub struct Server {
    child: Child,
    folder: TempDir,
    store: PathBuf,
}

impl Server {
    pub fn start() -> Self {
        Self::with_config("")
    }

    pub fn with_config(config: &str) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let store = folder.path().join("ipam.redb");
        Self::on(folder, store, config)
    }

    /// On a store that lies elsewhere.
    pub fn with_store(store: &Path) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        Self::on(folder, store.to_owned(), "")
    }

    fn on(folder: TempDir, store: PathBuf, config: &str) -> Self {
        fs::write(folder.path().join("ipam.toml"), config).expect("a file");
        let server = Self {
            child: spawn(folder.path(), &store),
            folder,
            store,
        };
        server.ready()
    }

    fn ready(mut self) -> Self {
        let until = Instant::now() + PATIENCE;
        while UnixStream::connect(self.socket()).is_err() {
            let ended = self.child.try_wait().expect("a child");
            assert_eq!(ended, None, "the server did not start: {}", self.log());
            assert!(Instant::now() < until, "it does not listen: {}", self.log());
            thread::sleep(Duration::from_millis(5));
        }
        self
    }

    pub fn socket(&self) -> PathBuf {
        self.folder.path().join("ipam.sock")
    }

    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    pub fn client(&self) -> Client {
        Client::connect(&self.socket())
    }

    /// Ends it by SIGTERM.
    pub fn end(&mut self) -> ExitStatus {
        self.signal(nix::sys::signal::Signal::SIGTERM);
        self.wait()
    }

    pub fn wait(&mut self) -> ExitStatus {
        self.child.wait().expect("a child")
    }

    pub fn signal(&self, signal: nix::sys::signal::Signal) {
        let pid = i32::try_from(self.child.id()).expect("a pid");
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), signal).expect("it runs");
    }

    /// A new server on the folder of one that has ended.
    pub fn again(mut self) -> Self {
        self.child = spawn(self.folder.path(), &self.store);
        self.ready()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A server whose socket, log and configuration lie in `folder`.
pub fn spawn(folder: &Path, store: &Path) -> Child {
    let log = fs::File::options()
        .append(true)
        .create(true)
        .open(folder.join("log"))
        .expect("a log");
    Command::new(env!("CARGO_BIN_EXE_weft-ipam"))
        .arg("--config")
        .arg(folder.join("ipam.toml"))
        .arg("--socket")
        .arg(folder.join("ipam.sock"))
        .arg("--store")
        .arg(store)
        .stdin(Stdio::null())
        .stderr(log)
        .spawn()
        .expect("the server's program")
}

#[derive(Debug)]
pub struct Client(BufReader<UnixStream>);

impl Client {
    pub fn connect(path: &Path) -> Self {
        let stream = UnixStream::connect(path).expect("it listens");
        stream.set_read_timeout(Some(PATIENCE)).expect("a socket");
        Self(BufReader::new(stream))
    }

    pub fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.0
            .get_mut()
            .write_all(bytes.as_ref())
            .expect("it reads");
    }

    /// The next line; none at the end of the stream.
    pub fn line(&mut self) -> Option<Value> {
        let mut line = String::new();
        match self.0.read_line(&mut line) {
            Ok(0) => None,
            Ok(_) => Some(serde_json::from_str(&line).expect("JSON")),
            Err(fault) if fault.kind() == std::io::ErrorKind::ConnectionReset => None,
            Err(fault) => panic!("no line came: {fault}"),
        }
    }

    pub fn answer(&mut self) -> Value {
        self.line().expect("an answer")
    }

    pub fn ask(&mut self, request: Value) -> Value {
        self.send(format!("{request}\n"));
        self.answer()
    }

    pub fn done(&mut self, request: Value) {
        let answer = self.ask(request.clone());
        assert_eq!(answer, json!({"ok": "done"}), "{request}");
    }

    pub fn revision(&mut self) -> u64 {
        let status = self.ask(json!({"op": "status"}));
        let revision = status["ok"]["status"]["revision"].as_u64();
        revision.expect("a status has a revision")
    }

    /// What `check` finds.
    pub fn problems(&mut self) -> Vec<Value> {
        let report = self.ask(json!({"op": "check"}));
        let problems = report["ok"]["report"]["problems"].as_array();
        problems.expect("a report").clone()
    }
}

pub fn code(answer: &Value) -> &str {
    answer["error"]["code"].as_str().unwrap_or("none")
}

pub fn pool(name: &str, cidr: &str) -> Value {
    json!({"op": "pool-create", "name": name, "cidr": cidr})
}

pub fn node(name: &str, n: u8) -> Value {
    json!({"op": "node-put", "name": name, "underlay": [format!("192.0.2.{n}/24")],
           "vtep_mac": format!("02:00:00:00:01:{n:02x}")})
}

pub fn attachment(container: &str) -> Value {
    json!({"network": "pods", "container": container, "interface": "eth0"})
}

pub fn allocate(container: &str, node: &str) -> Value {
    json!({"op": "allocate", "attachment": attachment(container), "node": node,
           "families": ["v4"]})
}

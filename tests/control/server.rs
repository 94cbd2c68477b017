//! A forwarder of its own for a test, and plain ends to talk to it.

use std::{
    fs::{self, File},
    io::{BufRead, BufReader, IoSlice, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    os::{
        fd::{AsRawFd, BorrowedFd, RawFd},
        unix::{net::UnixStream, process::CommandExt},
    },
    path::PathBuf,
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use nix::{
    sys::{
        signal::{Signal, kill},
        socket::{ControlMessage, MsgFlags, sendmsg},
    },
    unistd::Pid,
};
use tempfile::TempDir;
use weft_api::forwarder::{Answer, Code, Port, Reply};

/// Longer than anything here may take, and than what the forwarder waits
/// for a client that does not read.
pub const LIMIT: Duration = Duration::from_secs(20);

#[derive(Debug)]
pub struct Server {
    child: Child,
    pub control: PathBuf,
    pub metrics: SocketAddr,
    pub folder: TempDir,
}

pub fn command() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_weft"));
    command
        .arg0("weft-forwarder")
        .stdin(Stdio::null())
        .env("RUST_LOG", "warn");
    command
}

fn spawn(folder: &TempDir, metrics: SocketAddr) -> Child {
    let at = |name: &str| folder.path().join(name);
    command()
        .args(["--control".as_ref(), at("control.sock").as_os_str()])
        .args(["--config".as_ref(), at("forwarder.toml").as_os_str()])
        .args(["--metrics", &metrics.to_string()])
        .spawn()
        .expect("start the forwarder")
}

impl Server {
    pub fn start() -> Self {
        Self::with_config("node = 'n1'\nworkers = 2\n")
    }

    pub fn with_config(config: &str) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let control = folder.path().join("control.sock");
        let file = folder.path().join("forwarder.toml");
        fs::write(&file, config).expect("write the configuration");
        let metrics = free_address();
        let child = spawn(&folder, metrics);
        let mut server = Self {
            child,
            control,
            metrics,
            folder,
        };
        server.wait_until_it_answers();
        server
    }

    /// After its end, with the same files.
    pub fn start_again(&mut self) {
        self.child = spawn(&self.folder, self.metrics);
        self.wait_until_it_answers();
    }

    fn wait_until_it_answers(&mut self) {
        let until = Instant::now() + LIMIT;
        while UnixStream::connect(&self.control).is_err() {
            let ended = self.child.try_wait().expect("wait");
            assert!(ended.is_none(), "the forwarder ended: {ended:?}");
            assert!(Instant::now() < until, "the forwarder does not answer");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    pub fn client(&self) -> Client {
        let stream = UnixStream::connect(&self.control).expect("connect");
        Client::new(stream)
    }

    /// The ports, without what moves by itself.
    pub fn list(&self) -> Vec<Port> {
        let Reply::Ports(mut ports) = self.client().ok(r#"{"op":"list"}"#) else {
            panic!("list answers with ports");
        };
        for port in &mut ports {
            (port.from_pod, port.to_pod, port.age_ms) = Default::default();
        }
        ports
    }

    pub fn pid(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.child.id()).expect("a pid"))
    }

    pub fn open_fds(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.pid()))
            .expect("it runs")
            .count()
    }

    /// Sends SIGTERM and waits.
    pub fn end(&mut self) -> ExitStatus {
        kill(self.pid(), Signal::SIGTERM).expect("it runs");
        self.child.wait().expect("wait")
    }

    /// Sends bytes to the metrics address and reads until it closes.
    pub fn visit(&self, request: &[u8]) -> String {
        let mut stream = TcpStream::connect(self.metrics).expect("connect");
        stream.set_read_timeout(Some(LIMIT)).expect("set a limit");
        stream.write_all(request).expect("write");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("read");
        answer
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

#[derive(Debug)]
pub struct Client {
    pub stream: UnixStream,
    reader: BufReader<UnixStream>,
}

impl Client {
    pub fn new(stream: UnixStream) -> Self {
        stream.set_read_timeout(Some(LIMIT)).expect("set a limit");
        stream.set_write_timeout(Some(LIMIT)).expect("set a limit");
        let reader = BufReader::new(stream.try_clone().expect("clone"));
        Self { stream, reader }
    }

    pub fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.stream.write_all(bytes.as_ref()).expect("send");
    }

    /// Sends bytes with fds beside them.
    pub fn pass(&mut self, bytes: &str, fds: &[BorrowedFd<'_>]) {
        let raw: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
        let rights = [ControlMessage::ScmRights(&raw)];
        let slices = [IoSlice::new(bytes.as_bytes())];
        let fd = self.stream.as_raw_fd();
        let sent = sendmsg::<()>(fd, &slices, &rights, MsgFlags::empty(), None).expect("send");
        assert_eq!(sent, bytes.len());
    }

    /// The next answer, or none when the forwarder hung up.
    pub fn try_answer(&mut self) -> Option<Answer> {
        let mut line = String::new();
        self.reader.read_line(&mut line).expect("an answer in time");
        (!line.is_empty()).then(|| serde_json::from_str(&line).expect("an answer"))
    }

    pub fn answer(&mut self) -> Answer {
        self.try_answer().expect("the forwarder answers")
    }

    pub fn refusal(&mut self) -> Code {
        match self.answer() {
            Answer::Error(error) => {
                assert!(
                    !error.message.is_empty() && !error.hint.is_empty(),
                    "{error:?}"
                );
                error.code
            }
            Answer::Ok(reply) => panic!("a refusal was due: {reply:?}"),
        }
    }

    /// The reply to one request line.
    pub fn ok(&mut self, line: &str) -> Reply {
        self.send(format!("{line}\n"));
        match self.answer() {
            Answer::Ok(reply) => reply,
            Answer::Error(error) => panic!("{line}: {error}"),
        }
    }

    /// The refusal of one request line.
    pub fn refused(&mut self, line: &str) -> Code {
        self.send(format!("{line}\n"));
        self.refusal()
    }
}

/// A file that is no queue.
pub fn plain_file() -> File {
    tempfile::tempfile().expect("a file")
}

fn free_address() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("its address")
}

//! A blocking client of a forwarder's control socket. Every call ends by its
//! deadline.

use std::{
    io::{self, IoSlice, Read, Write},
    os::{
        fd::{AsRawFd, BorrowedFd, RawFd},
        unix::net::UnixStream,
    },
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    sys::socket::{
        AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, UnixAddr, connect, sendmsg,
        socket,
    },
};
use weft_api::{
    forwarder::{Answer, Attach, Error as Refusal, Reply, Request},
    framing::{self, Line, Lines},
};

/// Longest answer line that is read.
const ANSWER_MAX: usize = 64 << 20;

/// How long a forwarder may take for one answer.
pub const DEADLINE: Duration = Duration::from_secs(10);

#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error("connect to the forwarder at {path:?}: {error}; {}", remedy(.error))]
    Connect { path: PathBuf, error: io::Error },
    #[error("speak with the forwarder at {path:?}: {error}")]
    Speak { path: PathBuf, error: io::Error },
    #[error("the forwarder at {path:?} gave no answer in {} s; see its log", .deadline.as_secs())]
    Deadline { path: PathBuf, deadline: Duration },
    #[error("the forwarder at {path:?} hung up before it answered; see its log")]
    HungUp { path: PathBuf },
    #[error("the forwarder at {path:?} answered {what}; do both have the same version?")]
    Confused { path: PathBuf, what: String },
    #[error("the exchange with the forwarder at {path:?} failed before; connect anew")]
    Broken { path: PathBuf },
    /// The forwarder's own words.
    #[error("the forwarder refused: {0}")]
    Refused(Refusal),
}

fn remedy(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::PermissionDenied => {
            "run as root or as the forwarder's user, or see control.uids and control.mode \
             in its configuration"
        }
        _ => "is weft-forwarder running?",
    }
}

#[derive(Debug)]
pub struct Client {
    path: PathBuf,
    stream: UnixStream,
    lines: Lines,
    deadline: Duration,
    /// An answer is missing: the next to come would be that one.
    broken: bool,
}

impl Client {
    pub fn connect(path: &Path) -> Result<Self, ClientError> {
        Self::connect_within(path, DEADLINE)
    }

    /// A client whose connection and whose answers take no longer than that.
    pub fn connect_within(path: &Path, deadline: Duration) -> Result<Self, ClientError> {
        let stream = connected(path, deadline).map_err(|error| match error.kind() {
            io::ErrorKind::WouldBlock => ClientError::Deadline {
                path: path.to_owned(),
                deadline,
            },
            _ => ClientError::Connect {
                path: path.to_owned(),
                error,
            },
        })?;
        Ok(Self {
            path: path.to_owned(),
            stream,
            lines: Lines::new(ANSWER_MAX),
            deadline,
            broken: false,
        })
    }

    /// One more connection to the same forwarder.
    pub fn again(&self) -> Result<Self, ClientError> {
        Self::connect_within(&self.path, self.deadline)
    }

    pub fn request(&mut self, request: &Request) -> Result<Reply, ClientError> {
        self.exchange(request, &[])
    }

    /// Hands a pod's fds to the forwarder. The caller's own stay open until
    /// it drops them.
    pub fn attach(&mut self, attach: Attach, fds: &[BorrowedFd<'_>]) -> Result<Reply, ClientError> {
        self.exchange(&Request::Attach(attach), fds)
    }

    fn exchange(
        &mut self,
        request: &Request,
        fds: &[BorrowedFd<'_>],
    ) -> Result<Reply, ClientError> {
        if self.broken {
            return Err(ClientError::Broken {
                path: self.path.clone(),
            });
        }
        let line = framing::encode(request).map_err(|error| self.failed(error.into()))?;
        let reply = self.reply(&line, fds);
        self.broken = !matches!(reply, Ok(_) | Err(ClientError::Refused(_)));
        reply
    }

    fn reply(&mut self, line: &[u8], fds: &[BorrowedFd<'_>]) -> Result<Reply, ClientError> {
        let until = Instant::now() + self.deadline;
        let answer = match self.send(line, fds, until) {
            // A forwarder that turns a client away says why, and hangs up
            // without having read anything.
            Err(error @ ClientError::HungUp { .. }) => self.receive(until).map_err(|_| error)?,
            sent => sent.and_then(|()| self.receive(until))?,
        };
        match serde_json::from_slice(&answer) {
            Ok(Answer::Ok(reply)) => Ok(reply),
            Ok(Answer::Error(refusal)) => Err(ClientError::Refused(refusal)),
            Err(error) => Err(ClientError::Confused {
                path: self.path.clone(),
                what: error.to_string(),
            }),
        }
    }

    fn send(
        &mut self,
        mut line: &[u8],
        fds: &[BorrowedFd<'_>],
        until: Instant,
    ) -> Result<(), ClientError> {
        self.stream
            .set_write_timeout(Some(self.left(until)?))
            .map_err(|e| self.failed(e))?;
        if !fds.is_empty() {
            let raw: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
            let sent = loop {
                let sent = sendmsg::<()>(
                    self.stream.as_raw_fd(),
                    &[IoSlice::new(line)],
                    &[ControlMessage::ScmRights(&raw)],
                    MsgFlags::MSG_NOSIGNAL,
                    None,
                );
                match sent {
                    // Nothing went; with a timeout no call restarts itself.
                    Err(Errno::EINTR) => {}
                    sent => break sent.map_err(|errno| self.failed(errno.into()))?,
                }
            };
            line = line.get(sent..).unwrap_or_default();
        }
        self.stream
            .write_all(line)
            .map_err(|error| self.failed(error))
    }

    fn receive(&mut self, until: Instant) -> Result<Vec<u8>, ClientError> {
        let mut bytes = [0; 16 << 10];
        loop {
            match self.lines.pop() {
                Some(Line::Whole(line)) => return Ok(line),
                Some(Line::TooLong) => {
                    let what = format!("more than {ANSWER_MAX} bytes");
                    return Err(ClientError::Confused {
                        path: self.path.clone(),
                        what,
                    });
                }
                None => {}
            }
            self.stream
                .set_read_timeout(Some(self.left(until)?))
                .map_err(|e| self.failed(e))?;
            match self.stream.read(&mut bytes) {
                Ok(0) => {
                    return Err(ClientError::HungUp {
                        path: self.path.clone(),
                    });
                }
                Ok(read) => self.lines.push(&bytes[..read]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(self.failed(error)),
            }
        }
    }

    fn left(&self, until: Instant) -> Result<Duration, ClientError> {
        until
            .checked_duration_since(Instant::now())
            .filter(|left| !left.is_zero())
            .ok_or_else(|| self.late())
    }

    fn late(&self) -> ClientError {
        ClientError::Deadline {
            path: self.path.clone(),
            deadline: self.deadline,
        }
    }

    fn failed(&self, error: io::Error) -> ClientError {
        match error.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => self.late(),
            io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => ClientError::HungUp {
                path: self.path.clone(),
            },
            _ => ClientError::Speak {
                path: self.path.clone(),
                error,
            },
        }
    }
}

/// connect(2) waits while the listener's queue is full, for as long as the
/// socket may send.
fn connected(path: &Path, deadline: Duration) -> io::Result<UnixStream> {
    let socket = socket(
        AddressFamily::Unix,
        SockType::Stream,
        SockFlag::SOCK_CLOEXEC,
        None,
    )?;
    let stream = UnixStream::from(socket);
    stream.set_write_timeout(Some(deadline))?;
    connect(stream.as_raw_fd(), &UnixAddr::new(path)?)?;
    Ok(stream)
}

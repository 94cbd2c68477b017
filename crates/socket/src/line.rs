//! A blocking client of a daemon that speaks newline-framed JSON. Every call
//! ends by its deadline.

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
use serde::{Serialize, de::DeserializeOwned};
use weft_api::framing::{self, Line, Lines};

/// Longest answer line that is read: all allocations of a million pods.
const ANSWER_MAX: usize = 256 << 20;

#[derive(Debug, thiserror::Error)]
pub enum LineError {
    #[error("connect to {path:?}: {error}; {}", remedy(.error))]
    Connect { path: PathBuf, error: io::Error },
    #[error("speak with the server at {path:?}: {error}")]
    Speak { path: PathBuf, error: io::Error },
    #[error("the server at {path:?} gave no answer in {} s; see its log", .deadline.as_secs())]
    Deadline { path: PathBuf, deadline: Duration },
    #[error("the server at {path:?} hung up before it answered; see its log")]
    HungUp { path: PathBuf },
    #[error("the server at {path:?} answered {what}; do both have the same version?")]
    Confused { path: PathBuf, what: String },
    #[error("the exchange with the server at {path:?} failed before; connect anew")]
    Broken { path: PathBuf },
}

impl LineError {
    /// Whether no server is there at all.
    pub fn is_absent(&self) -> bool {
        let absent = [io::ErrorKind::NotFound, io::ErrorKind::ConnectionRefused];
        matches!(self, Self::Connect { error, .. } if absent.contains(&error.kind()))
    }
}

fn remedy(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::PermissionDenied => {
            "run as root or as the server's user, or see the socket's mode and uids in its \
             configuration"
        }
        _ => "is the server running?",
    }
}

#[derive(Debug)]
pub struct Connection {
    path: PathBuf,
    stream: UnixStream,
    lines: Lines,
    deadline: Duration,
    /// An answer is missing: the next to come would be that one.
    broken: bool,
}

impl Connection {
    /// A connection that is made, and whose answers come, within `deadline`.
    pub fn open(path: &Path, deadline: Duration) -> Result<Self, LineError> {
        let stream = connected(path, deadline).map_err(|error| match error.kind() {
            io::ErrorKind::WouldBlock => LineError::Deadline {
                path: path.to_owned(),
                deadline,
            },
            _ => LineError::Connect {
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

    /// One more connection to the same server.
    pub fn again(&self) -> Result<Self, LineError> {
        Self::open(&self.path, self.deadline)
    }

    /// One request, with fds beside it, and its answer. The caller's own fds
    /// stay open until it drops them.
    pub fn ask<Q: Serialize, A: DeserializeOwned>(
        &mut self,
        request: &Q,
        fds: &[BorrowedFd<'_>],
    ) -> Result<A, LineError> {
        let line = framing::encode(request).map_err(|error| self.failed(error.into()))?;
        let until = Instant::now() + self.deadline;
        self.in_step(|connection| {
            let answer = match connection.send(&line, fds, until) {
                // A server that turns a client away says why, and hangs up
                // without having read anything.
                Err(error @ LineError::HungUp { .. }) => {
                    connection.receive(until).map_err(|_| error)?
                }
                sent => sent.and_then(|()| connection.receive(until))?,
            };
            connection.parse(&answer)
        })
    }

    /// A line that the server sends unasked, if it comes within `patience`.
    pub fn hear<A: DeserializeOwned>(&mut self, patience: Duration) -> Result<A, LineError> {
        let until = Instant::now() + patience;
        self.in_step(|connection| {
            let line = connection.receive(until)?;
            connection.parse(&line)
        })
    }

    fn in_step<T>(
        &mut self,
        exchange: impl FnOnce(&mut Self) -> Result<T, LineError>,
    ) -> Result<T, LineError> {
        if self.broken {
            return Err(LineError::Broken {
                path: self.path.clone(),
            });
        }
        let result = exchange(self);
        self.broken = result.is_err();
        result
    }

    fn parse<A: DeserializeOwned>(&self, line: &[u8]) -> Result<A, LineError> {
        serde_json::from_slice(line).map_err(|error| self.confused(error.to_string()))
    }

    fn send(
        &mut self,
        mut line: &[u8],
        fds: &[BorrowedFd<'_>],
        until: Instant,
    ) -> Result<(), LineError> {
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

    fn receive(&mut self, until: Instant) -> Result<Vec<u8>, LineError> {
        let mut bytes = [0; 16 << 10];
        loop {
            match self.lines.pop() {
                Some(Line::Whole(line)) => return Ok(line),
                Some(Line::TooLong) => {
                    return Err(self.confused(format!("more than {ANSWER_MAX} bytes")));
                }
                None => {}
            }
            self.stream
                .set_read_timeout(Some(self.left(until)?))
                .map_err(|e| self.failed(e))?;
            match self.stream.read(&mut bytes) {
                Ok(0) => {
                    return Err(LineError::HungUp {
                        path: self.path.clone(),
                    });
                }
                Ok(read) => self.lines.push(&bytes[..read]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(self.failed(error)),
            }
        }
    }

    fn left(&self, until: Instant) -> Result<Duration, LineError> {
        until
            .checked_duration_since(Instant::now())
            .filter(|left| !left.is_zero())
            .ok_or_else(|| self.late())
    }

    fn late(&self) -> LineError {
        LineError::Deadline {
            path: self.path.clone(),
            deadline: self.deadline,
        }
    }

    fn confused(&self, what: String) -> LineError {
        LineError::Confused {
            path: self.path.clone(),
            what,
        }
    }

    fn failed(&self, error: io::Error) -> LineError {
        match error.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => self.late(),
            io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => LineError::HungUp {
                path: self.path.clone(),
            },
            _ => LineError::Speak {
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

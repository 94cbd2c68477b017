//! A blocking client of the IPAM server's socket. An answer has a deadline;
//! a watch has none.

use std::{
    io::{self, ErrorKind, Read, Write},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use weft_api::{
    framing::{Line, Lines, encode},
    ipam::{Answer, Error as Refusal, Event, Reply, Request},
};

/// Longest line that is read.
const ANSWER_MAX: usize = 256 << 20;
const DEADLINE: Duration = Duration::from_secs(60);

#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error("connect to the IPAM server at {path:?}: {error}; {}", remedy(.error))]
    Connect { path: PathBuf, error: io::Error },
    #[error("speak with the IPAM server at {path:?}: {error}")]
    Speak { path: PathBuf, error: io::Error },
    #[error("the IPAM server at {path:?} gave no answer in {} s; see its log", DEADLINE.as_secs())]
    Deadline { path: PathBuf },
    #[error("the IPAM server at {path:?} hung up; see its log")]
    HungUp { path: PathBuf },
    #[error("the IPAM server at {path:?} answered {what}; are both of one version?")]
    Confused { path: PathBuf, what: String },
    /// The server's own words.
    #[error(transparent)]
    Refused(Refusal),
}

fn remedy(error: &io::Error) -> &'static str {
    match error.kind() {
        ErrorKind::PermissionDenied => "run as root or as the server's user",
        _ => "is weft-ipam running there? --socket names another place",
    }
}

pub struct Client {
    path: PathBuf,
    stream: UnixStream,
    lines: Lines,
}

impl Client {
    pub fn connect(path: &Path) -> Result<Self, ClientError> {
        let stream = UnixStream::connect(path).map_err(|error| ClientError::Connect {
            path: path.to_owned(),
            error,
        })?;
        Ok(Self {
            path: path.to_owned(),
            stream,
            lines: Lines::new(ANSWER_MAX),
        })
    }

    pub fn request(&mut self, request: &Request) -> Result<Reply, ClientError> {
        let until = Instant::now() + DEADLINE;
        self.send(request)?;
        match self.answer(Some(until))? {
            Answer::Ok(reply) => Ok(*reply),
            Answer::Error(refusal) => Err(ClientError::Refused(refusal)),
            Answer::Event(_) => Err(self.confused("an event that was not asked for")),
        }
    }

    /// To be followed by [`Client::event`] only.
    pub fn watch(&mut self, from: Option<u64>) -> Result<(), ClientError> {
        self.send(&Request::Watch { from })
    }

    pub fn event(&mut self) -> Result<Event, ClientError> {
        match self.answer(None)? {
            Answer::Event(event) => Ok(*event),
            Answer::Error(refusal) => Err(ClientError::Refused(refusal)),
            Answer::Ok(_) => Err(self.confused("no event")),
        }
    }

    fn send(&mut self, request: &Request) -> Result<(), ClientError> {
        let line = encode(request).map_err(|error| self.failed(error.into()))?;
        self.stream
            .set_write_timeout(Some(DEADLINE))
            .and_then(|()| self.stream.write_all(&line))
            .or_else(|error| match error.kind() {
                // Whoever turns a client away says why before it hangs up.
                ErrorKind::BrokenPipe | ErrorKind::ConnectionReset => Ok(()),
                _ => Err(self.failed(error)),
            })
    }

    fn answer(&mut self, until: Option<Instant>) -> Result<Answer, ClientError> {
        let mut bytes = vec![0; 64 << 10];
        loop {
            match self.lines.pop() {
                Some(Line::Whole(line)) => {
                    return serde_json::from_slice(&line)
                        .map_err(|error| self.confused(&error.to_string()));
                }
                Some(Line::TooLong) => return Err(self.confused("more than 256 MiB")),
                None => {}
            }
            let left = until.map(|until| until.saturating_duration_since(Instant::now()));
            if left.is_some_and(|left| left.is_zero()) {
                return Err(self.failed(ErrorKind::TimedOut.into()));
            }
            let read = self
                .stream
                .set_read_timeout(left)
                .and_then(|()| self.stream.read(&mut bytes));
            match read {
                Ok(0) => return Err(self.failed(ErrorKind::BrokenPipe.into())),
                Ok(read) => self.lines.push(&bytes[..read]),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(self.failed(error)),
            }
        }
    }

    fn confused(&self, what: &str) -> ClientError {
        ClientError::Confused {
            path: self.path.clone(),
            what: what.to_owned(),
        }
    }

    fn failed(&self, error: io::Error) -> ClientError {
        let path = self.path.clone();
        match error.kind() {
            ErrorKind::WouldBlock | ErrorKind::TimedOut => ClientError::Deadline { path },
            ErrorKind::BrokenPipe | ErrorKind::ConnectionReset => ClientError::HungUp { path },
            _ => ClientError::Speak { path, error },
        }
    }
}

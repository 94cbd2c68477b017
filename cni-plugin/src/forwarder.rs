//! A blocking client of a forwarder's control socket. Every call ends by its
//! deadline.

use std::{
    os::fd::BorrowedFd,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use weft_api::{
    forwarder::{Answer, Attach, Code, Error as Refusal, Peer, Port, Reply, Request, Status},
    names::Name,
};
use weft_socket::line::{Connection, LineError};

/// How long a forwarder may take for one answer.
pub const DEADLINE: Duration = Duration::from_secs(10);

/// For a forwarder with as many clients as it takes to have room for one more.
const PATIENCE: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(20);

#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    // Not its source: the sentence says it all.
    #[error("weft-forwarder: {0}")]
    Line(LineError),
    /// The forwarder's own words.
    #[error("the forwarder refused: {0}")]
    Refused(Refusal),
    #[error("the forwarder gave an answer of another kind; do both have the same version?")]
    Confused,
}

impl From<LineError> for ClientError {
    fn from(error: LineError) -> Self {
        Self::Line(error)
    }
}

#[derive(Debug)]
pub struct Client(Connection);

impl Client {
    pub fn connect(path: &Path) -> Result<Self, ClientError> {
        Self::connect_within(path, DEADLINE)
    }

    /// A client whose connection and whose answers take no longer than that.
    pub fn connect_within(path: &Path, deadline: Duration) -> Result<Self, ClientError> {
        Ok(Self(Connection::open(path, deadline)?))
    }

    /// One more connection to the same forwarder.
    pub fn again(&self) -> Result<Self, ClientError> {
        Ok(Self(self.0.again()?))
    }

    pub fn request(&mut self, request: &Request) -> Result<Reply, ClientError> {
        self.exchange(request, &[])
    }

    /// Hands a pod's fds to the forwarder. The caller's own stay open until
    /// it drops them.
    pub fn attach(&mut self, attach: Attach, fds: &[BorrowedFd<'_>]) -> Result<(), ClientError> {
        done(&self.exchange(&Request::Attach(attach), fds)?)
    }

    pub fn detach(&mut self, name: Name) -> Result<(), ClientError> {
        done(&self.request(&Request::Detach { name })?)
    }

    pub fn ports(&mut self) -> Result<Vec<Port>, ClientError> {
        match self.request(&Request::List)? {
            Reply::Ports(ports) => Ok(ports),
            _ => Err(ClientError::Confused),
        }
    }

    pub fn peers(&mut self) -> Result<Vec<Peer>, ClientError> {
        match self.request(&Request::Peers)? {
            Reply::Peers(peers) => Ok(peers),
            _ => Err(ClientError::Confused),
        }
    }

    pub fn status(&mut self) -> Result<Status, ClientError> {
        match self.request(&Request::Status)? {
            Reply::Status(status) => Ok(*status),
            _ => Err(ClientError::Confused),
        }
    }

    fn exchange(
        &mut self,
        request: &Request,
        fds: &[BorrowedFd<'_>],
    ) -> Result<Reply, ClientError> {
        let until = Instant::now() + PATIENCE;
        loop {
            match self.0.ask(request, fds)? {
                Answer::Ok(reply) => return Ok(reply),
                // It has read nothing of the request.
                Answer::Error(refusal) if refusal.code == Code::Busy && Instant::now() < until => {
                    thread::sleep(PAUSE);
                    self.0 = self.0.again()?;
                }
                Answer::Error(refusal) => return Err(ClientError::Refused(refusal)),
            }
        }
    }
}

fn done(reply: &Reply) -> Result<(), ClientError> {
    match reply {
        Reply::Done { .. } => Ok(()),
        _ => Err(ClientError::Confused),
    }
}

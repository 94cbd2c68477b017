//! A client of the IPAM server.

use std::{path::Path, time::Duration};

use weft_api::ipam::{Answer, Error as Refusal, Event, Reply, Request};

use crate::line::{Connection, LineError};

/// How long a server may take for one answer; longer than the server gives
/// itself, so that its own words arrive.
pub const DEADLINE: Duration = Duration::from_secs(15);
/// A watch that is silent for so long is dead: the server speaks every 10 s.
pub const SILENCE: Duration = Duration::from_secs(30);

#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error(transparent)]
    Line(#[from] LineError),
    /// The server's own words.
    #[error("the IPAM server refused: {0}")]
    Refused(Refusal),
    #[error("the IPAM server gave an answer of another kind; do both have the same version?")]
    Confused,
}

#[derive(Debug)]
pub struct Client(Connection);

/// A connection on which the server speaks.
#[derive(Debug)]
pub struct Watch(Connection);

impl Client {
    pub fn connect(path: &Path) -> Result<Self, ClientError> {
        Self::connect_within(path, DEADLINE)
    }

    /// A client whose connection and whose answers take no longer than that.
    pub fn connect_within(path: &Path, deadline: Duration) -> Result<Self, ClientError> {
        Ok(Self(Connection::open(path, deadline)?))
    }

    /// For [`Request::Watch`] see [`Client::watch`].
    pub fn request(&mut self, request: &Request) -> Result<Reply, ClientError> {
        match self.0.ask(request, &[])? {
            Answer::Ok(reply) => Ok(*reply),
            Answer::Error(refusal) => Err(ClientError::Refused(refusal)),
            Answer::Event(_) => Err(ClientError::Confused),
        }
    }

    /// Nodes and routes from now on; `from` is the revision of the last event
    /// that is known. The second value is the first event.
    pub fn watch(mut self, from: Option<u64>) -> Result<(Watch, Event), ClientError> {
        let first = event(self.0.ask(&Request::Watch { from }, &[])?)?;
        Ok((Watch(self.0), first))
    }
}

impl Watch {
    /// The next event, of which there is one every 10 s at least.
    pub fn next_event(&mut self) -> Result<Event, ClientError> {
        event(self.0.hear(SILENCE)?)
    }
}

fn event(answer: Answer) -> Result<Event, ClientError> {
    match answer {
        Answer::Event(event) => Ok(*event),
        Answer::Error(refusal) => Err(ClientError::Refused(refusal)),
        Answer::Ok(_) => Err(ClientError::Confused),
    }
}

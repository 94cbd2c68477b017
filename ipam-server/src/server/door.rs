//! Who comes in: as many clients as there are places, of those that may.

use std::{
    io::{ErrorKind, Write},
    time::Instant,
};

use mio::{Interest, Token, net::UnixStream};
use tracing::{info, warn};
use weft_api::ipam::{Answer, Code, Error};

use super::{
    ACCEPT_PAUSE, IDLE, Server,
    client::{Client, line_of},
};

impl Server {
    pub(super) fn accept(&mut self, now: Instant) {
        loop {
            match self.listener.accept() {
                Ok((stream, _)) => match self.admit(&stream, now) {
                    Ok(()) => self.welcome(stream, now),
                    Err(error) => turn_away(stream, error),
                },
                Err(e) if e.kind() == ErrorKind::WouldBlock => return,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(fault) => {
                    warn!("accept: {fault}; trying again");
                    self.accept_at = Some(now + ACCEPT_PAUSE);
                    return;
                }
            }
        }
    }

    fn admit(&mut self, stream: &UnixStream, now: Instant) -> Result<(), Error> {
        let stranger = self.socket.admit(stream);
        stranger.map_err(|stranger| {
            let hint = "list the user or group in the configuration's socket.uids or socket.gids";
            Error::new(Code::Forbidden, stranger.to_string(), hint)
        })?;
        let most = self.limits.clients;
        if self.clients.len() < most {
            return Ok(());
        }
        let idle = self.clients.iter();
        let idle = idle.filter_map(|(token, client)| Some((client.idle_since()?, *token)));
        let Some((_, longest)) = idle.min().filter(|(since, _)| now - *since >= IDLE) else {
            let message = format!("{most} clients are being served, the most");
            return Err(Error::new(Code::Busy, message, "try again later"));
        };
        info!("{most} clients are connected; the one idle longest gives way");
        self.dismiss(longest);
        Ok(())
    }

    fn welcome(&mut self, stream: UnixStream, now: Instant) {
        let token = Token(self.next);
        self.next += 1;
        let mut client = Client::new(stream, now);
        let interest = Interest::READABLE | Interest::WRITABLE;
        let registry = self.poll.registry();
        match registry.register(&mut client.stream, token, interest) {
            Ok(()) => {
                self.clients.insert(token, client);
                self.turn(token, now);
            }
            Err(fault) => warn!("a connection cannot be watched: {fault}"),
        }
    }
}

/// Tells a client why it is not served, if it can be told at once.
fn turn_away(mut stream: UnixStream, error: Error) {
    info!("a client is turned away: {error}");
    // It may have gone already.
    let _ = stream.write(&line_of(&Answer::Error(error)));
}

//! What a member waits for: the news of etcd, and the signal that ends it.

use std::{
    os::fd::AsFd,
    thread,
    time::{Duration, Instant},
};

use anyhow::Context;
use crossbeam::channel::{Receiver, RecvTimeoutError, Sender, unbounded};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use weft_etcd::{Tell, Told};
use weft_socket::Signals;

#[derive(Debug)]
pub enum Message {
    Told(Told),
    Stop,
}

#[derive(Debug)]
pub struct Inbox {
    sender: Sender<Message>,
    messages: Receiver<Message>,
}

impl Inbox {
    pub fn open(signals: Signals) -> anyhow::Result<Self> {
        let (sender, messages) = unbounded();
        let ending = sender.clone();
        let wait = move || {
            loop {
                let mut fds = [PollFd::new(signals.as_fd(), PollFlags::POLLIN)];
                let polled = poll(&mut fds, PollTimeout::NONE);
                if polled.is_ok() && signals.next().is_some() {
                    // Nobody is there to hear it only when all is over.
                    let _ = ending.send(Message::Stop);
                    return;
                }
            }
        };
        thread::Builder::new()
            .name("signals".to_owned())
            .spawn(wait)
            .context("start a thread")?;
        Ok(Self { sender, messages })
    }

    /// For a watch, whose news come here.
    pub fn tell(&self) -> Tell {
        let sender = self.sender.clone();
        Box::new(move |told| sender.send(Message::Told(told)).is_ok())
    }

    /// None when nothing came until then.
    pub fn next(&self, deadline: Instant) -> Option<Message> {
        match self.messages.recv_deadline(deadline) {
            Ok(message) => Some(message),
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => Some(Message::Stop),
        }
    }

    /// Whether a signal came while waiting; news are not wanted.
    pub fn stopped_within(&self, time: Duration) -> bool {
        let end = Instant::now() + time;
        loop {
            match self.next(end) {
                Some(Message::Told(_)) => {}
                None => return false,
                Some(Message::Stop) => return true,
            }
        }
    }
}

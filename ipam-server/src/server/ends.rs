//! What lies between the socket's thread and the writer's.

use std::sync::Arc;

use crossbeam::channel::{Receiver, Sender};
use mio::Waker;
use tracing::warn;

use crate::writer::{Job, Note, Ticket};

/// The writer's ends of what lies between it and the server.
#[derive(Debug)]
pub struct Ends {
    pub jobs: Receiver<Job>,
    pub notes: Sender<Vec<Note>>,
    pub waker: Arc<Waker>,
    /// Registrations whose connections have ended.
    pub silenced: Receiver<Ticket>,
}

impl Ends {
    /// For [`crate::writer::Writer`]: what it runs on and what it starts with.
    /// Nothing else keeps them, so that the server sees when it has ended.
    pub fn split(self) -> (Receiver<Job>, crate::writer::Tell) {
        let Self {
            jobs, notes, waker, ..
        } = self;
        let tell = Box::new(move |told| {
            if notes.send(told).is_ok()
                && let Err(fault) = waker.wake()
            {
                warn!("the socket's thread cannot be woken: {fault}");
            }
        });
        (jobs, tell)
    }
}

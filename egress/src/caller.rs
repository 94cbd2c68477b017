//! A flow of datagrams that somebody outside began with a pod, by a published
//! port of the node. It has no socket of its own: all callers share their
//! door's.

use std::{
    rc::Rc,
    time::{Duration, Instant},
};

use weft_wire::Key;

use crate::{
    datagrams::{ANSWERED, Tools, UNANSWERED, pass},
    door,
    entrance::Call,
};

#[derive(Debug)]
pub struct Caller {
    pub call: Call,
    socket: Rc<door::Datagrams>,
    /// When something came or went last.
    pub used: Instant,
    answered: bool,
    /// Numbers packets to the pod, which may be cut on their way.
    id: u16,
}

impl Caller {
    pub fn new(call: Call, socket: Rc<door::Datagrams>, now: Instant) -> Self {
        Self {
            call,
            socket,
            used: now,
            answered: false,
            id: 0,
        }
    }

    /// When the flow ends, unless it is used before.
    pub fn ends(&self) -> Instant {
        let kept: Duration = if self.answered { ANSWERED } else { UNANSWERED };
        self.used + kept
    }

    /// Hands the pod what came.
    pub fn hear(&mut self, tools: &mut Tools<'_>, key: &Key, bytes: usize, size: Option<u16>) {
        self.used = tools.now;
        pass(tools, key, &mut self.id, bytes, size);
    }

    /// Sends what the pod said: a UDP payload, of which each datagram has
    /// `size` bytes where it is several.
    pub fn send(&mut self, tools: &Tools<'_>, payload: &[u8], size: Option<u16>) {
        self.used = tools.now;
        self.answered = true;
        let each = usize::from(size.unwrap_or(u16::MAX).max(1));
        let pieces = payload.len().div_ceil(each).max(1) as u64;
        let mut sent = self.write(payload, size);
        if sent.is_err() && size.is_some() {
            // For kernels and paths that take no trains.
            sent = payload
                .chunks(each)
                .try_for_each(|datagram| self.write(datagram, None));
        }
        match sent {
            Ok(()) => tools.counters.datagrams_to_outside.add(pieces),
            Err(_) => tools.counters.dropped_outside.add(pieces),
        }
    }

    fn write(&self, payload: &[u8], size: Option<u16>) -> nix::Result<()> {
        let Call { from, to, .. } = self.call;
        self.socket.send(to, from, payload, size)
    }
}

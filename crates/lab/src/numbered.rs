//! A stream of numbered datagrams at a bounded rate: which of them did not
//! come, and which came out of turn.
//!
//! Few are on the way at a time. So no queue of the kernel's overflows,
//! however busy the machine, and what is lost was lost by a forwarder or the
//! underlay.

use std::{
    collections::BTreeSet,
    net::UdpSocket,
    sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    thread,
    time::{Duration, Instant},
};

use anyhow::Context;

use crate::{exchange, lab::Pod, probe::Family};

/// Datagrams on the way at a time: fewer than the smallest buffer holds.
const WINDOW: u64 = 32;
/// What does not come within this time does not come.
const PATIENCE: Duration = Duration::from_secs(1);
/// Bytes of each datagram.
const SIZE: usize = 1000;

#[derive(Debug)]
pub struct Numbered {
    asking: UdpSocket,
    answering: UdpSocket,
    /// The highest number that came; the numbers that were given up count.
    arrived: AtomicU64,
    /// The last number, once it is known.
    last: AtomicU64,
}

/// What became of a stream.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Tally {
    pub sent: u64,
    pub lost: u64,
    /// Came after one that was sent later, or a second time.
    pub out_of_turn: u64,
}

impl Numbered {
    pub fn between(from: &Pod, to: &Pod, family: Family) -> anyhow::Result<Self> {
        let (asking, answering) = exchange::sockets(from, to, family)?;
        answering.set_read_timeout(Some(Duration::from_millis(50)))?;
        Ok(Self {
            asking,
            answering,
            arrived: AtomicU64::new(0),
            last: AtomicU64::new(u64::MAX),
        })
    }

    /// Sends one datagram and then waits for `pause`, until it is `done`.
    pub fn run(&self, pause: Duration, done: &AtomicBool) -> anyhow::Result<Tally> {
        thread::scope(|scope| {
            let receiving = scope.spawn(|| self.receive());
            let sent = self.send(pause, done);
            self.last.store(*sent.as_ref().unwrap_or(&0), Relaxed);
            let (came, out_of_turn) = receiving
                .join()
                .map_err(|_| anyhow::anyhow!("a receiver panicked"))?;
            let sent = sent?;
            Ok(Tally {
                sent,
                lost: sent - came,
                out_of_turn,
            })
        })
    }

    fn send(&self, pause: Duration, done: &AtomicBool) -> anyhow::Result<u64> {
        let mut datagram = [0; SIZE];
        let mut sent = 0;
        while !done.load(Relaxed) {
            sent += 1;
            datagram[..8].copy_from_slice(&u64::to_le_bytes(sent));
            let told = || format!("send datagram {sent}");
            self.asking.send(&datagram).with_context(told)?;
            self.wait_for_room(sent);
            thread::sleep(pause);
        }
        Ok(sent)
    }

    fn wait_for_room(&self, sent: u64) {
        let until = Instant::now() + PATIENCE;
        while sent - self.arrived.load(Relaxed) >= WINDOW {
            if Instant::now() > until {
                self.arrived.fetch_max(sent, Relaxed);
            }
            thread::sleep(Duration::from_micros(100));
        }
    }

    /// How many came, and how many of them out of turn.
    fn receive(&self) -> (u64, u64) {
        let (mut newest, mut came, mut out_of_turn) = (0, 0, 0);
        let mut missing = BTreeSet::new();
        let mut heard = Instant::now();
        let mut datagram = [0; SIZE];
        while newest < self.last.load(Relaxed) || !missing.is_empty() {
            let over = self.last.load(Relaxed) < u64::MAX && heard.elapsed() > PATIENCE;
            match self.answering.recv(&mut datagram) {
                Ok(SIZE) => {}
                _ if over => break,
                _ => continue,
            }
            heard = Instant::now();
            let number = u64::from_le_bytes(datagram[..8].try_into().expect("8 bytes"));
            if number > newest {
                missing.extend(newest + 1..number);
                newest = number;
                came += 1;
            } else {
                came += u64::from(missing.remove(&number));
                out_of_turn += 1;
            }
            self.arrived.fetch_max(number, Relaxed);
        }
        (came, out_of_turn)
    }
}

//! A tracker in virtual time, and rules that a test can change.

#![allow(dead_code, reason = "each test takes what it needs")]

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
    time::{Duration, Instant},
};

use weft_conntrack::{
    Account, Config, Direction, Owners, Passed, Refused, Seen, Standing, Timeouts, Tracker,
};
use weft_testkit::frames::{FrameBuilder, between};
use weft_wire::{Ethernet, Key, parse};

pub const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 9);
pub const SERVER: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);

pub type Outcome = Result<Passed, Refused<&'static str>>;

pub const FORBIDDEN: Outcome = Err(Refused::Forbidden("forbidden"));
pub const UNRELATED: Outcome = Err(Refused::Unrelated);

pub struct Lab {
    pub tracker: Tracker,
    pub now: Instant,
    pub edition: u32,
    /// Who may open nothing.
    pub silenced: BTreeSet<IpAddr>,
    /// How often the rules were asked.
    pub asked: usize,
    pub accounts: Vec<(IpAddr, Arc<Account>)>,
}

impl Lab {
    pub fn new(capacity: usize) -> Self {
        let now = Instant::now();
        let config = Config {
            capacity,
            timeouts: Timeouts::default(),
        };
        Self {
            tracker: Tracker::new(config, 7, now),
            now,
            edition: 1,
            silenced: BTreeSet::new(),
            asked: 0,
            accounts: Vec::new(),
        }
    }

    /// A packet comes.
    pub fn see(&mut self, frame: &FrameBuilder) -> Outcome {
        self.see_bytes(&frame.build())
    }

    pub fn see_bytes(&mut self, bytes: &[u8]) -> Outcome {
        let Ok(Ethernet::Ip(packet)) = parse(bytes) else {
            panic!("{bytes:x?} is no packet");
        };
        let seen = Seen::of(bytes, &packet).expect("no later fragment");
        let account = |address: IpAddr| {
            let mut all = self.accounts.iter();
            all.find(|(one, _)| *one == address).map(|(_, its)| its)
        };
        let owners = Owners {
            source: account(packet.key.src),
            destination: account(packet.key.dst),
        };
        self.tracker
            .pass(&seen, owners, self.edition, self.now, |direction| {
                self.asked += 1;
                let opener = match direction {
                    Direction::Original => seen.key.src,
                    Direction::Reply => seen.key.dst,
                };
                match self.silenced.contains(&opener) {
                    true => Err("forbidden"),
                    false => Ok(()),
                }
            })
    }

    pub fn passes(&mut self, frame: &FrameBuilder) {
        let outcome = self.see(frame);
        assert!(outcome.is_ok(), "{outcome:?}: {frame:?}");
    }

    pub fn wait(&mut self, seconds: u64) {
        self.now += Duration::from_secs(seconds);
    }

    pub fn silence(&mut self, who: Ipv4Addr) {
        self.silenced.insert(who.into());
        self.edition += 1;
    }

    /// What is known of the connection that `frame` belongs to.
    pub fn standing(&self, frame: &FrameBuilder) -> Option<Standing> {
        self.tracker.standing(key(frame), self.now)
    }

    /// The state of the TCP connection of [`client`] and [`server`].
    pub fn state(&self) -> &'static str {
        let standing = self.standing(&client());
        standing.map_or("none", |standing| standing.state)
    }

    /// Its timeout, in whole seconds.
    pub fn left(&self) -> u32 {
        let standing = self.standing(&client()).expect("a connection");
        standing.left - 1
    }

    /// Sweeps until every shard had its turn.
    pub fn sweep(&mut self) {
        for _ in 0..512 {
            self.now += Duration::from_millis(4);
            self.tracker.sweep(self.now);
        }
    }
}

pub fn key(frame: &FrameBuilder) -> Key {
    let bytes = frame.build();
    match parse(&bytes) {
        Ok(Ethernet::Ip(packet)) => Seen::of(&bytes, &packet).expect("no later fragment").key,
        other => panic!("{other:?} is no packet"),
    }
}

/// A bare ACK of the client's.
pub fn client() -> FrameBuilder {
    between(CLIENT, SERVER).tcp(40_000, 80)
}

/// A bare ACK of the server's.
pub fn server() -> FrameBuilder {
    between(SERVER, CLIENT).tcp(80, 40_000)
}

//! The thread that asks: it sends what is due, takes in answers and what the
//! kernel says, and notes what follows.

use std::{
    collections::{BTreeSet, HashMap},
    hash::{BuildHasher, RandomState},
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use crossbeam::channel;
use mio::{Events, Interest, Poll, unix::SourceFd};
use weft_engine::{
    Counters, Heard,
    gateway::probe::{self, Seal},
    limit::Bucket,
    outbox,
    path::{Bounds, Pace, Path, Question, Size},
};

use super::{Found, KERNEL, Target, Tunnel, Underlay, board::Board, watch::Watch};
use crate::{links, uplink::question::Questioner};

/// Rounds a second, of two questions each, however many peers there are. More
/// peers than that allows wait for their turn.
const ROUNDS_PER_SECOND: u32 = 100;
const ROUNDS_BURST: u32 = 10;
const TURN: Duration = Duration::from_millis(10);

/// Between what the kernel tells of links and routes and a look at them:
/// changes come in crowds.
const SETTLE: Duration = Duration::from_millis(100);

/// Between two reports of changed MTUs, each of which makes new tables.
const REPORT: Duration = Duration::from_millis(100);

/// Every link carries so much (RFC 791 section 3.2, RFC 8200 section 5).
const FLOOR_V4: usize = 576;
const FLOOR_V6: usize = 1280;

/// What the thread is made of.
pub(super) struct Parts {
    pub poll: Poll,
    pub answers: channel::Receiver<Heard>,
    pub targets: channel::Receiver<Vec<Target>>,
    pub seal: Option<Arc<Seal>>,
    pub too_big: Arc<AtomicBool>,
    pub pace: Pace,
    pub underlay: Underlay,
    pub questioner: Questioner,
    pub counters: Arc<Counters>,
    pub board: Arc<Board>,
    pub stop: Arc<AtomicBool>,
}

pub(super) struct Asking {
    parts: Parts,
    watch: Option<Watch>,
    peers: Vec<Peer>,
    by_address: HashMap<IpAddr, usize>,
    /// When which peer needs attention.
    due: BTreeSet<(Instant, usize)>,
    rounds: Bucket,
    look_at: Option<Instant>,
    /// Something has changed and was not reported.
    is_news: bool,
    report_at: Instant,
    random: RandomState,
    draws: u64,
    frame: Vec<u8>,
}

struct Peer {
    target: Target,
    path: Path,
    /// When to look at a path that is not asked about.
    look_at: Instant,
    /// As it stands in the schedule.
    due: Instant,
}

impl Asking {
    pub fn new(parts: Parts) -> Self {
        let watch = Watch::open().and_then(|watch| {
            let registry = parts.poll.registry();
            registry.register(&mut SourceFd(&watch.fd()), KERNEL, Interest::READABLE)?;
            Ok(watch)
        });
        let watch = watch.inspect_err(|error| {
            tracing::info!(%error, "links and routes are looked at from time to time only");
        });
        Self {
            parts,
            watch: watch.ok(),
            peers: Vec::new(),
            by_address: HashMap::new(),
            due: BTreeSet::new(),
            rounds: Bucket::new(ROUNDS_PER_SECOND, ROUNDS_BURST),
            look_at: None,
            is_news: false,
            report_at: Instant::now(),
            random: RandomState::new(),
            draws: 0,
            frame: Vec::new(),
        }
    }

    pub fn run(mut self) {
        let mut events = Events::with_capacity(8);
        while !self.parts.stop.load(Relaxed) {
            if let Err(error) = self.parts.poll.poll(&mut events, self.rest())
                && error.kind() != std::io::ErrorKind::Interrupted
            {
                tracing::error!(%error, "poll failed; peers are not asked any more");
                return;
            }
            while let Ok(heard) = self.parts.answers.try_recv() {
                self.hear(heard);
            }
            if let Some(targets) = self.parts.targets.try_iter().last() {
                self.take(targets);
            }
            let now = Instant::now();
            let moved = self.watch.as_ref().is_some_and(Watch::has_news);
            if moved || self.parts.too_big.load(Relaxed) {
                self.look_at.get_or_insert(now + SETTLE);
            }
            if self.look_at.take_if(|at| *at <= now).is_some() {
                self.parts.too_big.store(false, Relaxed);
                self.look(now);
            }
            self.attend(now);
            self.report(now);
        }
    }

    fn rest(&self) -> Option<Duration> {
        let now = Instant::now();
        // A peer that is due already waits for its turn.
        let due = self.due.first().map(|(at, _)| (*at).max(now + TURN / 2));
        let report = self.is_news.then_some(self.report_at);
        let next = due.into_iter().chain(self.look_at).chain(report).min()?;
        Some(next.saturating_duration_since(now))
    }

    fn hear(&mut self, heard: Heard) {
        let Some(&place) = self.by_address.get(&heard.from) else {
            return;
        };
        if self.peers[place].path.heard(heard.number, heard.at) {
            self.note(place);
        }
    }

    /// Takes over what is known of those that are as they were.
    fn take(&mut self, targets: Vec<Target>) {
        let now = Instant::now();
        let old = std::mem::take(&mut self.peers).into_iter();
        let mut known: HashMap<_, _> = old.map(|peer| (peer.target.name.clone(), peer)).collect();
        self.due.clear();
        self.by_address.clear();
        for (place, target) in targets.into_iter().enumerate() {
            if let Some(tunnel) = &target.tunnel {
                self.by_address.insert(tunnel.dst, place);
            }
            let before = known.remove(&target.name);
            let peer = match before.filter(|before| before.target == target) {
                Some(peer) => peer,
                None => self.meet(target, now),
            };
            self.due.insert((peer.due, place));
            self.peers.push(peer);
        }
        let names: std::collections::HashSet<_> = self
            .peers
            .iter()
            .map(|peer| peer.target.name.clone())
            .collect();
        self.parts.board.keep(|name| names.contains(name));
        for place in 0..self.peers.len() {
            self.note(place);
        }
    }

    fn meet(&mut self, target: Target, now: Instant) -> Peer {
        let v4 = target.underlay.is_ipv4();
        let bounds = Bounds {
            floor: if v4 { FLOOR_V4 } else { FLOOR_V6 },
            ceiling: self.ceiling(target.underlay),
        };
        let pace = self.parts.pace;
        let spread = (pace.interval / 10).mul_f64(f64::from(self.draw()) / f64::from(u32::MAX));
        Peer {
            path: Path::new(pace, bounds, now + spread),
            look_at: now + pace.interval,
            due: now + spread,
            target,
        }
    }

    /// What the underlay says of the way to `peer`.
    fn ceiling(&self, peer: IpAddr) -> usize {
        let most = usize::from(self.parts.underlay.mtu);
        let told = self.parts.questioner.mtu_to(peer);
        told.map_or(most, |mtu| match self.parts.underlay.follow_links {
            true => mtu.min(usize::from(u16::MAX)),
            false => mtu.min(most),
        })
    }

    /// Links or routes have changed.
    fn look(&mut self, now: Instant) {
        if self.parts.underlay.follow_links
            && let Ok(Some(mtu)) = links::mtu_of(&self.parts.underlay.addresses)
        {
            self.parts.underlay.mtu = mtu;
            self.is_news |= self.parts.board.note_underlay(mtu);
        }
        for place in 0..self.peers.len() {
            let ceiling = self.ceiling(self.peers[place].target.underlay);
            self.peers[place].path.set_ceiling(ceiling, now);
            self.note(place);
        }
    }

    /// Does what is due.
    fn attend(&mut self, now: Instant) {
        while let Some(&(at, place)) = self.due.first()
            && at <= now
        {
            let ceiling = self.ceiling(self.peers[place].target.underlay);
            let peer = &mut self.peers[place];
            peer.path.expire(now);
            peer.path.set_ceiling(ceiling, now);
            peer.look_at = now + self.parts.pace.interval;
            let seal = self.parts.seal.clone().zip(peer.target.tunnel.clone());
            if let Some((seal, tunnel)) = seal
                && peer.path.due() <= now
            {
                if !self.rounds.take(now) {
                    self.note(place);
                    return;
                }
                let draw = self.draw();
                for question in self.peers[place].path.start_round(now, draw) {
                    self.ask(&seal, &tunnel, question);
                }
            }
            self.note(place);
        }
    }

    fn ask(&mut self, seal: &Seal, tunnel: &Tunnel, question: Question) {
        let least = probe::least(tunnel.dst.is_ipv4());
        let len = match question.size {
            Size::Small => least,
            Size::Exactly(size) => size.saturating_sub(tunnel.overhead).max(least),
        };
        let written = seal.write(
            &probe::Question {
                dst_mac: tunnel.dst_mac,
                src_mac: tunnel.src_mac,
                src: tunnel.src,
                dst: tunnel.dst,
                number: question.number,
                len,
            },
            &mut self.frame,
        );
        if !written {
            return;
        }
        let bytes = outbox::encapsulate(tunnel.way, tunnel.vni, &self.frame);
        let counters = &self.parts.counters;
        counters.uplink_writes.add(1);
        let sent = (self.parts.questioner).send(tunnel.way, bytes, tunnel.remote);
        // One that cannot be sent is a lost question, and told as such.
        if sent.is_ok() {
            counters.originated.add(1);
            counters.sent_to_peers.add(1);
        }
    }

    /// Writes down what is known of a peer, and when it needs attention.
    fn note(&mut self, place: usize) {
        let peer = &mut self.peers[place];
        let is_asked = self.parts.seal.is_some() && peer.target.tunnel.is_some();
        let due = if is_asked {
            peer.path.due()
        } else {
            peer.look_at
        };
        self.due.remove(&(peer.due, place));
        peer.due = due;
        self.due.insert((due, place));
        let found = Found {
            state: is_asked.then(|| peer.path.state()),
            mtu: u16::try_from(peer.path.mtu()).unwrap_or(u16::MAX),
            times: peer.path.times(),
            recent: peer.path.recent(),
            total: peer.path.total(),
        };
        self.is_news |= self.parts.board.note(&peer.target.name, found);
    }

    fn report(&mut self, now: Instant) {
        if self.is_news && now >= self.report_at {
            self.is_news = false;
            self.report_at = now + REPORT;
            self.parts.board.announce();
        }
    }

    fn draw(&mut self) -> u32 {
        self.draws += 1;
        (self.random.hash_one(self.draws) >> 32) as u32
    }
}

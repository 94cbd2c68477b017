//! What is known of the underlay between this node and one peer: how large a
//! packet it carries, how long an answer takes, how many are lost. Found out
//! by asking: rounds of a small question, and of a large one once the peer
//! has answered any.
//!
//! Everything here is a decision. Who sends the questions, hears the answers
//! and knows the time tells it by [`Path::start_round`], [`Path::heard`],
//! [`Path::expire`] and [`Path::set_ceiling`]. Sizes are bytes of the outer IP
//! packet.
//!
//! A large question that stays without an answer says nothing of its size
//! unless a small one has been answered meanwhile. So a peer that answers
//! nothing, because it is away, or does not answer such questions, changes
//! nothing for its traffic.

mod search;
mod window;

use std::time::{Duration, Instant};

pub use search::{BASE, Bounds};
use search::{Phase, Search};
use window::Window;
pub use window::{Tally, Times};

/// How long an answer is waited for: a multiple of what answers took, within
/// these, and the longest while nothing is known.
const PATIENCE_LEAST: Duration = Duration::from_millis(300);
const PATIENCE_MOST: Duration = Duration::from_secs(2);
const PATIENCE_TIMES: u32 = 4;

/// So many small questions in a row without an answer, and the peer is said to
/// be silent.
const SILENCE: u32 = 3;

/// When to ask.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    /// Between rounds, when there is nothing to find out.
    pub interval: Duration,
    /// Until a path that carries less than it should is tried again
    /// (`PMTU_RAISE_TIMER` of RFC 8899 section 5.1.1).
    pub raise: Duration,
}

#[derive(Debug)]
pub struct Path {
    pace: Pace,
    search: Search,
    window: Window,
    waiting: Vec<Question>,
    next: u16,
    next_round: Instant,
    /// When the last small question was sent that has been answered.
    alive_at: Option<Instant>,
    unanswered: u32,
}

/// What to send, and how large; the number comes back with the answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Question {
    pub number: u16,
    pub size: Size,
    pub sent: Instant,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Size {
    Small,
    /// Bytes of the outer IP packet.
    Exactly(usize),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Nothing was ever answered.
    Unknown,
    /// It answers, and what the path carries is being found out.
    Searching,
    /// The path carries what the underlay says that it does.
    Good,
    /// Larger packets vanish, and nobody says so.
    BlackHole,
    /// It has answered, and does no more.
    Silent,
}

impl Path {
    /// The first round is at `first`, so that paths may be spread.
    pub fn new(pace: Pace, bounds: Bounds, first: Instant) -> Self {
        Self {
            pace,
            search: Search::new(bounds),
            window: Window::default(),
            waiting: Vec::new(),
            next: 0,
            next_round: first,
            alive_at: None,
            unanswered: 0,
        }
    }

    /// What the largest packet is that the path is given.
    pub fn mtu(&self) -> usize {
        self.search.mtu()
    }

    pub fn state(&self) -> State {
        if self.alive_at.is_none() {
            State::Unknown
        } else if self.unanswered >= SILENCE {
            State::Silent
        } else if self.search.is_black_hole() {
            State::BlackHole
        } else if self.search.phase() == Phase::Complete {
            State::Good
        } else {
            State::Searching
        }
    }

    pub fn times(&self) -> Option<Times> {
        self.window.times()
    }

    pub fn recent(&self) -> Tally {
        self.window.recent()
    }

    /// All small questions since the beginning.
    pub fn total(&self) -> Tally {
        self.window.total()
    }

    /// When there is something to do: a question that will not be answered
    /// any more, or a new round.
    pub fn due(&self) -> Instant {
        let patience = self.patience();
        let expiry = self.waiting.iter().map(|question| question.sent + patience);
        expiry.min().unwrap_or(self.next_round)
    }

    /// The questions of a new round, if it is time for one. `draw` is random
    /// and spreads the rounds, by a quarter of the interval either way.
    pub fn start_round(&mut self, now: Instant, draw: u32) -> Vec<Question> {
        if now < self.next_round || !self.waiting.is_empty() {
            return Vec::new();
        }
        let quarter = self.pace.interval / 4;
        let spread = quarter.mul_f64(2.0 * f64::from(draw) / f64::from(u32::MAX));
        self.next_round = now + self.pace.interval - quarter + spread;
        self.ask(Size::Small, now);
        if self.alive_at.is_some() && self.unanswered == 0 {
            let size = self.search.ask(now, self.pace.raise);
            self.ask(Size::Exactly(size), now);
        }
        self.waiting.clone()
    }

    /// Whether the answer to question `number` was waited for.
    pub fn heard(&mut self, number: u16, at: Instant) -> bool {
        let asked = |question: &Question| question.number == number;
        let Some(place) = self.waiting.iter().position(asked) else {
            return false;
        };
        let question = self.waiting.swap_remove(place);
        match question.size {
            Size::Small => {
                let took = at.saturating_duration_since(question.sent);
                self.window.answered(took);
                let is_news = self.alive_at.is_none() || self.unanswered > 0;
                self.alive_at = Some(question.sent);
                self.unanswered = 0;
                if is_news {
                    self.hurry(at);
                }
            }
            Size::Exactly(size) => self.search.passed(size),
        }
        self.go_on(at);
        true
    }

    /// Gives up what has been waited for too long.
    pub fn expire(&mut self, now: Instant) {
        let patience = self.patience();
        let mut lost = Vec::new();
        self.waiting.retain(|question| {
            let is_lost = question.sent + patience <= now;
            lost.extend(is_lost.then_some(*question));
            !is_lost
        });
        for question in lost {
            match question.size {
                Size::Small => {
                    self.window.lost();
                    self.unanswered = self.unanswered.saturating_add(1);
                }
                Size::Exactly(size) => {
                    if self.alive_at >= Some(question.sent) {
                        self.search.lost(size);
                    }
                }
            }
        }
        self.go_on(now);
    }

    /// The underlay says what the way to the peer carries: the MTU of a link
    /// or route, or what a router has told.
    pub fn set_ceiling(&mut self, ceiling: usize, now: Instant) {
        if self.search.set_ceiling(ceiling) {
            // What is on its way was asked of another path.
            self.waiting.retain(|question| question.size == Size::Small);
            self.hurry(now);
        }
    }

    fn ask(&mut self, size: Size, sent: Instant) {
        let number = self.next;
        self.next = self.next.wrapping_add(1);
        self.waiting.push(Question { number, size, sent });
    }

    /// The next round is at once while there is something to find out.
    fn go_on(&mut self, now: Instant) {
        let is_known = self.alive_at.is_some() && self.waiting.is_empty();
        let in_doubt = match self.unanswered {
            0 => self.search.is_urgent(),
            unanswered => unanswered < SILENCE,
        };
        if is_known && in_doubt {
            self.hurry(now);
        }
    }

    fn hurry(&mut self, now: Instant) {
        self.next_round = self.next_round.min(now);
    }

    fn patience(&self) -> Duration {
        self.times().map_or(PATIENCE_MOST, |times| {
            (times.mean * PATIENCE_TIMES).clamp(PATIENCE_LEAST, PATIENCE_MOST)
        })
    }
}

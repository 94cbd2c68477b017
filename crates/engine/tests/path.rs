//! What a path is found to carry, on simulated underlays in virtual time.

use std::time::{Duration, Instant};

use proptest::prelude::*;
use weft_engine::path::{Bounds, Pace, Path, Size, State};

const PACE: Pace = Pace {
    interval: Duration::from_secs(5),
    raise: Duration::from_secs(600),
};
const FLOOR: usize = 576;
const CEILING: usize = 1500;

/// The network and the other node.
#[derive(Debug, Clone, Copy)]
struct Underlay {
    carries: usize,
    takes: Duration,
    /// Of a thousand packets.
    lost: u32,
    answers: bool,
}

impl Underlay {
    fn carrying(carries: usize) -> Self {
        Self {
            carries,
            takes: Duration::from_millis(1),
            lost: 0,
            answers: true,
        }
    }
}

struct World {
    path: Path,
    now: Instant,
    underlay: Underlay,
    /// When the answer to which question comes.
    answers: Vec<(Instant, u16)>,
    dice: u64,
    sent: u32,
}

impl World {
    fn new(underlay: Underlay, seed: u64) -> Self {
        let now = Instant::now();
        let bounds = Bounds {
            floor: FLOOR,
            ceiling: CEILING,
        };
        Self {
            path: Path::new(PACE, bounds, now),
            now,
            underlay,
            answers: Vec::new(),
            dice: seed,
            sent: 0,
        }
    }

    /// Knuth's MMIX constants.
    fn throw(&mut self) -> u32 {
        self.dice = self
            .dice
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.dice >> 32) as u32
    }

    fn pass(&mut self, time: Duration) {
        let until = self.now + time;
        loop {
            self.answers.sort();
            let answer = self.answers.first().map(|(at, _)| *at);
            let due = self.path.due();
            let next = answer.map_or(due, |at| at.min(due)).max(self.now);
            if next > until {
                self.now = until;
                return;
            }
            self.now = next;
            if answer.is_some_and(|at| at <= next) {
                let (_, number) = self.answers.remove(0);
                assert!(self.path.heard(number, next) || self.underlay.takes > PACE.interval);
                continue;
            }
            self.path.expire(next);
            let draw = self.throw();
            for question in self.path.start_round(next, draw) {
                self.sent += 1;
                let fits = match question.size {
                    Size::Small => true,
                    Size::Exactly(size) => size <= self.underlay.carries,
                };
                let survives = self.throw() % 1000 >= self.underlay.lost;
                if fits && survives && self.underlay.answers {
                    self.answers
                        .push((next + self.underlay.takes, question.number));
                }
            }
        }
    }

    fn told(&self) -> (State, usize) {
        (self.path.state(), self.path.mtu())
    }
}

const MINUTE: Duration = Duration::from_secs(60);

#[test]
fn a_path_as_wide_as_the_underlay_says_is_good_after_two_rounds() {
    let mut world = World::new(Underlay::carrying(CEILING), 1);
    world.pass(Duration::from_millis(10));
    assert_eq!(world.told(), (State::Good, CEILING));
    assert_eq!(world.sent, 3);
    let times = world.path.times().expect("answers came");
    assert_eq!(times.mean, Duration::from_millis(1));
}

#[test]
fn a_peer_that_never_answers_is_unknown_and_keeps_what_it_had() {
    let silent = Underlay {
        answers: false,
        ..Underlay::carrying(1300)
    };
    let mut world = World::new(silent, 1);
    world.pass(60 * MINUTE);
    assert_eq!(world.told(), (State::Unknown, CEILING));
    let rounds = 60 * 60 / 5;
    assert!(world.sent <= rounds * 4 / 3 + 1, "{} sent", world.sent);
    assert_eq!(world.path.recent().lost, world.path.recent().asked);
}

#[test]
fn a_peer_that_goes_away_keeps_what_was_found() {
    let mut world = World::new(Underlay::carrying(1400), 1);
    world.pass(MINUTE);
    assert_eq!(world.told(), (State::BlackHole, 1400));
    world.underlay.answers = false;
    world.pass(20 * MINUTE);
    assert_eq!(world.told(), (State::Silent, 1400));
    world.underlay.answers = true;
    world.pass(MINUTE);
    assert_eq!(world.told(), (State::BlackHole, 1400));
}

#[test]
fn a_path_that_shrinks_and_grows_unsaid_is_followed() {
    let mut world = World::new(Underlay::carrying(CEILING), 1);
    world.pass(MINUTE);
    world.underlay.carries = 1333;
    world.pass(Duration::from_secs(20));
    assert_eq!(world.told(), (State::BlackHole, 1333));
    world.underlay.carries = CEILING;
    world.pass(PACE.raise / 2);
    assert_eq!(world.told(), (State::BlackHole, 1333), "too early to ask");
    world.pass(PACE.raise);
    assert_eq!(world.told(), (State::Good, CEILING));
}

#[test]
fn what_the_underlay_says_holds_at_once() {
    let mut world = World::new(Underlay::carrying(CEILING), 1);
    world.pass(MINUTE);
    world.underlay.carries = 1400;
    world.path.set_ceiling(1400, world.now);
    assert_eq!(world.path.mtu(), 1400);
    world.pass(Duration::from_millis(10));
    assert_eq!(world.told(), (State::Good, 1400));
    world.underlay.carries = 9000;
    world.path.set_ceiling(9000, world.now);
    assert_eq!(world.path.mtu(), 1400, "more counts once it has passed");
    world.pass(Duration::from_millis(10));
    assert_eq!(world.told(), (State::Good, 9000));
}

#[test]
fn where_nothing_large_passes_the_least_is_kept_and_more_is_tried() {
    let mut world = World::new(Underlay::carrying(500), 1);
    world.pass(MINUTE);
    assert_eq!(world.told(), (State::BlackHole, FLOOR));
    world.underlay.carries = 900;
    world.pass(MINUTE);
    assert_eq!(world.told(), (State::BlackHole, 900));
}

#[test]
fn an_answer_that_nobody_waits_for_is_nothing() {
    let mut world = World::new(Underlay::carrying(CEILING), 1);
    assert!(!world.path.heard(0, world.now));
    world.pass(Duration::from_millis(10));
    assert!(!world.path.heard(0, world.now), "it has been heard already");
}

#[test]
fn latency_and_loss_are_told() {
    let slow = Underlay {
        takes: Duration::from_millis(40),
        lost: 200,
        ..Underlay::carrying(CEILING)
    };
    let mut world = World::new(slow, 3);
    world.pass(120 * MINUTE);
    let times = world.path.times().expect("answers came");
    assert_eq!(times.mean, Duration::from_millis(40));
    let total = world.path.total();
    // There and back are one throw.
    let share = total.lost as f64 / total.asked as f64;
    assert!((0.15..0.25).contains(&share), "{share}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn what_a_path_carries_is_found_to_the_byte(
        carries in FLOOR..=CEILING,
        later in FLOOR..=CEILING,
        millis in 0u64..250,
        lost in 0u32..50,
        seed: u64,
    ) {
        let takes = Duration::from_millis(millis);
        let mut world = World::new(Underlay { takes, lost, ..Underlay::carrying(carries) }, seed);
        // Long enough that what bad luck has hidden is asked again.
        world.pass(60 * MINUTE);
        world.underlay.lost = 0;
        world.pass(2 * PACE.raise + 2 * MINUTE);
        let state = if carries == CEILING { State::Good } else { State::BlackHole };
        prop_assert_eq!(world.told(), (state, carries));
        world.underlay.carries = later;
        world.pass(2 * PACE.raise + 2 * MINUTE);
        prop_assert_eq!(world.path.mtu(), later);
    }

    /// Whatever happens, few packets are sent.
    #[test]
    fn no_path_costs_much(
        carries in 0usize..=CEILING,
        lost in 0u32..=1000,
        seed: u64,
    ) {
        let mut world = World::new(Underlay { lost, ..Underlay::carrying(carries) }, seed);
        world.pass(60 * MINUTE);
        // 720 rounds of two, and what doubts and searches cost.
        prop_assert!(world.sent < 12_000, "{} sent", world.sent);
        prop_assert!(world.path.mtu() >= FLOOR && world.path.mtu() <= CEILING);
    }
}

//! What tracking costs: a packet, a million connections' memory, and the
//! longest that any call takes while they come, go and make room.

use std::{
    convert::Infallible,
    fs,
    hint::black_box,
    net::Ipv4Addr,
    time::{Duration, Instant},
};

use criterion::{Criterion, criterion_group};
use weft_conntrack::{Config, Owners, Says, Seen, Segment, Timeouts, Tracker};
use weft_wire::{Key, protocol};

const MANY: usize = 1_000_000;

fn tracker(capacity: usize, now: Instant) -> Tracker {
    let timeouts = Timeouts::default();
    Tracker::new(Config { capacity, timeouts }, 0x5eed, now)
}

fn key(number: usize, protocol: u8) -> Key {
    let number = u32::try_from(number).expect("few flows");
    Key {
        src: Ipv4Addr::from(0x0a00_0000 + number / 50_000).into(),
        dst: [10, 9, 0, 1].into(),
        protocol,
        src_port: u16::try_from(number % 50_000).expect("below 50 000") + 1000,
        dst_port: 80,
    }
}

fn datagram(number: usize) -> Seen {
    let key = key(number, protocol::UDP);
    Seen {
        key,
        says: Says::Udp,
    }
}

fn answer(number: usize) -> Seen {
    let there = datagram(number);
    let key = there.key.exchanged();
    Seen { key, ..there }
}

fn pass(tracker: &Tracker, seen: &Seen, now: Instant) -> bool {
    let judged = tracker.pass(seen, Owners::default(), 1, now, |_| Ok::<_, Infallible>(()));
    judged.is_ok()
}

/// The longest of many calls, and the least that all but one in a thousand
/// and one in a hundred thousand stay below.
struct Pauses(Vec<Duration>);

impl Pauses {
    fn of(count: usize, mut call: impl FnMut(usize)) -> Self {
        let timed = |number| {
            let start = Instant::now();
            call(number);
            start.elapsed()
        };
        let mut all: Vec<_> = (0..count).map(timed).collect();
        all.sort_unstable();
        Self(all)
    }

    fn tell(&self, what: &str) {
        let all = &self.0;
        let at = |out_of: usize| all[all.len() - 1 - all.len() / out_of];
        println!(
            "{what:<40} p50 {:>9.1?}  p99.9 {:>9.1?}  p99.999 {:>9.1?}  worst {:>9.1?}",
            at(2),
            at(1000),
            at(100_000),
            all[all.len() - 1]
        );
    }
}

fn resident() -> usize {
    let pages = fs::read_to_string("/proc/self/statm").expect("/proc is mounted");
    let resident = pages.split(' ').nth(1).expect("a second number");
    resident.parse::<usize>().expect("a number") * 4096
}

fn a_million() {
    let start = Instant::now();
    let tracker = tracker(MANY, start);
    let before = resident();
    let sweeps = |at: Instant| {
        Pauses::of(4096, |number| {
            let turn = Duration::from_millis(4) * u32::try_from(number).expect("few");
            tracker.sweep(at + turn);
        })
    };
    Pauses::of(MANY, |number| {
        pass(&tracker, &datagram(number), start);
    })
    .tell("a new connection");
    Pauses::of(MANY, |number| {
        pass(&tracker, &answer(number), start);
    })
    .tell("an answer");
    let mib = (resident() - before) / (1 << 20);
    println!("{} connections in {mib} MiB", tracker.count());
    sweeps(start).tell("a sweep that finds nothing");
    Pauses::of(100_000, |number| {
        pass(&tracker, &datagram(MANY + number), start);
    })
    .tell("one too many, all answered");
    let later = start + Duration::from_secs(200);
    sweeps(later).tell("a sweep while all run out");
    println!("{} connections are left", tracker.count());
    for number in 0..MANY {
        pass(&tracker, &datagram(2 * MANY + number), later);
    }
    Pauses::of(MANY, |number| {
        pass(&tracker, &datagram(4 * MANY + number), later);
    })
    .tell("a new connection that needs room");
}

fn packets(c: &mut Criterion) {
    let now = Instant::now();
    let tracker = tracker(MANY, now);
    let established = |number| {
        let says = Says::Tcp(Segment {
            flags: 0x10,
            seq: 1,
            ack: 1,
        });
        let key = key(number, protocol::TCP);
        Seen { key, says }
    };
    for number in 0..100_000 {
        pass(&tracker, &established(number), now);
    }
    c.bench_function("the same connection", |b| {
        let seen = established(7);
        b.iter(|| pass(&tracker, black_box(&seen), now));
    });
    let mut number = 0;
    c.bench_function("another of 100 000 connections", |b| {
        b.iter(|| {
            number = (number + 7919) % 100_000;
            pass(&tracker, black_box(&established(number)), now)
        });
    });
    c.bench_function("a sweep that is not due", |b| {
        b.iter(|| tracker.sweep(black_box(now)));
    });
}

criterion_group!(benches, packets);

fn main() {
    a_million();
    benches();
    Criterion::default().configure_from_args().final_summary();
}

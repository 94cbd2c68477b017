//! Many threads share a tracker, and its books stay right.

use std::{
    convert::Infallible,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use weft_conntrack::{Account, Config, Direction, Owners, Says, Seen, Timeouts, Tracker};
use weft_wire::Key;

const THREADS: u8 = 4;
const FLOWS: u16 = 5000;

fn there(last: u8, port: u16) -> Key {
    Key {
        src: [10, 0, 0, last].into(),
        dst: [10, 0, 1, 1].into(),
        protocol: 17,
        src_port: port,
        dst_port: 53,
    }
}

#[test]
fn flows_of_many_threads_are_counted_once() {
    let start = Instant::now();
    let config = Config {
        capacity: 1_000_000,
        timeouts: Timeouts::default(),
    };
    let tracker = Tracker::new(config, 9, start);
    let account = Arc::new(Account::default());
    let pass = |key: Key| {
        let owners = Owners {
            source: Some(&account),
            destination: Some(&account),
        };
        let seen = Seen {
            key,
            says: Says::Udp,
        };
        let passed = tracker.pass(&seen, owners, 1, start, |_| Ok::<_, Infallible>(()));
        assert!(passed.is_ok());
    };
    thread::scope(|scope| {
        for own in 1..=THREADS {
            let (pass, tracker) = (&pass, &tracker);
            scope.spawn(move || {
                for port in 1..=FLOWS {
                    // One of its own, and one that all threads have, from
                    // either end.
                    pass(there(own, port));
                    let shared = there(0, port);
                    pass(if own % 2 == 0 {
                        shared
                    } else {
                        shared.exchanged()
                    });
                    tracker.sweep(start + Duration::from_millis(port.into()));
                }
            });
        }
    });
    let expected = usize::from(FLOWS) * (usize::from(THREADS) + 1);
    assert_eq!(tracker.count(), expected);
    assert_eq!(account.opened() as usize, expected);
    for turn in 0..20_000 {
        let later = start + Duration::from_secs(200) + Duration::from_millis(turn * 4);
        tracker.sweep(later);
    }
    assert_eq!((tracker.count(), account.opened()), (0, 0));
}

#[test]
fn rules_are_asked_while_the_table_is_free() {
    let start = Instant::now();
    let config = Config {
        capacity: 1000,
        timeouts: Timeouts::default(),
    };
    let tracker = Tracker::new(config, 9, start);
    let pass = |key, judged: &dyn Fn() -> Result<(), ()>| {
        let seen = Seen {
            key,
            says: Says::Udp,
        };
        tracker.pass(&seen, Owners::default(), 1, start, |_| judged())
    };
    let key = there(1, 1);
    let outcome = pass(key, &|| {
        // Meanwhile the other end speaks, and its packet comes to another
        // worker.
        let other = pass(key.exchanged(), &|| Ok(()));
        assert!(other.is_ok());
        Err(())
    });
    assert!(outcome.is_ok(), "so this is an answer");
    assert_eq!(tracker.count(), 1);
    let standing = tracker.standing(key, start).expect("a connection");
    assert_eq!(
        (standing.direction, standing.state),
        (Direction::Reply, "answered")
    );
}

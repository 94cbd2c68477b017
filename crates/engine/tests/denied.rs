//! The ring of denied flows: bounded, and no packet is uncounted.

use std::{net::IpAddr, thread, time::Instant};

use weft_engine::denied::{Denial, Denied};
use weft_policy::{Decision, Flow, Reason, Transport, object::Direction};

fn denial(port: u16) -> Denial {
    let at = |last| IpAddr::from([10, 1, 0, last]);
    Denial {
        flow: Flow {
            source: at(1),
            destination: at(2),
            transport: Transport::Tcp(port),
        },
        direction: Direction::Ingress,
        decision: Decision::deny(Reason::Unruled),
        edition: 1,
        packets: 1,
        at: Instant::now(),
    }
}

fn listed(denied: &Denied) -> u64 {
    denied.flows().iter().map(|flow| flow.packets).sum()
}

#[test]
fn the_latest_are_kept_and_the_others_counted() {
    let denied = Denied::default();
    for port in 0..300 {
        denied.note(denial(port));
        denied.note(denial(port));
    }
    let flows = denied.flows();
    assert_eq!(flows.len(), 256);
    assert_eq!(flows[0].flow, denial(299).flow);
    assert_eq!((listed(&denied), denied.forgotten()), (512, 88));
}

#[test]
fn who_would_have_to_wait_counts_and_goes_on() {
    let denied = Denied::default();
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| (0..5_000).for_each(|port| denied.note(denial(port))));
        }
    });
    assert_eq!(listed(&denied) + denied.forgotten(), 20_000);
}

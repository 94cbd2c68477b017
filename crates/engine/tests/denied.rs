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
fn a_flow_that_is_denied_again_is_the_latest_and_listed_once() {
    let denied = Denied::default();
    for port in 0..256 {
        denied.note(denial(port));
    }
    // The oldest comes again after all others, and again and again among new ones.
    denied.note(denial(0));
    assert_eq!(denied.flows()[0].flow, denial(0).flow);
    for port in 300..600 {
        denied.note(denial(port));
        denied.note(denial(0));
    }
    let flows = denied.flows();
    let busiest: Vec<_> = flows
        .iter()
        .filter(|other| other.flow == denial(0).flow)
        .collect();
    assert_eq!(busiest.len(), 1);
    assert_eq!((flows.len(), busiest[0].packets), (256, 302));
    assert_eq!(listed(&denied) + denied.forgotten(), 256 + 1 + 600);
    let latest: Vec<_> = flows.iter().take(2).map(|other| other.flow).collect();
    assert_eq!(latest, [denial(0).flow, denial(599).flow]);
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

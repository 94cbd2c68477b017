//! The way out in user space, with real binaries: a pod, its forwarder, an
//! egress, and a host outside that knows no way to pods.

mod bad_input;
mod datagrams;
mod life;
mod published;
mod tcp;
mod world;

use weft_lab::{
    Ledger, exchange,
    probe::{Family, Probe},
};
use weft_testkit::needs_namespaces;

use world::{MTU, World};

#[test]
fn pods_reach_outside_and_hear_its_answers() {
    needs_namespaces!();
    let world = World::new("");
    let before = Ledger::of(&world.forwarder).expect("quiet");
    for pod in &world.pods {
        for family in Family::ALL {
            for probe in [Probe::Ping, Probe::Tcp, Probe::Udp, Probe::FullSize] {
                probe
                    .run(pod, &world.outside, family, MTU)
                    .unwrap_or_else(|error| panic!("{error:#}"));
            }
            exchange::train(pod, &world.outside, family, 1200, 30).expect("every datagram");
        }
    }
    world.check_books(&before);
    assert_eq!(world.count("tcp_opened_total"), 4);
    assert_eq!(world.count("echo_opened_total"), 4);
    assert_eq!(world.count("dropped_outside_total"), 0);
}

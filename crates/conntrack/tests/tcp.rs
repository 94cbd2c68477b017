//! TCP by its paths: how connections open, end, are cut and begin anew.

mod support;

use support::{CLIENT, FORBIDDEN, Lab, SERVER, client, server};
use weft_testkit::frames::{ACK, FIN, FrameBuilder, RST, SYN, between};

/// The client's and the server's first sequence numbers.
const ISN: u32 = 1000;
const ISS: u32 = 5000;

fn syn() -> FrameBuilder {
    client().flags(SYN).seq(ISN).ack(0)
}

fn syn_ack() -> FrameBuilder {
    server().flags(SYN | ACK).seq(ISS).ack(ISN + 1)
}

fn up() -> FrameBuilder {
    client().seq(ISN + 1).ack(ISS + 1)
}

fn down() -> FrameBuilder {
    server().seq(ISS + 1).ack(ISN + 1)
}

fn established() -> Lab {
    let mut lab = Lab::new(1000);
    for frame in [syn(), syn_ack(), up()] {
        lab.passes(&frame);
    }
    assert_eq!(lab.state(), "established");
    lab
}

/// Shows each segment and tells the state behind it.
fn states(lab: &mut Lab, frames: &[FrameBuilder]) -> Vec<&'static str> {
    let after = |frame| {
        lab.passes(frame);
        lab.state()
    };
    frames.iter().map(after).collect()
}

#[test]
fn a_handshake_is_judged_once() {
    let mut lab = Lab::new(1000);
    let seen = states(&mut lab, &[syn(), syn_ack(), up(), down()]);
    assert_eq!(
        seen,
        ["syn-sent", "syn-received", "established", "established"]
    );
    assert_eq!(lab.asked, 1);
    assert_eq!(lab.left(), 5 * 24 * 3600);
    assert!(lab.standing(&up()).is_some_and(|standing| standing.assured));
}

#[test]
fn only_what_a_bare_ack_may_change_is_unsettled() {
    let mut lab = Lab::new(1000);
    let mut settled = |frame: &FrameBuilder| lab.see(frame).map(|passed| passed.settled);
    assert_eq!(settled(&syn()), Ok(false));
    assert_eq!(settled(&syn_ack()), Ok(false));
    assert_eq!(settled(&up()), Ok(true));
    assert_eq!(settled(&up().flags(FIN | ACK)), Ok(false));
    assert_eq!(settled(&down()), Ok(true), "close-wait may last");
    assert_eq!(settled(&down().flags(FIN | ACK)), Ok(false));
    assert_eq!(settled(&up()), Ok(true), "time-wait");
}

#[test]
fn whoever_closes_first() {
    let ends = [
        [up().flags(FIN | ACK), down(), down().flags(FIN | ACK), up()],
        [down().flags(FIN | ACK), up(), up().flags(FIN | ACK), down()],
    ];
    for end in ends {
        let mut lab = established();
        let seen = states(&mut lab, &end);
        assert_eq!(seen, ["fin-wait", "close-wait", "last-ack", "time-wait"]);
        assert_eq!(lab.left(), 120);
        assert!(
            lab.standing(&up())
                .is_some_and(|standing| !standing.assured)
        );
    }
}

#[test]
fn a_fin_sent_again_is_no_answer() {
    let mut lab = established();
    let fin = up().flags(FIN | ACK);
    assert_eq!(states(&mut lab, &[fin.clone(), fin]), ["fin-wait"; 2]);
    let both = [down().flags(FIN | ACK), up()];
    assert_eq!(states(&mut lab, &both), ["last-ack", "time-wait"]);
}

#[test]
fn simultaneous_close() {
    let mut lab = established();
    let seen = states(
        &mut lab,
        &[
            up().flags(FIN | ACK),
            down().flags(FIN | ACK),
            up().seq(ISN + 2),
            down().seq(ISS + 2),
        ],
    );
    assert_eq!(seen, ["fin-wait", "last-ack", "time-wait", "time-wait"]);
}

#[test]
fn simultaneous_open() {
    let mut lab = Lab::new(1000);
    let seen = states(
        &mut lab,
        &[
            syn(),
            server().flags(SYN).seq(ISS).ack(0),
            client().flags(SYN | ACK).seq(ISN).ack(ISS + 1),
            server().flags(SYN | ACK).seq(ISS).ack(ISN + 1),
        ],
    );
    let expected = ["syn-sent", "syn-crossed", "syn-received", "established"];
    assert_eq!(seen, expected);
    assert_eq!(lab.asked, 2, "each SYN is an opening of its own");
}

#[test]
fn a_syn_the_other_way_is_judged_in_every_state() {
    let backward = server().flags(SYN).seq(ISS).ack(0);
    let mut lab = Lab::new(1000);
    lab.silence(SERVER);
    lab.passes(&syn());
    assert_eq!(lab.see(&backward), FORBIDDEN);
    assert_eq!(lab.state(), "syn-sent", "the client's own goes on");
    assert_eq!(
        states(&mut lab, &[syn_ack(), up()]),
        ["syn-received", "established"]
    );
    assert_eq!(lab.see(&backward), FORBIDDEN);
    lab.passes(&down());
}

#[test]
fn a_syn_sent_again_may_be_anothers() {
    let mut lab = Lab::new(1000);
    let again = syn().seq(77);
    let seen = states(
        &mut lab,
        &[
            syn(),
            syn(),
            again,
            server().flags(SYN | ACK).seq(ISS).ack(78),
        ],
    );
    assert_eq!(seen, ["syn-sent", "syn-sent", "syn-sent", "syn-received"]);
    assert_eq!(lab.asked, 1);
}

#[test]
fn an_answer_must_acknowledge_the_syn() {
    let mut lab = Lab::new(1000);
    let seen = states(
        &mut lab,
        &[
            syn(),
            server().flags(SYN | ACK).seq(ISS).ack(ISN),
            server().flags(RST | ACK).seq(0).ack(ISN),
            server().flags(RST).seq(0).ack(ISN + 1),
            server().flags(RST | ACK).seq(0).ack(ISN + 1),
        ],
    );
    assert_eq!(
        seen,
        ["syn-sent", "syn-sent", "syn-sent", "syn-sent", "closed"]
    );
    assert_eq!(lab.left(), 10);
}

#[test]
fn data_may_go_with_the_syn() {
    let mut lab = Lab::new(1000);
    let answer = server().flags(SYN | ACK).seq(ISS).ack(ISN + 1 + 500);
    let seen = states(&mut lab, &[syn().filled(500), answer, up()]);
    assert_eq!(seen, ["syn-sent", "syn-received", "established"]);
}

#[test]
fn sequence_numbers_wrap() {
    let mut lab = Lab::new(1000);
    let seen = states(
        &mut lab,
        &[
            syn().seq(u32::MAX),
            server().flags(SYN | ACK).seq(ISS).ack(0),
            client().seq(0).ack(ISS + 1),
            server().flags(RST).seq(u32::MAX - 5),
        ],
    );
    let expected = ["syn-sent", "syn-received", "established", "established"];
    assert_eq!(
        seen, expected,
        "the reset lies before what was acknowledged"
    );
}

#[test]
fn a_port_is_used_again_in_time_wait() {
    for over in ["time-wait", "closed"] {
        let mut lab = established();
        if over == "closed" {
            lab.passes(&up().flags(RST));
        } else {
            let end = [up().flags(FIN | ACK), down().flags(FIN | ACK), up()];
            states(&mut lab, &end);
        }
        assert_eq!(lab.state(), over);
        lab.passes(&syn().seq(9_000_000));
        assert_eq!((lab.state(), lab.asked), ("syn-sent", 2));
    }
}

#[test]
fn a_port_used_again_the_other_way_is_another_connection() {
    let mut lab = established();
    lab.passes(&up().flags(RST));
    lab.passes(&server().flags(SYN).seq(1).ack(0));
    let standing = lab.standing(&server()).expect("a connection");
    assert_eq!(standing.direction, weft_conntrack::Direction::Original);
    lab.silence(CLIENT);
    lab.passes(&client().flags(SYN | ACK).seq(1).ack(2));
}

#[test]
fn a_forbidden_syn_leaves_time_wait_alone() {
    let mut lab = established();
    states(
        &mut lab,
        &[up().flags(FIN | ACK), down().flags(FIN | ACK), up()],
    );
    lab.silenced.insert(CLIENT.into());
    assert_eq!(lab.see(&syn()), FORBIDDEN);
    assert_eq!(lab.state(), "time-wait");
}

#[test]
fn half_close_and_a_long_silence() {
    let mut lab = established();
    lab.silenced.insert(SERVER.into());
    states(&mut lab, &[up().flags(FIN | ACK), down()]);
    for _ in 0..10 {
        lab.wait(60);
        assert_eq!(lab.state(), "close-wait", "data keeps it");
        lab.passes(&down().filled(100));
    }
    lab.wait(61);
    assert_eq!(lab.state(), "none");
    assert_eq!(
        lab.see(&down().filled(100)),
        FORBIDDEN,
        "now it is a stranger's"
    );
    lab.passes(&up());
    lab.passes(&down().filled(100));
    assert_eq!(lab.state(), "established", "joined midway");
}

#[test]
fn a_connection_joined_midway_needs_an_answer() {
    let mut lab = Lab::new(1000);
    lab.passes(&up().filled(10));
    assert_eq!((lab.state(), lab.left()), ("established", 300));
    lab.passes(&down());
    assert_eq!(lab.left(), 5 * 24 * 3600);
}

#[test]
fn what_opens_nothing_leaves_no_trace() {
    let mut lab = Lab::new(1000);
    for frame in [
        up().flags(RST),
        down().flags(SYN | ACK),
        up().flags(RST | SYN),
    ] {
        lab.passes(&frame);
        assert_eq!((lab.state(), lab.tracker.count()), ("none", 0));
    }
    lab.silence(CLIENT);
    assert_eq!(lab.see(&up().flags(RST)), FORBIDDEN, "but it is judged");
}

#[test]
fn a_reset_before_what_its_receiver_acknowledged_is_not_believed() {
    let mut lab = established();
    lab.passes(&up().ack(ISS + 5001));
    lab.passes(&down().flags(RST).seq(ISS + 1));
    assert_eq!(lab.state(), "established");
    lab.passes(&down().flags(RST).seq(ISS + 5001));
    assert_eq!((lab.state(), lab.left()), ("closed", 10));
}

#[test]
fn a_reset_that_its_receiver_ignores_is_taken_back() {
    let mut lab = established();
    lab.passes(&down().flags(RST).seq(ISS + 100_000));
    assert_eq!(lab.state(), "closed");
    lab.wait(1);
    lab.passes(&up());
    assert_eq!(lab.state(), "closed", "it may have been under way");
    lab.wait(1);
    lab.passes(&down());
    assert_eq!(lab.state(), "closed", "who resets may not take it back");
    lab.passes(&up());
    assert_eq!((lab.state(), lab.left()), ("established", 5 * 24 * 3600));
}

#[test]
fn what_comes_after_a_reset_does_not_keep_the_connection() {
    let mut lab = established();
    lab.passes(&up().flags(RST));
    for _ in 0..10 {
        lab.passes(&up());
        lab.wait(1);
    }
    lab.wait(1);
    assert_eq!(lab.state(), "none");
}

#[test]
fn states_have_the_kernels_timeouts() {
    let mut lab = Lab::new(1000);
    let mut left = |frame: &FrameBuilder| {
        lab.passes(frame);
        lab.left()
    };
    let fins = [up().flags(FIN | ACK), down().flags(FIN | ACK)];
    assert_eq!([&syn(), &syn_ack()].map(&mut left), [120, 60]);
    assert_eq!(
        [&up(), &fins[0], &down()].map(&mut left),
        [432_000, 120, 60]
    );
    assert_eq!([&fins[1], &up()].map(&mut left), [30, 120]);
}

#[test]
fn six_speaks_as_four() {
    let (a, b) = (
        [0xfd00u16, 0, 0, 0, 0, 0, 0, 1],
        [0xfd00u16, 0, 0, 0, 0, 0, 0, 2],
    );
    let mut lab = Lab::new(1000);
    let there = between(a, b).tcp(9, 80);
    let back = between(b, a).tcp(80, 9);
    lab.silenced.insert(b.into());
    assert_eq!(lab.see(&back), FORBIDDEN);
    lab.passes(&there.clone().flags(SYN).seq(1).ack(0));
    lab.passes(&back.flags(SYN | ACK).seq(7).ack(2));
    lab.passes(&there.seq(2).ack(8));
    let standing = lab.standing(&there_again(a, b)).expect("a connection");
    assert_eq!(standing.state, "established");
}

fn there_again(a: [u16; 8], b: [u16; 8]) -> FrameBuilder {
    between(a, b).tcp(9, 80)
}

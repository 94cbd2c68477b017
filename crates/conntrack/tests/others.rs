//! UDP, ICMP, SCTP and the rest; rules that change; full tables.

mod support;

use std::{net::Ipv4Addr, sync::Arc, time::Duration};

use support::{CLIENT, FORBIDDEN, Lab, SERVER, UNRELATED, client, server};
use weft_conntrack::{Account, Refused, Standing};
use weft_testkit::frames::{ACK, FrameBuilder, SYN, between};
use weft_wire::ETHERNET_LEN;

fn query() -> FrameBuilder {
    between(CLIENT, SERVER).udp(5000, 53).filled(20)
}

fn answer() -> FrameBuilder {
    between(SERVER, CLIENT).udp(53, 5000).filled(20)
}

/// An ICMP error of `from` to `to` that quotes a frame's IP packet.
fn error(from: Ipv4Addr, to: Ipv4Addr, about: &FrameBuilder) -> FrameBuilder {
    let quote = &about.build()[ETHERNET_LEN..];
    let quote = &quote[..quote.len().min(28)];
    between(from, to).icmp(3, 3, [0; 4]).payload(quote)
}

#[test]
fn udp_is_unanswered_and_then_answered() {
    let mut lab = Lab::new(1000);
    lab.silenced.insert(SERVER.into());
    assert_eq!(lab.see(&answer()), FORBIDDEN);
    lab.passes(&query());
    let before = lab.standing(&query()).expect("a connection");
    assert_eq!(
        (before.state, before.assured, before.left),
        ("unanswered", false, 31)
    );
    lab.passes(&answer());
    let after = lab.standing(&query()).expect("a connection");
    assert_eq!(
        (after.state, after.assured, after.left),
        ("answered", true, 121)
    );
    lab.wait(121);
    assert_eq!(lab.see(&answer()), FORBIDDEN, "it is forgotten");
}

#[test]
fn no_connection_is_forgotten_early() {
    let mut lab = Lab::new(1000);
    lab.now += Duration::from_millis(999);
    lab.passes(&query());
    lab.wait(30);
    assert!(lab.standing(&query()).is_some());
    lab.wait(1);
    assert!(lab.standing(&query()).is_none());
}

#[test]
fn an_echo_is_found_by_its_identifier() {
    let mut lab = Lab::new(1000);
    let reply = |id: u8| between(SERVER, CLIENT).icmp(0, 0, [0, id, 0, 1]);
    assert_eq!(lab.see(&reply(7)), UNRELATED);
    lab.passes(&between(CLIENT, SERVER).echo_request(7, 1));
    lab.passes(&reply(7));
    assert_eq!(lab.see(&reply(8)), UNRELATED);
    lab.wait(31);
    assert_eq!(lab.see(&reply(7)), UNRELATED);
    assert_eq!(lab.asked, 1, "no answer is judged");
}

#[test]
fn other_icmp_is_no_echo() {
    let (a, b) = (
        [0xfd00u16, 0, 0, 0, 0, 0, 0, 1],
        [0xfd00u16, 0, 0, 0, 0, 0, 0, 2],
    );
    for (there, back, kinds) in [
        (
            between(CLIENT, SERVER),
            between(SERVER, CLIENT),
            [13, 14, 0],
        ),
        (between(a, b), between(b, a), [144, 145, 129]),
    ] {
        let mut lab = Lab::new(1000);
        let [asks, tells, replies] = kinds;
        lab.passes(&there.clone().icmp(asks, 0, [0; 4]));
        let reply = back.clone().icmp(replies, 0, [0; 4]);
        assert_eq!(lab.see(&reply), UNRELATED);
        lab.passes(&there.echo_request(0, 1));
        lab.passes(&reply);
        lab.passes(&back.icmp(tells, 0, [0; 4]));
        assert_eq!((lab.asked, lab.tracker.count()), (2, 2));
    }
}

#[test]
fn a_request_the_other_way_is_judged() {
    let mut lab = Lab::new(1000);
    let there = between(CLIENT, SERVER);
    lab.passes(&there.clone().echo_request(7, 1));
    lab.passes(&between(SERVER, CLIENT).echo_request(7, 1));
    lab.passes(&there.icmp(0, 0, [0, 7, 0, 1]));
    assert_eq!(lab.asked, 2);
    lab.silenced.insert(SERVER.into());
    let outcome = lab.see(&between(SERVER, CLIENT).echo_request(7, 2));
    assert_eq!(outcome, FORBIDDEN);
}

#[test]
fn an_error_belongs_to_the_connection_that_it_quotes() {
    let mut lab = Lab::new(1000);
    let router = Ipv4Addr::new(192, 0, 2, 1);
    assert_eq!(lab.see(&error(router, CLIENT, &query())), UNRELATED);
    lab.passes(&query());
    lab.passes(&error(router, CLIENT, &query()));
    lab.passes(&error(SERVER, CLIENT, &query()));
    lab.passes(&error(router, SERVER, &answer()));
    let other = between(CLIENT, SERVER).udp(5001, 53).filled(20);
    assert_eq!(lab.see(&error(router, CLIENT, &other)), UNRELATED);
    let wrong_way = error(router, SERVER, &query());
    assert_eq!(
        lab.see(&wrong_way),
        UNRELATED,
        "the server sent no such packet"
    );
    assert_eq!(lab.asked, 1);
}

#[test]
fn an_error_about_a_ping_or_a_tcp_segment() {
    let mut lab = Lab::new(1000);
    let ping = between(CLIENT, SERVER).echo_request(7, 1);
    let segment = client().flags(SYN).ack(0);
    for frame in [&ping, &segment] {
        assert_eq!(lab.see(&error(SERVER, CLIENT, frame)), UNRELATED);
        lab.passes(frame);
        lab.passes(&error(SERVER, CLIENT, frame));
    }
    let redirect = between(SERVER, CLIENT).icmp(5, 0, [0; 4]);
    let redirect = redirect.payload(&segment.build()[ETHERNET_LEN..]);
    assert_eq!(lab.see(&redirect), UNRELATED);
    let cut = between(SERVER, CLIENT)
        .icmp(3, 3, [0; 4])
        .payload(&[0x45; 19]);
    assert_eq!(lab.see(&cut), UNRELATED);
}

#[test]
fn an_error_about_a_forbidden_connection_is_a_strangers() {
    let mut lab = Lab::new(1000);
    lab.passes(&query());
    lab.silence(CLIENT);
    assert_eq!(lab.see(&query()), FORBIDDEN);
    assert_eq!(lab.see(&error(SERVER, CLIENT, &query())), FORBIDDEN);
}

#[test]
fn an_error_comes_under_the_rules_in_force() {
    let mut lab = Lab::new(1000);
    lab.passes(&query());
    lab.silence(CLIENT);
    assert_eq!(lab.see(&error(SERVER, CLIENT, &query())), FORBIDDEN);
    assert_eq!(lab.see(&answer()), FORBIDDEN);
    lab.silenced.clear();
    lab.edition += 1;
    lab.passes(&error(SERVER, CLIENT, &query()));
    lab.silence(SERVER);
    lab.passes(&error(SERVER, CLIENT, &query()));
}

#[test]
fn an_error_keeps_no_connection() {
    let mut lab = Lab::new(1000);
    lab.passes(&query());
    lab.wait(20);
    lab.passes(&error(SERVER, CLIENT, &query()));
    let standing = lab.standing(&query()).expect("a connection");
    assert_eq!((standing.state, standing.left), ("unanswered", 11));
    lab.passes(&client().flags(SYN).ack(0));
    lab.silence(CLIENT);
    assert_eq!(lab.see(&client()), FORBIDDEN);
    lab.wait(200);
    let about = error(SERVER, CLIENT, &client().flags(SYN).ack(0));
    assert_eq!(lab.see(&about), FORBIDDEN);
    assert_eq!(lab.left(), 100);
}

#[test]
fn an_error_about_another_pods_connection_is_a_strangers() {
    let mut lab = Lab::new(1000);
    for who in [CLIENT, SERVER] {
        lab.accounts = vec![
            (CLIENT.into(), Arc::default()),
            (SERVER.into(), Arc::default()),
        ];
        lab.passes(&query());
        lab.passes(&error(SERVER, CLIENT, &query()));
        let other = lab.accounts.iter_mut().find(|(address, _)| *address == who);
        other.expect("an account").1 = Arc::default();
        assert_eq!(lab.see(&error(SERVER, CLIENT, &query())), UNRELATED);
    }
}

fn sctp(from: Ipv4Addr, to: Ipv4Addr, ports: [u8; 2], chunk: u8) -> FrameBuilder {
    let [src, dst] = ports;
    let packet = [0, src, 0, dst, 0, 0, 0, 9, 0, 0, 0, 0, chunk, 0, 0, 4];
    between(from, to).protocol(132).payload(&packet)
}

#[test]
fn sctp_by_its_chunks() {
    let there = |chunk| sctp(CLIENT, SERVER, [9, 80], chunk);
    let back = |chunk| sctp(SERVER, CLIENT, [80, 9], chunk);
    let mut lab = Lab::new(1000);
    lab.silenced.insert(SERVER.into());
    let steps = [
        (there(1), "opening", 10),
        (back(2), "opening", 10),
        (there(10), "opening", 10),
        (back(11), "established", 210),
        (there(0), "established", 210),
        (back(7), "closing", 3),
        (there(8), "closing", 3),
        (back(14), "closed", 10),
    ];
    assert_eq!(lab.see(&back(0)), FORBIDDEN);
    for (frame, state, left) in steps {
        lab.passes(&frame);
        let standing = lab.standing(&there(0)).expect("an association");
        assert_eq!((standing.state, standing.left), (state, left + 1));
    }
    assert_eq!(lab.see(&back(1)), FORBIDDEN, "an INIT is judged");
    lab.passes(&there(1));
    let standing = lab.standing(&there(0)).expect("an association");
    assert_eq!(standing.state, "opening");
    lab.passes(&back(6));
    let standing = lab.standing(&there(0)).expect("an association");
    assert_eq!(standing.state, "closed");
}

#[test]
fn whatever_has_no_ports_is_known_by_its_ends() {
    let mut lab = Lab::new(1000);
    lab.silenced.insert(SERVER.into());
    let gre = |from, to| between(from, to).protocol(47).filled(8);
    assert_eq!(lab.see(&gre(SERVER, CLIENT)), FORBIDDEN);
    lab.passes(&gre(CLIENT, SERVER));
    lab.passes(&gre(SERVER, CLIENT));
    lab.wait(601);
    assert_eq!(lab.see(&gre(SERVER, CLIENT)), FORBIDDEN);
}

#[test]
fn new_rules_judge_what_is_there_by_who_opened_it() {
    let mut lab = Lab::new(1000);
    for frame in [
        client().flags(SYN).seq(1).ack(0),
        server().flags(SYN | ACK).seq(1).ack(2),
        client().seq(2).ack(2),
    ] {
        lab.passes(&frame);
    }
    lab.silence(SERVER);
    lab.passes(&server());
    assert_eq!((lab.asked, lab.state()), (2, "established"));
    lab.passes(&server());
    assert_eq!(lab.asked, 2, "once for each edition");
    lab.silence(CLIENT);
    lab.silenced.remove(&SERVER.into());
    assert_eq!(lab.see(&server()), FORBIDDEN, "an answer is no opening");
    assert_eq!((lab.state(), lab.left()), ("forbidden", 300));
    for _ in 0..5 {
        lab.wait(200);
        assert_eq!(lab.see(&server()), FORBIDDEN, "however long it tries");
    }
    lab.silenced.clear();
    lab.edition += 1;
    lab.passes(&server());
    assert_eq!(lab.state(), "established", "and is back when it may");
}

#[test]
fn over_a_forbidden_connection_another_may_open() {
    let mut lab = Lab::new(1000);
    lab.passes(&client());
    lab.silence(CLIENT);
    assert_eq!(lab.see(&client()), FORBIDDEN);
    assert_eq!(lab.see(&client().flags(SYN)), FORBIDDEN);
    assert_eq!(lab.state(), "forbidden");
    lab.passes(&server().flags(SYN).ack(0));
    assert_eq!(lab.state(), "syn-sent");
}

#[test]
fn a_forbidden_udp_flow_ends_and_the_other_end_may_begin() {
    let mut lab = Lab::new(1000);
    lab.passes(&query());
    lab.passes(&answer());
    lab.silence(CLIENT);
    for _ in 0..30 {
        assert_eq!(lab.see(&answer()), FORBIDDEN);
        assert_eq!(lab.see(&query()), FORBIDDEN);
        lab.wait(1);
    }
    lab.wait(1);
    assert_eq!(lab.see(&query()), FORBIDDEN);
    lab.passes(&answer());
}

#[test]
fn a_forbidden_connection_makes_no_room() {
    for limit in [100, 20] {
        let mut lab = Lab::new(20);
        lab.accounts = vec![(CLIENT.into(), Arc::new(Account::new(limit)))];
        for frame in [
            client().flags(SYN).seq(1).ack(0),
            server().flags(SYN | ACK).seq(1).ack(2),
            client().seq(2).ack(2),
            query(),
            answer(),
        ] {
            lab.passes(&frame);
        }
        lab.silence(CLIENT);
        assert_eq!(lab.see(&server()), FORBIDDEN);
        assert_eq!(lab.see(&answer()), FORBIDDEN);
        lab.silenced.clear();
        (100..200).for_each(|port| lab.passes(&flow(port)));
        lab.silence(CLIENT);
        assert_eq!(lab.see(&server()), FORBIDDEN, "still no opening");
        assert_eq!(lab.see(&answer()), FORBIDDEN);
    }
}

fn flow(port: u16) -> FrameBuilder {
    between(CLIENT, SERVER).udp(port, 53)
}

fn back(port: u16) -> FrameBuilder {
    between(SERVER, CLIENT).udp(53, port)
}

#[test]
fn a_full_table_gives_up_what_nobody_answered() {
    let mut lab = Lab::new(100);
    for port in 1..=100 {
        lab.passes(&flow(port));
        if port <= 50 {
            lab.passes(&back(port));
        }
        lab.wait(u64::from(port == 51));
    }
    for port in 1001..=1500 {
        lab.passes(&flow(port));
    }
    assert_eq!(lab.tracker.count(), 100);
    let is_known = |port| lab.standing(&flow(port)).is_some();
    assert!((1..=50).all(is_known), "the answered stay");
    assert!(!is_known(51), "the one that runs out first went first");
}

#[test]
fn a_table_full_of_answered_flows_takes_no_more_until_some_run_out() {
    let mut lab = Lab::new(100);
    for port in 1..=100 {
        lab.passes(&flow(port));
        lab.passes(&back(port));
    }
    assert_eq!(lab.see(&flow(200)), Err(Refused::Full));
    assert_eq!(lab.tracker.count(), 100);
    lab.passes(&flow(7));
    lab.wait(121);
    lab.passes(&flow(200));
}

#[test]
fn a_pod_gives_up_its_own_first() {
    let mut lab = Lab::new(10_000);
    let (small, large) = (Arc::new(Account::new(10)), Arc::new(Account::default()));
    lab.accounts = vec![
        (CLIENT.into(), Arc::clone(&small)),
        (SERVER.into(), Arc::clone(&large)),
    ];
    let others = |port| between(SERVER, Ipv4Addr::new(10, 0, 0, 3)).udp(port, 53);
    (1..=20).for_each(|port| lab.passes(&others(port)));
    for port in 1..=10 {
        lab.passes(&flow(port));
        lab.passes(&back(port));
    }
    assert_eq!((small.opened(), large.opened()), (10, 20));
    assert_eq!(lab.see(&flow(11)), Err(Refused::AccountFull));
    lab.passes(&between(SERVER, CLIENT).udp(9, 9));
    assert_eq!(
        (small.opened(), large.opened()),
        (10, 21),
        "who opens it has it"
    );
    lab.wait(121);
    (1..=30).for_each(|port| lab.passes(&flow(port)));
    assert_eq!(small.opened(), 10, "the unanswered make room");
    lab.wait(1000);
    lab.sweep();
    assert_eq!(
        (lab.tracker.count(), small.opened(), large.opened()),
        (0, 0, 0)
    );
}

#[test]
fn an_address_does_not_inherit_connections() {
    let mut lab = Lab::new(1000);
    lab.accounts = vec![(CLIENT.into(), Arc::default())];
    lab.silenced.insert(SERVER.into());
    lab.passes(&query());
    lab.passes(&answer());
    lab.accounts = vec![(CLIENT.into(), Arc::default())];
    assert_eq!(lab.see(&answer()), FORBIDDEN, "another pod has the address");
    lab.passes(&query());
    assert_eq!(lab.accounts[0].1.opened(), 1);
    assert_eq!(lab.tracker.count(), 1);
}

#[test]
fn an_address_at_the_other_end_does_not_inherit_them_either() {
    let mut lab = Lab::new(1000);
    lab.accounts = vec![
        (CLIENT.into(), Arc::default()),
        (SERVER.into(), Arc::default()),
    ];
    lab.silenced.insert(SERVER.into());
    lab.passes(&query());
    lab.passes(&answer());
    lab.accounts[1].1 = Arc::default();
    assert_eq!(lab.see(&answer()), FORBIDDEN, "another pod has the address");
    lab.passes(&query());
    lab.accounts.pop();
    assert_eq!(lab.see(&answer()), FORBIDDEN, "it is elsewhere");
    assert_eq!(lab.asked, 4);
}

#[test]
fn what_strangers_open_takes_nothing_of_what_a_pod_may_open() {
    let mut lab = Lab::new(10_000);
    let account = Arc::new(Account::new(10));
    lab.accounts = vec![(SERVER.into(), Arc::clone(&account))];
    for port in 1..=20 {
        let outcome = lab.see(&flow(port));
        assert_eq!(outcome.is_ok(), port <= 10, "{outcome:?}");
        if port <= 10 {
            lab.passes(&back(port));
        }
    }
    assert_eq!((account.accepted(), account.opened()), (10, 0));
    let own = |port| between(SERVER, Ipv4Addr::new(10, 0, 0, 3)).udp(port, 53);
    (1..=10).for_each(|port| lab.passes(&own(port)));
    assert_eq!((account.accepted(), account.opened()), (10, 10));
}

#[test]
fn a_pod_without_a_limit_of_its_own_has_a_share() {
    let mut lab = Lab::new(80);
    let account = Arc::default();
    lab.accounts = vec![(CLIENT.into(), Arc::clone(&account))];
    for port in 1..=10 {
        lab.passes(&flow(port));
        lab.passes(&back(port));
    }
    assert_eq!(lab.see(&flow(11)), Err(Refused::AccountFull));
    assert_eq!(account.opened(), 10);
}

/// Forty-eight shards.
const LARGE: usize = 200_000;

#[test]
fn a_pod_finds_room_among_all_of_its_own() {
    let mut lab = Lab::new(LARGE);
    let account = Arc::new(Account::new(50));
    lab.accounts = vec![(CLIENT.into(), Arc::clone(&account))];
    (1..=2000).for_each(|port| lab.passes(&flow(port)));
    assert_eq!((account.opened(), lab.tracker.count()), (50, 50));
    let is_known = |port: &u16| lab.standing(&flow(*port)).is_some();
    let known: Vec<_> = (1..=2000).filter(is_known).collect();
    known.iter().for_each(|port| lab.passes(&back(*port)));
    assert_eq!(lab.see(&flow(3000)), Err(Refused::AccountFull));
    assert_eq!((account.opened(), lab.tracker.count()), (50, 50));
}

#[test]
fn a_full_table_of_many_shards_finds_the_one_that_makes_room() {
    let mut lab = Lab::new(LARGE);
    let from = |n: usize| {
        let (high, port) = (n / 50_000, n % 50_000 + 1);
        let address = Ipv4Addr::new(10, 1, 0, u8::try_from(high).expect("few"));
        (address, u16::try_from(port).expect("16 bits"))
    };
    for n in 0..LARGE {
        let (address, port) = from(n);
        lab.passes(&between(address, SERVER).udp(port, 53));
        if n >= 5 {
            lab.passes(&between(SERVER, address).udp(53, port));
        }
    }
    let (mut passed, mut refused) = (0, 0);
    while passed < 5 {
        match lab.see(&flow(passed + 1)) {
            Ok(_) => {
                lab.passes(&back(passed + 1));
                passed += 1;
            }
            Err(error) => {
                assert_eq!(error, Refused::Full);
                refused += 1;
                assert!(refused < 5 * 512, "its repetitions look on");
            }
        }
        assert_eq!(lab.tracker.count(), LARGE);
    }
    assert_eq!(lab.see(&flow(6)), Err(Refused::Full));
}

#[test]
fn what_is_refused_gives_up_nothing() {
    let mut lab = Lab::new(2);
    let account = Arc::new(Account::new(1));
    lab.accounts = vec![(CLIENT.into(), Arc::clone(&account))];
    lab.passes(&query());
    lab.passes(&answer());
    lab.silence(CLIENT);
    assert_eq!(lab.see(&answer()), FORBIDDEN);
    lab.silenced.clear();
    lab.edition += 1;
    lab.accounts = vec![(CLIENT.into(), Arc::new(Account::new(0)))];
    assert_eq!(lab.see(&query()), Err(Refused::AccountFull));
    assert_eq!((lab.tracker.count(), account.opened()), (1, 1), "it stays");
    lab.accounts = vec![(CLIENT.into(), Arc::clone(&account))];
    lab.passes(&answer());
}

#[test]
fn a_hundred_thousand_flows_are_forgotten() {
    let mut lab = Lab::new(200_000);
    for n in 0..100_000_u32 {
        let port = u16::try_from(n % 50_000).expect("16 bits") + 1;
        let last = u8::try_from(n / 50_000).expect("two addresses") + 1;
        lab.passes(&between(Ipv4Addr::new(10, 1, 0, last), SERVER).udp(port, 53));
    }
    assert_eq!(lab.tracker.count(), 100_000);
    lab.wait(31);
    let known: Option<Standing> = lab.standing(&between([10, 1, 0, 1], SERVER).udp(1, 53));
    assert_eq!(known, None, "before any sweep");
    // Each sweep removes at most 256 of one shard.
    (0..10).for_each(|_| lab.sweep());
    assert_eq!(lab.tracker.count(), 0);
}

#[test]
fn rare_sweeps_have_every_shard_in_turn() {
    let mut lab = Lab::new(200_000);
    (1..=2000).for_each(|port| lab.passes(&flow(port)));
    for _ in 0..300 {
        lab.wait(1);
        lab.tracker.sweep(lab.now);
    }
    assert_eq!(lab.tracker.count(), 0);
}

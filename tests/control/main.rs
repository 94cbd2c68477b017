//! A running forwarder as its clients and operators meet it, whatever they do:
//! each refusal has its type, and changes nothing.

mod attach;
mod follow;
mod life;
mod metrics;
mod operator;
mod policy;
mod protocol;
mod register;
mod server;
mod watch;

use std::{
    io::{ErrorKind, Write},
    net::Shutdown,
    time::{Duration, Instant},
};

use weft_api::forwarder::{Answer, Code, REQUEST_MAX, Reply};

use server::{Client, LIMIT, Server};

/// Checks that the client is still in step with the forwarder.
fn in_step(client: &mut Client) {
    assert!(matches!(client.ok(r#"{"op":"status"}"#), Reply::Status(_)));
}

#[test]
fn malformed_lines_are_told_and_the_stream_stays_in_step() {
    let server = Server::start();
    let mut client = server.client();
    for line in [
        "",
        "hello",
        "{",
        "[1]",
        "null",
        r#"{"name":"x"}"#,
        "\u{7f}",
        r#"{"op":{}}"#,
    ] {
        assert_eq!(client.refused(line), Code::Malformed, "{line}");
    }
    client.send(b"\xff\xfe\x00\n");
    assert_eq!(client.refusal(), Code::Malformed);
    in_step(&mut client);
    assert_eq!(server.list(), []);
}

#[test]
fn unknown_and_invalid_requests_are_told_apart() {
    let server = Server::start();
    let mut client = server.client();
    assert_eq!(client.refused(r#"{"op":"reboot"}"#), Code::Unknown);
    for line in [
        r#"{"op":"list","all":true}"#,
        r#"{"op":"detach"}"#,
        r#"{"op":"detach","name":"no spaces"}"#,
        r#"{"op":"attach","name":"a"}"#,
        r#"{"op":"attach","name":"a","driver":"tap","mac":"02:00:00:00:00","addresses":[],"mtu":1}"#,
        r#"{"op":"apply","node":{"name":"n1","underlay":[],"vtep_mac":"02:00:00:00:00:01","vni":16777216}}"#,
    ] {
        assert_eq!(client.refused(line), Code::Invalid, "{line}");
    }
    assert_eq!(
        client.refused(r#"{"op":"detach","name":"nobody"}"#),
        Code::NotFound
    );
    in_step(&mut client);
    assert_eq!(server.list(), []);
}

#[test]
fn an_oversized_line_is_told_once_and_swallowed() {
    let server = Server::start();
    let mut client = server.client();
    client.send(vec![b' '; REQUEST_MAX]);
    let Answer::Error(refused) = client.answer() else {
        panic!("a line that long was taken");
    };
    assert_eq!(refused.code, Code::Oversized);
    assert!(refused.hint.contains("`policies` in parts"), "{refused:?}");
    client.send(vec![b' '; REQUEST_MAX]);
    client.send("\n");
    in_step(&mut client);
    // The longest line that is allowed.
    let mut line = br#"{"op":"list"}"#.to_vec();
    line.resize(REQUEST_MAX - 1, b' ');
    line.push(b'\n');
    client.send(line);
    assert!(matches!(client.answer(), Answer::Ok(Reply::Ports(_))));
}

#[test]
fn a_line_may_come_in_pieces() {
    let server = Server::start();
    let mut client = server.client();
    for byte in br#"{"op":"status"}"#.iter().chain(b"\n") {
        client.send([*byte]);
        std::thread::yield_now();
    }
    assert!(matches!(client.answer(), Answer::Ok(Reply::Status(_))));
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    let server = Server::start();
    let mut client = server.client();
    let round = "{\"op\":\"list\"}\n{\"op\":\"peers\"}\n{\"op\":\"no\"}\n{\"op\":\"drops\"}\n";
    client.send(round.repeat(200));
    client.stream.shutdown(Shutdown::Write).expect("shut down");
    for _ in 0..200 {
        assert!(matches!(client.answer(), Answer::Ok(Reply::Ports(_))));
        assert!(matches!(client.answer(), Answer::Ok(Reply::Peers(_))));
        assert_eq!(client.refusal(), Code::Unknown);
        assert!(matches!(client.answer(), Answer::Ok(Reply::Drops(_))));
    }
    assert!(
        client.try_answer().is_none(),
        "after the last answer it hangs up"
    );
}

#[test]
fn a_client_that_never_reads_is_dropped_and_holds_nobody_up() {
    let server = Server::start();
    let mut deaf = server.client();
    deaf.stream
        .set_nonblocking(true)
        .expect("make it non-blocking");
    let mut other = server.client();
    let request = b"{\"op\":\"drops\"}\n".repeat(100);
    let until = Instant::now() + LIMIT;
    let end = loop {
        assert!(Instant::now() < until, "it was never dropped");
        in_step(&mut other);
        match deaf.stream.write(&request) {
            Ok(_) => {}
            Err(e) if e.kind() == ErrorKind::WouldBlock => {
                std::thread::sleep(Duration::from_millis(20));
            }
            Err(e) => break e.kind(),
        }
    };
    assert!(
        matches!(end, ErrorKind::BrokenPipe | ErrorKind::ConnectionReset),
        "{end:?}"
    );
    in_step(&mut other);
}

#[test]
fn a_client_gone_in_mid_request_leaves_nothing() {
    let server = Server::start();
    let before = server.list();
    let mut witness = server.client();
    in_step(&mut witness);
    let fds = server.open_fds();
    for _ in 0..50 {
        let mut client = server.client();
        client.send(r#"{"op":"detach","na"#);
        let mut client = server.client();
        client.send("{\"op\":\"drops\"}\n".repeat(20));
    }
    let until = Instant::now() + LIMIT;
    while server.open_fds() > fds {
        assert!(Instant::now() < until, "connections stay open");
        in_step(&mut witness);
    }
    assert_eq!(server.list(), before);
}

#[test]
fn one_client_too_many_is_told_so_or_takes_the_place_of_an_idle_one() {
    let server = Server::start();
    let mut clients: Vec<Client> = (0..64).map(|_| server.client()).collect();
    clients.iter_mut().for_each(in_step);
    let mut late = server.client();
    assert_eq!(late.refusal(), Code::Busy);
    assert!(late.try_answer().is_none());

    // Longer than the forwarder lets an idle client keep its place.
    std::thread::sleep(Duration::from_millis(1100));
    let (first, others) = clients.split_first_mut().expect("64 clients");
    others.iter_mut().for_each(in_step);
    in_step(&mut server.client());
    assert!(first.try_answer().is_none(), "it was idle longest");
    others.iter_mut().for_each(in_step);
}

#[test]
fn a_line_that_the_streams_end_cuts_is_told() {
    let server = Server::start();
    let mut client = server.client();
    client.send(r#"{"op":"status"}"#);
    client.stream.shutdown(Shutdown::Write).expect("shut down");
    assert_eq!(client.refusal(), Code::Malformed);
    assert!(client.try_answer().is_none());
}

#[test]
fn nodes_are_applied_whole_or_not_at_all() {
    let server = Server::with_config("node = 'n1'\n[uplink]\naddresses = ['127.81.0.1']\n");
    let mut client = server.client();
    let mut apply = |own: &str, peers: &str| {
        client.send(format!(
            "{{\"op\":\"apply\",\"node\":{own},\"peers\":[{peers}]}}\n"
        ));
        client.answer()
    };
    let own = r#"{"name":"n1","underlay":["127.81.0.1"],"vtep_mac":"02:00:00:00:00:01"}"#;
    let n2 = r#"{"name":"n2","underlay":["127.81.0.2"],"vtep_mac":"02:00:00:00:00:02","blocks":["10.2.0.0/24"]}"#;
    let thief = r#"{"name":"n3","underlay":["127.81.0.3"],"vtep_mac":"02:00:00:00:00:03","blocks":["10.2.0.0/24"]}"#;
    let elsewhere = r#"{"name":"n1","underlay":["127.81.0.9"],"vtep_mac":"02:00:00:00:00:01"}"#;
    assert_eq!(apply(own, n2), Answer::Ok(Reply::Done { epoch: 1 }));
    for (own, peers, expected) in [
        (own, format!("{n2},{thief}"), Code::Taken),
        (own, format!("{n2},{n2}"), Code::Taken),
        (own, own.to_owned(), Code::Taken),
        (elsewhere, n2.to_owned(), Code::Invalid),
    ] {
        let Answer::Error(error) = apply(own, &peers) else {
            panic!("a refusal was due: {peers}");
        };
        assert_eq!(error.code, expected, "{error}");
    }
    let Reply::Peers(peers) = server.client().ok(r#"{"op":"peers"}"#) else {
        panic!("peers answers with peers");
    };
    let names: Vec<&str> = peers.iter().map(|peer| peer.node.name.as_str()).collect();
    assert_eq!(names, ["n2"]);
    assert_eq!(apply(own, ""), Answer::Ok(Reply::Done { epoch: 2 }));
}

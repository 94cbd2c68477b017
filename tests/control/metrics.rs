//! The metrics address as scrapers and others meet it.

use std::{
    io::{Read, Write},
    net::TcpStream,
    time::Instant,
};

use weft_api::forwarder::Reply;
use weft_engine::{Counters, DropReason};

use crate::server::{LIMIT, Server};

#[test]
fn a_scrape_shows_what_the_control_socket_counts() {
    let server = Server::start();
    let page = server.visit(b"GET /metrics HTTP/1.1\r\nHost: weft\r\n\r\n");
    let (head, body) = page.split_once("\r\n\r\n").expect("a head and a body");
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
    assert!(
        head.contains(&format!("Content-Length: {}", body.len())),
        "{head}"
    );
    let Reply::Counters(counters) = server.client().ok(r#"{"op":"counters"}"#) else {
        panic!("counters answers with counters");
    };
    for (name, _, _) in Counters::default().each() {
        assert!(counters.values.contains_key(name), "{name}");
        assert!(body.contains(&format!("\nweft_{name}_total ")), "{name}");
    }
    assert_eq!(counters.values["dropped_packets"], 0);
    let Reply::Drops(drops) = server.client().ok(r#"{"op":"drops"}"#) else {
        panic!("drops answers with drops");
    };
    assert_eq!(drops.len(), DropReason::ALL.len());
    for drop in drops {
        let sample = format!("weft_dropped_packets_total{{reason=\"{}\"", drop.reason);
        assert!(body.contains(&sample), "{sample}");
    }
    assert!(body.ends_with("# EOF\n"));
}

#[test]
fn other_requests_have_their_status() {
    let server = Server::start();
    for (request, expected) in [
        ("GET /healthz HTTP/1.1\r\n\r\n", "200"),
        ("GET /other HTTP/1.1\r\n\r\n", "404"),
        ("DELETE /metrics HTTP/1.1\r\n\r\n", "405"),
        ("nonsense\r\n\r\n", "400"),
    ] {
        let answer = server.visit(request.as_bytes());
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {expected} ")),
            "{request}: {answer}"
        );
    }
    let long = [
        b"GET /metrics HTTP/1.1\r\nX: ".to_vec(),
        vec![b'x'; 8 << 10],
    ]
    .concat();
    assert!(server.visit(&long).starts_with("HTTP/1.1 431 "));
}

#[test]
fn a_visitor_that_says_nothing_is_sent_away() {
    let server = Server::start();
    let mut silent: Vec<TcpStream> = (0..16)
        .map(|_| TcpStream::connect(server.metrics).expect("connect"))
        .collect();
    for stream in &mut silent {
        stream.set_read_timeout(Some(LIMIT)).expect("set a limit");
        stream.write_all(b"GET /met").expect("write");
    }
    let since = Instant::now();
    let mut rest = Vec::new();
    let ended = silent[0].read_to_end(&mut rest);
    assert!(ended.is_ok() && rest.is_empty(), "{ended:?} {rest:?}");
    assert!(since.elapsed() < LIMIT);
    assert!(
        server
            .visit(b"GET /healthz HTTP/1.1\r\n\r\n")
            .starts_with("HTTP/1.1 200")
    );
}

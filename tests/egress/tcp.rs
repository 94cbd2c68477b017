//! Connections: every byte, both ends, resets and refusals as outside means
//! them.

use std::{
    io::{ErrorKind, Read, Write},
    net::{Shutdown, TcpListener, TcpStream},
    thread,
    time::Duration,
};

use nix::{
    libc,
    sys::socket::{setsockopt, sockopt},
};
use weft_lab::{exchange, probe::Family, workshop::run};
use weft_testkit::needs_namespaces;

use crate::world::{BLACK_HOLES, OUTSIDE, PATIENCE, World, address};

fn both(world: &World, family: Family) -> (TcpStream, TcpStream) {
    exchange::connection(world.pod(), &world.outside, family).expect("connected")
}

/// Who is first, over each family.
fn cases() -> impl Iterator<Item = (Family, bool)> {
    let both = |family| [(family, true), (family, false)];
    Family::ALL.into_iter().flat_map(both)
}

/// The first ends its stream, and hears the second to its end after that.
pub fn ends_before(mut first: TcpStream, mut second: TcpStream) {
    first.write_all(b"that is all").expect("written");
    first.shutdown(Shutdown::Write).expect("ended");
    let mut text = String::new();
    second.read_to_string(&mut text).expect("heard to its end");
    assert_eq!(text, "that is all");
    let rest = vec![7; 1 << 20];
    second.write_all(&rest).expect("written");
    drop(second);
    let mut heard = Vec::new();
    first.read_to_end(&mut heard).expect("heard to its end");
    assert!(heard == rest, "{} B", heard.len());
}

pub fn reset(stream: TcpStream) {
    let at_once = libc::linger {
        l_onoff: 1,
        l_linger: 0,
    };
    setsockopt(&stream, sockopt::Linger, &at_once).expect("set");
    drop(stream);
}

#[test]
fn every_byte_arrives_both_ways_at_once() {
    needs_namespaces!();
    let world = World::new("");
    for family in Family::ALL {
        exchange::bulk(world.pod(), &world.outside, family, 64 << 20).expect("every byte");
    }
    world.await_count("flows", 0);
}

#[test]
fn a_thousand_connections_live_side_by_side() {
    needs_namespaces!();
    let world = World::new("");
    let listen = || TcpListener::bind((OUTSIDE[0], 0));
    let listener = world.outside.netns.run(listen).expect("enter");
    let listener = listener.expect("listen");
    let server = listener.local_addr().expect("bound");
    const COUNT: usize = 1000;
    let connect = || -> Vec<_> {
        (0..COUNT)
            .map(|_| TcpStream::connect_timeout(&server, PATIENCE).expect("connected"))
            .collect()
    };
    let answering = thread::spawn(move || -> Vec<_> {
        let accept = |_| listener.accept().expect("a connection").0;
        (0..COUNT).map(accept).collect()
    });
    let asking = world.pod().netns.run(connect).expect("enter");
    let answering = answering.join().expect("accepted");
    world.await_count("flows", COUNT as u64);
    let say = |streams: &[TcpStream], word: &str| {
        for (place, mut stream) in streams.iter().enumerate() {
            write!(stream, "{word} {place:04}").expect("written");
        }
    };
    let hear = |streams: &[TcpStream], word: &str| {
        let mut heard: Vec<_> = streams
            .iter()
            .map(|mut stream| {
                let mut text = vec![0; word.len() + 5];
                stream.set_read_timeout(Some(PATIENCE)).expect("set");
                stream.read_exact(&mut text).expect("heard");
                String::from_utf8(text).expect("text")
            })
            .collect();
        heard.sort();
        let all = (0..COUNT).map(|place| format!("{word} {place:04}"));
        assert!(heard.into_iter().eq(all), "each its own");
    };
    say(&asking, "question");
    hear(&answering, "question");
    say(&answering, "answer");
    hear(&asking, "answer");
    drop((asking, answering));
    world.await_count("flows", 0);
}

#[test]
fn each_side_may_end_first_and_still_listen() {
    needs_namespaces!();
    let world = World::new("");
    for (family, pod_first) in cases() {
        let (pod, outside) = both(&world, family);
        match pod_first {
            true => ends_before(pod, outside),
            false => ends_before(outside, pod),
        }
    }
    world.await_count("flows", 0);
    assert_eq!(world.count("tcp_reset_by_pods_total"), 0);
    assert_eq!(world.count("tcp_reset_by_outside_total"), 0);
}

#[test]
fn a_reset_passes_on_either_way() {
    needs_namespaces!();
    let world = World::new("");
    for (family, pod_first) in cases() {
        let (pod, outside) = both(&world, family);
        let (first, mut second) = if pod_first {
            (pod, outside)
        } else {
            (outside, pod)
        };
        reset(first);
        let heard = second.read(&mut [0; 8]).expect_err("a reset");
        assert_eq!(heard.kind(), ErrorKind::ConnectionReset);
    }
    world.await_count("tcp_reset_by_pods_total", 2);
    world.await_count("tcp_reset_by_outside_total", 2);
    world.await_count("flows", 0);
}

#[test]
fn what_outside_refuses_is_refused_and_what_it_ignores_is_not_answered() {
    needs_namespaces!();
    let world = World::new("");
    let connect = |to: &str| {
        let to = address(to);
        let connect = || TcpStream::connect_timeout(&to, Duration::from_secs(2));
        world.pod().netns.run(connect).expect("enter")
    };
    for to in ["192.0.2.254:9", "[2001:db8::fe]:9"] {
        let error = connect(to).expect_err("nobody listens");
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{to}");
    }
    assert_eq!(world.count("tcp_refused_total"), 2);
    for net in ["198.51.100.0/24", "2001:db8:7::/64"] {
        let drop_all = format!("ip route add blackhole {net}");
        run(&world.outside.netns, &drop_all).expect("a route");
    }
    for to in BLACK_HOLES {
        let error = connect(to).expect_err("nobody answers");
        assert_eq!(error.kind(), ErrorKind::TimedOut, "{to}");
    }
    for net in ["203.0.113.0/24", "2001:db8:8::/64"] {
        let no_way = format!("ip route add unreachable {net}");
        run(&world.node, &no_way).expect("a route");
    }
    for to in ["203.0.113.1:80", "[2001:db8:8::1]:80"] {
        let error = connect(to).expect_err("no way");
        assert_eq!(error.kind(), ErrorKind::HostUnreachable, "{to}");
    }
    assert_eq!(world.count("tcp_unreachable_total"), 2);
}

#[test]
fn who_does_not_read_holds_back_who_writes() {
    needs_namespaces!();
    let world = World::new("");
    for (family, pod_writes) in cases() {
        let (pod, outside) = both(&world, family);
        let (writer, reader) = if pod_writes {
            (pod, outside)
        } else {
            (outside, pod)
        };
        writer.set_nonblocking(true).expect("set");
        let mut content = exchange::Content::new(3);
        let mut chunk = vec![0; 64 << 10];
        content.fill(&mut chunk);
        let mut written = 0;
        let mut idle = 0;
        // Full is what stays full.
        while idle < 20 {
            match (&writer).write(&chunk) {
                Ok(bytes) => (written, idle) = (written + bytes, 0),
                Err(error) => {
                    assert_eq!(error.kind(), ErrorKind::WouldBlock);
                    idle += 1;
                    thread::sleep(Duration::from_millis(20));
                }
            }
            assert!(written < 64 << 20, "nobody holds it back");
        }
        writer.set_nonblocking(false).expect("set");
        writer.shutdown(Shutdown::Write).expect("ended");
        let mut heard = 0;
        let mut buffer = vec![0; 1 << 20];
        reader.set_read_timeout(Some(PATIENCE)).expect("set");
        loop {
            match (&reader).read(&mut buffer).expect("heard") {
                0 => break,
                bytes => heard += bytes,
            }
        }
        assert_eq!(heard, written);
    }
    world.await_count("flows", 0);
}

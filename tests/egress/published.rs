//! Published ports: who comes to the node's is at the pod's, and is shown as
//! who he is.

use std::{
    fs,
    io::{ErrorKind, Read, Write},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use weft_api::{
    forwarder::{Capabilities, PortMapping, Protocol, Request},
    names::Name,
};
use weft_cni::{link::Attach, netns::Netns};
use weft_lab::{Lab, Spec, exchange, use_executable, workshop::run};
use weft_testkit::needs_namespaces;

use crate::world::{Egress, OUTSIDE, PATIENCE, World, mapping};

const HOST_PORT: u16 = 8080;
const POD_PORT: u16 = 80;

fn all(protocol: Protocol) -> PortMapping {
    mapping(protocol, HOST_PORT, POD_PORT, None)
}

/// A world with the port published, which is served when this returns.
fn world(protocol: Protocol) -> World {
    let world = World::published(&[all(protocol)], "");
    world.await_count("published", 2);
    world
}

fn listen(world: &World, family: usize) -> TcpListener {
    let address = world.pod().plan.addresses()[family];
    let listen = || TcpListener::bind((address, POD_PORT)).expect("listen");
    world.pod().netns.run(listen).expect("enter")
}

fn connect(from: &Netns, to: IpAddr) -> std::io::Result<TcpStream> {
    let to = SocketAddr::new(to, HOST_PORT);
    let connect = || TcpStream::connect_timeout(&to, PATIENCE);
    let stream = from.run(connect).expect("enter")?;
    stream.set_read_timeout(Some(PATIENCE))?;
    Ok(stream)
}

/// A reset may be there before the caller knows that he was let in.
fn is_reset(calling: &std::io::Result<TcpStream>, patience: Duration) -> bool {
    let error = match calling {
        Ok(stream) => {
            stream.set_read_timeout(Some(patience)).expect("set");
            let (mut stream, mut room) = (stream, [0; 8]);
            stream.read(&mut room).expect_err("nobody speaks").kind()
        }
        Err(error) => error.kind(),
    };
    error == ErrorKind::ConnectionReset
}

fn both(world: &World, from: &Netns, to: IpAddr) -> (TcpStream, TcpStream, SocketAddr) {
    let listener = listen(world, usize::from(to.is_ipv6()));
    let calling = connect(from, to).expect("connected");
    let (called, shown) = listener.accept().expect("it came through");
    called.set_read_timeout(Some(PATIENCE)).expect("set");
    (calling, called, shown)
}

fn every_byte(one: &TcpStream, other: &TcpStream) {
    const BYTES: usize = 8 << 20;
    thread::scope(|scope| {
        for (out, into, seed) in [(one, other, 1), (other, one, 2)] {
            let content = exchange::Content::new(seed);
            let expected = content.clone();
            scope.spawn(move || exchange::send(out, content, BYTES).expect("sent"));
            scope.spawn(move || exchange::receive(into, expected, BYTES).expect("every byte"));
        }
    });
}

#[test]
fn connections_from_outside_bear_their_senders_address() {
    needs_namespaces!();
    let world = world(Protocol::Tcp);
    for own in world.own {
        let (calling, called, shown) = both(&world, &world.outside.netns, own);
        assert_eq!(shown, calling.local_addr().expect("bound"));
        assert_eq!(shown.ip().to_string(), OUTSIDE[usize::from(own.is_ipv6())]);
        every_byte(&calling, &called);
    }
    assert_eq!(world.count("tcp_accepted_total"), 2);
    world.await_count("flows", 0);
    assert_eq!(world.count("tcp_reset_by_pods_total"), 0);
}

#[test]
fn the_node_and_its_pods_come_as_the_node() {
    needs_namespaces!();
    let world = world(Protocol::Tcp);
    let [v4, v6] = world.own;
    let loopback = ["127.0.0.1", "::1"].map(|text| text.parse().expect("an address"));
    for (from, to, shown_as) in [
        (&world.node, loopback[0], v4),
        (&world.node, loopback[1], v6),
        (&world.node, v4, v4),
        (&world.node, v6, v6),
        (&world.pods[0].netns, v4, v4),
        (&world.pods[0].netns, v6, v6),
        (&world.pods[1].netns, v4, v4),
        (&world.pods[1].netns, v6, v6),
    ] {
        let (calling, called, shown) = both(&world, from, to);
        assert_eq!(shown.ip(), shown_as, "by {to}");
        every_byte(&calling, &called);
    }
}

#[test]
fn a_pod_of_another_node_comes_as_its_node() {
    needs_namespaces!();
    use_executable(env!("CARGO_BIN_EXE_weft"));
    let spec = Spec {
        nodes: 2,
        pods: 1,
        ..Spec::default()
    };
    let mut lab = Lab::up(&spec).expect("a lab");
    let capabilities = Capabilities {
        port_mappings: vec![all(Protocol::Tcp)],
        ..Capabilities::default()
    };
    let attach = Attach::Tap { queues: 2 };
    lab.add_pod_with(capabilities, 0, attach).expect("a pod");
    let _egresses = [0, 1].map(|node| Egress::of_lab(&lab, node));
    let pod = lab.pods.last().expect("just added");
    let listen = || TcpListener::bind((pod.v4(), POD_PORT)).expect("listen");
    let listener = pod.netns.run(listen).expect("enter");
    let far = lab.pod("n2p1").expect("a pod of the other node");
    let until = Instant::now() + PATIENCE;
    let calling = loop {
        match connect(&far.netns, lab.nodes[0].plan.underlay[0]) {
            Ok(stream) => break stream,
            Err(error) => assert!(Instant::now() < until, "{error}"),
        }
        thread::sleep(Duration::from_millis(50));
    };
    let (called, shown) = listener.accept().expect("it came through");
    assert_eq!(shown.ip(), lab.nodes[1].plan.underlay[0]);
    every_byte(&calling, &called);
}

#[test]
fn datagrams_are_answered_from_where_they_went_to() {
    needs_namespaces!();
    let world = world(Protocol::Udp);
    for (family, own) in world.own.into_iter().enumerate() {
        let address = world.pod().plan.addresses()[family];
        let bind = || UdpSocket::bind((address, POD_PORT)).expect("a socket");
        let called = world.pod().netns.run(bind).expect("enter");
        called.set_read_timeout(Some(PATIENCE)).expect("set");
        for (from, shown_as) in [
            (&world.outside.netns, Some(OUTSIDE[family].to_owned())),
            (&world.node, Some(own.to_string())),
            (&world.pods[1].netns, Some(own.to_string())),
        ] {
            let to = SocketAddr::new(own, HOST_PORT);
            let any = if own.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
            let bind = || UdpSocket::bind(any).expect("a socket");
            let calling = from.run(bind).expect("enter");
            // A connected socket hears nobody else.
            calling.connect(to).expect("connected");
            calling.set_read_timeout(Some(PATIENCE)).expect("set");
            for len in [0, 1, 1400, 8192] {
                let mut text = vec![0; len];
                exchange::Content::new(len as u64).fill(&mut text);
                calling.send(&text).expect("sent");
                let mut heard = vec![0; 65_536];
                let (bytes, shown) = called.recv_from(&mut heard).expect("heard");
                assert!(heard[..bytes] == text, "{len} B there");
                assert_eq!(Some(shown.ip().to_string()), shown_as);
                called.send_to(&text, shown).expect("answered");
                let bytes = calling.recv(&mut heard).expect("an answer");
                assert!(heard[..bytes] == text, "{len} B back");
            }
        }
    }
    assert_eq!(world.count("udp_accepted_total"), 6);
}

#[test]
fn ends_resets_and_refusals_pass_on() {
    needs_namespaces!();
    let world = world(Protocol::Tcp);
    let outside = &world.outside.netns;
    for outside_first in [true, false] {
        let (calling, called, _) = both(&world, outside, world.own[0]);
        match outside_first {
            true => crate::tcp::ends_before(calling, called),
            false => crate::tcp::ends_before(called, calling),
        }
    }
    world.await_count("flows", 0);
    for outside_first in [true, false] {
        let (calling, called, _) = both(&world, outside, world.own[0]);
        let (first, mut second) = if outside_first {
            (calling, called)
        } else {
            (called, calling)
        };
        crate::tcp::reset(first);
        let heard = second.read(&mut [0; 8]).expect_err("a reset");
        assert_eq!(heard.kind(), ErrorKind::ConnectionReset);
    }
    // Nobody listens in the pod.
    let calling = connect(outside, world.own[0]);
    assert!(is_reset(&calling, PATIENCE), "{calling:?}");
    world.await_count("flows", 0);
}

#[test]
fn a_thousand_may_come_at_once() {
    needs_namespaces!();
    const COUNT: usize = 1000;
    let world = world(Protocol::Tcp);
    let listener = listen(&world, 0);
    let accept = thread::spawn(move || -> Vec<_> {
        let accept = |_| listener.accept().expect("a connection");
        (0..COUNT).map(accept).collect()
    });
    let connect = |_| connect(&world.outside.netns, world.own[0]).expect("connected");
    let calling: Vec<_> = (0..COUNT).map(connect).collect();
    let called = accept.join().expect("accepted");
    world.await_count("flows", COUNT as u64);
    for mut stream in &calling {
        let port = stream.local_addr().expect("bound").port();
        stream.write_all(&port.to_be_bytes()).expect("written");
    }
    for (stream, shown) in &called {
        let (mut stream, mut port) = (stream, [0; 2]);
        stream.set_read_timeout(Some(PATIENCE)).expect("set");
        stream.read_exact(&mut port).expect("heard");
        assert_eq!(u16::from_be_bytes(port), shown.port(), "each its own");
    }
    drop((calling, called));
    world.await_count("flows", 0);
}

#[test]
fn a_pod_that_goes_takes_its_port_and_its_connections_along() {
    needs_namespaces!();
    let world = World::published(&[all(Protocol::Tcp), all(Protocol::Udp)], "");
    world.await_count("published", 4);
    let (mut calling, _called, _) = both(&world, &world.outside.netns, world.own[0]);
    let (mut asking, answering) =
        exchange::connection(world.pod(), &world.outside, weft_lab::probe::Family::V4)
            .expect("connected");
    let name = Name::new(world.pod().name()).expect("a name");
    let mut client = world.forwarder.client().expect("a client");
    client.request(&Request::Detach { name }).expect("detached");
    for stream in [&mut calling, &mut { answering }] {
        let heard = stream.read(&mut [0; 8]).expect_err("a reset");
        assert_eq!(heard.kind(), ErrorKind::ConnectionReset);
    }
    let _ = asking.write_all(b"into the void");
    world.await_count("published", 0);
    let refused = connect(&world.outside.netns, world.own[0]).expect_err("nobody listens");
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
    let bind = || UdpSocket::bind(("0.0.0.0", HOST_PORT)).expect("the port is free");
    world.node.run(bind).expect("enter");
    assert_eq!(world.count("flows_orphaned_total"), 2);
    assert_eq!(world.count("flows"), 0);
}

/// A port that cannot be served is said to be so by `words`, the other one is
/// served, and so is it once it can be.
fn is_served_in_the_end<T>(
    wrong: PortMapping,
    words: &str,
    prevent: impl FnOnce(&World) -> T,
    allow: impl FnOnce(&World, T),
) {
    let right = mapping(Protocol::Tcp, HOST_PORT, POD_PORT, Some("0.0.0.0"));
    let mut world = World::without_egress(&[wrong, right]);
    let obstacle = prevent(&world);
    world.egress = Some(world.start(""));
    world.await_count("unpublished", 1);
    let (calling, called, _) = both(&world, &world.outside.netns, world.own[0]);
    every_byte(&calling, &called);
    let log = world.log();
    let said = log.lines().filter(|line| line.contains(words));
    assert_eq!(said.count(), 1, "said once: {log}");
    allow(&world, obstacle);
    world.await_count("unpublished", 0);
    world.await_count("published", 2);
}

#[test]
fn a_port_that_another_process_has_is_served_when_it_is_free() {
    needs_namespaces!();
    let wrong = mapping(Protocol::Tcp, 9090, POD_PORT, Some("0.0.0.0"));
    let words = "0.0.0.0:9090/tcp cannot be served for n1p1: another process";
    let listen = |world: &World| {
        let listen = || TcpListener::bind("0.0.0.0:9090").expect("listen");
        world.node.run(listen).expect("enter")
    };
    is_served_in_the_end(wrong, words, listen, |_, listener| drop(listener));
}

#[test]
fn a_privileged_port_is_served_where_the_node_gives_it_to_anybody() {
    needs_namespaces!();
    let set = |world: &World, first: &str| {
        let set = || fs::write("/proc/sys/net/ipv4/ip_unprivileged_port_start", first);
        world.node.run(set).expect("enter").expect("set");
    };
    let wrong = mapping(Protocol::Tcp, 443, POD_PORT, Some("0.0.0.0"));
    let words = "set net.ipv4.ip_unprivileged_port_start to 443 or less";
    let prevent = |world: &World| set(world, "1024");
    is_served_in_the_end(wrong, words, prevent, |world, ()| set(world, "443"));
}

#[test]
fn an_address_that_the_node_does_not_have_is_served_when_it_has_it() {
    needs_namespaces!();
    let wrong = mapping(Protocol::Udp, 53, POD_PORT, Some("198.51.100.9"));
    let words = "this node has no such address";
    let none = |world: &World| {
        let set = || fs::write("/proc/sys/net/ipv4/ip_unprivileged_port_start", "53");
        world.node.run(set).expect("enter").expect("set");
    };
    is_served_in_the_end(wrong, words, none, |world, ()| {
        run(&world.node, "ip address add 198.51.100.9/32 dev lo").expect("an address");
    });
}

#[test]
fn only_the_published_address_is_served() {
    needs_namespaces!();
    let only = mapping(Protocol::Tcp, HOST_PORT, POD_PORT, Some("192.0.2.1"));
    let world = World::published(&[only], "");
    assert_eq!(world.own[0].to_string(), "192.0.2.1", "the lab's plan");
    world.await_count("published", 1);
    let (calling, called, _) = both(&world, &world.outside.netns, world.own[0]);
    every_byte(&calling, &called);
    for other in [IpAddr::from([127, 0, 0, 1]), world.own[1]] {
        let refused = connect(&world.node, other).expect_err("nobody listens");
        assert_eq!(refused.kind(), ErrorKind::ConnectionRefused, "{other}");
    }
}

#[test]
fn callers_beyond_the_pods_share_make_no_trouble_for_others() {
    needs_namespaces!();
    let mappings = [all(Protocol::Tcp), all(Protocol::Udp)];
    let world = World::published(&mappings, "ulimit 264");
    world.await_count("published", 4);
    let to = SocketAddr::new(world.own[0], HOST_PORT);
    let flood = || {
        for _ in 0..1000 {
            let socket = UdpSocket::bind("0.0.0.0:0").expect("a socket");
            // A full queue on the way is the flood's own loss.
            let _ = socket.send_to(b"forgotten", to);
        }
    };
    world.outside.netns.run(flood).expect("enter");
    world.await_count("flows", 100);
    assert!(world.count("flows_evicted_total") > 0);
    // What still waits in the port's queue would be refused too.
    let accepted = || world.count("udp_accepted_total");
    let mut before = 0;
    while std::mem::replace(&mut before, accepted()) != before {
        thread::sleep(Duration::from_millis(200));
    }
    let listener = listen(&world, 0);
    let calling: Vec<_> = (0..150)
        .map(|_| connect(&world.outside.netns, world.own[0]))
        .collect();
    world.await_count("refused_limit_total", 50);
    let patience = Duration::from_millis(20);
    let reset = calling.iter().filter(|stream| is_reset(stream, patience));
    assert_eq!(reset.count(), 50);
    weft_lab::probe::Probe::Tcp
        .run(
            &world.pods[1],
            &world.outside,
            weft_lab::probe::Family::V4,
            1500,
        )
        .expect("the other pod is served");
    drop((calling, listener));
    world.await_count("flows", 0);
}

/// Without descriptors who calls waits, and what is there goes on.
#[test]
fn connections_beyond_the_descriptors_wait_for_some() {
    needs_namespaces!();
    let world = world(Protocol::Tcp);
    let (calling, called, _) = both(&world, &world.outside.netns, world.own[0]);
    let pid = world.egress.as_ref().expect("it runs").pid();
    let limit = |limit: &str| {
        let pid = format!("--pid={pid}");
        let limit = format!("--nofile={limit}:");
        let set = Command::new("prlimit").args([pid, limit]).status();
        assert!(set.expect("prlimit").success());
    };
    let open = fs::read_dir(format!("/proc/{pid}/fd")).expect("it runs");
    limit(&open.count().to_string());
    let listener = listen(&world, 0);
    let waiting = connect(&world.outside.netns, world.own[0]).expect("the kernel takes it");
    let out = crate::world::address(&format!("{}:9", OUTSIDE[0]));
    let ask = || TcpStream::connect_timeout(&out, PATIENCE);
    let refused = world.pod().netns.run(ask).expect("enter");
    let kind = refused.expect_err("refused").kind();
    assert_eq!(kind, ErrorKind::ConnectionRefused);
    every_byte(&calling, &called);
    let log = world.log();
    let said = log.matches("the kernel gives no more sockets").count();
    assert_eq!(said, 1, "said once: {log}");
    limit("4096");
    let (served, _) = listener.accept().expect("it came through");
    every_byte(&waiting, &served);
    assert!(world.count("refused_descriptors_total") >= 2);
}

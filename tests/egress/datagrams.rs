//! UDP, names, paths, and what outside says of packets.

use std::{
    fs,
    io::ErrorKind,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket},
    os::fd::AsRawFd,
    process, thread,
    time::Duration,
};

use nix::sys::socket::{
    ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, setsockopt, sockopt,
};
use weft_cni::netns::Netns;
use weft_lab::{
    Ledger, exchange,
    icmp::{Question, Says},
    probe::Family,
    workshop::run,
};
use weft_testkit::needs_namespaces;

use crate::world::{OUTSIDE, PATIENCE, World};

fn socket(world: &World, to: &str) -> UdpSocket {
    let open = || {
        let any = if to.starts_with('[') {
            "[::]:0"
        } else {
            "0.0.0.0:0"
        };
        let socket = UdpSocket::bind(any).expect("a socket");
        socket.connect(to).expect("connected");
        socket.set_read_timeout(Some(PATIENCE)).expect("set");
        socket
    };
    world.pod().netns.run(open).expect("enter")
}

#[test]
fn datagrams_of_every_size_go_there_and_back() {
    needs_namespaces!();
    let world = World::new("");
    for (family, most) in [(Family::V4, 1472), (Family::V6, 1452)] {
        let sizes = [0, 1, 2, 511, 512, 1000, 1280, most];
        exchange::datagrams(world.pod(), &world.outside, family, sizes).expect("every byte");
    }
    assert_eq!(world.count("dropped_link_total"), 0);
}

#[test]
fn a_closed_port_is_told_to_who_asked() {
    needs_namespaces!();
    let world = World::new("");
    for to in [format!("{}:9", OUTSIDE[0]), format!("[{}]:9", OUTSIDE[1])] {
        let socket = socket(&world, &to);
        socket.send(b"anybody?").expect("sent");
        let error = socket.recv(&mut [0; 8]).expect_err("nobody");
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{to}");
    }
    world.await_count("errors_to_pods_total", 2);
}

#[test]
fn a_path_is_traced_by_its_hops() {
    needs_namespaces!();
    let world = World::new("");
    let _far = router(&world);
    for (family, far) in FAR.into_iter().enumerate() {
        let to = SocketAddr::new(far.parse().expect("an address"), 33434);
        let socket = socket(&world, &to.to_string());
        let v4 = to.is_ipv4();
        if v4 {
            setsockopt(&socket, sockopt::Ipv4RecvErr, &true).expect("set");
        } else {
            setsockopt(&socket, sockopt::Ipv6RecvErr, &true).expect("set");
        }
        let mut hops = Vec::new();
        for hop in 1..=3 {
            if v4 {
                setsockopt(&socket, sockopt::Ipv4Ttl, &hop).expect("set");
            } else {
                setsockopt(&socket, sockopt::Ipv6Ttl, &hop).expect("set");
            }
            socket.send(b"who is there?").expect("sent");
            hops.push(who_answers(&socket));
        }
        let gateway = ["169.254.1.1", "fe80::ecee:eeff:feee:eeee"][family];
        let exceeded = if v4 { (11, 0) } else { (3, 0) };
        let closed = if v4 { (3, 3) } else { (1, 4) };
        let expected = [
            (gateway, exceeded),
            (OUTSIDE[family], exceeded),
            (far, closed),
        ];
        let expected = expected.map(|(from, says)| Some((from.parse().expect("an address"), says)));
        assert_eq!(hops, expected);
    }
}

/// Behind outside, which leads there.
const FAR: [&str; 2] = ["198.51.100.7", "2001:db8:7::7"];

/// Makes outside a router to a namespace, which lives as long as the answer.
fn router(world: &World) -> Netns {
    let outside = &world.outside.netns;
    let forward = || -> std::io::Result<()> {
        fs::write("/proc/sys/net/ipv4/ip_forward", "1")?;
        fs::write("/proc/sys/net/ipv6/conf/all/forwarding", "1")
    };
    outside.run(forward).expect("enter").expect("a router");
    let far = Netns::make("far").expect("a namespace");
    let path = format!("/proc/{}/fd/{}", process::id(), far.as_raw_fd());
    let link = format!("ip link add far type veth peer name eth0 netns {path}");
    run(outside, &link).expect("a wire");
    for (place, link, last) in [(outside, "far", "1"), (&far, "eth0", "7")] {
        run(place, &format!("ip link set {link} up")).expect("up");
        for net in [
            format!("198.51.100.{last}/24"),
            format!("2001:db8:7::{last}/64 nodad"),
        ] {
            let (net, flag) = net.split_once(' ').unwrap_or((&net, ""));
            let add = format!("ip address add {net} dev {link} {flag}");
            run(place, &add).expect("an address");
        }
    }
    for via in ["198.51.100.1", "2001:db8:7::1"] {
        run(&far, &format!("ip route add default via {via}")).expect("a route");
    }
    far
}

/// Type and code of the next ICMP error, and whose it is.
fn who_answers(socket: &UdpSocket) -> Option<(IpAddr, (u8, u8))> {
    for _ in 0..200 {
        let mut control = nix::cmsg_space!(nix::libc::sock_extended_err, nix::libc::sockaddr_in6);
        let flags = MsgFlags::MSG_ERRQUEUE | MsgFlags::MSG_DONTWAIT;
        let fd = socket.as_raw_fd();
        let message = recvmsg::<SockaddrStorage>(fd, &mut [], Some(&mut control), flags);
        let Ok(message) = message else {
            thread::sleep(Duration::from_millis(20));
            continue;
        };
        for one in message.cmsgs().expect("whole") {
            match one {
                ControlMessageOwned::Ipv4RecvErr(error, Some(from)) => {
                    let from = Ipv4Addr::from(from.sin_addr.s_addr.to_ne_bytes());
                    return Some((from.into(), (error.ee_type, error.ee_code)));
                }
                ControlMessageOwned::Ipv6RecvErr(error, Some(from)) => {
                    let from = Ipv6Addr::from(from.sin6_addr.s6_addr);
                    return Some((from.into(), (error.ee_type, error.ee_code)));
                }
                _ => {}
            }
        }
    }
    None
}

#[test]
fn names_are_answered_at_an_address_of_the_pods_own() {
    needs_namespaces!();
    // The resolver listens on the node alone.
    let world = World::new("--dns 198.18.0.53 --resolver 127.0.0.1:5353");
    let listen = || UdpSocket::bind("127.0.0.1:5353").expect("a resolver");
    let resolver = world.node.run(listen).expect("enter");
    let listen = || std::net::TcpListener::bind("127.0.0.1:5353").expect("a resolver");
    let listener = world.node.run(listen).expect("enter");
    let socket = socket(&world, "198.18.0.53:53");
    socket.send(b"who is it?").expect("sent");
    let mut question = [0; 64];
    resolver.set_read_timeout(Some(PATIENCE)).expect("set");
    let (len, from) = resolver.recv_from(&mut question).expect("asked");
    assert_eq!(&question[..len], b"who is it?");
    resolver.send_to(b"me", from).expect("answered");
    let len = socket.recv(&mut question).expect("an answer");
    assert_eq!(&question[..len], b"me");
    let connect = || TcpStream::connect("198.18.0.53:53").expect("a connection");
    let _asking = world.pod().netns.run(connect).expect("enter");
    listener.accept().expect("it came through");
    // Only names: any other port of that address is outside like all others.
    let to = "198.18.0.53:5353".parse().expect("an address");
    let connect = || TcpStream::connect_timeout(&to, Duration::from_secs(1));
    let other = world.pod().netns.run(connect).expect("enter");
    assert!(other.is_err(), "{other:?}");
}

#[test]
fn a_host_that_floods_harms_nobody_else() {
    needs_namespaces!();
    let world = World::new("");
    let (asking, answering) =
        exchange::sockets(world.pod(), &world.outside, Family::V4).expect("sockets");
    asking.send(b"speak").expect("sent");
    let (_, from) = answering.recv_from(&mut [0; 8]).expect("asked");
    thread::scope(|scope| {
        let flood = scope.spawn(|| {
            for _ in 0..300_000 {
                // A full queue on the way is the flood's own loss.
                let _ = answering.send_to(&[7; 1000], from);
            }
        });
        for _ in 0..3 {
            exchange::bulk(&world.pods[1], &world.outside, Family::V4, 4 << 20)
                .expect("every byte");
        }
        flood.join().expect("it ends");
    });
}

#[test]
fn what_has_to_be_cut_arrives_whole() {
    needs_namespaces!();
    let world = World::new("");
    let before = Ledger::of(&world.forwarder).expect("quiet");
    for family in Family::ALL {
        let sizes = [1473, 4000, 8192, 30_000, 65_000];
        exchange::datagrams(world.pod(), &world.outside, family, sizes).expect("every byte");
        let question = Question {
            size: 8000,
            ..Question::to(family.of(&world.outside))
        };
        let answer = question.ask(&world.pod().netns).expect("an answer");
        assert_eq!(answer.says, Says::Here);
    }
    world.check_books(&before);
    assert_eq!(world.count("packets_joined_total"), 12);
    assert_eq!(world.count("dropped_fragments_total"), 0);
    assert_eq!(world.count("dropped_outside_total"), 0);
}

#[test]
fn a_path_is_traced_by_pings() {
    needs_namespaces!();
    let world = World::new("");
    let _far = router(&world);
    for (family, far) in FAR.into_iter().enumerate() {
        let far: IpAddr = far.parse().expect("an address");
        let hops = [1, 2, 3].map(|hop_limit| {
            let question = Question {
                hop_limit,
                ..Question::to(far)
            };
            question.ask(&world.pod().netns).expect("an answer")
        });
        let outside = OUTSIDE[family].parse().expect("an address");
        assert_eq!(hops[0].says, Says::TimeExceeded, "the gateway");
        assert_eq!((hops[1].from, hops[1].says), (outside, Says::TimeExceeded));
        assert_eq!((hops[2].from, hops[2].says), (far, Says::Here));
    }
}

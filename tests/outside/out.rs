//! The way out: pods have the node's address where nobody knows theirs.

use std::{
    io::{Read, Write},
    net::{Shutdown, TcpListener, TcpStream},
    process::Command,
    thread,
};

use nix::sys::socket::{setsockopt, sockopt};
use serde_json::json;
use weft_lab::{
    exchange,
    probe::{DEADLINE, Family, Probe},
};
use weft_testkit::needs_namespaces;

use crate::{
    talk::{Server, Speech},
    world::{MTU, POOLS, World, said},
};

#[test]
fn outside_sees_the_node_and_all_that_pods_do_works() {
    needs_namespaces!();
    let world = World::up();
    let mut runtime = world.runtime();
    let pod = world.add(&mut runtime, 0, "c1", &json!([])).pod;
    for family in Family::ALL {
        for probe in [Probe::Ping, Probe::Tcp, Probe::Udp, Probe::FullSize] {
            let told = |error| panic!("{error:#}");
            probe
                .run(&pod, &world.outside, family, MTU)
                .unwrap_or_else(told);
        }
        exchange::bulk(&pod, &world.outside, family, 4 << 20).expect("every byte");
        // As a resolver asks: each question a flow of its own.
        for size in [33, 512, 1232] {
            exchange::datagrams(&pod, &world.outside, family, [size]).expect("answered");
        }
        let _server = Server::of(&world.outside, family, 53);
        let server = (family.of(&world.outside), 53).into();
        for speech in Speech::ALL {
            let seen = speech.seen(&pod.netns, server).expect("answered");
            assert_eq!(seen, world.nodes[0].underlay(family), "{speech:?}");
        }
    }
    world.check_books();
}

#[test]
fn pods_know_each_other_and_other_nodes_know_the_node() {
    needs_namespaces!();
    let world = World::up();
    let mut runtime = world.runtime();
    let one = world.add(&mut runtime, 0, "c1", &json!([])).pod;
    let two = world.add(&mut runtime, 1, "c2", &json!([])).pod;
    let other = world.nodes[1].itself();
    for family in Family::ALL {
        let _servers = [&two, &other].map(|server| Server::of(server, family, 8080));
        for speech in Speech::ALL {
            let seen = |server| {
                let server = (family.of(server), 8080).into();
                speech.seen(&one.netns, server).expect("answered")
            };
            assert_eq!(seen(&two), family.of(&one), "{speech:?}");
            assert_eq!(seen(&other), world.nodes[0].underlay(family), "{speech:?}");
        }
        // The node's own pods are seen as they are.
        let itself = world.nodes[0].itself();
        let _server = Server::of(&itself, family, 8080);
        let server = (family.of(&itself), 8080).into();
        let seen = Speech::Tcp.seen(&one.netns, server).expect("answered");
        assert_eq!(seen, family.of(&one));
    }
    world.check_books();
}

#[test]
fn a_thousand_connections_live_side_by_side() {
    needs_namespaces!();
    const COUNT: usize = 1000;
    let world = World::up();
    let mut runtime = world.runtime();
    let pod = world.add(&mut runtime, 0, "c1", &json!([])).pod;
    let listen = || TcpListener::bind((world.outside.v4(), 0));
    let listener = world.outside.netns.run(listen).expect("enter");
    let listener = listener.expect("listen");
    let server = listener.local_addr().expect("bound");
    let answering = thread::spawn(move || -> Vec<_> {
        let accept = |_| listener.accept().expect("a connection").0;
        (0..COUNT).map(accept).collect()
    });
    let connect = || -> Vec<_> {
        let one = |_| TcpStream::connect_timeout(&server, DEADLINE).expect("connected");
        (0..COUNT).map(one).collect()
    };
    let asking = pod.netns.run(connect).expect("enter");
    let answering = answering.join().expect("accepted");
    for (place, mut stream) in asking.iter().enumerate() {
        write!(stream, "{place:04}").expect("written");
    }
    let mut heard: Vec<_> = answering
        .iter()
        .map(|mut stream| {
            let mut word = [0; 4];
            stream.set_read_timeout(Some(DEADLINE)).expect("set");
            stream.read_exact(&mut word).expect("all of it");
            String::from_utf8_lossy(&word).into_owned()
        })
        .collect();
    heard.sort_unstable();
    let said: Vec<_> = (0..COUNT).map(|place| format!("{place:04}")).collect();
    assert_eq!(heard, said);
    world.check_books();
}

#[test]
fn ends_and_resets_pass_on() {
    needs_namespaces!();
    let world = World::up();
    let mut runtime = world.runtime();
    let pod = world.add(&mut runtime, 0, "c1", &json!([])).pod;
    for family in Family::ALL {
        let both = || exchange::connection(&pod, &world.outside, family).expect("connected");
        for turn in [0, 1] {
            let (one, other) = both();
            let (mut first, mut second) = if turn == 0 {
                (one, other)
            } else {
                (other, one)
            };
            first.write_all(b"that is all").expect("written");
            first.shutdown(Shutdown::Write).expect("shut");
            let mut heard = String::new();
            second.read_to_string(&mut heard).expect("to its end");
            assert_eq!(heard, "that is all");
            second.write_all(b"is it?").expect("written");
            second.shutdown(Shutdown::Write).expect("shut");
            heard.clear();
            first.read_to_string(&mut heard).expect("to its end");
            assert_eq!(heard, "is it?");
        }
        for turn in [0, 1] {
            let (one, other) = both();
            let (resets, mut hears) = if turn == 0 {
                (one, other)
            } else {
                (other, one)
            };
            let linger = nix::libc::linger {
                l_onoff: 1,
                l_linger: 0,
            };
            setsockopt(&resets, sockopt::Linger, &linger).expect("set");
            drop(resets);
            let fault = hears.read(&mut [0]).expect_err("it is reset");
            assert_eq!(fault.kind(), std::io::ErrorKind::ConnectionReset);
        }
    }
    world.check_books();
}

/// As kube-proxy's table leads them: the answer has to pass the node's kernel.
#[test]
fn services_of_another_table_lead_pods_to_pods() {
    needs_namespaces!();
    let world = World::up();
    let node = &world.nodes[0];
    let mut runtime = world.runtime();
    let pod = world.add(&mut runtime, 0, "c1", &json!([])).pod;
    let beside = world.add(&mut runtime, 0, "c2", &json!([])).pod;
    let far = world.add(&mut runtime, 1, "c3", &json!([])).pod;
    node.nft("add table ip services");
    node.nft("add chain ip services nat { type nat hook prerouting priority -100 ; }");
    for (service, backend) in [
        ("10.96.0.1", &beside),
        ("10.96.0.2", &far),
        ("10.96.0.3", &pod),
    ] {
        let to = backend.v4();
        let rule = format!("add rule ip services nat ip daddr {service} dnat to {to}");
        node.nft(&rule);
        let _server = Server::of(backend, Family::V4, 80);
        let service = format!("{service}:80").parse().expect("valid");
        for speech in Speech::ALL {
            let seen = speech.seen(&pod.netns, service).expect("answered");
            assert_eq!(seen, node.plan.tunnel[0], "{}", backend.name());
        }
    }
    world.check_books();
}

/// The errors of routers on the way reach the pod, and name who made them.
#[test]
fn a_path_is_traced_by_its_hops() {
    needs_namespaces!();
    let world = World::up();
    let mut runtime = world.runtime();
    let pod = world.add(&mut runtime, 0, "c1", &json!([])).pod;
    let node = &world.nodes[0].plan;
    for (family, hops) in [
        (
            Family::V4,
            ["169.254.1.1", &node.tunnel[0].to_string(), "192.0.2.254"],
        ),
        (
            Family::V6,
            [
                "fe80::ecee:eeff:feee:eeee",
                &node.tunnel[1].to_string(),
                "2001:db8::fe",
            ],
        ),
    ] {
        let target = family.of(&world.outside).to_string();
        let trace = || {
            Command::new("busybox")
                .args(["traceroute", "-n", "-q", "1", "-w", "3", "-m", "8", &target])
                .output()
        };
        let page = said(pod.netns.run(trace).expect("enter").expect("busybox"));
        let found: Vec<_> = page
            .lines()
            .skip(1)
            .map(|line| line.split_whitespace().nth(1).unwrap_or_default())
            // A link-local one with its link.
            .map(|hop| hop.trim_end_matches("%eth0"))
            .collect();
        let expected = [&hops[..], &[&target]].concat();
        assert_eq!(found, expected, "{page}");
    }
}

#[test]
fn pools_that_do_not_ask_for_it_keep_their_addresses() {
    needs_namespaces!();
    let world = World::new(false);
    let page = world.nodes[0].host_up();
    assert!(!page.contains("masquerade"), "{page}");
    let mut runtime = world.runtime();
    let pod = world.add(&mut runtime, 0, "c1", &json!([])).pod;
    let target = &world.outside;
    let probe = || Probe::Ping.run(&pod, target, Family::V4, MTU);
    probe().expect_err("there is no way back");
    // Once there is one it is the pod that is seen.
    let [via, _] = world.nodes[0].plan.underlay;
    let route = format!("ip route add {} via {via}", POOLS[0]);
    weft_lab::workshop::run(&world.router, &route).expect("a route");
    let _server = Server::of(target, Family::V4, 53);
    let seen = Speech::Tcp.seen(&pod.netns, (target.v4(), 53).into());
    assert_eq!(seen.expect("answered"), pod.v4());
    // And by --pool it is asked for here.
    let [v4, v6] = POOLS;
    let again = ["host", "up", "--pool", v4, "--pool", v6, "--nat-outgoing"];
    let page = said(world.nodes[0].weft(&again));
    assert!(page.contains(&format!("masquerade {v4} outside")), "{page}");
    let seen = Speech::Tcp.seen(&pod.netns, (target.v4(), 53).into());
    assert_eq!(seen.expect("answered"), world.nodes[0].underlay(Family::V4));
}

//! The egress comes and goes, holds its limits, and is nobody special.

use std::{
    fs,
    io::{ErrorKind, Read},
    net::{TcpListener, TcpStream, UdpSocket},
    process::Command,
    sync::mpsc,
    thread,
    time::Duration,
};

use weft_api::forwarder::PortState;
use weft_lab::{
    exchange,
    probe::{Family, Probe},
};
use weft_testkit::needs_namespaces;

use crate::world::{MTU, OUTSIDE, PATIENCE, World};

fn reaches(world: &World, pod: usize) {
    for probe in [Probe::Tcp, Probe::Udp] {
        probe
            .run(&world.pods[pod], &world.outside, Family::V4, MTU)
            .unwrap_or_else(|error| panic!("{error:#}"));
    }
}

#[test]
fn what_one_egress_held_ends_with_it_and_the_next_serves() {
    needs_namespaces!();
    let mut world = World::new("");
    let (mut asking, answering) =
        exchange::connection(world.pod(), &world.outside, Family::V4).expect("connected");
    world.egress.take().expect("it runs").kill();
    world.await_port(PortState::Gone);
    world.egress = Some(world.start(""));
    reaches(&world, 0);
    // Its next word finds nobody who knows of it.
    let heard = loop {
        if std::io::Write::write(&mut asking, b"still there?").is_err() {
            break ErrorKind::ConnectionReset;
        }
        asking
            .set_read_timeout(Some(Duration::from_millis(100)))
            .expect("set");
        match asking.read(&mut [0; 8]) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => break error.kind(),
            Ok(_) => panic!("nobody speaks"),
        }
    };
    assert_eq!(heard, ErrorKind::ConnectionReset);
    drop(answering);
}

#[test]
fn it_holds_no_capability() {
    needs_namespaces!();
    let world = World::new("");
    let pid = world.egress.as_ref().expect("it runs").pid();
    for task in fs::read_dir(format!("/proc/{pid}/task")).expect("it runs") {
        let status = task.expect("a thread").path().join("status");
        let status = fs::read_to_string(status).expect("it runs");
        for set in ["CapEff", "CapPrm", "CapInh", "CapAmb"] {
            let none = format!("{set}:\t{:016x}", 0);
            assert!(status.contains(&none), "{status}");
        }
        assert!(status.contains("NoNewPrivs:\t1"), "{status}");
    }
}

#[test]
fn a_second_egress_is_told_of_the_first() {
    needs_namespaces!();
    let world = World::new("");
    let start = || {
        Command::new(env!("CARGO_BIN_EXE_weft"))
            .args(["egress", "--pool", "10.244.0.0/16"])
            .env("WEFT_CONTROL", &world.forwarder.control)
            .output()
    };
    let output = world.node.run(start).expect("enter").expect("run");
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success(), "{told}");
    assert!(told.contains("another weft-egress"), "{told}");
    reaches(&world, 0);
}

#[test]
fn flows_that_a_pod_forgets_make_room_for_others() {
    needs_namespaces!();
    const FLOWS: u32 = 100_000;
    let world = World::new("ulimit 4160");
    let flood = || {
        let bind = |_| UdpSocket::bind("0.0.0.0:0").expect("a socket");
        let sockets = [0, 1].map(bind);
        for (count, flow) in (0..FLOWS).enumerate() {
            let port = u16::try_from(1 + flow / 2).expect("half of them");
            let socket = &sockets[flow as usize % 2];
            // A full queue on the way is the flood's own loss.
            let _ = socket.send_to(b"forgotten", (OUTSIDE[0], port));
            if count % 256 == 0 {
                thread::sleep(Duration::from_millis(1));
            }
        }
    };
    thread::scope(|scope| {
        let flood = scope.spawn(|| world.pods[0].netns.run(flood).expect("enter"));
        while !flood.is_finished() {
            exchange::bulk(&world.pods[1], &world.outside, Family::V4, 1 << 20)
                .expect("the other pod is served");
        }
    });
    let opened = world.count("udp_opened_total");
    let refused = world.count("refused_pace_total");
    assert!(opened > 0 && refused > 0, "{opened} opened, {refused} not");
    let evicted = world.count("flows_evicted_total");
    assert_eq!(evicted, opened.saturating_sub(2048));
    assert!(world.count("flows") <= 2048 + 1);
    let pid = world.egress.as_ref().expect("it runs").pid();
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    let most = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let most = most.and_then(|text| text.trim().strip_suffix(" kB"));
    let most: u64 = most.expect("a size").parse().expect("a number");
    assert!(most < 32 << 10, "{most} KiB at its most");
    for pod in 0..2 {
        reaches(&world, pod);
    }
}

#[test]
fn a_pod_with_too_many_connections_is_refused_and_the_others_are_not() {
    needs_namespaces!();
    let world = World::new("ulimit 264");
    let listen = || TcpListener::bind((OUTSIDE[0], 0));
    let listener = world.outside.netns.run(listen).expect("enter");
    let listener = listener.expect("listen");
    let server = listener.local_addr().expect("bound");
    let (stop, stopped) = mpsc::channel::<()>();
    thread::spawn(move || {
        let held: Vec<_> = listener.incoming().take(100).collect();
        // Until the other end is dropped.
        let _ = stopped.recv();
        drop(held);
    });
    let connect = || -> Vec<_> {
        let connect = |_| TcpStream::connect_timeout(&server, PATIENCE);
        (0..150).map(connect).collect()
    };
    let all = world.pods[0].netns.run(connect).expect("enter");
    let (held, refused): (Vec<_>, Vec<_>) = all.into_iter().partition(Result::is_ok);
    assert_eq!((held.len(), refused.len()), (100, 50));
    for error in refused {
        let kind = error.expect_err("refused").kind();
        assert_eq!(kind, ErrorKind::ConnectionRefused);
    }
    assert_eq!(world.count("refused_limit_total"), 50);
    reaches(&world, 1);
    drop((held, stop));
    world.await_count("flows", 1);
    reaches(&world, 0);
}

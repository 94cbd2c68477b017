//! Ports of the node that lead to pods, from wherever they are asked.

use std::{
    io::{Read, Write},
    net::IpAddr,
    process::Stdio,
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use weft_lab::{Pod, probe::Family};
use weft_testkit::needs_namespaces;

use crate::{
    talk::{Server, Speech},
    world::World,
};

const HOST: u16 = 8080;
const POD: u16 = 80;
const LIMIT: Duration = Duration::from_secs(60);

fn published(ip: &str) -> Value {
    let one = |protocol| json!({"hostPort": HOST, "containerPort": POD, "protocol": protocol, "hostIP": ip});
    json!([one("tcp"), one("udp")])
}

/// As whom the pod sees who asks that address of a node.
fn seen(from: &Pod, at: IpAddr) -> [Option<IpAddr>; 2] {
    Speech::ALL.map(|speech| speech.seen(&from.netns, (at, HOST).into()).ok())
}

#[test]
fn a_port_leads_to_its_pod_from_everywhere() {
    needs_namespaces!();
    let world = World::up();
    let mut runtime = world.runtime();
    let pod = world.add(&mut runtime, 0, "c1", &published("")).pod;
    let beside = world.add(&mut runtime, 0, "c2", &json!([])).pod;
    let far = world.add(&mut runtime, 1, "c3", &json!([])).pod;
    let [here, there] = &world.nodes[..] else {
        panic!("two nodes");
    };
    for (place, family) in Family::ALL.into_iter().enumerate() {
        let _server = Server::of(&pod, family, POD);
        let at = here.underlay(family);
        // Whoever could not be answered otherwise is seen as the node.
        let node = here.plan.tunnel[place];
        for (from, expected) in [
            (&world.outside, family.of(&world.outside)),
            (&there.itself(), there.underlay(family)),
            (&here.itself(), at),
            (&pod, node),
            (&beside, node),
            (&far, there.underlay(family)),
        ] {
            let told = format!("{family} from {}", from.name());
            assert_eq!(seen(from, at), [Some(expected); 2], "{told}");
        }
        // By the node's address in the pod network as well.
        assert_eq!(seen(&beside, node), [Some(node); 2]);
        assert_eq!(seen(&far, node), [Some(node); 2]);
    }
    let _server = Server::of(&pod, Family::V4, POD);
    let localhost = IpAddr::from([127, 0, 0, 1]);
    let expected = [Some(here.plan.tunnel[0]); 2];
    assert_eq!(seen(&here.itself(), localhost), expected);
    // By ::1 nobody but the node is reached.
    let v6: IpAddr = std::net::Ipv6Addr::LOCALHOST.into();
    let server = Server::at(&here.netns, (v6, HOST).into());
    assert_eq!(seen(&here.itself(), v6), [Some(v6); 2]);
    drop(server);
    // A pod's own is its own, and nothing of the node's is reached by it.
    assert_eq!(seen(&beside, localhost), [None; 2]);
    world.check_books();
}

#[test]
fn a_port_of_one_address_is_not_one_of_the_others() {
    needs_namespaces!();
    let world = World::up();
    let mut runtime = world.runtime();
    let node = &world.nodes[0];
    for family in Family::ALL {
        let at = node.underlay(family);
        let container = world.add(&mut runtime, 0, "c1", &published(&at.to_string()));
        let _servers = Family::ALL.map(|family| Server::of(&container.pod, family, POD));
        for other in Family::ALL {
            let found = seen(&world.outside, node.underlay(other));
            let expected = (other == family).then(|| other.of(&world.outside));
            assert_eq!(found, [expected; 2], "{at}: {other}");
        }
        let tunnel = node.plan.tunnel[usize::from(at.is_ipv6())];
        assert_eq!(seen(&world.outside, tunnel), [None; 2]);
        world.del(&mut runtime, 0, &container);
    }
    let container = world.add(&mut runtime, 0, "c1", &published("127.0.0.1"));
    let _server = Server::of(&container.pod, Family::V4, POD);
    let localhost = IpAddr::from([127, 0, 0, 1]);
    let itself = node.itself();
    assert_eq!(seen(&itself, localhost), [Some(node.plan.tunnel[0]); 2]);
    assert_eq!(seen(&world.outside, node.underlay(Family::V4)), [None; 2]);
    // Nor is it reached by a neighbour who has a route to it by the node.
    let via = node.underlay(Family::V4);
    let neighbour = &world.router;
    for command in [
        "sysctl -q -w net.ipv4.conf.all.route_localnet=1".to_owned(),
        "sysctl -q -w net.ipv4.conf.near.route_localnet=1".to_owned(),
        "ip address del 127.0.0.1/8 dev lo".to_owned(),
        "ip route del local 127.0.0.0/8 table local".to_owned(),
        format!("ip route add 127.0.0.1 via {via} src 192.0.2.254"),
    ] {
        // Some of it may be so already.
        let _ = weft_lab::workshop::run(neighbour, &command);
    }
    let asked = Speech::Tcp.seen(neighbour, (localhost, HOST).into());
    asked.expect_err("it is the node's own");
    assert!(node.led_to() > 0);
}

#[test]
fn families_that_are_not_named_lead_where_the_pod_has_an_address() {
    needs_namespaces!();
    let world = World::up();
    let mut runtime = world.runtime();
    for (ip, families) in [("0.0.0.0", [true, false]), ("::", [false, true])] {
        let container = world.add(&mut runtime, 0, "c1", &published(ip));
        let _servers = Family::ALL.map(|family| Server::of(&container.pod, family, POD));
        for (family, leads) in Family::ALL.into_iter().zip(families) {
            let found = seen(&world.outside, world.nodes[0].underlay(family));
            let expected = leads.then(|| family.of(&world.outside));
            assert_eq!(found, [expected; 2], "{ip}: {family}");
        }
        world.del(&mut runtime, 0, &container);
    }
}

/// The kernel of few machines speaks SCTP itself; any translates it.
#[test]
fn sctp_is_led_too() {
    needs_namespaces!();
    let world = World::up();
    let mut runtime = world.runtime();
    let ports = json!([{"hostPort": 9, "containerPort": 4660, "protocol": "sctp"}]);
    let pod = world.add(&mut runtime, 0, "c1", &ports).pod;
    let socat = |arguments: [&str; 3], netns: &weft_cni::netns::Netns| {
        let start = || {
            std::process::Command::new("socat")
                .args(arguments)
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()
        };
        netns.run(start).expect("enter").expect("socat")
    };
    let mut receiver = socat(["-u", "IP4-RECV:132", "-"], &pod.netns);
    let mut heard = receiver.stdout.take().expect("piped");
    let target = format!("IP4-SENDTO:{}:132", world.nodes[0].underlay(Family::V4));
    let packet = init(9);
    let hear = std::thread::spawn(move || {
        let mut buffer = [0; 256];
        let length = heard.read(&mut buffer).expect("read");
        buffer[..length].to_vec()
    });
    // The receiver may not be there yet.
    let until = Instant::now() + LIMIT;
    while !hear.is_finished() && Instant::now() < until {
        let mut sender = socat(["-u", "-", &target], &world.outside.netns);
        let mut input = sender.stdin.take().expect("piped");
        input.write_all(&packet).expect("written");
        drop(input);
        assert!(sender.wait().expect("it ends").success());
        std::thread::sleep(Duration::from_millis(100));
        if receiver.try_wait().expect("waited").is_some() {
            break;
        }
    }
    let _ = receiver.kill();
    let _ = receiver.wait();
    let heard = hear.join().expect("heard");
    assert!(heard.len() >= packet.len(), "{heard:?}");
    let found = &heard[heard.len() - packet.len()..];
    let mut expected = packet;
    expected[2..4].copy_from_slice(&4660_u16.to_be_bytes());
    summed(&mut expected);
    assert_eq!(found, expected);
}

/// The first packet of an association (RFC 9260 section 3.3.2).
fn init(port: u16) -> Vec<u8> {
    let mut packet = vec![0; 12];
    packet[..2].copy_from_slice(&5000_u16.to_be_bytes());
    packet[2..4].copy_from_slice(&port.to_be_bytes());
    packet.extend([1, 0, 0, 20, 0, 0, 0, 1, 0, 1, 0, 0, 0, 1, 0, 1, 0, 0, 0, 1]);
    summed(&mut packet);
    packet
}

/// With its CRC32c (RFC 9260 appendix A).
fn summed(packet: &mut [u8]) {
    const POLYNOMIAL: u32 = 0x82f6_3b78;
    packet[8..12].fill(0);
    let mut crc = u32::MAX;
    for byte in packet.iter() {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            let carry = crc & 1;
            crc = (crc >> 1) ^ (carry * POLYNOMIAL);
        }
    }
    packet[8..12].copy_from_slice(&(!crc).to_le_bytes());
}

//! What is published comes and goes with pods, whatever happens to who does it.

use std::{
    thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use weft_api::forwarder::{Port, PortState};
use weft_lab::probe::Family;
use weft_testkit::{
    cni::{Attachment, finish},
    needs_namespaces,
};

use crate::{
    talk::{Server, Speech},
    world::{Container, World, said},
};

/// Of both families.
const EACH: usize = 2;

fn tcp(port: u16) -> Value {
    json!([{"hostPort": port, "containerPort": 80, "protocol": "tcp"}])
}

#[test]
fn what_is_published_goes_with_its_pod() {
    needs_namespaces!();
    let world = World::up();
    let node = &world.nodes[0];
    let mut runtime = world.runtime();
    assert_eq!(node.led_to(), 0);
    let one = world.add(&mut runtime, 0, "c1", &tcp(8080));
    let two = world.add(&mut runtime, 0, "c2", &tcp(8081));
    assert_eq!(node.led_to(), 2 * EACH);
    world.del(&mut runtime, 0, &one);
    assert_eq!(node.led_to(), EACH);
    // GC knows no pod any more.
    let gone = two.attachment;
    let until = Instant::now() + Duration::from_secs(60);
    while node.led_to() > 0 {
        assert!(Instant::now() < until, "GC frees what is not young");
        let list = world.list(0);
        let collected = node.netns.run(|| runtime.gc(&list, &[]));
        collected.expect("enter").expect("collected");
        thread::sleep(Duration::from_millis(100));
    }
    assert_eq!(node.pods_up(), 0);
    runtime.forget(&gone);
    // What is there goes with weft0.
    let _three = world.add(&mut runtime, 0, "c3", &tcp(8080));
    let page = said(node.weft(&["host", "down"]));
    assert!(page.contains("table inet weft is gone"), "{page}");
    assert!(!node.has_table());
    // And comes again, for the pod is still there.
    let page = node.host_up();
    assert!(page.contains("publish 2 ports of pods"), "{page}");
    assert_eq!(node.led_to(), EACH);
}

#[test]
fn one_port_is_one_pods() {
    needs_namespaces!();
    let world = World::up();
    let mut runtime = world.runtime();
    let one = world.add(&mut runtime, 0, "c1", &tcp(8080));
    let second = Container::new("c2", &tcp(8080));
    let attachment = second.attachment.clone();
    let refused = world.try_add(&mut runtime, 0, second);
    let failure = refused.err().expect("it is published");
    assert_eq!(failure["code"], 102, "{failure}");
    let told = failure["msg"].as_str().expect("a sentence");
    assert!(told.contains("is published by port pods/c1/eth0"), "{told}");
    let node = &world.nodes[0];
    assert_eq!((node.led_to(), node.pods_up()), (EACH, 1));
    runtime.forget(&attachment);
    // A process of the node that has the port is passed over, as by portmap.
    let itself = node.itself();
    let at = (node.underlay(Family::V4), 8080).into();
    let _beside = Server::at(&itself.netns, at);
    let _server = Server::of(&one.pod, Family::V4, 80);
    let seen = Speech::Tcp
        .seen(&world.outside.netns, at)
        .expect("answered");
    assert_eq!(seen, world.outside.v4());
    drop(_server);
    Speech::Tcp
        .seen(&world.outside.netns, at)
        .expect_err("it leads to the pod alone");
}

#[test]
fn without_weft0_a_pod_that_publishes_is_refused_and_leaves_nothing() {
    needs_namespaces!();
    let world = World::new(true);
    let node = &world.nodes[0];
    let mut runtime = world.runtime();
    let container = Container::new("c1", &tcp(8080));
    let refused = world.try_add(&mut runtime, 0, container);
    let failure = refused.err().expect("nobody leads there");
    assert_eq!(failure["code"], 11, "{failure}");
    let told = failure["msg"].as_str().expect("a sentence");
    assert!(told.contains("run weft host up"), "{told}");
    assert_eq!(node.ports(), []);
    // With weft0 and without the table as well.
    node.host_up();
    node.nft("delete table inet weft");
    let container = Container::new("c1", &tcp(8080));
    let path = container.attachment.netns.clone();
    let refused = world.try_add(&mut runtime, 0, container);
    let failure = refused.err().expect("nobody leads there");
    assert_eq!(failure["code"], 11, "{failure}");
    assert_eq!(node.pods_up(), 0, "{path}");
    // Others need neither.
    let _plain = world.add(&mut runtime, 0, "c2", &json!([]));
    node.host_up();
    let _again = world.add(&mut runtime, 0, "c3", &tcp(8080));
    assert_eq!(node.led_to(), EACH);
}

#[test]
fn the_tunnels_own_port_is_nobodys() {
    needs_namespaces!();
    let world = World::up();
    let mut runtime = world.runtime();
    let ports = |protocol| json!([{"hostPort": 4789, "containerPort": 80, "protocol": protocol}]);
    let refused = world.try_add(&mut runtime, 0, Container::new("c1", &ports("udp")));
    let failure = refused.err().expect("nodes speak by it");
    assert_eq!(failure["code"], 7, "{failure}");
    let told = failure["msg"].as_str().expect("a sentence");
    assert!(
        told.contains("*:4789/udp is the port of the tunnel"),
        "{told}"
    );
    assert_eq!((world.nodes[0].led_to(), world.nodes[0].pods_up()), (0, 0));
    world.add(&mut runtime, 0, "c2", &ports("tcp"));
}

#[test]
fn nothing_is_led_while_weft0_is_away() {
    needs_namespaces!();
    let world = World::up();
    let node = &world.nodes[0];
    let mut runtime = world.runtime();
    let _one = world.add(&mut runtime, 0, "c1", &tcp(8080));
    let two = world.add(&mut runtime, 0, "c2", &json!([]));
    weft_lab::workshop::run(&node.netns, "ip link del weft0").expect("deleted");
    let is_up = |port: &Port| port.host.is_some() && port.state == PortState::Up;
    let until = Instant::now() + Duration::from_secs(20);
    while node.ports().iter().any(is_up) {
        assert!(Instant::now() < until, "its port is gone");
        thread::sleep(Duration::from_millis(10));
    }
    world.del(&mut runtime, 0, &two);
    assert_eq!(node.led_to(), 0);
    node.host_up();
    assert_eq!(node.led_to(), EACH);
}

#[test]
fn check_sees_what_the_kernel_does_otherwise() {
    needs_namespaces!();
    let world = World::up();
    let node = &world.nodes[0];
    let mut runtime = world.runtime();
    let one = world.add(&mut runtime, 0, "c1", &tcp(8080));
    let list = world.list(0);
    let check = |pod: &Attachment| node.netns.run(|| runtime.check(&list, pod)).expect("enter");
    check(&one.attachment).expect("nothing differs");
    node.nft("flush map inet weft ports-v4");
    let failure = check(&one.attachment).expect_err("it differs");
    assert_eq!(failure["code"], 101, "{failure}");
    let told = failure["msg"].as_str().expect("a sentence");
    let missing = format!("the kernel does not lead *:8080/tcp to {}:80", one.pod.v4());
    assert!(told.contains(&missing), "{told}");
    node.host_up();
    check(&one.attachment).expect("it is mended");
}

/// Whenever an ADD or a DEL is killed, the runtime's DEL leaves nothing.
#[test]
fn whoever_is_killed_leaves_nothing_published() {
    needs_namespaces!();
    let world = World::up();
    let node = &world.nodes[0];
    let plugin = world.runtime().path[0].join("weft-cni");
    let mut config = world.plugin(0);
    config["cniVersion"] = "1.1.0".into();
    config["name"] = "pods".into();
    config["runtimeConfig"] = json!({"portMappings": tcp(8080)});
    let config = config.to_string();
    let start = |verb: &str, pod: &Attachment| {
        let start = || world.runtime().start(&plugin, verb, Some(pod));
        node.netns.run(start).expect("enter")
    };
    for step in 0..40 {
        let container = Container::new("c1", &json!([]));
        let pod = &container.attachment;
        for verb in ["ADD", "DEL"] {
            let mut child = start(verb, pod);
            let mut stdin = child.stdin.take().expect("piped");
            let _ = std::io::Write::write_all(&mut stdin, config.as_bytes());
            drop(stdin);
            thread::sleep(Duration::from_micros(500 * step));
            let _ = child.kill();
            child.wait().expect("it ends");
        }
        let deleted = finish(start("DEL", pod), config.as_bytes());
        assert!(deleted.status.success(), "step {step}: {deleted:?}");
        assert_eq!((node.led_to(), node.pods_up()), (0, 0), "step {step}");
    }
}

#[test]
fn a_pod_that_went_by_itself_is_led_to_no_longer_than_until_the_next_comes() {
    needs_namespaces!();
    let world = World::up();
    let node = &world.nodes[0];
    let mut runtime = world.runtime();
    let one = world.add(&mut runtime, 0, "c1", &tcp(8080));
    weft_lab::workshop::run(&one.pod.netns, "ip link del eth0").expect("deleted");
    let until = Instant::now() + Duration::from_secs(20);
    while node.pods_up() > 0 {
        assert!(Instant::now() < until, "its port is gone");
        thread::sleep(Duration::from_millis(10));
    }
    let _two = world.add(&mut runtime, 0, "c2", &tcp(8081));
    assert_eq!(node.led_to(), EACH);
    let _three = world.add(&mut runtime, 0, "c3", &json!([]));
    // Its DEL, which any runtime repeats, has nothing left to do.
    world.del(&mut runtime, 0, &one);
    assert_eq!(node.led_to(), EACH);
}

#[test]
fn many_at_once_do_not_undo_each_other() {
    needs_namespaces!();
    const PODS: u16 = 24;
    let world = World::up();
    let node = &world.nodes[0];
    let pods: Vec<_> = thread::scope(|scope| {
        let add = |number: u16| {
            let world = &world;
            scope.spawn(move || {
                let mut runtime = world.runtime();
                let name = format!("c{number}");
                let pod = world.add(&mut runtime, 0, &name, &tcp(8000 + number));
                (runtime, pod)
            })
        };
        let adding: Vec<_> = (0..PODS).map(add).collect();
        let added = adding.into_iter().map(|one| one.join().expect("added"));
        added.collect()
    });
    assert_eq!(node.led_to(), EACH * usize::from(PODS));
    thread::scope(|scope| {
        for (mut runtime, pod) in pods {
            let world = &world;
            scope.spawn(move || world.del(&mut runtime, 0, &pod));
        }
    });
    assert_eq!((node.led_to(), node.pods_up()), (0, 0));
}

#[test]
fn a_pod_may_publish_a_thousand_ports() {
    needs_namespaces!();
    const COUNT: u16 = 1000;
    let world = World::up();
    let node = &world.nodes[0];
    let mut runtime = world.runtime();
    let port = |number: u16| json!({"hostPort": 20_000 + number, "containerPort": 1 + number});
    let ports: Vec<_> = (0..COUNT).map(port).collect();
    let container = world.add(&mut runtime, 0, "c1", &json!(ports));
    assert_eq!(node.led_to(), EACH * usize::from(COUNT));
    let list = world.list(0);
    let checked = node
        .netns
        .run(|| runtime.check(&list, &container.attachment));
    checked.expect("enter").expect("nothing differs");
    let _server = Server::of(&container.pod, Family::V4, COUNT);
    let last = (node.underlay(Family::V4), 20_000 + COUNT - 1).into();
    let seen = Speech::Tcp.seen(&world.outside.netns, last);
    assert_eq!(seen.expect("answered"), world.outside.v4());
    world.del(&mut runtime, 0, &container);
    assert_eq!(node.led_to(), 0);
}

/// A client that never ceases to send is led to the pod of the day.
#[test]
fn flows_of_udp_follow_the_pod() {
    needs_namespaces!();
    let world = World::up();
    let node = &world.nodes[0];
    let mut runtime = world.runtime();
    let ports = json!([{"hostPort": 5353, "containerPort": 53, "protocol": "udp"}]);
    let target = (node.underlay(Family::V4), 5353);
    let socket = || std::net::UdpSocket::bind((world.outside.v4(), 0));
    let socket = world.outside.netns.run(socket).expect("enter");
    let socket = socket.expect("bind");
    let timeout = Some(Duration::from_millis(200));
    socket.set_read_timeout(timeout).expect("set");
    let answered = || {
        (0..20).any(|_| {
            socket.send_to(b"who am I?", target).expect("sent");
            // The port may be refused first.
            socket.recv(&mut [0; 64]).is_ok()
        })
    };
    // Before there is a pod there is a flow to the node.
    socket.send_to(b"who am I?", target).expect("sent");
    for name in ["c1", "c2"] {
        let container = world.add(&mut runtime, 0, name, &ports);
        let server = Server::of(&container.pod, Family::V4, 53);
        assert!(answered(), "{name}");
        drop(server);
        world.del(&mut runtime, 0, &container);
    }
}

#[test]
fn others_rules_are_left_alone() {
    needs_namespaces!();
    let world = World::new(true);
    let node = &world.nodes[0];
    for rule in [
        "add table ip docker",
        "add chain ip docker nat { type nat hook postrouting priority 100 ; }",
        "add rule ip docker nat ip saddr 172.17.0.0/16 masquerade",
        "add table inet weft-not",
    ] {
        node.nft(rule);
    }
    let iptables = "iptables -w -t nat -A POSTROUTING -s 172.18.0.0/16 -j MASQUERADE";
    weft_lab::workshop::run(&node.netns, iptables).expect("iptables");
    let before = node.nft("list ruleset");
    let table = |page: String| page[page.find("table inet weft {").expect("there")..].to_owned();
    node.host_up();
    let first = node.nft("list ruleset");
    node.host_up();
    // Nothing is added by doing it again.
    assert_eq!(table(node.nft("list ruleset")), table(first));
    said(node.weft(&["host", "down"]));
    assert_eq!(node.nft("list ruleset"), before);
}

//! Ports of the node that lead to pods, from wherever they are asked.

use std::net::IpAddr;

use serde_json::{Value, json};
use weft_lab::{Pod, probe::Family};
use weft_testkit::needs_namespaces;

use crate::{
    talk::{Server, Speech},
    world::World,
};

const HOST: u16 = 8080;
const POD: u16 = 80;

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

//! Calico with CrossSubnet, and with pools that have no encapsulation.

use std::{collections::BTreeSet, net::IpAddr, process::Command};

use serde_json::{Value as Json, json};
use weft_api::names::Mac;
use weft_cni::{link::Attach, netns::Netns};
use weft_lab::{Pod, PodPlan, exchange, probe::Family};
use weft_testkit::needs_namespaces;

use crate::{
    calico_pod::add_pod_with_proxy_arp,
    etcd::eventually,
    felix::{BLOCKS as CALICO_BLOCKS, Felix, NODES, put_block},
    forms::{PLAIN, TUNNELLED, forms},
    kernel_node::{all, path, route_packets},
    wiretap::Wiretap,
    world::{Member, POD_MTU, UNDERLAY, World},
};

const RESOURCES: &str = "/calico/resources/v3/projectcalico.org/";
const NAMES: [&str; 3] = ["n1", "n2", "n3"];
const TUNNELS: [[&str; 2]; 3] = [
    ["10.244.1.0", "fd00:10:244:1::"],
    ["10.244.2.0", "fd00:10:244:2::"],
    ["10.244.3.0", "fd00:10:244:3::"],
];
const BLOCKS: [[&str; 2]; 3] = [
    ["10.244.1.0/24", "fd00:10:244:1::/122"],
    ["10.244.2.0/24", "fd00:10:244:2::/122"],
    ["10.244.3.0/24", "fd00:10:244:3::/122"],
];
const NEAR_ROUTES: [&str; 2] = [
    "10.244.2.0/24 via 192.0.2.2",
    "fd00:10:244:2::/122 via 2001:db8::2",
];
const TO_US: [&str; 2] = ["10.244.2.98", "fd00:10:244:2::22"];
const TO_THEM: [&str; 2] = ["10.244.1.99", "fd00:10:244:1::23"];
const LENT_ROUTES: [&str; 4] = [
    "10.244.2.98 via 169.254.1.1",
    "fd00:10:244:2::22 via fe80::ecee:eeff:feee:eeee",
    "10.244.1.99 via 192.0.2.2",
    "fd00:10:244:1::23 via 2001:db8::2",
];

#[test]
fn the_same_subnet_goes_plain_and_others_by_vxlan() {
    needs_namespaces!();
    let world = world("CrossSubnet");
    let _member = member(&world);
    follow(&world);
    let ours = world.our_pod();
    for (at, form) in [(1, PLAIN), (2, TUNNELLED)] {
        let theirs = world.bare_pod(at);
        add_pod_with_proxy_arp(&world.nodes[at], &theirs, POD_MTU);
        world.talk(&ours, &theirs, at, form);
    }
    assert_eq!(
        world.routes(),
        BTreeSet::from(NEAR_ROUTES.map(str::to_owned))
    );
    // The way of a pool may change while nodes run.
    pool(&world, "v4", "10.244.0.0/22", "Always");
    eventually("the route of IPv6 stays", || {
        world.routes() == BTreeSet::from([NEAR_ROUTES[1].to_owned()])
    });
    pool(&world, "v4", "10.244.0.0/22", "CrossSubnet");
    eventually("both are back", || world.routes().len() == 2);
    world.delete(&format!("{NODES}n2"));
    eventually("no route is left", || world.routes().is_empty());
    eventually("the far node's peers", || world.peers().len() == 2);
}

/// Each of two neighbours has addresses of the other's blocks.
#[test]
fn what_is_lent_is_reached_where_it_is() {
    needs_namespaces!();
    let world = world("CrossSubnet");
    lend(&world, BLOCKS[1], TO_US, "n1");
    let _member = member(&world);
    lend(&world, BLOCKS[0], TO_THEM, "n2");
    let routes = NEAR_ROUTES.into_iter().chain(LENT_ROUTES);
    let routes: BTreeSet<_> = routes.map(str::to_owned).collect();
    eventually("the routes", || world.routes() == routes);
    follow(&world);
    let (ours, our_guest) = (world.our_pod(), pod_at(&world, 0, TO_US));
    our_guest
        .plug(
            Attach::Tap { queues: 2 },
            POD_MTU,
            &world.nodes[0],
            &world.forwarder,
        )
        .expect("wired");
    let (theirs, their_guest) = (world.bare_pod(1), pod_at(&world, 1, TO_THEM));
    for pod in [&theirs, &their_guest] {
        add_pod_with_proxy_arp(&world.nodes[1], pod, POD_MTU);
    }
    let node = Pod {
        plan: plan_at(&world, 0, TUNNELS[0]),
        node: 0,
        netns: Netns::open(path(&world.nodes[0]).as_ref()).expect("the node again"),
    };
    for (from, to) in [
        (&our_guest, &theirs),
        (&theirs, &our_guest),
        (&ours, &their_guest),
        (&their_guest, &ours),
        (&node, &our_guest),
        (&node, &their_guest),
    ] {
        for family in Family::ALL {
            exchange::bulk(from, to, family, 1 << 20)
                .unwrap_or_else(|error| panic!("{} to {}: {error:#}", from.name(), to.name()));
        }
    }
    // The route is made anew with weft0, and goes with the loan.
    all(&world.nodes[0], &["ip link set weft0 down"]);
    world.host_up();
    eventually("the routes", || world.routes() == routes);
    lend(&world, BLOCKS[1], TO_US, "n2");
    eventually("those by weft0 go", || world.routes().len() == 4);
}

/// Of nodes behind the router a routing daemon would tell the way.
#[test]
fn a_pool_without_encapsulation_goes_plain_everywhere() {
    needs_namespaces!();
    let world = world("Always");
    pool(&world, "never", "10.245.0.0/16", "Never");
    for (at, block) in [(1, "10.245.2.0/24"), (2, "10.245.3.0/24")] {
        world.at_home(|| put_block(&world.etcd, block, Some(NAMES[at]), &[]));
    }
    let _member = member(&world);
    let far = "ip route add 10.245.3.0/24 via";
    all(&world.nodes[0], &[&format!("{far} 192.0.2.254")]);
    all(&world.router, &[&format!("{far} 198.51.100.3")]);
    eventually("the near node's route", || {
        world.routes() == BTreeSet::from(["10.245.2.0/24 via 192.0.2.2".to_owned()])
    });
    // The way back, as the daemons tell it.
    for (at, via) in [(1, "192.0.2.1"), (2, "198.51.100.254")] {
        world.nodes[at].run(route_packets).expect("enter");
        all(
            &world.nodes[at],
            &[&format!("ip route replace 10.245.1.0/24 via {via}")],
        );
    }
    all(&world.router, &["ip route add 10.245.1.0/24 via 192.0.2.1"]);
    let ours = guest(&world, 0, "10.245.1.20");
    ours.plug(
        Attach::Tap { queues: 2 },
        POD_MTU,
        &world.nodes[0],
        &world.forwarder,
    )
    .expect("wired");
    for at in [1, 2] {
        let theirs = guest(&world, at, &format!("10.245.{}.20", at + 1));
        add_pod_with_proxy_arp(&world.nodes[at], &theirs, POD_MTU);
        let tap = Wiretap::on(&world.nodes[0]);
        for (from, to) in [(&ours, &theirs), (&theirs, &ours)] {
            exchange::bulk(from, to, Family::V4, 1 << 20).expect("every byte");
            exchange::datagrams(from, to, Family::V4, [1, 1000, 1402]).expect("every datagram");
        }
        let seen = forms(tap, &ours, &theirs);
        assert_eq!(seen, BTreeSet::from([PLAIN]));
    }
}

/// Our node with weft0, and the others' records.
fn world(mode: &str) -> World {
    let world = World::new(4789, 4096);
    pool(&world, "v4", "10.244.0.0/22", mode);
    for at in [0, 1, 2] {
        pool(&world, &format!("v6-{at}"), BLOCKS[at][1], mode);
    }
    let reserved = ["10.244.0.0/24", "10.244.2.0/23", BLOCKS[1][1], BLOCKS[2][1]];
    let reservation = json!({"metadata": {"name": "r"}, "spec": {"reservedCIDRs": reserved}});
    world.put(
        &format!("{RESOURCES}ipreservations/r"),
        &reservation.to_string(),
    );
    for at in [1, 2] {
        let (node, underlay) = (&world.nodes[at], UNDERLAY[at]);
        world.at_home(|| {
            Felix::start(
                NAMES[at],
                node,
                &world.etcd,
                underlay,
                TUNNELS[at],
                BLOCKS[at],
            );
        });
    }
    world.host_up();
    world
}

fn pool(world: &World, name: &str, cidr: &str, mode: &str) {
    let pool = json!({
        "kind": "IPPool",
        "apiVersion": "projectcalico.org/v3",
        "metadata": {"name": name, "uid": "u", "creationTimestamp": "2026-01-31T12:00:00Z"},
        "spec": {
            "cidr": cidr,
            "vxlanMode": mode,
            "ipipMode": "Never",
            "blockSize": if cidr.contains(':') { 122 } else { 24 },
            "nodeSelector": "all()",
            "allowedUses": ["Workload", "Tunnel"],
        },
    });
    world.put(&format!("{RESOURCES}ippools/{name}"), &pool.to_string());
}

fn member(world: &World) -> Member {
    let mut command: Command = world.weft(&["join", "calico"]);
    command.arg(format!("--etcd={}", world.etcd.url())).args([
        "--public-ip",
        UNDERLAY[0][0],
        "--public-ip",
        UNDERLAY[0][1],
    ]);
    let member = world.member(command);
    eventually("the peers", || world.peers().len() == 4);
    world.host_up();
    member
}

fn follow(world: &World) {
    for at in [1, 2] {
        let node = &world.nodes[at];
        world.at_home(|| Felix::of(NAMES[at], node, &world.etcd).follow());
    }
}

/// As Calico's IPAM of that node would take them, and whoever had them before.
fn lend(world: &World, blocks: [&str; 2], addresses: [&str; 2], node: &str) {
    let keys = ["ipv4", "ipv6"]
        .into_iter()
        .zip(blocks)
        .map(|(version, cidr)| {
            format!("{CALICO_BLOCKS}{version}/block/{}", cidr.replace('/', "-"))
        });
    for (key, address) in keys.zip(addresses) {
        let rows = world.at_home(|| world.etcd.rows(&key));
        let mut block: Json = serde_json::from_str(&rows[0].1).expect("JSON");
        let ordinal = match address.parse().expect("an address") {
            IpAddr::V4(v4) => v4.octets()[3],
            IpAddr::V6(v6) => v6.octets()[15],
        };
        let attributes = block["attributes"].as_array_mut().expect("a list");
        attributes.push(json!({"handle_id": "k8s-pod-network.guest",
            "secondary": {"node": node, "pod": "guest", "namespace": "default"}}));
        let index = attributes.len() - 1;
        block["allocations"][usize::from(ordinal)] = index.into();
        let free = block["unallocated"].as_array_mut().expect("a list");
        free.retain(|free| *free != ordinal);
        world.put(&key, &block.to_string());
    }
}

fn plan_at(world: &World, at: usize, [v4, v6]: [&str; 2]) -> PodPlan {
    let own = &world.plan[at].pods[0];
    let [first @ .., last] = own.mac.0;
    let [a, b, c, d, e] = first;
    PodPlan {
        name: format!("{}-guest", own.name),
        mac: Mac([a, b, c, d, e, last + 1]),
        v4: v4.parse().expect("an address"),
        v6: v6.parse().expect("an address"),
    }
}

fn pod_at(world: &World, at: usize, addresses: [&str; 2]) -> Pod {
    Pod::make(plan_at(world, at, addresses), at).expect("a pod")
}

fn guest(world: &World, at: usize, v4: &str) -> Pod {
    let own = &world.plan[at].pods[0];
    let [.., last] = own.v6.octets();
    let mut v6 = own.v6.octets();
    v6[15] = last + 1;
    let plan = PodPlan {
        name: format!("{}-guest", own.name),
        v4: v4.parse().expect("an address"),
        v6: v6.into(),
        ..own.clone()
    };
    Pod::make(plan, at).expect("a pod")
}

//! flannel with DirectRouting.

use std::{
    collections::BTreeSet,
    fs,
    process::{Command, Stdio},
};

use serde_json::{Value as Json, json};
use tempfile::NamedTempFile;
use weft_api::forwarder::Way;
use weft_lab::{
    exchange::{self, Content},
    probe::Family,
};
use weft_testkit::needs_namespaces;

use crate::{
    bridge_pod::add_pod_to_bridge,
    etcd::{Running, eventually},
    forms::{PLAIN, TUNNELLED},
    kernel_node::{all, route_packets},
    world::{Member, POD_MTU, UNDERLAY, World},
};

const CONFIG: &str = r#"{"EnableIPv6":true,"Network":"10.244.0.0/16","SubnetMin":"10.244.1.0",
    "SubnetMax":"10.244.3.0","IPv6Network":"fd00:10:244::/48","IPv6SubnetMin":"fd00:10:244:1::",
    "IPv6SubnetMax":"fd00:10:244:3::","Backend":{"Type":"vxlan","DirectRouting":true}}"#;
const SUBNETS: &str = "/coreos.com/network/subnets/";
const KEYS: [&str; 3] = [
    "10.244.1.0-24&fd00:10:244:1::-64",
    "10.244.2.0-24&fd00:10:244:2::-64",
    "10.244.3.0-24&fd00:10:244:3::-64",
];
const DEVICES: [(&str, &str, &str); 2] = [
    ("flannel.1", "PublicIP", "BackendData"),
    ("flannel-v6.1", "PublicIPv6", "BackendV6Data"),
];
const NEAR_ROUTES: [&str; 2] = [
    "10.244.2.0/24 via 192.0.2.2",
    "fd00:10:244:2::/64 via 2001:db8::2",
];

#[test]
fn neighbours_go_plain_and_others_by_vxlan() {
    needs_namespaces!();
    let world = world();
    let _member = member(&world);
    follow(&world);
    let ours = world.our_pod();
    for (at, form) in [(1, PLAIN), (2, TUNNELLED)] {
        let theirs = world.bare_pod(at);
        add_pod_to_bridge(&world.nodes[at], &theirs, POD_MTU);
        world.talk(&ours, &theirs, at, form);
    }
    assert_eq!(
        world.routes(),
        BTreeSet::from(NEAR_ROUTES.map(str::to_owned))
    );
}

#[test]
fn routes_come_and_go_with_leases() {
    needs_namespaces!();
    let world = world();
    let _member = member(&world);
    let near = format!("{SUBNETS}{}", KEYS[1]);
    world.delete(&near);
    eventually("no route is left", || world.routes().is_empty());
    assert_eq!(world.peers().len(), 2, "those of the far node");
    // It comes back elsewhere in the subnet, then moves behind the router.
    for (public, count) in [("192.0.2.9", 2), ("198.51.100.9", 1)] {
        let lease = lease(1).replace("192.0.2.2", public);
        world.put(&near, &lease);
        let route = format!("10.244.2.0/24 via {public}");
        eventually("the routes that its addresses ask for", || {
            let routes = world.routes();
            routes.len() == count && routes.contains(&route) == (count == 2)
        });
    }
    let ways = world.peers().into_iter().filter(|peer| {
        let direct = peer.node.ways.values().any(|way| *way == Way::Direct);
        direct && peer.node.underlay[0].is_ipv4()
    });
    assert_eq!(ways.count(), 0);
}

#[test]
fn a_restart_touches_only_what_changed() {
    needs_namespaces!();
    let world = world();
    let mut first = member(&world);
    follow(&world);
    let ours = world.our_pod();
    let theirs = world.bare_pod(1);
    add_pod_to_bridge(&world.nodes[1], &theirs, POD_MTU);
    let (here, there) = exchange::connection(&ours, &theirs, Family::V4).expect("connected");
    let send = |seed| {
        exchange::send(&here, Content::new(seed), 1 << 16).expect("sent");
        exchange::receive(&there, Content::new(seed), 1 << 16).expect("every byte");
    };
    send(1);
    first.process.stop();
    send(2);
    // What was left behind goes, what others made stays.
    all(
        &world.nodes[0],
        &[
            "ip route add 10.244.8.0/24 via 192.0.2.2",
            "ip route add 10.244.9.0/24 via 192.0.2.2 proto 87",
            "ip -6 route add fd00:10:244:9::/64 via 2001:db8::2 proto 87",
        ],
    );
    let news = NamedTempFile::new().expect("a file");
    let end = news.reopen().expect("the file");
    let watch = move || {
        let mut watch = Command::new("ip");
        watch.args(["monitor", "route"]).stdout(end);
        watch.stdin(Stdio::null()).spawn()
    };
    let _watch = Running(world.at_home(watch).expect("it runs"));
    let told = || fs::read_to_string(news.path()).expect("news");
    eventually("the monitor hears", || {
        let probe = [
            "ip route add 10.9.9.9 via 192.0.2.2",
            "ip route del 10.9.9.9",
        ];
        all(&world.nodes[0], &probe);
        told().contains("10.9.9.9")
    });
    let _again = member(&world);
    eventually("the stale routes are gone", || {
        world.routes() == BTreeSet::from(NEAR_ROUTES.map(str::to_owned))
    });
    send(3);
    eventually("the monitor heard it", || {
        told().contains("Deleted 10.244.9.0/24")
    });
    for kept in ["10.244.2.0/24", "10.244.8.0/24", "fd00:10:244:2::/64"] {
        assert!(!told().contains(kept), "{}", told());
    }
}

#[test]
fn a_route_that_is_missing_is_made_again_and_anothers_is_told() {
    needs_namespaces!();
    let world = world();
    let member = member(&world);
    let ours = &world.nodes[0];
    all(ours, &["ip route del 10.244.2.0/24"]);
    eventually("it is made again", || world.routes().len() == 2);
    all(ours, &["ip route replace 10.244.2.0/24 via 192.0.2.254"]);
    eventually("it is told", || {
        member
            .log()
            .contains("10.244.2.0/24 has another route than via 192.0.2.2")
    });
    all(ours, &["ip route del 10.244.2.0/24"]);
    eventually("it is made again", || world.routes().len() == 2);
    // One that nobody uses any more goes, whatever kept it.
    all(ours, &["ip route add 10.244.9.0/24 via 192.0.2.2 proto 87"]);
    eventually("it goes", || world.routes().len() == 2);
    // One with a lower metric wins over ours, one with a higher does no harm.
    all(
        ours,
        &[
            "ip route add 10.244.2.0/24 via 192.0.2.254 metric 7",
            "ip route add fd00:10:244:2::/64 via 2001:db8::fe metric 7",
        ],
    );
    eventually("it is told", || {
        member
            .log()
            .contains("fd00:10:244:2::/64 has another route than via 2001:db8::2")
    });
    let told = "10.244.2.0/24 has another route";
    assert_eq!(member.log().matches(told).count(), 1, "the one of before");
    // The good one being there, another's that beats it is in its way no more.
    all(
        ours,
        &["ip route add fd00:10:244:2::/64 via 2001:db8::2 metric 5"],
    );
    all(ours, &["ip route del fd00:10:244:2::/64 proto 87"]);
    all(ours, &["ip route del 10.244.2.0/24 proto 87"]);
    eventually("that of IPv4 wins again", || {
        let way = weft_lab::workshop::run(ours, "ip route get 10.244.2.7").expect("a way");
        way.contains("via 192.0.2.2 ") && world.routes().len() == 1
    });
}

#[test]
fn what_direct_routing_takes_is_asked_for() {
    needs_namespaces!();
    let world = World::new(8472, 1);
    world.put("/coreos.com/network/config", CONFIG);
    let refused = |command: Command, words: &str| {
        let output = world.output(command);
        let told = String::from_utf8_lossy(&output.stderr);
        assert!(
            !output.status.success() && told.contains("DirectRouting") && told.contains(words),
            "{words}: {told}"
        );
    };
    refused(command(&world), "run weft host up");
    world.host_up();
    let whole = command(&world);
    let mut bare = Command::new("setpriv");
    bare.args(["--bounding-set=-net_admin", "--inh-caps=-net_admin"])
        .arg(whole.get_program())
        .args(whole.get_args())
        .env("WEFT_CONTROL", &world.forwarder.control);
    refused(bare, "CAP_NET_ADMIN");
}

/// Our node with weft0, and the others' leases.
fn world() -> World {
    let world = World::new(8472, 1);
    world.put("/coreos.com/network/config", CONFIG);
    for at in [1, 2] {
        world.put(&format!("{SUBNETS}{}", KEYS[at]), &lease(at));
    }
    world.host_up();
    world
}

fn member(world: &World) -> Member {
    let member = world.member(command(world));
    eventually("the peers", || !world.peers().is_empty());
    // weft0 takes the node's address in the pod network.
    world.host_up();
    member
}

fn command(world: &World) -> Command {
    let mut command = world.weft(&["join", "flannel"]);
    command.arg(format!("--etcd={}", world.etcd.url())).args([
        "--public-ip",
        "192.0.2.1",
        "--public-ip",
        "2001:db8::1",
    ]);
    command
}

fn public(at: usize) -> [&'static str; 2] {
    UNDERLAY[at].map(|net| net.split('/').next().expect("an address"))
}

fn lease(at: usize) -> String {
    let [v4, v6] = public(at);
    let endpoint =
        |family: u8| json!({"VNI": 1, "VtepMAC": format!("66:00:00:00:0{at}:0{family}")});
    json!({
        "PublicIP": v4, "PublicIPv6": v6, "BackendType": "vxlan",
        "BackendData": endpoint(4), "BackendV6Data": endpoint(6),
    })
    .to_string()
}

/// Both others play flanneld by our lease: the one that reaches us without a
/// gateway has a route by our public address, the other one by its device.
fn follow(world: &World) {
    let rows = world.at_home(|| world.etcd.rows(&format!("{SUBNETS}{}", KEYS[0])));
    let ours: Json = serde_json::from_str(&rows[0].1).expect("JSON");
    for at in [1, 2] {
        let node = &world.nodes[at];
        node.run(route_packets).expect("enter");
        let own: Json = serde_json::from_str(&lease(at)).expect("JSON");
        for (family, (device, public_field, data)) in DEVICES.into_iter().enumerate() {
            let text = |of: &Json| of.as_str().expect("text").to_owned();
            let (local, mac) = (text(&own[public_field]), text(&own[data]["VtepMAC"]));
            let part = |key: &str| {
                let part = key.split('&').nth(family).expect("a subnet");
                let (first, len) = part.rsplit_once('-').expect("a subnet");
                (first.to_owned(), len.to_owned())
            };
            let (address, _) = part(KEYS[at]);
            let all_bits = [32, 128][family];
            all(
                node,
                &[
                    &format!(
                        "ip link add {device} address {mac} mtu {} type vxlan id 1 local {local} \
                         dev eth0 dstport 8472 nolearning",
                        [1450, 1430][family]
                    ),
                    &format!("ip link set {device} addrgenmode none up"),
                    &format!("ip address add {address}/{all_bits} dev {device}"),
                ],
            );
            let (public, mac) = (text(&ours[public_field]), text(&ours[data]["VtepMAC"]));
            let (first, len) = part(KEYS[0]);
            let way = weft_lab::workshop::run(node, &format!("ip route get {public}"));
            let way = way.expect("a way");
            if !way.contains(" via ") {
                all(node, &[&format!("ip route add {first}/{len} via {public}")]);
                continue;
            }
            all(
                node,
                &[
                    &format!("ip neigh replace {first} lladdr {mac} dev {device} nud permanent"),
                    &format!("bridge fdb append {mac} dev {device} dst {public} self permanent"),
                    &format!("ip route add {first}/{len} via {first} dev {device} onlink"),
                ],
            );
        }
    }
}

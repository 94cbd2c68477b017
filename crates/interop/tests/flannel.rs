//! flannel's texts are read and written to the byte, and bad ones are
//! refused by their key.

use std::collections::BTreeMap;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use proptest::prelude::*;
use weft_api::{
    forwarder::{Node, Way},
    names::{Mac, Name, Vni},
};
use weft_interop::{
    Error,
    flannel::{
        Backend, Config, Endpoint, Lease, PREFIX, Peers, Record, SubnetEnv, SubnetKey, lease,
        peers, record, update, write,
    },
};

const KEY: &str = "/coreos.com/network/subnets/10.5.52.0-24&fc00:0:0:1::-64";
const DUAL: &str = include_str!("golden/flannel_lease_dual.json");
const V4: &str = include_str!("golden/flannel_lease_v4.json");
const ANNOTATIONS: &str = include_str!("golden/flannel_annotations_dual.json");
const ENV: &str = include_str!("golden/subnet_dual.env");

fn config(text: &str) -> Result<Config, Error> {
    Config::parse("/coreos.com/network/config", text.as_bytes())
}

fn dual() -> Lease {
    Lease {
        key: SubnetKey::parse(KEY).expect("a key"),
        record: Record::parse(KEY, DUAL.as_bytes()).expect("a record"),
    }
}

fn of(key: &str, public: &str) -> Lease {
    // Each a MAC of its own, and that of the fixture its own.
    let last = public.rsplit('.').next().expect("an address");
    let last: u8 = last.parse().expect("an address");
    let mac = format!("c6:d2:32:6f:8f:{:02x}", last ^ 0x03 ^ 0x44);
    let value = V4
        .replace("192.168.64.3", public)
        .replace("c6:d2:32:6f:8f:44", &mac);
    Lease {
        key: SubnetKey::parse(key).expect("a key"),
        record: Record::parse(key, value.as_bytes()).expect("a record"),
    }
}

fn network() -> Config {
    config(
        r#"{"EnableIPv6":true,"Network":"10.5.0.0/16","IPv6Network":"fc00::/48",
            "Backend":{"Type":"vxlan"}}"#,
    )
    .expect("valid")
}

/// None of them near.
fn found<'a>(own: &Lease, leases: impl IntoIterator<Item = &'a Lease>) -> Peers {
    peers(own, leases, &network(), 8472, |_| false)
}

fn cidrs() -> Vec<IpNet> {
    ["10.5.52.0/24", "fc00:0:0:1::/64"]
        .map(|net| net.parse().expect("a CIDR"))
        .into()
}

#[test]
fn a_configuration_has_flannels_defaults() {
    let plain = config(r#"{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan"}}"#).expect("valid");
    let range = plain.v4.expect("IPv4 is on");
    assert_eq!(range.len, 24);
    assert_eq!(range.min.to_string(), "10.5.1.0");
    assert_eq!(range.max.to_string(), "10.5.255.0");
    assert_eq!(range.subnets().count(), 255);
    assert_eq!(plain.v6, None);
    let Backend::Vxlan(vxlan) = plain.backend else {
        panic!("{:?}", plain.backend)
    };
    assert_eq!((vxlan.vni.value(), vxlan.port), (1, 8472));
    assert_eq!((vxlan.mtu, vxlan.direct_routing), (None, false));

    let none = config(r#"{"Network":"10.5.0.0/23"}"#).expect("valid");
    assert_eq!(none.backend, Backend::Other("udp".to_owned()));
    assert_eq!(none.v4.map(|range| range.len), Some(25));

    let whole = config(
        r#"{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fc00::/48",
            "IPv6SubnetMin":"fc00:0:0:10::","IPv6SubnetMax":"fc00:0:0:1f::",
            "Backend":{"Type":"vxlan","VNI":7,"Port":0,"MTU":9000,"DirectRouting":true}}"#,
    )
    .expect("valid");
    let range = whole.v6.expect("IPv6 is on");
    assert_eq!((range.len, range.subnets().count()), (64, 16));
    let Backend::Vxlan(vxlan) = whole.backend else {
        panic!("{:?}", whole.backend)
    };
    assert_eq!(
        (vxlan.vni.value(), vxlan.port, vxlan.mtu),
        (7, 8472, Some(9000))
    );
    assert!(vxlan.direct_routing);
}

#[test]
fn a_bad_configuration_is_refused_with_its_field() {
    for (text, field) in [
        ("{}", "Network"),
        (r#"{"Network":"10.5.0.0/29"}"#, "Network"),
        (r#"{"Network":"10.5.0.0/16","SubnetLen":17}"#, "Network"),
        (r#"{"Network":"10.5.0.0/16","SubnetLen":31}"#, "Network"),
        (
            r#"{"Network":"10.5.0.0/16","SubnetMin":"10.6.0.0"}"#,
            "Network",
        ),
        (
            r#"{"Network":"10.5.0.0/16","SubnetMax":"10.5.9.1"}"#,
            "Network",
        ),
        (
            r#"{"Network":"10.5.0.0/16","SubnetMin":"10.5.9.0","SubnetMax":"10.5.8.0"}"#,
            "Network",
        ),
        (
            r#"{"Network":"10.5.0.0/16","EnableIPv6":true}"#,
            "IPv6Network",
        ),
        (r#"{"EnableIPv4":false}"#, "EnableIPv4"),
        (
            r#"{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan","VNI":16777216}}"#,
            "Backend.VNI",
        ),
    ] {
        match config(text) {
            Err(Error::Field {
                key, field: wrong, ..
            }) => {
                assert_eq!(
                    (key.as_str(), wrong),
                    ("/coreos.com/network/config", field),
                    "{text}"
                );
            }
            other => panic!("{text}: {other:?}"),
        }
    }
    for text in ["", "{", "[1]", r#"{"Network":5}"#, r#"{"Network":"x"}"#] {
        assert!(matches!(config(text), Err(Error::Json { .. })), "{text}");
    }
}

#[test]
fn leases_are_those_of_flannel_to_the_byte() {
    let lease = dual();
    assert_eq!(lease.key.to_string(), "10.5.52.0-24&fc00:0:0:1::-64");
    assert_eq!(lease.record.to_json(), DUAL);
    let v4 = of("10.5.52.0-24", "192.168.64.3");
    assert_eq!(v4.record.to_json(), V4);
    let v6 = SubnetKey::parse("0.0.0.0-0&fc00::-64").expect("IPv6 alone");
    assert_eq!(
        (v6.v4, v6.to_string().as_str()),
        (None, "0.0.0.0-0&fc00::-64")
    );
}

#[test]
fn bad_leases_are_refused_by_their_key() {
    for key in [
        "10.5.52.0",
        "10.5.52.0-33",
        "10.5.52.0-+24",
        "10.5.52.1-24",
        "fc00::-64",
        "10.5.52.0-24&",
        "10.5.52.0-24&10.5.53.0-24",
        "0.0.0.0-0",
        "",
    ] {
        let refused = SubnetKey::parse(key);
        assert!(
            matches!(&refused, Err(Error::Key { key: k, .. }) if k == key),
            "{refused:?}"
        );
    }
    for (value, field) in [
        (V4.replace(r#""192.168.64.3""#, "null"), "PublicIP"),
        (V4.replace(r#""192.168.64.3""#, "7"), "PublicIP"),
        (V4.replace("c6:d2", "c6"), "BackendData"),
        (V4.replace(r#""VNI":1"#, r#""VNI":16777216"#), "BackendData"),
        (V4.replace(r#"{"VNI""#, r#"{"Vni""#), "BackendData"),
    ] {
        let refused = Record::parse(KEY, value.as_bytes());
        match refused {
            Err(Error::Field {
                key, field: wrong, ..
            }) => {
                assert_eq!((key.as_str(), wrong), (KEY, field), "{value}");
            }
            other => panic!("{value}: {other:?}"),
        }
    }
    for cut in 0..V4.len() {
        let refused = Record::parse(KEY, &V4.as_bytes()[..cut]);
        assert!(
            matches!(refused, Err(Error::Json { key, .. }) if key == KEY),
            "{cut}"
        );
    }
}

#[test]
fn annotations_are_those_of_flannel_to_the_byte() {
    let annotations: BTreeMap<String, String> = serde_json::from_str(ANNOTATIONS).expect("JSON");
    let read = lease(PREFIX, "n1", &cidrs(), &annotations)
        .expect("sound")
        .expect("managed");
    assert_eq!(read, dual());
    assert_eq!(write(PREFIX, &read.record), annotations);

    let mut forced = annotations.clone();
    forced.insert(
        format!("{PREFIX}public-ip-overwrite"),
        "203.0.113.9".to_owned(),
    );
    let forced = lease(PREFIX, "n1", &cidrs(), &forced)
        .expect("sound")
        .expect("managed");
    assert_eq!(
        forced.record.public_v4.map(|a| a.to_string()).as_deref(),
        Some("203.0.113.9")
    );

    let mut stranger = annotations.clone();
    stranger.remove(&format!("{PREFIX}kube-subnet-manager"));
    assert_eq!(lease(PREFIX, "n1", &cidrs(), &stranger), Ok(None));
    let refused = lease(PREFIX, "n1", &[], &annotations);
    assert!(matches!(refused, Err(Error::Field { key, .. }) if key == "n1"));
}

/// Peers compare the IPv6 part's text alone where a node has both families.
#[test]
fn a_change_of_the_ipv4_part_is_seen_by_peers_of_both_families() {
    let data = format!("{PREFIX}backend-v6-data");
    let before = dual().record;
    let first = write(PREFIX, &before);
    assert_eq!(update(PREFIX, &first, &before), first, "nothing to tell");
    let mut moved = before.clone();
    moved.public_v4 = Some("192.168.64.9".parse().expect("an address"));
    let second = update(PREFIX, &first, &moved);
    assert_ne!(first[&data], second[&data]);
    assert_eq!(update(PREFIX, &second, &moved), second, "nothing to tell");
    let third = update(PREFIX, &second, &before);
    assert_eq!(third, first);
    for (annotations, record) in [(&second, &moved), (&third, &before)] {
        let read = lease(PREFIX, "n1", &cidrs(), annotations);
        assert_eq!(&read.expect("sound").expect("managed").record, record);
    }
}

#[test]
fn subnet_env_is_flannels_to_the_byte() {
    let env = SubnetEnv::parse("subnet.env", ENV).expect("sound");
    assert_eq!(env.to_string(), ENV);
    for (from, to) in [
        ("1450", "x"),
        ("10.5.52.1/24", "10.5.52"),
        ("FLANNEL_SUBNET", "NONE"),
    ] {
        let refused = SubnetEnv::parse("subnet.env", &ENV.replace(from, to));
        assert!(matches!(refused, Err(Error::Field { .. })), "{from}");
    }
}

#[test]
fn a_lease_is_a_peer_for_each_family() {
    let own = of("10.5.1.0-24", "192.168.64.1");
    let seen = found(&own, [&own, &dual()]);
    assert_eq!(seen.errors, []);
    let [v4, v6] = &seen.nodes[..] else {
        panic!("{:?}", seen.nodes)
    };
    assert_eq!(v4.name.as_str(), "10.5.52.0-24");
    assert_eq!(
        v4.underlay,
        ["192.168.64.3".parse::<std::net::IpAddr>().expect("valid")]
    );
    assert_eq!(
        v4.tunnel,
        ["10.5.52.0".parse::<std::net::IpAddr>().expect("valid")]
    );
    assert_eq!(v4.vtep_mac.to_string(), "c6:d2:32:6f:8f:44");
    assert_eq!((v4.vni.value(), v4.port), (1, 8472));
    assert_eq!(v6.vtep_mac.to_string(), "c6:d2:32:6f:8f:46");
    assert_eq!(v6.blocks, cidrs()[1..]);
}

#[test]
fn one_nodes_bad_lease_leaves_the_others_alone() {
    let own = of("10.5.1.0-24", "192.168.64.1");
    let good = of("10.5.2.0-24", "192.168.64.2");
    let mut other_backend = of("10.5.5.0-24", "192.168.64.5");
    other_backend.record.backend = "host-gw".to_owned();
    let mut nowhere = of("10.5.6.0-24", "192.168.64.6");
    nowhere.record.public_v4 = None;
    let leases = [
        of("10.5.0.0-23", "192.168.64.3"),
        good.clone(),
        of("10.5.2.128-25", "192.168.64.4"),
        of("10.5.3.0-24", "192.168.64.2"),
        of("10.5.4.0-24", "192.168.64.1"),
        other_backend,
        nowhere,
    ];
    let seen = found(&own, &leases);
    assert_eq!(seen.nodes, found(&own, [&good]).nodes);
    let told: Vec<_> = seen.errors.iter().map(ToString::to_string).collect();
    for (told, words) in told.iter().zip([
        ["10.5.0.0-23", "10.5.1.0-24"],
        ["10.5.2.128-25", "10.5.2.0-24"],
        ["10.5.3.0-24", "192.168.64.2"],
        ["10.5.4.0-24", "192.168.64.1"],
        ["10.5.5.0-24", "host-gw"],
        ["10.5.6.0-24", "PublicIP"],
    ]) {
        assert!(words.iter().all(|word| told.contains(word)), "{told}");
    }
    assert_eq!(told.len(), 6);
}

/// Each would make the forwarder refuse all nodes, or carry off what is
/// somebody else's.
#[test]
fn what_no_node_can_have_takes_no_other_lease_away() {
    let own = of("10.5.1.0-24", "192.168.64.1");
    let good = of("10.5.2.0-24", "192.168.64.2");
    let with_mac = |text: &str| {
        let mut lease = of("10.5.3.0-24", "192.168.64.3");
        let mac = text.parse().expect("a MAC");
        lease.record.v4 = lease.record.v4.map(|endpoint| Endpoint { mac, ..endpoint });
        lease
    };
    let mac = |lease: &Lease| lease.record.v4.expect("an endpoint").mac.to_string();
    for (bad, words) in [
        (of("10.6.3.0-24", "192.168.64.3"), "outside the network"),
        (of("10.0.0.0-8", "192.168.64.3"), "outside the network"),
        (
            of("10.5.0.0-16", "192.168.64.3"),
            "is already 10.5.1.0-24's",
        ),
        (
            of("10.5.2.0-25", "192.168.64.3"),
            "is already 10.5.2.0-24's",
        ),
        (of("10.5.3.0-24", "0.0.0.0"), "PublicIP: it is missing"),
        (of("10.5.3.0-24", "224.0.0.3"), "not a unicast address"),
        (
            of("10.5.3.0-24", "255.255.255.255"),
            "not a unicast address",
        ),
        (
            of("10.5.3.0-24", "192.168.64.1"),
            "is already 10.5.1.0-24's",
        ),
        (
            of("10.5.3.0-24", "192.168.64.2"),
            "is already 10.5.2.0-24's",
        ),
        (with_mac("01:00:5e:00:00:01"), "not a unicast MAC"),
        (with_mac("00:00:00:00:00:00"), "not a unicast MAC"),
        (with_mac(&mac(&good)), "is already 10.5.2.0-24's"),
        (with_mac(&mac(&own)), "is already 10.5.1.0-24's"),
    ] {
        let seen = found(&own, [&good, &bad]);
        assert_eq!(seen.nodes, found(&own, [&good]).nodes, "{bad:?}");
        let [error] = &seen.errors[..] else {
            panic!("{bad:?}: {:?}", seen.errors)
        };
        let told = error.to_string();
        assert!(
            told.starts_with(&bad.key.to_string()) && told.contains(words),
            "{told}"
        );
    }
}

#[test]
fn those_who_are_near_are_reached_without_a_tunnel() {
    let own = of("10.5.1.0-24", "192.168.64.1");
    let far = of("10.5.2.0-24", "203.0.113.2");
    let near = |public: std::net::IpAddr| public.to_string().starts_with("192.168.64.");
    let seen = peers(&own, [&dual(), &far], &network(), 8472, near);
    assert_eq!(seen.errors, []);
    let ways = seen.nodes.iter().map(|node| node.ways.clone());
    assert_eq!(
        ways.collect::<Vec<_>>(),
        [
            BTreeMap::from([(cidrs()[0], Way::Direct)]),
            BTreeMap::new(),
            BTreeMap::new()
        ]
    );
}

#[test]
fn this_node_is_a_lease_that_reads_back() {
    let node = Node {
        name: Name::new("n1").expect("a name"),
        underlay: ["192.168.64.3", "2001:db8::3"]
            .map(|a| a.parse().expect("valid"))
            .into(),
        vtep_mac: Mac([2, 0, 0, 0, 0, 1]),
        vni: Vni::new(1).expect("24 bits"),
        port: 8472,
        blocks: cidrs(),
        ways: BTreeMap::new(),
        tunnel: Vec::new(),
    };
    let key = dual().key;
    let record = record(&node, &key);
    let own = of("10.5.1.0-24", "192.168.64.1");
    let seen = found(&own, [&Lease { key, record }]);
    assert_eq!(seen.errors, []);
    for (place, seen) in seen.nodes.iter().enumerate() {
        assert_eq!(seen.underlay, node.underlay[place..=place]);
        assert_eq!(seen.blocks, node.blocks[place..=place]);
        assert_eq!((seen.vtep_mac, seen.vni), (node.vtep_mac, node.vni));
    }
}

fn endpoint() -> impl Strategy<Value = Endpoint> {
    (0u32..1 << 24, any::<[u8; 6]>()).prop_map(|(vni, mac)| Endpoint {
        vni: Vni::new(vni).expect("24 bits"),
        mac: Mac(mac),
    })
}

fn leases() -> impl Strategy<Value = Lease> {
    let key = (any::<Option<(u32, u8)>>(), any::<Option<(u128, u8)>>());
    let public = (any::<Option<u32>>(), any::<Option<u128>>());
    let ends = (
        proptest::option::of(endpoint()),
        proptest::option::of(endpoint()),
    );
    (key, public, ends).prop_map(|((v4, v6), (public_v4, public_v6), (end_v4, end_v6))| {
        let v4 = v4.map(|(a, len)| Ipv4Net::new(a.into(), len % 32 + 1).expect("valid").trunc());
        let v6 = v6.map(|(a, len)| Ipv6Net::new(a.into(), len % 129).expect("valid").trunc());
        let v4 = v4.or(v6.is_none().then(|| "10.0.0.0/24".parse().expect("valid")));
        Lease {
            key: SubnetKey { v4, v6 },
            record: Record {
                public_v4: public_v4.filter(|a| *a > 0).map(Into::into),
                public_v6: public_v6.filter(|a| *a > 0).map(Into::into),
                backend: "vxlan".to_owned(),
                v4: end_v4,
                v6: end_v6,
            },
        }
    })
}

proptest! {
    #[test]
    fn what_is_written_reads_back(one in leases(), other in leases()) {
        let key = one.key.to_string();
        prop_assert_eq!(SubnetKey::parse(&key), Ok(one.key));
        let written = one.record.to_json();
        prop_assert_eq!(Record::parse(&key, written.as_bytes()), Ok(one.record.clone()));
        let cidrs: Vec<_> = one.key.subnets().collect();
        let first = write(PREFIX, &other.record);
        let second = update(PREFIX, &first, &one.record);
        let read = lease(PREFIX, "n", &cidrs, &second);
        prop_assert_eq!(read, Ok(Some(one)));
    }
}

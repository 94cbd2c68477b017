//! What BIRD is told: golden configurations, and what is refused. The root's
//! tests have BIRD itself read and run them.

use std::{env, fs, path::Path};

use ipnet::IpNet;
use serde_json::json;
use weft_api::forwarder::Nodes;
use weft_interop::bird::{BirdError, Neighbour, Options, render};

fn nodes() -> Nodes {
    serde_json::from_value(json!({
        "node": {"name": "n1", "underlay": ["192.0.2.1", "2001:db8::1"],
            "vtep_mac": "02:00:00:00:00:01",
            "blocks": ["10.244.1.0/26", "fd00:10:244::100/122"]},
        "peers": [
            {"name": "n2.rack/a", "underlay": ["192.0.2.2", "2001:db8::2"],
                "vtep_mac": "02:00:00:00:00:02",
                "blocks": ["10.244.2.0/26", "10.244.1.9/32", "fd00:10:244::200/122"]},
            {"name": "n3", "underlay": ["2001:db8::3"], "vtep_mac": "02:00:00:00:00:03"},
        ],
    }))
    .expect("nodes")
}

fn pools() -> Vec<IpNet> {
    ["10.244.0.0/16", "fd00:10:244::/112"]
        .map(|net| net.parse().expect("a net"))
        .to_vec()
}

fn options() -> Options {
    Options {
        asn: 64512,
        ..Options::default()
    }
}

fn golden(name: &str, text: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/golden")
        .join(name);
    if env::var_os("WEFT_BLESS").is_some() {
        fs::write(&path, text).expect("write");
    }
    let expected = fs::read_to_string(&path).expect("a golden file");
    assert!(
        text == expected,
        "{name} is no longer so; WEFT_BLESS=1 writes:\n{text}"
    );
}

#[test]
fn all_nodes_speak_with_all() {
    let text = render(&nodes(), &pools(), &options()).expect("rendered");
    golden("bird_mesh.conf", &text);
}

#[test]
fn routers_and_reflectors_take_the_place_of_the_nodes() {
    let neighbour = |address: &str, asn| Neighbour {
        address: address.parse().expect("an address"),
        asn,
    };
    let options = Options {
        neighbours: vec![
            neighbour("192.0.2.254", 64512),
            neighbour("2001:db8::fe", 65000),
        ],
        router_id: Some([198, 51, 100, 1].into()),
        device: Some("weft0".to_owned()),
        password: Some("s3cret{}';#".to_owned()),
        ..options()
    };
    let text = render(&nodes(), &pools(), &options).expect("rendered");
    golden("bird_routers.conf", &text);
}

#[test]
fn a_node_without_anything_is_a_configuration_too() {
    let mut nodes = nodes();
    nodes.peers.clear();
    nodes.node.blocks.clear();
    golden(
        "bird_alone.conf",
        &render(&nodes, &[], &options()).expect("rendered"),
    );
}

#[test]
fn what_could_mean_something_else_is_refused() {
    let refused = |change: &dyn Fn(&mut Options)| {
        let mut options = options();
        change(&mut options);
        render(&nodes(), &pools(), &options).expect_err("refused")
    };
    assert_eq!(refused(&|o| o.asn = 0), BirdError::System);
    for device in ["", "weft0\";", "a b", "sixteen-letters-", "we\nft"] {
        let error = refused(&|o| o.device = Some(device.to_owned()));
        assert_eq!(error, BirdError::Device(device.to_owned()));
    }
    for password in ["", "a\"b", "a\nb", "ä", &"x".repeat(81)] {
        let error = refused(&|o| o.password = Some(password.to_owned()));
        assert_eq!(error, BirdError::Password);
    }
    for (address, asn) in [
        ("0.0.0.0", 1),
        ("224.0.0.1", 1),
        ("fe80::1", 1),
        ("192.0.2.1", 1),
        ("192.0.2.9", 0),
    ] {
        let address = address.parse().expect("an address");
        let error = refused(&|o| o.neighbours = vec![Neighbour { address, asn }]);
        assert!(matches!(error, BirdError::Neighbour(..)), "{error}");
    }
    let twice = Neighbour {
        address: [192, 0, 2, 9].into(),
        asn: 1,
    };
    let error = refused(&|o| o.neighbours = vec![twice, twice]);
    assert!(error.to_string().contains("twice"), "{error}");
    let mut v6_only = nodes();
    v6_only.node.underlay.remove(0);
    let error = render(&v6_only, &pools(), &options()).expect_err("no router id");
    assert!(error.to_string().contains("--router-id"), "{error}");
}

#[test]
fn a_hostile_name_does_not_get_so_far() {
    for name in ["n2\"; } protocol bgp x {", "n2\nprotocol", "n2;", "n2#", ""] {
        let node = json!({"name": name, "underlay": [], "vtep_mac": "02:00:00:00:00:02"});
        let read = serde_json::from_value::<weft_api::forwarder::Node>(node);
        assert!(read.is_err(), "{name:?}");
    }
}

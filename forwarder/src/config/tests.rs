use super::*;

fn config(text: &str) -> Result<Config, String> {
    let file: File = toml::from_str(text).map_err(|e| e.to_string())?;
    file.complete().map_err(|e| e.to_string())
}

#[test]
fn an_empty_file_is_a_node_without_peers() {
    let config = config("node = 'n1'").expect("all else has defaults");
    assert_eq!(config.uplink.addresses, Vec::<IpAddr>::new());
    assert_eq!((config.uplink.port, config.vni.value()), (4789, 4096));
    assert_eq!((config.uplink.mtu, config.mode), (1500, 0o600));
    assert!((1..=4).contains(&config.workers));
}

#[test]
fn the_documented_file_tells_the_defaults() {
    let file: File = toml::from_str(include_str!("../../../docs/forwarder.toml")).expect("valid");
    let node = file.node.clone().expect("it names one");
    assert_eq!(file.vtep_mac, Some(mac_of(&node)));
    let documented = file.complete().expect("valid");
    let bare = config("node = 'node-1'").expect("valid");
    assert_eq!((documented.mode, &documented.uids), (bare.mode, &bare.uids));
    assert_eq!((documented.vni, &bare.ipam), (bare.vni, &None));
    assert!(
        documented
            .registration()
            .expect("none is asked for")
            .is_none()
    );
    assert_eq!(
        format!("{:?}", documented.uplink),
        format!("{:?}", bare.uplink)
    );
    let probes = [&documented, &bare].map(|config| format!("{:?}", config.probes));
    assert_eq!(probes[0], probes[1]);
}

#[test]
fn every_key_is_taken() {
    let config = config(
        "node = 'n1'\nworkers = 3\nvtep_mac = '02:00:00:00:00:07'\nmetrics = '[::1]:9100'\n\
         [uplink]\naddresses = ['192.0.2.1', '2001:db8::1']\nport = 8472\nvni = 1\nmtu = 9000\n\
         entropy_ports = 4\ngso = false\ngro = false\n[control]\nmode = '0660'\nuids = [7]\n\
         [probes]\nenabled = false\ninterval_ms = 900\nraise_seconds = 7\n\
         [ipam]\nsocket = '/run/weft/ipam.sock'\nregister = true\n\
         labels = { rack = 'a' }\n",
    )
    .expect("valid");
    assert_eq!(
        (config.workers, config.vtep_mac),
        (3, Mac([2, 0, 0, 0, 0, 7]))
    );
    assert_eq!((config.vni.value(), config.uplink.mtu), (1, 9000));
    assert_eq!((config.uplink.port, config.uplink.entropy_ports), (8472, 4));
    assert_eq!((config.uplink.gso, config.uplink.gro), (false, false));
    assert_eq!((config.mode, &config.uids), (0o660, &vec![7]));
    let pace = config.probes.pace;
    assert!(!config.probes.enabled);
    assert_eq!((pace.interval.as_millis(), pace.raise.as_secs()), (900, 7));
    assert_eq!(config.ipam, Some("/run/weft/ipam.sock".into()));
    let node = config.registration().expect("it has all it needs");
    let node = serde_json::to_value(node).expect("JSON");
    assert_eq!(node["underlay"][0], "192.0.2.1/32", "no interface has it");
    assert_eq!(node["labels"]["rack"], "a");
}

#[test]
fn what_is_wrong_is_named() {
    for (text, expected) in [
        ("nod = 'n1'", "unknown field `nod`"),
        ("node = 'a b'", "rename it"),
        ("workers = 0", "workers: 0 is out of range; give 1 to 256"),
        (
            "vtep_mac = '01:00:00:00:00:00'",
            "vtep_mac: 01:00:00:00:00:00 is not a unicast",
        ),
        ("[uplink]\nport = 0", "uplink.port"),
        ("[uplink]\nport = 70000", "port"),
        ("[uplink]\nvni = 16777216", "VNI 16777216"),
        (
            "[uplink]\nmtu = 500",
            "uplink.mtu: 500 is out of range; give 576 to 65535",
        ),
        ("[uplink]\nentropy_ports = 0", "uplink.entropy_ports"),
        (
            "[uplink]\naddresses = ['192.0.2.1', '192.0.2.2']",
            "uplink.addresses",
        ),
        ("[uplink]\naddresses = ['224.0.0.1']", "uplink.addresses"),
        (
            "[probes]\ninterval_ms = 199",
            "probes.interval_ms: 199 is out of range; give 200 to 3600000",
        ),
        ("[probes]\nraise_seconds = 0", "probes.raise_seconds"),
        ("[control]\nmode = '0999'", "control.mode"),
        ("[control]\nmode = '01000'", "control.mode"),
    ] {
        let text = if text.starts_with("node") {
            text.into()
        } else {
            format!("node = 'n1'\n{text}")
        };
        let error = config(&text).expect_err(&text);
        assert!(error.contains(expected), "{text}: {error}");
    }
}

#[test]
fn the_mac_of_a_name_is_stable_local_and_unicast() {
    let name = |name| Name::new(name).expect("valid");
    assert_eq!(mac_of(&name("n1")).to_string(), "7a:07:b5:58:d4:c0");
    assert_ne!(mac_of(&name("n1")), mac_of(&name("n2")));
    for node in ["n1", "n2", "worker-17.example"] {
        assert_eq!(mac_of(&name(node)).0[0] & 0x03, 0x02);
    }
}

#[test]
fn the_mtu_is_that_of_the_interface_that_holds_the_address() {
    let config = config("node = 'n1'\n[uplink]\naddresses = ['127.0.0.1']").expect("valid");
    assert_eq!(
        config.uplink.mtu,
        crate::sys::link::mtu("lo").expect("loopback exists")
    );
    assert!(config.uplink.mtu_of_links);
}

#[test]
fn the_command_line_says_where_a_shared_file_stands() {
    let place = Place {
        nodes: None,
        node: Some(Name::new("n7").expect("a good name")),
        underlay: vec!["127.0.0.7".parse().expect("an address")],
    };
    let config = Config::load(None, place.clone()).expect("all else has defaults");
    assert_eq!(config.node.as_str(), "n7");
    assert_eq!(config.vtep_mac, mac_of(&config.node));
    assert_eq!(config.uplink.addresses, place.underlay);
    for other in ["127.0.0.7", "127.0.0.8"] {
        let addresses = ["127.0.0.7", other];
        let twice = Place {
            nodes: None,
            underlay: addresses.map(|text| text.parse().expect("valid")).to_vec(),
            ..Place::default()
        };
        let refused = Config::load(None, twice).expect_err("two of one family");
        assert!(
            refused.to_string().contains("uplink.addresses"),
            "{refused}"
        );
    }
}

#[test]
fn the_nodes_file_tells_a_node_where_it_is() {
    let folder = tempfile::tempdir().expect("a folder");
    let (nodes, own) = (
        folder.path().join("nodes.toml"),
        folder.path().join("own.toml"),
    );
    let text = "[[node]]\nname = 'n1'\nunderlay = ['127.0.0.1']\nport = 8472\n\
                vtep_mac = '02:00:00:00:00:01'\n";
    fs::write(&nodes, text).expect("write");
    let load = |own: &Path| {
        let place = Place {
            nodes: Some(nodes.clone()),
            ..Place::default()
        };
        Config::load(Some(own), place)
    };
    fs::write(&own, "node = 'n1'").expect("write");
    let config = load(&own).expect("it is there");
    assert_eq!(config.uplink.addresses, [IpAddr::from([127, 0, 0, 1])]);
    assert_eq!(config.uplink.port, 8472);
    config.check_sources().expect("one source");
    fs::write(
        &own,
        "node = 'n1'\n[ipam]\nsocket = '/x'\n[uplink]\nport = 1\n",
    )
    .expect("write");
    let config = load(&own).expect("the port is contradicted later");
    assert_eq!(config.uplink.port, 1);
    let error = config.check_sources().expect_err("two sources").to_string();
    assert!(error.contains("name one of them"), "{error}");
    fs::write(&own, "node = 'n2'").expect("write");
    let error = load(&own).expect_err("it is not there").to_string();
    assert!(error.contains("node n2 is not in it"), "{error}");
}

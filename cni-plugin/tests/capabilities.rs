//! What runtimes ask by capabilities, in the conventions' shape and in the
//! one that Go programs give it.

use std::num::{NonZeroU16, NonZeroU64};

use serde_json::{Value, json};
use weft_api::forwarder::{Bandwidth, Limit, PortMapping, Protocol};
use weft_cni::protocol::{Args, Config, Dns, Failure, Runtime, code};

fn parsed(change: &Value, args: &Args) -> Result<Runtime, Failure> {
    let mut config = json!({"cniVersion": "1.1.0", "name": "pods", "type": "weft-cni"});
    for (key, value) in change.as_object().expect("an object") {
        config[key] = value.clone();
    }
    let config = Config::parse_for(config.to_string().as_bytes(), args)?;
    Ok(config.runtime)
}

fn asked(capability: &str, value: Value) -> Result<Runtime, Failure> {
    parsed(
        &json!({"runtimeConfig": {capability: value}}),
        &Args::default(),
    )
}

fn limit(rate: u64, burst: u64) -> Limit {
    let [rate, burst] = [rate, burst].map(|bits| NonZeroU64::new(bits).expect("not zero"));
    Limit { rate, burst }
}

#[test]
fn bandwidth_is_read_in_every_spelling() {
    let both = Bandwidth {
        to_pod: Some(limit(1_000_000, 80_000)),
        from_pod: Some(limit(2_000_000, 90_000)),
    };
    let ingress = Bandwidth {
        from_pod: None,
        ..both
    };
    let spelled = json!({"ingressRate": 1_000_000, "ingressBurst": 80_000,
        "egressRate": 2_000_000, "egressBurst": 90_000});
    let of_go = json!({"IngressRate": 1_000_000, "IngressBurst": 80_000,
        "EgressRate": 0, "EgressBurst": 0});
    let by_burst_of_containerd = json!({"IngressRate": 1_000_000, "IngressBurst": u32::MAX});
    for (value, expected) in [
        (spelled.clone(), both),
        (of_go, ingress),
        (json!({}), Bandwidth::default()),
        (json!(null), Bandwidth::default()),
        (
            by_burst_of_containerd,
            Bandwidth {
                to_pod: Some(limit(1_000_000, u32::MAX.into())),
                from_pod: None,
            },
        ),
    ] {
        let runtime = asked("bandwidth", value.clone()).expect("valid");
        assert_eq!(runtime.capabilities.bandwidth, expected, "{value}");
    }
    let own = parsed(&spelled, &Args::default()).expect("valid");
    assert_eq!(own.capabilities.bandwidth, both);
    let mut overruled = spelled;
    overruled["runtimeConfig"] = json!({"bandwidth": {"egressRate": 5, "egressBurst": 6}});
    let runtime = parsed(&overruled, &Args::default()).expect("valid");
    let expected = Bandwidth {
        from_pod: Some(limit(5, 6)),
        to_pod: None,
    };
    assert_eq!(
        runtime.capabilities.bandwidth, expected,
        "the runtime's, whole"
    );
}

#[test]
fn bandwidth_that_makes_no_sense_names_key_and_value() {
    for (value, words) in [
        (
            json!({"ingressRate": 1000}),
            ["ingressRate is 1000", "ingressBurst is null"],
        ),
        (
            json!({"egressBurst": 7}),
            ["egressBurst is 7", "egressRate is null"],
        ),
        (
            json!({"ingressRate": 0, "ingressBurst": 9}),
            ["ingressBurst is 9", "ingressRate is 0"],
        ),
        (
            json!({"egressRate": -1, "egressBurst": 1}),
            ["egressRate is -1", "whole number"],
        ),
        (
            json!({"egressRate": 1.5, "egressBurst": 1}),
            ["egressRate is 1.5", "whole number"],
        ),
        (
            json!({"egressRate": "1M", "egressBurst": 1}),
            ["egressRate is \"1M\"", "whole number"],
        ),
        // 2^64
        (
            serde_json::from_str(r#"{"egressRate":18446744073709551616,"egressBurst":1}"#)
                .expect("JSON"),
            ["egressRate is 1.8446744073709552e+19", "2^64 - 1"],
        ),
    ] {
        let failure = asked("bandwidth", value.clone()).expect_err("it is wrong");
        assert_eq!(failure.code, code::CONFIG, "{value}: {failure}");
        for word in words.into_iter().chain(["runtimeConfig.bandwidth."]) {
            assert!(failure.msg.contains(word), "{word}: {failure}");
        }
        let failure = parsed(&value, &Args::default()).expect_err("it is wrong");
        assert_eq!(failure.code, code::CONFIG, "{value}: {failure}");
        assert!(!failure.msg.contains("runtimeConfig"), "{failure}");
    }
    let failure = asked("bandwidth", json!([])).expect_err("a list");
    assert!(failure.msg.contains("bandwidth is []"), "{failure}");
}

fn mapping(protocol: Protocol, host: u16, container: u16, ip: Option<&str>) -> PortMapping {
    PortMapping {
        host_port: NonZeroU16::new(host).expect("a port"),
        container_port: NonZeroU16::new(container).expect("a port"),
        protocol,
        host_ip: ip.map(|ip| ip.parse().expect("an address")),
    }
}

#[test]
fn port_mappings_are_read_in_every_spelling() {
    let value = json!([
        {"hostPort": 8080, "containerPort": 80, "protocol": "tcp"},
        {"hostPort": 8080, "containerPort": 80, "protocol": "UDP", "hostIP": "0.0.0.0"},
        {"HostPort": 65535, "ContainerPort": 1, "Protocol": "sctp", "HostIP": ""},
        {"HostPort": 9, "ContainerPort": 9, "Protocol": "", "HostIP": "2001:db8::1"},
        {"hostPort": 9, "containerPort": 10, "hostIp": "192.0.2.1", "name": "more"},
    ]);
    let runtime = asked("portMappings", value).expect("valid");
    let expected = [
        mapping(Protocol::Tcp, 8080, 80, None),
        mapping(Protocol::Udp, 8080, 80, Some("0.0.0.0")),
        mapping(Protocol::Sctp, 65535, 1, None),
        mapping(Protocol::Tcp, 9, 9, Some("2001:db8::1")),
        mapping(Protocol::Tcp, 9, 10, Some("192.0.2.1")),
    ];
    assert_eq!(runtime.capabilities.port_mappings, expected);
    for nothing in [json!(null), json!([])] {
        let runtime = asked("portMappings", nothing).expect("valid");
        assert!(runtime.capabilities.is_plain());
    }
}

#[test]
fn a_port_mapping_that_makes_no_sense_names_place_key_and_value() {
    let good = json!({"hostPort": 8080, "containerPort": 80, "protocol": "tcp"});
    for (key, value, code, words) in [
        ("hostPort", json!(0), code::CONFIG, "hostPort is 0"),
        ("hostPort", json!(65536), code::CONFIG, "hostPort is 65536"),
        ("hostPort", json!(-1), code::CONFIG, "hostPort is -1"),
        ("hostPort", json!(null), code::CONFIG, "hostPort is null"),
        (
            "containerPort",
            json!(0),
            code::CONFIG,
            "containerPort is 0",
        ),
        (
            "containerPort",
            json!("80"),
            code::CONFIG,
            "containerPort is \"80\"",
        ),
        (
            "protocol",
            json!("icmp"),
            code::UNSUPPORTED,
            "protocol is \"icmp\"; use tcp",
        ),
        ("protocol", json!(6), code::CONFIG, "protocol is 6"),
        (
            "hostIP",
            json!("here"),
            code::CONFIG,
            "hostIP is \"here\"; give an IP",
        ),
        ("hostIP", json!(7), code::CONFIG, "hostIP is 7"),
    ] {
        let mut bad = good.clone();
        bad["hostPort"] = 8081.into();
        bad[key] = value;
        let failure = asked("portMappings", json!([good, bad])).expect_err("it is wrong");
        assert_eq!(failure.code, code, "{failure}");
        let words = format!("runtimeConfig.portMappings[1].{words}");
        assert!(failure.msg.contains(&words), "{failure}");
    }
    let mut again = good.clone();
    again["hostIP"] = "192.0.2.1".into();
    let failure = asked("portMappings", json!([good, again])).expect_err("twice");
    assert_eq!(failure.code, code::CONFIG);
    assert!(failure.msg.contains("192.0.2.1:8080/tcp"), "{failure}");
    asked("portMappings", json!({})).expect_err("no list");
    asked("portMappings", json!([7])).expect_err("no object");
}

#[test]
fn name_servers_are_read_by_the_conventions_keys_and_by_the_results() {
    let dns = Dns {
        nameservers: vec!["10.0.0.53".to_owned()],
        domain: None,
        search: vec!["a.example".to_owned()],
        options: vec!["ndots:5".to_owned()],
    };
    for value in [
        json!({"servers": ["10.0.0.53"], "searches": ["a.example"], "options": ["ndots:5"]}),
        json!({"Servers": ["10.0.0.53"], "Searches": ["a.example"], "Options": ["ndots:5"]}),
        json!({"nameservers": ["10.0.0.53"], "search": ["a.example"], "options": ["ndots:5"]}),
    ] {
        let runtime = asked("dns", value.clone()).expect("valid");
        assert_eq!(runtime.dns.as_ref(), Some(&dns), "{value}");
    }
    let failure = asked("dns", json!({"servers": "10.0.0.53"})).expect_err("no list");
    assert!(failure.msg.contains("dns.servers is"), "{failure}");
}

#[test]
fn ranges_are_pools_to_our_server_and_the_delegates_business_to_others() {
    let whole = json!([[{"subnet": "10.1.0.0/16", "gateway": "10.1.0.1"}], [{"Subnet": "fd00::/64",
        "RangeStart": "", "RangeEnd": "", "Gateway": ""}]]);
    let runtime = asked("ipRanges", whole).expect("valid");
    let ranges: Vec<_> = runtime.ranges.iter().map(ToString::to_string).collect();
    assert_eq!(ranges, ["10.1.0.0/16", "fd00::/64"]);
    for (range, code, word) in [
        (json!({}), code::CONFIG, "is missing"),
        (
            json!({"subnet": "10.1.0.0"}),
            code::CONFIG,
            "is \"10.1.0.0\"",
        ),
        (
            json!({"subnet": "10.1.0.0/16", "rangeStart": "10.1.0.9"}),
            code::UNSUPPORTED,
            "rangeStart \"10.1.0.9\"",
        ),
        (
            json!({"Subnet": "10.1.0.0/16", "RangeEnd": "10.1.0.9"}),
            code::UNSUPPORTED,
            "rangeEnd \"10.1.0.9\"",
        ),
    ] {
        let ranges = json!([[range]]);
        let failure = asked("ipRanges", ranges.clone()).expect_err("it is wrong");
        assert_eq!(failure.code, code, "{failure}");
        assert!(failure.msg.contains(word), "{failure}");
        let delegated = json!({"ipam": {"type": "host-local"},
            "runtimeConfig": {"ipRanges": ranges}});
        let runtime = parsed(&delegated, &Args::default()).expect("not ours to judge");
        assert_eq!(runtime.ranges, []);
    }
}

#[test]
fn several_addresses_of_a_family_are_the_delegates_business_too() {
    let ips = json!({"ips": ["10.0.0.1/24", "10.0.0.2/24", "fd00::1/64"]});
    let failure = parsed(&json!({"runtimeConfig": ips.clone()}), &Args::default());
    let failure = failure.expect_err("one of each");
    assert!(failure.msg.contains("one of each"), "{failure}");
    let delegated = json!({"ipam": {"type": "static"}, "runtimeConfig": ips});
    let runtime = parsed(&delegated, &Args::default()).expect("valid");
    assert_eq!(runtime.ips.len(), 3);
}

//! The CNI contract as data: every version's shape, and every bad input.

use proptest::prelude::*;
use serde_json::{Value, json};
use weft_cni::protocol::{
    Args, Attach, Config, Environment, Failure, Ipam, Outcome, Verb, Version, code, versions,
};

fn environment(pairs: &[(&str, &str)]) -> Environment {
    Environment::new(
        pairs
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned())),
    )
}

const ADD: [(&str, &str); 4] = [
    ("CNI_COMMAND", "ADD"),
    ("CNI_CONTAINERID", "c1"),
    ("CNI_NETNS", "/run/netns/c1"),
    ("CNI_IFNAME", "eth0"),
];

fn with(name: &str, value: &str) -> Result<weft_cni::protocol::Call, Failure> {
    let mut pairs = ADD.to_vec();
    pairs.retain(|(key, _)| *key != name);
    pairs.push((name, value));
    environment(&pairs).parse()
}

#[test]
fn an_environment_that_lacks_or_twists_something_is_code_4_and_names_it() {
    for (name, value, word) in [
        ("CNI_COMMAND", "", "not set"),
        ("CNI_COMMAND", "add", "use ADD"),
        ("CNI_CONTAINERID", "", "ADD needs it"),
        ("CNI_CONTAINERID", "-c1", "begin with"),
        ("CNI_CONTAINERID", "c/1", "begin with"),
        ("CNI_CONTAINERID", "c 1", "begin with"),
        ("CNI_NETNS", "", "ADD needs it"),
        ("CNI_NETNS", "run/netns", "absolute"),
        ("CNI_IFNAME", "", "ADD needs it"),
        ("CNI_IFNAME", "sixteen-bytes-xx", "15 bytes"),
        ("CNI_IFNAME", ".", "no such name"),
        ("CNI_IFNAME", "..", "no such name"),
        ("CNI_IFNAME", "a/b", "'/'"),
        ("CNI_IFNAME", "a:b", "':'"),
        ("CNI_IFNAME", "a b", "space"),
        ("CNI_ARGS", "A", "KEY=VALUE"),
        ("CNI_ARGS", "A=1", "IgnoreUnknown=1"),
        ("CNI_ARGS", "A=1;IgnoreUnknown=0", "IgnoreUnknown=1"),
        ("CNI_ARGS", "IgnoreUnknown=perhaps", "1 or 0"),
    ] {
        let failure = with(name, value).expect_err(value);
        assert_eq!(failure.code, code::ENVIRONMENT, "{name}={value}: {failure}");
        assert!(failure.msg.contains(name), "{failure}");
        assert!(failure.msg.contains(word), "{failure}");
    }
}

#[test]
fn each_verb_needs_what_the_specification_says() {
    let parse = |pairs: &[(&str, &str)]| environment(pairs).parse();
    let version = parse(&[("CNI_COMMAND", "VERSION")]).expect("needs nothing else");
    assert_eq!(version.verb, Verb::Version);
    let status = parse(&[("CNI_COMMAND", "STATUS")]).expect("needs nothing else");
    assert_eq!(status.verb, Verb::Status);
    parse(&[("CNI_COMMAND", "GC")]).expect_err("needs CNI_PATH");
    parse(&[("CNI_COMMAND", "GC"), ("CNI_PATH", "/a:/b")]).expect("a call");
    let del = with("CNI_COMMAND", "DEL").expect("a call");
    assert!(matches!(del.verb, Verb::Del(_, Some(_))));
    let del = parse(&[
        ("CNI_COMMAND", "DEL"),
        ("CNI_CONTAINERID", "c1"),
        ("CNI_IFNAME", "eth0"),
        ("CNI_NETNS", ""),
    ]);
    assert!(matches!(del.expect("a call").verb, Verb::Del(_, None)));
}

#[test]
fn kubernetes_arguments_are_read() {
    let text = "IgnoreUnknown=1;K8S_POD_NAMESPACE=ns;K8S_POD_NAME=web-0;K8S_POD_UID=u;X=y";
    let Verb::Add(pod, _) = with("CNI_ARGS", text).expect("a call").verb else {
        panic!("an ADD");
    };
    assert_eq!(pod.args.pod_namespace.as_deref(), Some("ns"));
    assert_eq!(pod.args.pod_name.as_deref(), Some("web-0"));
    assert_eq!(pod.args.pod_uid.as_deref(), Some("u"));
}

#[test]
fn a_list_of_attachments_is_one_by_either_name_and_though_it_is_null() {
    let listed = |change: Value| {
        let config = config(&change).expect("valid");
        config.valid.map(|valid| valid.len())
    };
    let one = json!([{"containerID": "c1", "ifname": "eth0"}]);
    let (name, older) = ("cni.dev/valid-attachments", "cni.dev/attachments");
    assert_eq!(listed(json!({})), None);
    assert_eq!(listed(json!({name: null})), Some(0));
    assert_eq!(listed(json!({older: []})), Some(0));
    assert_eq!(listed(json!({older: one})), Some(1));
    assert_eq!(listed(json!({name: null, older: one})), Some(1));
}

fn config(change: &Value) -> Result<Config, Failure> {
    let mut config = json!({"cniVersion": "1.1.0", "name": "pods", "type": "weft-cni"});
    for (key, value) in change.as_object().expect("an object") {
        config[key] = value.clone();
    }
    Config::parse(config.to_string().as_bytes())
}

#[test]
#[expect(clippy::too_many_lines, reason = "a table")]
fn a_configuration_that_is_wrong_has_its_code_and_names_its_field() {
    for (change, code, word) in [
        (json!({"cniVersion": null}), code::VERSION, "0.1.0"),
        (json!({"cniVersion": "9.9.9"}), code::VERSION, "9.9.9"),
        (json!({"cniVersion": 1}), code::CONFIG, "cniVersion"),
        (json!({"name": null}), code::CONFIG, "name"),
        (json!({"name": "a/b"}), code::CONFIG, "a/b"),
        (json!({"type": null}), code::CONFIG, "type"),
        (json!({"attach": "macvlan"}), code::UNSUPPORTED, "macvlan"),
        (json!({"mtu": 10}), code::CONFIG, "mtu is 10"),
        (json!({"mtu": "big"}), code::CONFIG, "mtu"),
        (json!({"queues": 0}), code::CONFIG, "queues is 0"),
        (json!({"forwarder": "here"}), code::CONFIG, "absolute"),
        (json!({"ipam": 7}), code::CONFIG, "ipam is 7"),
        (
            json!({"ipam": {"type": "../sh"}}),
            code::CONFIG,
            "not a path",
        ),
        (json!({"ipam": {"families": []}}), code::CONFIG, "families"),
        (json!({"runtimeConfig": {"mac": "x"}}), code::CONFIG, "mac"),
        (
            json!({"runtimeConfig": {"mac": "01:00:00:00:00:01"}}),
            code::CONFIG,
            "unicast",
        ),
        (
            json!({"runtimeConfig": {"ips": ["x"]}}),
            code::CONFIG,
            "\"x\"",
        ),
        (
            json!({"runtimeConfig": {"ips": ["10.0.0.1", "10.0.0.2"]}}),
            code::CONFIG,
            "one of each",
        ),
        (
            json!({"runtimeConfig": {"ipRanges": [[{}]]}}),
            code::CONFIG,
            "subnet",
        ),
        (json!({"prevResult": 3}), code::DECODE, "prevResult"),
        (
            json!({"prevResult": {"cniVersion": "7"}}),
            code::VERSION,
            "prevResult",
        ),
        (
            json!({"prevResult": {"ips": [{"address": "10.0.0.1/32", "interface": 0}]}}),
            code::DECODE,
            "interface 0",
        ),
        (
            json!({"cni.dev/valid-attachments": [{}]}),
            code::CONFIG,
            "containerID",
        ),
    ] {
        let failure = config(&change).expect_err("it is wrong");
        assert_eq!(failure.code, code, "{change}: {failure}");
        assert!(failure.msg.contains(word), "{change}: {failure}");
    }
    for bytes in [&b""[..], b"[]", b"{", b"\xff", &[b' '; (8 << 20) + 1]] {
        let failure = Config::parse(bytes).expect_err("no configuration");
        assert_eq!(failure.code, code::DECODE);
    }
}

#[test]
fn the_runtimes_mac_and_ips_win_over_args_and_those_over_cni_args() {
    let by_all = json!({
        "cniVersion": "1.0.0", "name": "n", "type": "t",
        "runtimeConfig": {"mac": "02:00:00:00:00:01", "ips": ["10.0.0.1/24"]},
        "args": {"cni": {"mac": "02:00:00:00:00:03", "ips": ["10.0.0.3"]}},
    });
    let args = Args {
        mac: Some("02:00:00:00:00:02".to_owned()),
        ip: Some("10.0.0.2".to_owned()),
        ..Args::default()
    };
    let mut asked = by_all.clone();
    for (last, silent) in [
        (1, json!("runtimeConfig")),
        (3, json!("args")),
        (2, json!(null)),
    ] {
        let config = Config::parse_for(asked.to_string().as_bytes(), &args).expect("valid");
        let mac = config.runtime.mac.expect("a MAC");
        assert_eq!(mac.0[5], last);
        assert_eq!(config.runtime.ips[0].to_string(), format!("10.0.0.{last}"));
        match silent.as_str() {
            Some("args") => asked["args"]["cni"] = json!({"mac": "", "ips": []}),
            Some(key) => asked[key] = json!({"mac": "", "ips": []}),
            None => {}
        }
    }
}

#[test]
fn what_is_not_said_has_its_default() {
    let config = config(&json!({})).expect("valid");
    assert_eq!(config.attach, Attach::Tap);
    assert_eq!(config.mtu, 1450);
    assert!(matches!(config.ipam, Ipam::Weft(_)));
    assert_eq!(config.valid, None);
}

#[test]
fn a_sticky_pod_is_known_by_its_name() {
    let identity = |sticky: Value, args: &str| {
        let config = json!({"cniVersion": "1.1.0", "name": "n", "type": "weft-cni",
                            "ipam": {"type": "weft", "sticky": sticky}});
        let Ok(weft_cni::protocol::Call {
            verb: Verb::Add(pod, _),
            ..
        }) = with("CNI_ARGS", args)
        else {
            panic!("{args}");
        };
        let config = Config::parse_for(config.to_string().as_bytes(), &pod.args);
        match config.map(|config| config.ipam) {
            Ok(Ipam::Weft(weft)) => Ok(weft.identity.map(String::from)),
            Ok(other) => panic!("{other:?}"),
            Err(failure) => Err(failure.code),
        }
    };
    const POD: &str = "K8S_POD_NAMESPACE=db;K8S_POD_NAME=pg-0";
    assert_eq!(identity(true.into(), POD), Ok(Some("db/pg-0".to_owned())));
    assert_eq!(identity(false.into(), POD), Ok(None));
    assert_eq!(identity(Value::Null, POD), Ok(None));
    assert_eq!(identity(true.into(), "K8S_POD_NAME=pg-0"), Ok(None));
    assert_eq!(identity("yes".into(), POD), Err(code::CONFIG));
    // No StatefulSet's: and DEL goes on.
    let long = format!("K8S_POD_NAMESPACE=db;K8S_POD_NAME={}", "x".repeat(200));
    assert_eq!(identity(true.into(), &long), Ok(None));
}

fn full() -> Value {
    json!({
        "cniVersion": "1.1.0",
        "interfaces": [
            {"name": "br0", "mac": "02:00:00:00:00:01"},
            {"name": "eth0", "mac": "02:00:00:00:00:02", "sandbox": "/run/netns/c1",
             "mtu": 1450, "socketPath": "/s", "pciID": "p"},
        ],
        "ips": [
            {"address": "10.0.0.1/32", "gateway": "169.254.1.1", "interface": 1},
            {"address": "fd00::1/128", "interface": 1},
        ],
        "routes": [{"dst": "0.0.0.0/0", "gw": "169.254.1.1", "mtu": 1, "advmss": 2,
                    "priority": 3, "table": 4, "scope": 5}],
        "dns": {"nameservers": ["10.0.0.53"], "search": ["a.example"]},
        "vendor": {"kept": true},
    })
}

/// The same result in the shape of `version`, written by hand.
fn golden(version: Version) -> Value {
    let mut golden = full();
    golden["cniVersion"] = version.as_str().into();
    if version < Version::V1_1_0 {
        golden["interfaces"][1] =
            json!({"name": "eth0", "mac": "02:00:00:00:00:02", "sandbox": "/run/netns/c1"});
        golden["routes"] = json!([{"dst": "0.0.0.0/0", "gw": "169.254.1.1"}]);
    }
    if version < Version::V1_0_0 {
        golden["ips"][0]["version"] = "4".into();
        golden["ips"][1]["version"] = "6".into();
    }
    golden
}

#[test]
fn a_result_has_the_shape_of_each_version_and_reads_back() {
    let outcome = Outcome::parse("prevResult", full(), Version::V1_1_0).expect("valid");
    for version in Version::ALL {
        let written = outcome.to_json(version);
        assert_eq!(written, golden(version));
        let again = Outcome::parse("prevResult", written.clone(), version).expect("valid");
        assert_eq!(again.to_json(version), written);
    }
}

#[test]
fn version_answers_whatever_is_asked() {
    let spoken = json!(["0.3.1", "0.4.0", "1.0.0", "1.1.0"]);
    for (asked, answered) in [(None, "1.1.0"), (Some("0.4.0"), "0.4.0"), (Some("8"), "8")] {
        let answer = json!({"cniVersion": answered, "supportedVersions": spoken});
        assert_eq!(versions(asked), answer);
    }
}

#[test]
fn a_failure_is_written_as_the_specification_says() {
    let failure = Failure::new(code::DECODE, "why").with_details("where");
    let json = json!({"cniVersion": "1.0.0", "code": 6, "msg": "why", "details": "where"});
    assert_eq!(failure.to_json("1.0.0"), json);
}

proptest! {
    #[test]
    fn no_environment_and_no_configuration_panics(
        pairs in prop::collection::vec(("CNI_(COMMAND|CONTAINERID|NETNS|IFNAME|ARGS|PATH)", ".*"), 0..6),
        key in "(name|mtu|ipam|args|runtimeConfig|prevResult|dns|cni.dev/attachments)",
        value in "[\\[{\":,}\\]a-z0-9./]{0,40}",
        bytes in prop::collection::vec(any::<u8>(), 0..200),
    ) {
        let _ = Environment::new(pairs).parse();
        let _ = Config::parse(&bytes);
        let text = format!(r#"{{"cniVersion":"1.1.0","name":"n","type":"t","{key}":{value}}}"#);
        let _ = Config::parse(text.as_bytes());
    }
}

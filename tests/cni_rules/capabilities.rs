//! Capability arguments from the runtime to the pod, the forwarder and the
//! IPAM server, and what stands in for them.

use std::fs;

use serde_json::{Value, json};
use weft_api::forwarder::{Capabilities, Port};
use weft_testkit::cni::Attachment;

use crate::node::{Node, Pod, address, list};

const BANDWIDTH: &str = r#"{"ingressRate": 50000000, "ingressBurst": 800000,
    "egressRate": 20000000, "egressBurst": 400000}"#;

fn json_of(text: &str) -> Value {
    serde_json::from_str(text).expect("JSON")
}

/// A list of our plugin, which declares all capabilities.
fn declared(node: &Node, change: &Value) -> Value {
    let mut plugin = node.plugin();
    plugin["capabilities"] = json!({"bandwidth": true, "portMappings": true, "mac": true,
        "ips": true, "ipRanges": true, "dns": true});
    for (key, value) in change.as_object().expect("an object") {
        plugin[key] = value.clone();
    }
    list("1.1.0", &[plugin])
}

fn asking(pod: &Pod, capabilities: &Value) -> Attachment {
    Attachment {
        capabilities: capabilities.as_object().expect("an object").clone(),
        ..pod.attachment()
    }
}

fn port_of(node: &Node, pod: &Pod) -> Port {
    let handle = format!("/{}/", pod.container);
    let ports = node.ports();
    let port = ports
        .into_iter()
        .find(|port| port.name.as_str().contains(&handle));
    port.unwrap_or_else(|| panic!("{} has a port", pod.container))
}

fn capabilities_of(node: &Node, pod: &Pod) -> Capabilities {
    port_of(node, pod).capabilities
}

#[test]
fn bandwidth_and_port_mappings_reach_the_forwarder_and_check_compares_them() {
    weft_testkit::needs_namespaces!();
    let node = Node::start();
    node.host("up");
    let mut runtime = node.runtime();
    let config = declared(&node, &json!({}));
    let pod = Pod::new("c1");
    // As containerd writes them.
    let mappings =
        json!([{"HostPort": 8080, "ContainerPort": 80, "Protocol": "tcp", "HostIP": ""}]);
    let asked = json!({"bandwidth": json_of(BANDWIDTH), "portMappings": mappings});
    let attachment = asking(&pod, &asked);
    node.run(|| runtime.add(&config, &attachment))
        .expect("added");
    let expected = json!({
        "bandwidth": {"to_pod": {"rate": 50_000_000, "burst": 800_000},
            "from_pod": {"rate": 20_000_000, "burst": 400_000}},
        "port_mappings": [{"host_port": 8080, "container_port": 80, "protocol": "tcp"}],
    });
    let found = serde_json::to_value(capabilities_of(&node, &pod)).expect("JSON");
    assert_eq!(found, expected);
    node.run(|| runtime.check(&config, &attachment))
        .expect("nothing differs");
    let mut slower = json_of(BANDWIDTH);
    slower["egressRate"] = 1.into();
    let elsewhere = json!([{"hostPort": 8081, "containerPort": 80, "protocol": "tcp"}]);
    for (key, value, words) in [
        (
            "bandwidth",
            slower,
            &["egress bandwidth", "is 20000000 bit/s", "not 1 bit/s"][..],
        ),
        (
            "bandwidth",
            json!({}),
            &["ingress bandwidth", "not unlimited"],
        ),
        (
            "portMappings",
            elsewhere,
            &[
                "does not publish *:8081/tcp to 80",
                "publishes *:8080/tcp to 80, which",
            ],
        ),
    ] {
        let mut other = asked.clone();
        other[key] = value;
        let other = asking(&pod, &other);
        let failure = node.run(|| runtime.check(&config, &other));
        let failure = failure.expect_err("it differs");
        assert_eq!(failure["code"], 101, "{failure}");
        let said = failure["msg"].as_str().expect("a sentence");
        assert!(words.iter().all(|word| said.contains(word)), "{said}");
    }
    node.run(|| runtime.del(&config, &attachment))
        .expect("deleted");
    node.host("down");
    node.assert_clean("after DEL");
}

#[test]
fn a_capability_that_is_not_declared_is_not_heard_and_own_settings_are() {
    weft_testkit::needs_namespaces!();
    let node = Node::start();
    let mut runtime = node.runtime();
    let mut plugin = node.plugin();
    for (key, value) in json_of(BANDWIDTH).as_object().expect("an object") {
        plugin[key] = value.clone();
    }
    let config = list("1.1.0", &[plugin]);
    let pod = Pod::new("c1");
    let ignored = json!({"bandwidth": {"egressRate": 1, "egressBurst": 1}});
    let attachment = asking(&pod, &ignored);
    node.run(|| runtime.add(&config, &attachment))
        .expect("added");
    let bandwidth = capabilities_of(&node, &pod).bandwidth;
    let rates = [bandwidth.to_pod, bandwidth.from_pod].map(|limit| limit.map(|l| l.rate.get()));
    assert_eq!(rates, [Some(50_000_000), Some(20_000_000)]);
    node.run(|| runtime.check(&config, &attachment))
        .expect("nothing differs");
}

#[test]
fn a_port_of_the_node_is_published_by_one_pod_until_it_is_deleted() {
    weft_testkit::needs_namespaces!();
    let node = Node::start();
    node.host("up");
    let mut runtime = node.runtime();
    let config = declared(&node, &json!({}));
    let (one, two) = (Pod::new("c1"), Pod::new("c2"));
    let publish = |ip: &str| {
        json!({"portMappings": [{"hostPort": 80, "containerPort": 8080, "protocol": "udp",
            "hostIP": ip}]})
    };
    let first = asking(&one, &publish("192.0.2.1"));
    node.run(|| runtime.add(&config, &first)).expect("added");
    for ip in ["192.0.2.1", "0.0.0.0", ""] {
        let second = asking(&two, &publish(ip));
        let failure = node.run(|| runtime.add(&config, &second));
        let failure = failure.expect_err("it is published");
        assert_eq!(failure["code"], 102, "{failure}");
        let said = failure["msg"].as_str().expect("a sentence");
        let published = "80/udp is published by port pods/c1/eth0";
        assert!(said.contains(published), "{said}");
        // The runtime's, after an ADD that failed.
        node.run(|| runtime.del(&config, &second)).expect("deleted");
        assert!(!two.has("eth0"));
    }
    // weft0 is one more.
    assert_eq!((node.ports().len(), node.allocations().len()), (2, 2));
    node.run(|| runtime.del(&config, &first)).expect("deleted");
    let second = asking(&two, &publish(""));
    node.run(|| runtime.add(&config, &second)).expect("added");
}

#[test]
fn what_is_asked_wrongly_leaves_nothing_and_is_deleted_all_the_same() {
    weft_testkit::needs_namespaces!();
    let node = Node::start();
    let mut runtime = node.runtime();
    let config = declared(&node, &json!({}));
    let pod = Pod::new("c1");
    for (asked, code) in [
        (json!({"bandwidth": {"egressRate": 1}}), 7),
        (
            json!({"portMappings": [{"hostPort": 0, "containerPort": 1}]}),
            7,
        ),
        (
            json!({"portMappings": [{"hostPort": 1, "containerPort": 1, "protocol": "x"}]}),
            2,
        ),
        (
            json!({"ipRanges": [[{"subnet": "10.77.0.0/24", "rangeStart": "10.77.0.9"}]]}),
            2,
        ),
        (json!({"ipRanges": [[{"subnet": "10.99.0.0/24"}]]}), 7),
    ] {
        let attachment = asking(&pod, &asked);
        let failure = node.run(|| runtime.add(&config, &attachment));
        let failure = failure.expect_err("it is wrong");
        assert_eq!(failure["code"], code, "{failure}");
        node.assert_clean("after ADD was refused");
        node.run(|| runtime.del(&config, &attachment))
            .expect("deleted");
    }
}

/// Rule: the runtime's wins, then `args.cni`, then CNI_ARGS.
#[test]
fn mac_and_ips_come_from_the_first_that_speaks() {
    weft_testkit::needs_namespaces!();
    let node = Node::start();
    let mut runtime = node.runtime();
    let by_capability = json!({"mac": "02:00:00:00:01:01", "ips": ["10.77.0.11/24", "fd77::11"]});
    let by_args = json!({"args": {"cni": {"mac": "02:00:00:00:01:02", "ips": ["10.77.0.12"]}}});
    let by_environment = "IgnoreUnknown=1;MAC=02:00:00:00:01:03;IP=10.77.0.13,fd77::13";
    for (capabilities, change, last) in [
        (by_capability, by_args.clone(), 1),
        (json!({}), by_args, 2),
        (json!({}), json!({}), 3),
    ] {
        let config = declared(&node, &change);
        let pod = Pod::new("c1");
        let attachment = Attachment {
            args: by_environment.to_owned(),
            ..asking(&pod, &capabilities)
        };
        let result = node.run(|| runtime.add(&config, &attachment));
        let result = result.expect("added");
        assert_eq!(address(&result, 0).to_string(), format!("10.77.0.1{last}"));
        let mac = format!("02:00:00:00:01:0{last}");
        assert_eq!(result["interfaces"][0]["mac"], mac);
        assert!(pod.ip("link show eth0").contains(&mac));
        assert_eq!(port_of(&node, &pod).mac.to_string(), mac);
        if last != 2 {
            assert_eq!(address(&result, 1).to_string(), format!("fd77::1{last}"));
        }
        node.run(|| runtime.check(&config, &attachment))
            .expect("nothing differs");
        node.run(|| runtime.del(&config, &attachment))
            .expect("deleted");
    }
    node.assert_clean("after all");
}

#[test]
fn ranges_choose_pools_and_so_families() {
    weft_testkit::needs_namespaces!();
    let node = Node::start();
    let mut runtime = node.runtime();
    let config = declared(
        &node,
        &json!({"ipam": {"socket": node.at("ipam.sock"),
        "pools": ["pods6"], "families": ["v6"]}}),
    );
    let pod = Pod::new("c1");
    let asked = json!({"ipRanges": [[{"Subnet": "10.77.0.0/24", "RangeStart": "", "RangeEnd": "",
        "Gateway": "10.77.0.1"}]]});
    let attachment = asking(&pod, &asked);
    let result = node
        .run(|| runtime.add(&config, &attachment))
        .expect("added");
    assert!(address(&result, 0).is_ipv4(), "{result}");
    assert_eq!(result["ips"].as_array().map(Vec::len), Some(1));
}

#[test]
fn name_servers_come_from_the_runtime_before_the_configuration() {
    weft_testkit::needs_namespaces!();
    let node = Node::start();
    let mut runtime = node.runtime();
    let config = declared(&node, &json!({"dns": {"nameservers": ["10.0.0.1"]}}));
    let asked = json!({"dns": {"servers": ["10.0.0.2"], "searches": ["a.example"],
        "options": ["ndots:5"]}});
    let told =
        json!({"nameservers": ["10.0.0.2"], "search": ["a.example"], "options": ["ndots:5"]});
    for (name, asked, dns) in [
        ("c1", asked, told),
        ("c2", json!({}), json!({"nameservers": ["10.0.0.1"]})),
    ] {
        let pod = Pod::new(name);
        let attachment = asking(&pod, &asked);
        let result = node
            .run(|| runtime.add(&config, &attachment))
            .expect("added");
        assert_eq!(result["dns"], dns);
    }
}

/// The delegate reads the same stdin and environment.
#[test]
fn a_delegate_gives_the_addresses_and_ranges_that_the_runtime_asks() {
    weft_testkit::needs_namespaces!();
    let node = Node::start();
    let mut runtime = node.runtime();
    let state = node.at("host-local");
    let host_local = json!({"type": "host-local", "dataDir": state,
        "ranges": [[{"subnet": "10.78.0.0/24"}]]});
    let statically = json!({"type": "static", "addresses": [{"address": "10.78.0.9/24"}]});
    let range = json!([[{"subnet": "10.79.0.0/24", "rangeStart": "10.79.0.40",
        "rangeEnd": "10.79.0.40"}]]);
    let two = ["10.78.0.21/24", "10.78.0.22/24"];
    for (ipam, asked, args, expected) in [
        (
            &host_local,
            json!({"ips": ["10.78.0.20/24"]}),
            "",
            &["10.78.0.20"][..],
        ),
        (&host_local, json!({}), "IP=10.78.0.30", &["10.78.0.30"]),
        (&host_local, json!({"ipRanges": range}), "", &["10.79.0.40"]),
        (
            &statically,
            json!({"ips": two}),
            "",
            &["10.78.0.21", "10.78.0.22"],
        ),
        (&statically, json!({}), "", &["10.78.0.9"]),
    ] {
        // host-local takes either its own ranges or the runtime's.
        let mut ipam = ipam.clone();
        if asked.get("ipRanges").is_some() {
            ipam.as_object_mut().expect("an object").remove("ranges");
        }
        let mut config = declared(&node, &json!({"ipam": ipam}));
        config["cniVersion"] = "1.0.0".into();
        let pod = Pod::new("c1");
        let attachment = Attachment {
            args: args.to_owned(),
            ..asking(&pod, &asked)
        };
        let result = node.run(|| runtime.add(&config, &attachment));
        let result = result.unwrap_or_else(|failure| panic!("{asked} {args}: {failure}"));
        let places = 0..result["ips"].as_array().map_or(0, Vec::len);
        let found: Vec<_> = places
            .map(|place| address(&result, place).to_string())
            .collect();
        assert_eq!(found, expected, "{asked} {args}");
        let mut held: Vec<_> = port_of(&node, &pod).addresses;
        held.sort_unstable();
        let held: Vec<_> = held.iter().map(ToString::to_string).collect();
        assert_eq!(held, expected);
        node.run(|| runtime.check(&config, &attachment))
            .expect("nothing differs");
        node.run(|| runtime.del(&config, &attachment))
            .expect("deleted");
    }
    node.assert_clean("after all");
    let leases = fs::read_dir(state.join("pods")).expect("host-local's leases");
    let leases = leases.filter_map(|lease| lease.ok()?.file_name().into_string().ok());
    let leases: Vec<_> = leases.filter(|name| name.starts_with("10.")).collect();
    assert_eq!(leases, [""; 0]);
}

//! Chains with other people's plugins, and addresses from them and for them.

use serde_json::{Value, json};

use crate::node::{Node, Pod, address, list, reaches};

#[test]
fn a_chain_before_and_after_others_hands_every_result_on() {
    weft_testkit::needs_namespaces!();
    let node = Node::start();
    let mut runtime = node.runtime();
    for version in ["0.4.0", "1.0.0"] {
        let tuning = json!({"type": "tuning", "mtu": 1300,
            "sysctl": {"net.ipv4.conf.eth0.arp_ignore": "1"}});
        let chain = list(
            version,
            &[json!({"type": "loopback"}), node.plugin(), tuning],
        );
        let (one, two) = (Pod::new("c1"), Pod::new("c2"));
        let (first, second) = (one.attachment(), two.attachment());
        let result = node.run(|| runtime.add(&chain, &first)).expect("added");
        let other = node.run(|| runtime.add(&chain, &second)).expect("added");
        assert_eq!(result["cniVersion"], version);
        let interfaces = result["interfaces"].as_array().expect("interfaces");
        let named = |name: &str| interfaces.iter().position(|one| one["name"] == name);
        let (lo, eth0) = (
            named("lo").expect("loopback's"),
            named("eth0").expect("ours"),
        );
        for ip in result["ips"].as_array().expect("addresses") {
            let text = ip["address"].as_str().expect("an address");
            let on = if text.starts_with("127.") || text.starts_with("::1") {
                lo
            } else {
                eth0
            };
            assert_eq!(ip["interface"], on, "{ip}");
            assert_eq!(ip["version"].is_string(), version < "1.0.0", "{ip}");
        }
        let loopbacks = result["ips"].as_array().expect("addresses").len() - 2;
        assert!(loopbacks > 0, "{result}");
        assert!(one.ip("link show eth0").contains("mtu 1300"));
        reaches(&one, &two, address(&other, loopbacks));
        node.run(|| runtime.check(&chain, &first))
            .expect("nothing differs");
        for pod in [&first, &second] {
            node.run(|| runtime.del(&chain, pod)).expect("deleted");
        }
        node.assert_clean("after the chain");
    }
}

#[test]
fn a_firewall_after_us_finds_our_addresses() {
    weft_testkit::needs_namespaces!();
    let node = Node::start();
    let mut runtime = node.runtime();
    let firewall = json!({"type": "firewall", "backend": "iptables"});
    let chain = list("1.0.0", &[node.plugin(), firewall]);
    let pod = Pod::new("c1");
    let attachment = pod.attachment();
    let alone = list("1.0.0", &[node.plugin()]);
    let ours = node
        .run(|| runtime.add(&alone, &attachment))
        .expect("added");
    node.run(|| runtime.del(&alone, &attachment))
        .expect("deleted");
    let result = node
        .run(|| runtime.add(&chain, &attachment))
        .expect("added");
    for key in ["interfaces", "ips", "routes"] {
        let count = |result: &Value| result[key].as_array().map(Vec::len);
        assert_eq!(count(&result), count(&ours), "{key}");
    }
    node.run(|| runtime.check(&chain, &attachment))
        .expect("nothing differs");
    node.run(|| runtime.del(&chain, &attachment))
        .expect("deleted");
    node.assert_clean("after the chain");
}

#[test]
fn everything_of_a_foreign_prev_result_is_passed_on() {
    weft_testkit::needs_namespaces!();
    let node = Node::start();
    let foreign = json!({
        "cniVersion": "1.0.0",
        "interfaces": [{"name": "other0", "mac": "02:00:00:00:00:01"},
                       {"name": "net1", "sandbox": "/run/netns/x"}],
        "ips": [{"address": "192.0.2.5/24", "gateway": "192.0.2.1", "interface": 1}],
        "routes": [{"dst": "198.51.100.0/24", "gw": "192.0.2.1"}],
        "dns": {"nameservers": ["192.0.2.53"], "options": ["ndots:5"]},
    });
    let pod = Pod::new("c1");
    let result = node
        .call("ADD", &pod, &json!({"prevResult": foreign}))
        .expect("added");
    assert_eq!(result["cniVersion"], "1.1.0");
    for key in ["interfaces", "ips", "routes"] {
        let theirs = foreign[key].as_array().expect("a list");
        let all = result[key].as_array().expect("a list");
        assert_eq!(all[..theirs.len()], theirs[..], "{key}");
    }
    assert_eq!(result["dns"], foreign["dns"]);
    assert_eq!(result["interfaces"][2]["name"], "eth0");
    assert_eq!(result["interfaces"][2]["sandbox"], pod.path());
    assert_eq!(result["ips"][1]["interface"], 2);
    node.call("CHECK", &pod, &json!({"prevResult": result}))
        .expect("theirs is not ours to judge");
}

#[test]
fn host_local_gives_addresses_and_takes_them_back() {
    weft_testkit::needs_namespaces!();
    let node = Node::start();
    let mut runtime = node.runtime();
    let mut plugin = node.plugin();
    plugin["ipam"] = json!({
        "type": "host-local", "dataDir": node.at("host-local"),
        "ranges": [[{"subnet": "10.88.0.0/24"}], [{"subnet": "fd88::/64"}]],
    });
    let chain = list("1.0.0", &[plugin]);
    let (one, two) = (Pod::new("c1"), Pod::new("c2"));
    let (first, second) = (one.attachment(), two.attachment());
    let leases = || {
        let files = std::fs::read_dir(node.at("host-local/pods")).expect("its directory");
        let name = |file: std::io::Result<std::fs::DirEntry>| file.expect("a file").file_name();
        let names = files.map(name).filter_map(|name| name.into_string().ok());
        names
            .filter(|name| name.parse::<std::net::IpAddr>().is_ok())
            .count()
    };
    node.run(|| runtime.add(&chain, &first)).expect("added");
    let result = node.run(|| runtime.add(&chain, &second)).expect("added");
    assert_eq!((leases(), node.allocations()), (4, Vec::new()));
    for place in 0..2 {
        reaches(&one, &two, address(&result, place));
    }
    node.run(|| runtime.check(&chain, &first))
        .expect("nothing differs");

    // A second ADD leaves the first alone, and an ADD that fails gives back.
    let elsewhere = Pod::new("c1");
    let twice = node.run(|| node.runtime().add(&chain, &elsewhere.attachment()));
    assert_eq!(twice.expect_err("c1 is attached")["code"], 100);
    let third = Pod::new("c3");
    let mut small = chain.clone();
    small["plugins"][0]["mtu"] = 600.into();
    let failed = node.run(|| node.runtime().add(&small, &third.attachment()));
    assert_eq!(failed.expect_err("too small for IPv6")["code"], 7);
    assert_eq!(leases(), 4);

    for pod in [&first, &first, &second] {
        node.run(|| runtime.del(&chain, pod)).expect("deleted");
    }
    assert_eq!(leases(), 0);
    node.assert_clean("after DEL");
}

#[test]
fn static_addresses_are_taken_as_they_are() {
    weft_testkit::needs_namespaces!();
    let node = Node::start();
    let mut runtime = node.runtime();
    let mut plugin = node.plugin();
    plugin["ipam"] = json!({"type": "static", "addresses": [
        {"address": "10.99.0.7/24"}, {"address": "fd99::7/64"}],
        "dns": {"nameservers": ["10.99.0.53"]}});
    let chain = list("1.0.0", &[plugin]);
    let pod = Pod::new("c1");
    let attachment = pod.attachment();
    let result = node
        .run(|| runtime.add(&chain, &attachment))
        .expect("added");
    assert_eq!(address(&result, 0).to_string(), "10.99.0.7");
    assert_eq!(address(&result, 1).to_string(), "fd99::7");
    assert_eq!(result["dns"]["nameservers"], json!(["10.99.0.53"]));
    node.run(|| runtime.check(&chain, &attachment))
        .expect("nothing differs");
    node.run(|| runtime.del(&chain, &attachment))
        .expect("deleted");
    node.assert_clean("after DEL");
}

#[test]
fn a_bridge_and_a_ptp_get_their_addresses_from_us() {
    weft_testkit::needs_namespaces!();
    let node = Node::with_pools(&["10.77.0.0/26"]);
    let mut runtime = node.runtime();
    let mut ipam = json!({"type": "weft-ipam-cni", "socket": node.at("ipam.sock"),
        "wholeBlock": true, "gateways": ["10.77.0.1"], "routes": [{"dst": "0.0.0.0/0"}]});
    let bridge = json!({"type": "bridge", "bridge": "br0", "isGateway": true, "ipam": ipam});
    let ptp = json!({"type": "ptp", "ipam": ipam});
    ipam["gateways"] = json!(["10.77.0.0"]);
    let given = list("1.0.0", &[json!({"type": "weft-ipam-cni", "ipam": ipam})]);
    let pod = Pod::new("c0").attachment();
    let failure = node
        .run(|| runtime.add(&given, &pod))
        .expect_err("a pod's own");
    assert!(
        failure["msg"]
            .as_str()
            .expect("a sentence")
            .contains("reserve"),
        "{failure}"
    );
    assert_eq!(node.allocations(), []);
    let reserve = json!({"op": "reserve", "name": "gateway", "cidrs": ["10.77.0.0/31"]});
    let reserve = serde_json::from_value(reserve).expect("a request");
    node.ipam().request(&reserve).expect("reserved");
    for plugin in [bridge, ptp] {
        for version in ["0.3.1", "0.4.0", "1.0.0"] {
            let list = list(version, std::slice::from_ref(&plugin));
            let (one, two) = (Pod::new("c1"), Pod::new("c2"));
            let (first, second) = (one.attachment(), two.attachment());
            let mine = node.run(|| runtime.add(&list, &first)).expect("added");
            let other = node.run(|| runtime.add(&list, &second)).expect("added");
            let text = mine["ips"][0]["address"].as_str().expect("an address");
            assert!(text.ends_with("/26"), "{mine}");
            assert_eq!(node.allocations().len(), 2);
            reaches(&one, &two, address(&other, 0));
            reaches(&two, &one, address(&mine, 0));
            if version != "0.3.1" {
                node.run(|| runtime.check(&list, &first))
                    .expect("nothing differs");
            }
            for pod in [&first, &second, &second] {
                node.run(|| runtime.del(&list, pod)).expect("deleted");
            }
            assert_eq!(node.allocations(), []);
        }
    }
}

#[test]
fn an_ipam_plugin_does_not_give_twice() {
    weft_testkit::needs_namespaces!();
    let node = Node::start();
    let mut runtime = node.runtime();
    let ipam = json!({"type": "weft-ipam-cni",
        "ipam": {"type": "weft-ipam-cni", "socket": node.at("ipam.sock"), "families": ["v6"]}});
    let chain = list("1.1.0", &[ipam]);
    let pod = Pod::new("c1").attachment();
    let result = node.run(|| runtime.add(&chain, &pod)).expect("given");
    assert_eq!(result["interfaces"], Value::Null);
    assert_eq!(result["ips"][0]["interface"], Value::Null);
    let twice = node
        .run(|| node.runtime().add(&chain, &pod))
        .expect_err("held");
    assert_eq!(twice["code"], 100, "{twice}");
    node.run(|| runtime.status(&chain)).expect("it serves");
    node.wait_until_old();
    node.run(|| runtime.gc(&chain, &[&pod])).expect("collected");
    assert_eq!(node.allocations().len(), 1);
    node.run(|| runtime.check(&chain, &pod)).expect("held");
    node.run(|| runtime.gc(&chain, &[])).expect("collected");
    assert_eq!(node.allocations(), []);
    let gone = node
        .run(|| runtime.check(&chain, &pod))
        .expect_err("released");
    assert_eq!(gone["code"], 101, "{gone}");
}

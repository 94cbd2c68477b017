//! weft among the reference plugins: behind and before others in a list, with
//! their IPAM, and as the IPAM of others.

use std::net::IpAddr;

use serde_json::{Value, json};

use crate::{
    REFERENCE_PLUGINS,
    engine::{
        Engine::{Ctr, Podman},
        podman_run,
    },
    image::BUSYBOX,
    needs,
    node::{Cluster, NETWORK, Node},
    pods::reaches,
};

/// What the runtime keeps of a pod's ADD: the result of the whole list.
fn kept_result(node: &Node, pod: &str) -> Value {
    let path = format!("/var/lib/cni/results/{NETWORK}-default-{pod}-eth0");
    let kept: Value = serde_json::from_str(&node.run(&["cat", &path])).expect("JSON");
    kept["result"].clone()
}

fn interfaces(result: &Value) -> Vec<&str> {
    let all = result["interfaces"].as_array().expect("a list");
    all.iter()
        .map(|one| one["name"].as_str().expect("a name"))
        .collect()
}

/// The pod's namespace, as the result names it.
fn sandbox(result: &Value) -> &str {
    let interfaces = result["interfaces"].as_array().expect("a list");
    let own = interfaces.iter().find(|one| one["name"] == "eth0");
    own.expect("eth0")["sandbox"].as_str().expect("a path")
}

/// CHECK as a runtime calls it for a pod of ctr.
fn check(node: &Node, pod: &str, result: &Value) -> Result<(), String> {
    let container = format!("default-{pod}");
    let environment = [
        ("CNI_COMMAND", "CHECK"),
        ("CNI_CONTAINERID", container.as_str()),
        ("CNI_NETNS", sandbox(result)),
        ("CNI_IFNAME", "eth0"),
    ];
    let output = node.plugin(&environment, &json!({"prevResult": result}));
    match output.status.success() {
        true => Ok(()),
        false => Err(String::from_utf8_lossy(&output.stdout).into_owned()),
    }
}

#[test]
fn weft_stands_between_other_plugins() {
    needs!(
        "containerd",
        "ctr",
        "runc",
        "iptables",
        BUSYBOX,
        REFERENCE_PLUGINS
    );
    let cluster = Cluster::up(&[]);
    for node in &cluster.nodes {
        node.chain(|weft| {
            let knob = json!({"net.ipv4.conf.eth0.arp_notify": "1"});
            let tuning = json!({"type": "tuning", "sysctl": knob});
            let firewall = json!({"type": "firewall", "backend": "iptables"});
            vec![json!({"type": "loopback"}), weft, tuning, firewall]
        });
        Ctr.prepare(node);
    }
    let [first, second] = [&cluster.nodes[0], &cluster.nodes[1]];
    let (one, two) = (Ctr.start(first, "one"), Ctr.start(second, "two"));
    two.background(&["nc", "-ll", "-p", "7000", "-e", "cat"]);
    reaches(&one, &two);
    let knob = ["cat", "/proc/sys/net/ipv4/conf/eth0/arp_notify"];
    assert_eq!(one.exec(&knob), "1\n");
    let result = kept_result(first, "one");
    assert_eq!(interfaces(&result), ["lo", "eth0"]);
    let own = |ip: &&Value| ip["interface"] == 1;
    let ips = result["ips"].as_array().expect("a list");
    assert_eq!(ips.iter().filter(own).count(), 2, "{result}");
    assert_eq!(check(first, "one", &result), Ok(()));
    let inside = format!("--net={}", sandbox(&result));
    first.run(&["nsenter", &inside, "ip", "addr", "flush", "dev", "eth0"]);
    let differs = check(first, "one", &result).expect_err("the addresses are gone");
    assert!(differs.contains("lacks address"), "{differs}");
    for pod in [one, two] {
        pod.end();
    }
    cluster.assert_bare();
}

#[test]
fn addresses_come_from_host_local_and_from_static() {
    needs!("containerd", "ctr", "runc", BUSYBOX, REFERENCE_PLUGINS);
    let cluster = Cluster::up(&[]);
    let node = &cluster.nodes[0];
    Ctr.prepare(node);
    let with_ipam = |ipam: Value| {
        node.chain(|mut weft| {
            weft["ipam"] = ipam;
            vec![weft]
        });
    };
    let ranges = json!([[{"subnet": "10.99.0.0/24"}], [{"subnet": "fd99::/120"}]]);
    with_ipam(json!({"type": "host-local", "ranges": ranges}));
    let (one, two) = (Ctr.start(node, "one"), Ctr.start(node, "two"));
    two.background(&["nc", "-ll", "-p", "7000", "-e", "cat"]);
    reaches(&one, &two);
    let held = || node.sh("ls /var/lib/cni/networks/weft | grep -c '^[0-9f].*[.:]' || true");
    assert_eq!(held(), "4\n");
    let result = kept_result(node, "one");
    assert_eq!(check(node, "one", &result), Ok(()));
    for pod in [one, two] {
        pod.end();
    }
    assert_eq!(held(), "0\n");
    let addresses = json!([{"address": "10.98.0.7/24"}, {"address": "fd98::7/64"}]);
    with_ipam(json!({"type": "static", "addresses": addresses}));
    let three = Ctr.start(node, "three");
    let asked: [IpAddr; 2] = ["10.98.0.7", "fd98::7"].map(|text| text.parse().expect("valid"));
    assert_eq!(three.addresses(), asked);
    three.exec(&["ping", "-c", "1", "-W", "5", "169.254.1.1"]);
    three.end();
    cluster.assert_bare();
}

#[test]
fn the_bridge_plugin_asks_weft_for_addresses() {
    needs!(
        "containerd",
        "ctr",
        "podman",
        "conmon",
        "runc",
        BUSYBOX,
        REFERENCE_PLUGINS
    );
    let cluster = Cluster::up(&[]);
    let node = &cluster.nodes[0];
    node.chain(|weft| {
        let mut ipam = weft["ipam"].clone();
        ipam["type"] = json!("weft-ipam-cni");
        // Pods that share a link reach each other without a gateway.
        ipam["wholeBlock"] = json!(true);
        vec![json!({"type": "bridge", "bridge": "pods", "node": "n1", "ipam": ipam})]
    });
    Ctr.prepare(node);
    Podman.prepare(node);
    let (one, two) = (Ctr.start(node, "one"), Podman.start(node, "two"));
    two.background(&["nc", "-ll", "-p", "7000", "-e", "cat"]);
    reaches(&one, &two);
    assert_eq!(cluster.holders().len(), 4);
    let result = kept_result(node, "one");
    let interfaces = interfaces(&result);
    assert!(interfaces.contains(&"pods"), "{interfaces:?}");
    for pod in [one, two] {
        pod.end();
    }
    node.run(&["ip", "link", "delete", "pods"]);
    cluster.assert_bare();
}

#[test]
fn podman_chooses_address_and_mac() {
    needs!("podman", "conmon", "runc", BUSYBOX);
    let cluster = Cluster::up(&[]);
    let node = &cluster.nodes[0];
    Podman.prepare(node);
    let taken = Podman.start(node, "taken");
    let address = taken.addresses()[0];
    let ip = format!("--ip={address}");
    let refused = podman_run(node, "other", &[&ip]).expect_err("it is taken");
    assert!(refused.contains("weft/"), "it names the holder: {refused}");
    taken.end();
    let mac = "--mac-address=02:00:00:00:00:77";
    assert_eq!(podman_run(node, "again", &[&ip, mac]), Ok(()));
    let found = Podman.pod(node, "again");
    assert_eq!(found.addresses()[0], address);
    let link = found.exec(&["ip", "link", "show", "dev", "eth0"]);
    assert!(link.contains("02:00:00:00:00:77"), "{link}");
    found.end();
    Podman.pod(node, "other").end();
    cluster.assert_bare();
}

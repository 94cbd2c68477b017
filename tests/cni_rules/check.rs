//! CHECK tells each difference and nothing else; what a runtime asks for is
//! what the pod gets; many calls at once are each whole.

use std::{collections::BTreeSet, thread};

use serde_json::{Map, Value, json};
use weft_api::{
    forwarder::Request,
    ipam::{Release, Request as IpamRequest},
};
use weft_cni::forwarder::Client;

use crate::node::{Node, Pod, address, list};

#[test]
fn check_tells_each_difference() {
    weft_testkit::needs_namespaces!();
    let node = Node::start();
    for (change, word) in [
        ("addr del ADDRESS/32 dev eth0", "lacks address"),
        ("route del default", "default route by 169.254.1.1"),
        (
            "link set eth0 address 02:00:00:00:00:99",
            "has MAC 02:00:00:00:00:99",
        ),
        ("link set eth0 down", "eth0 is down"),
        ("link set eth0 mtu 1460", "MTU 1460"),
        ("link del eth0", "eth0 is not in"),
    ] {
        let pod = Pod::new("c1");
        let (runtime, failure) = checked(&node, &pod, |result| {
            pod.ip(&change.replace("ADDRESS", &address(result, 0).to_string()));
        });
        assert_eq!(failure["code"], 101, "{change}: {failure}");
        let said = failure["msg"].as_str().expect("a sentence");
        assert!(said.contains(word), "{change}: {said}");
        delete(&node, &pod, runtime);
    }
}

#[test]
fn check_tells_what_forwarder_and_ipam_server_lack() {
    weft_testkit::needs_namespaces!();
    let node = Node::start();
    let pod = Pod::new("c1");
    let (runtime, failure) = checked(&node, &pod, |_| {
        let name = node.ports()[0].name.clone();
        let mut client = Client::connect(&node.at("forwarder.sock")).expect("connect");
        client.request(&Request::Detach { name }).expect("detached");
    });
    let said = failure["msg"].as_str().expect("a sentence");
    assert!(
        said.contains("the forwarder has no port pods/c1/eth0"),
        "{said}"
    );
    delete(&node, &pod, runtime);

    let (runtime, failure) = checked(&node, &pod, |_| {
        let handle = node.allocations()[0].handle.clone().expect("a handle");
        let release = IpamRequest::Release(Release::Handle { handle });
        node.ipam().request(&release).expect("released");
    });
    let said = failure["msg"].as_str().expect("a sentence");
    assert!(said.contains("belongs to nobody"), "{said}");
    delete(&node, &pod, runtime);
}

type Runtime = weft_testkit::cni::Runtime;

/// What CHECK says after `change`; at once after ADD it says nothing.
fn checked(node: &Node, pod: &Pod, change: impl FnOnce(&Value)) -> (Runtime, Value) {
    let mut runtime = node.runtime();
    let attachment = pod.attachment();
    let result = node
        .run(|| runtime.add(&node.list(), &attachment))
        .expect("added");
    node.run(|| runtime.check(&node.list(), &attachment))
        .expect("nothing differs");
    change(&result);
    let failure = node.run(|| runtime.check(&node.list(), &attachment));
    (runtime, failure.expect_err("it differs"))
}

fn delete(node: &Node, pod: &Pod, mut runtime: Runtime) {
    node.run(|| runtime.del(&node.list(), &pod.attachment()))
        .expect("deleted");
    node.assert_clean("after DEL");
}

#[test]
fn the_pod_has_the_mac_and_the_addresses_that_its_runtime_chose() {
    weft_testkit::needs_namespaces!();
    let node = Node::start();
    let mut runtime = node.runtime();
    let mut plugin = node.plugin();
    plugin["capabilities"] = json!({"mac": true, "ips": true});
    let chosen = list("1.0.0", &[plugin]);
    let pod = Pod::new("c1");
    let mut attachment = pod.attachment();
    attachment.args = "IgnoreUnknown=1;MAC=02:00:00:00:00:02;IP=10.77.0.99".to_owned();
    attachment.capabilities = Map::from_iter([
        ("mac".to_owned(), "02:00:00:00:00:01".into()),
        ("ips".to_owned(), json!(["10.77.0.77"])),
    ]);
    let result = node
        .run(|| runtime.add(&chosen, &attachment))
        .expect("added");
    assert_eq!(result["interfaces"][0]["mac"], "02:00:00:00:00:01");
    assert_eq!(address(&result, 0).to_string(), "10.77.0.77");
    assert!(pod.ip("link show eth0").contains("02:00:00:00:00:01"));
    assert!(pod.ip("addr show eth0").contains("10.77.0.77/32"));
    node.run(|| runtime.del(&chosen, &attachment))
        .expect("deleted");

    // What the configuration does not declare, the plugin is not told.
    let result = node
        .run(|| runtime.add(&node.list(), &attachment))
        .expect("added");
    assert_eq!(result["interfaces"][0]["mac"], "02:00:00:00:00:02");
    assert_eq!(address(&result, 0).to_string(), "10.77.0.99");
    node.run(|| runtime.del(&node.list(), &attachment))
        .expect("deleted");
    node.assert_clean("after DEL");
}

#[test]
fn many_pods_come_and_go_at_once() {
    const PODS: usize = 32;

    weft_testkit::needs_namespaces!();
    let node = Node::start();
    let pods: Vec<_> = (0..PODS)
        .map(|number| Pod::new(&format!("c{number}")))
        .collect();
    let each = |verb: &'static str| -> Vec<Value> {
        thread::scope(|scope| {
            let attach = |number: usize| json!(["tap", "veth"][number % 2]);
            let start = |(number, pod)| {
                let change = json!({"attach": attach(number)});
                let node = &node;
                scope.spawn(move || node.call(verb, pod, &change))
            };
            let calls: Vec<_> = pods.iter().enumerate().map(start).collect();
            let ended = |call: thread::ScopedJoinHandle<'_, Result<Value, Value>>| {
                call.join()
                    .expect("no panic")
                    .unwrap_or_else(|failure| panic!("{verb}: {failure}"))
            };
            calls.into_iter().map(ended).collect()
        })
    };
    let added = each("ADD");
    let addresses: BTreeSet<_> = added.iter().map(|result| address(result, 0)).collect();
    assert_eq!(addresses.len(), PODS);
    assert_eq!(
        (node.ports().len(), node.allocations().len()),
        (PODS, 2 * PODS)
    );
    each("DEL");
    assert!(pods.iter().all(|pod| !pod.has("eth0")));
    node.assert_clean("after all");
}

//! Many pods at once, made and taken away: nothing is left of any.

use std::{
    collections::BTreeSet,
    io::Write,
    net::IpAddr,
    os::{fd::AsRawFd, unix::process::CommandExt},
    process::{Command, Stdio},
    thread,
};

use serde_json::Value;
use weft_cni::{netlink::Netlink, netns::Netns};
use weft_lab::Lab;

use crate::{
    WEFT,
    engine::{Engine, Pod},
    image::BUSYBOX,
    needs,
    node::{Cluster, Node},
};

const PODS: usize = 100;
/// As many as two processors start by a runtime in seconds.
const RUNTIME_PODS: usize = 20;

#[test]
fn a_hundred_pods_at_once_leave_nothing() {
    needs!(BUSYBOX);
    for attach in ["tap", "veth"] {
        let cluster = Cluster::up(&["--attach", attach]);
        let pods: Vec<Netns> = (0..PODS)
            .map(|number| Netns::make(&format!("pod{number}")).expect("a namespace"))
            .collect();
        // The same pods twice: their names are free again.
        for _ in 0..2 {
            let results = of_all(&cluster, &pods, "ADD");
            let addresses = results.iter().flat_map(addresses).collect::<BTreeSet<_>>();
            assert_eq!(
                addresses.len(),
                2 * PODS,
                "each has its own of both families"
            );
            assert_eq!(cluster.holders().len(), 2 * PODS);
            let ports = cluster.nodes.iter().map(|node| node.ports().len());
            assert_eq!(ports.sum::<usize>(), PODS);
            of_all(&cluster, &pods, "DEL");
            cluster.assert_bare();
            for pod in &pods {
                let inside = Netlink::open_in(pod).expect("enter").expect("netlink");
                assert_eq!(inside.index("eth0").expect("an answer"), None);
            }
        }
    }
}

/// Calls the plugin for all pods at once, half of them on each node.
fn of_all(cluster: &Cluster, pods: &[Netns], verb: &str) -> Vec<Value> {
    let configs: Vec<Value> = cluster.nodes.iter().map(Node::config).collect();
    at_once(pods.len(), |number| {
        let config = &configs[number % 2];
        call(&cluster.lab, number, &pods[number], config, verb)
    })
}

fn call(lab: &Lab, number: usize, pod: &Netns, config: &Value, verb: &str) -> Value {
    let netns = format!("/proc/{}/fd/{}", std::process::id(), pod.as_raw_fd());
    let spawn = || {
        Command::new(WEFT)
            .arg0("weft-cni")
            .env("CNI_COMMAND", verb)
            .env("CNI_CONTAINERID", format!("crowd{number}"))
            .env("CNI_NETNS", netns)
            .env("CNI_IFNAME", "eth0")
            .env("CNI_PATH", "/nonexistent")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
    };
    let spawned = lab.nodes[number % 2].netns.run(spawn).expect("enter");
    let mut child = spawned.expect("the plugin");
    let mut stdin = child.stdin.take().expect("piped");
    stdin
        .write_all(config.to_string().as_bytes())
        .expect("it reads");
    drop(stdin);
    let output = child.wait_with_output().expect("it ends");
    assert!(output.status.success(), "{verb} of {number}: {output:?}");
    serde_json::from_slice(&output.stdout).unwrap_or_default()
}

fn addresses(result: &Value) -> Vec<String> {
    let ips = result["ips"].as_array().expect("a list");
    let address = |ip: &Value| ip["address"].as_str().expect("a string").to_owned();
    ips.iter().map(address).collect()
}

#[test]
fn many_pods_of_containerd_at_once_leave_nothing() {
    needs!("containerd", "ctr", "runc", BUSYBOX);
    let cluster = Cluster::up(&[]);
    for node in &cluster.nodes {
        Engine::Ctr.prepare(node);
    }
    let pods: Vec<Pod> = at_once(RUNTIME_PODS, |number| {
        Engine::Ctr.start(&cluster.nodes[number % 2], &format!("pod{number}"))
    });
    let addresses: BTreeSet<IpAddr> = pods.iter().flat_map(Pod::addresses).collect();
    assert_eq!(addresses.len(), 2 * RUNTIME_PODS);
    let last = pods.last().expect("some").addresses();
    for address in last {
        pods[0].exec(&["ping", "-c", "2", "-W", "5", &address.to_string()]);
    }
    thread::scope(|scope| {
        for pod in pods {
            scope.spawn(|| pod.end());
        }
    });
    cluster.assert_bare();
}

fn at_once<T: Send>(many: usize, each: impl Fn(usize) -> T + Sync) -> Vec<T> {
    thread::scope(|scope| {
        let each = &each;
        let all: Vec<_> = (0..many)
            .map(|number| scope.spawn(move || each(number)))
            .collect();
        all.into_iter()
            .map(|one| one.join().expect("no panic"))
            .collect()
    })
}

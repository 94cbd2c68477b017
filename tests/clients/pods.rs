//! Pods that runtimes make on two nodes reach each other, and are gone
//! without a trace when their runtime takes them away.

use crate::{
    engine::{
        Engine::{self, Ctr, Podman},
        Pod,
    },
    image::BUSYBOX,
    needs,
    node::Cluster,
};

#[test]
fn pods_of_containerd_reach_each_other() {
    needs!("containerd", "ctr", "runc", BUSYBOX);
    for attach in ["tap", "veth"] {
        all_reach_each_other([Ctr, Ctr], &["--attach", attach]);
    }
}

#[test]
fn pods_of_podman_reach_each_other() {
    needs!("podman", "conmon", "runc", BUSYBOX);
    all_reach_each_other([Podman, Podman], &[]);
}

#[test]
fn pods_of_podman_and_of_containerd_reach_each_other() {
    needs!("podman", "conmon", "containerd", "ctr", "runc", BUSYBOX);
    all_reach_each_other([Ctr, Podman], &["--mtu", "1400"]);
}

/// Two pods on the first node, one on the other.
fn all_reach_each_other(engines: [Engine; 2], options: &[&str]) {
    let cluster = Cluster::up(options);
    for (engine, node) in engines.iter().zip(&cluster.nodes) {
        engine.prepare(node);
    }
    let [first, second] = [&cluster.nodes[0], &cluster.nodes[1]];
    let pods = [
        engines[0].start(first, "one"),
        engines[0].start(first, "two"),
        engines[1].start(second, "three"),
    ];
    assert_eq!((first.ports().len(), second.ports().len()), (2, 1));
    // Of both families.
    assert_eq!(cluster.holders().len(), 6);
    for pod in &pods {
        pod.background(&["nc", "-ll", "-p", "7000", "-e", "cat"]);
    }
    for from in &pods {
        for to in pods.iter().filter(|to| to.name != from.name) {
            reaches(from, to);
        }
    }
    for pod in pods {
        pod.end();
    }
    cluster.assert_bare();
}

/// By ping and by TCP, in both families.
pub fn reaches(from: &Pod, to: &Pod) {
    let addresses = to.addresses();
    assert_eq!(addresses.len(), 2, "{} has both families", to.name);
    for address in addresses {
        let address = address.to_string();
        from.exec(&["ping", "-c", "2", "-W", "5", &address]);
        let talk = format!("echo hello | nc -w 5 {address} 7000");
        assert_eq!(from.exec(&["sh", "-c", &talk]), "hello\n");
    }
}

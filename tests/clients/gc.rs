//! What dies behind its runtime's back is freed by GC, and nothing else is.

use serde_json::{Value, json};

use crate::{
    engine::{self, Engine},
    image::BUSYBOX,
    needs,
    node::{Cluster, Node},
    pods::reaches,
};

#[test]
fn gc_frees_what_died_behind_the_runtimes_back() {
    needs!("containerd", "ctr", "runc", BUSYBOX);
    for attach in ["tap", "veth"] {
        let cluster = Cluster::up(&["--attach", attach]);
        let [first, second] = [&cluster.nodes[0], &cluster.nodes[1]];
        for node in &cluster.nodes {
            Engine::Ctr.prepare(node);
        }
        let kept = Engine::Ctr.start(first, "kept");
        let elsewhere = Engine::Ctr.start(second, "elsewhere");
        elsewhere.background(&["nc", "-ll", "-p", "7000", "-e", "cat"]);
        // ctr forgets the wiring of pods that it does not wait for.
        engine::start_detached(first, "lost");
        first.run(&["ctr", "task", "kill", "--signal", "SIGKILL", "lost"]);
        engine::remove_ended(first, "lost");
        let held = |cluster: &Cluster| {
            let mut holders = cluster.holders();
            holders.sort();
            holders.dedup();
            holders
        };
        let handle = |name: &str| format!("weft/default-{name}/eth0");
        let all = ["elsewhere", "kept", "lost"].map(handle);
        assert_eq!(held(&cluster), all);
        assert_eq!(first.ports().len(), 2);
        cluster.wait_until_old();
        gc(first, &["default-kept"]);
        assert_eq!(held(&cluster), [handle("elsewhere"), handle("kept")]);
        assert_eq!(first.ports(), [handle("kept")]);
        reaches(&kept, &elsewhere);
        for pod in [kept, elsewhere] {
            pod.end();
        }
        cluster.assert_bare();
    }
}

fn gc(node: &Node, valid: &[&str]) {
    let valid = valid
        .iter()
        .map(|container| json!({"containerID": container, "ifname": "eth0"}));
    let valid: Vec<Value> = valid.collect();
    // The first version that has the verb.
    let change = json!({"cniVersion": "1.1.0", "cni.dev/valid-attachments": valid});
    let output = node.plugin(&[("CNI_COMMAND", "GC")], &change);
    assert!(output.status.success(), "{output:?}");
    assert!(output.stdout.is_empty(), "{output:?}");
}

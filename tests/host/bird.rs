//! Real BIRD in the place of routes by hand: `weft bird` tells it the blocks,
//! and each node's kernel the ways to the others'.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use weft_api::forwarder::Way;
use weft_lab::workshop::run;
use weft_testkit::needs_namespaces;

use crate::{
    cluster::{Cluster, FULL_MTU, Place, plan, said},
    ways::all_talk_plainly,
};

/// A session that met a neighbour before it listened waits for some seconds.
const LIMIT: Duration = Duration::from_secs(60);

struct Bird(Child);

impl Drop for Bird {
    fn drop(&mut self) {
        // It may have ended by itself; the wait tells nothing more.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn bird_tells_the_fabric_what_is_reached_directly() {
    needs_namespaces!();
    let mut cluster = Cluster::new(plan(), "", FULL_MTU);
    cluster.apply(|_, _| Way::Direct);
    let folder = tempfile::tempdir().expect("a folder");
    let nodes = file(&cluster, folder.path());
    for place in &cluster.nodes {
        place.host_up();
        // The router between the subnets is a provider's, who was told by hand.
        for (block, via) in place.plan.blocks.iter().zip(place.plan.underlay) {
            let route = format!("ip route add {block} via {via}");
            run(&cluster.router, &route).expect("a route");
        }
    }
    let birds: Vec<_> = cluster
        .nodes
        .iter()
        .map(|place| start(place, &nodes, folder.path()))
        .collect();
    for place in &cluster.nodes {
        learns(place, &cluster);
    }
    cluster.settle();
    all_talk_plainly(&cluster);
    drop(birds);
}

/// The nodes file of all, every block of which is reached directly.
fn file(cluster: &Cluster, folder: &Path) -> PathBuf {
    let record = |place: &Place| {
        let mut node = place.plan.record().expect("a record");
        node.ways = node.blocks.iter().map(|&net| (net, Way::Direct)).collect();
        node
    };
    let all: Vec<_> = cluster.nodes.iter().map(record).collect();
    let text = toml::to_string(&BTreeMap::from([("node", all)])).expect("TOML");
    let path = folder.join("nodes.toml");
    fs::write(&path, text).expect("write");
    path
}

fn start(place: &Place, nodes: &Path, folder: &Path) -> Bird {
    let name = &place.plan.name;
    let at = |ending: &str| folder.join(format!("{name}.{ending}"));
    let path = |path: &Path| path.to_str().expect("text").to_owned();
    let options = ["--nodes", &path(nodes), "--out", &path(&at("conf"))];
    let fixed = ["bird", "--as", "64512", "--device", "weft0", "--node", name];
    said(place.weft(&[&fixed[..], &options].concat()));
    let mut bird = Command::new("bird");
    bird.arg("-f").arg("-c").arg(at("conf"));
    bird.arg("-s").arg(at("ctl")).arg("-P").arg(at("pid"));
    bird.stderr(Stdio::null());
    let bird = place.netns.run(|| bird.spawn()).expect("enter");
    Bird(bird.expect("Debian's bird2 is installed"))
}

/// Waits until the node's kernel knows the ways to all others' blocks.
fn learns(place: &Place, cluster: &Cluster) {
    let others = cluster
        .nodes
        .iter()
        .filter(|other| other.plan.name != place.plan.name);
    let blocks: Vec<_> = others.flat_map(|other| other.plan.blocks).collect();
    let until = Instant::now() + LIMIT;
    loop {
        let of = |family: &str| {
            let show = format!("ip {family} route show proto bird");
            run(&place.netns, &show).expect("routes")
        };
        let known = of("-4") + &of("-6");
        if blocks
            .iter()
            .all(|block| known.contains(&format!("{block} via")))
        {
            return;
        }
        assert!(Instant::now() < until, "{}: {known}", place.plan.name);
        thread::sleep(Duration::from_millis(100));
    }
}

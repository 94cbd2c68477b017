//! The portmap plugin after ours, in place of our own.

use serde_json::json;
use weft_lab::probe::Family;
use weft_testkit::needs_namespaces;

use crate::{
    talk::{Server, Speech},
    world::{Container, World, list},
};

#[test]
fn the_portmap_plugin_after_us_leads_to_our_pods() {
    needs_namespaces!();
    let world = World::up();
    let node = &world.nodes[0];
    let mut runtime = world.runtime();
    let mut ours = world.plugin(0);
    ours["capabilities"] = json!({});
    let portmap = json!({"type": "portmap", "snat": true, "capabilities": {"portMappings": true}});
    let mut chain = list(&[ours, portmap]);
    chain["cniVersion"] = "1.0.0".into();
    let ports = json!([{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]);
    let container = Container::new("c1", &ports);
    let attachment = &container.attachment;
    let result = node.netns.run(|| runtime.add(&chain, attachment));
    let result = result.expect("enter").expect("added");
    assert_eq!(node.led_to(), 0, "it is not ours to serve");
    let beside = world.add(&mut runtime, 0, "c2", &json!([])).pod;
    let v4 = result["ips"][0]["address"].as_str().expect("an address");
    let v4: std::net::Ipv4Addr = v4.trim_end_matches("/32").parse().expect("valid");
    let _server = Server::at(&container.pod.netns, (v4, 80).into());
    let at = (node.underlay(Family::V4), 8080).into();
    for from in [&world.outside, &node.itself(), &container.pod, &beside] {
        let seen = Speech::Tcp.seen(&from.netns, at);
        seen.unwrap_or_else(|error| panic!("from {}: {error}", from.name()));
    }
    let localhost = ([127, 0, 0, 1], 8080).into();
    let seen = Speech::Tcp.seen(&node.netns, localhost);
    seen.expect("answered");
    let deleted = node.netns.run(|| runtime.del(&chain, attachment));
    deleted.expect("enter").expect("deleted");
    Speech::Tcp
        .seen(&world.outside.netns, at)
        .expect_err("it is gone");
}

//! The baseline lab, for real: the kernel's bridge, veth and VXLAN. It also
//! proves the probes and the loads on a network that is known to work.

use std::time::Duration;

use weft_lab::{
    Kind, Lab, Outer, Pod, Spec,
    probe::{Family, Probe},
    traffic,
};

#[test]
fn every_pod_answers_every_pod() {
    weft_testkit::needs_namespaces!();
    for (nodes, outer) in [(1, Outer::V4), (2, Outer::V4), (3, Outer::V6)] {
        let lab = lab(Spec {
            nodes,
            outer,
            ..Spec::default()
        });
        for (from, to) in pairs(&lab) {
            for probe in Probe::ALL {
                for family in Family::ALL {
                    probe
                        .run(from, to, family, lab.spec.pod_mtu())
                        .expect("an answer");
                }
            }
        }
    }
}

#[test]
fn a_pod_without_a_link_is_not_found() {
    weft_testkit::needs_namespaces!();
    let lab = lab(Spec {
        nodes: 1,
        ..Spec::default()
    });
    let (one, two) = (&lab.pods[0], &lab.pods[1]);
    weft_cni::link::remove(&two.netns, "eth0").expect("removed");
    let error = Probe::Ping
        .run(one, two, Family::V4, 1450)
        .expect_err("nobody there");
    assert!(
        format!("{error:#}").starts_with("n1p1 → n1p2: ping over IPv4: "),
        "{error:#}"
    );
}

#[test]
fn loads_are_measured_with_and_without_tunnel_offload() {
    weft_testkit::needs_namespaces!();
    for underlay_offload in [true, false] {
        let lab = lab(Spec {
            underlay_offload,
            ..Spec::default()
        });
        let (one, other) = (pod(&lab, "n1p1"), pod(&lab, "n2p2"));
        let long = Duration::from_millis(300);
        let stream = traffic::stream(one, other, Family::V4, None, long).expect("a stream");
        assert!(stream.gbit_per_second() > 0.01, "{stream:?}");
        let flood = traffic::flood(one, other, Family::V6, long).expect("a flood");
        assert!(
            flood.delivered <= flood.sent && flood.kpps() > 0.1,
            "{flood:?}"
        );
        let trips = traffic::round_trips(one, other, Family::V4, long).expect("answers");
        assert!(
            trips.count > 10 && trips.p50_us <= trips.p99_us,
            "{trips:?}"
        );
    }
}

fn lab(spec: Spec) -> Lab {
    Lab::up(&Spec {
        kind: Kind::Kernel,
        ..spec
    })
    .expect("a lab; needs root or unshare -Urn")
}

fn pairs(lab: &Lab) -> impl Iterator<Item = (&Pod, &Pod)> {
    let others = |from: &&Pod, to: &&Pod| from.name() != to.name();
    lab.pods
        .iter()
        .flat_map(|from| lab.pods.iter().map(move |to| (from, to)))
        .filter(move |(from, to)| others(from, to))
}

fn pod<'a>(lab: &'a Lab, name: &str) -> &'a Pod {
    lab.pod(name).expect("a pod of the lab")
}

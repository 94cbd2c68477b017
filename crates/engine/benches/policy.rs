//! What policies cost on a packet's way: nothing in force, rules in force and
//! the flow known, and a flow's first packet.

use std::{
    hint::black_box,
    net::Ipv4Addr,
    sync::Arc,
    time::{Duration, Instant},
};

use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use weft_conntrack::{Config, Timeouts, Tracker};
use weft_engine::{Batch, Counters, Engine, Policy, PortId, Scene, Snapshot, Verdict};
use weft_policy::{Change, Compiler, read};
use weft_testkit::{
    frames::{FrameBuilder, between},
    sim::{self, GATEWAY, batch_of, pod_mac, pod_v4},
};
use weft_wire::VnetHeader;

const FRAMES: usize = 64;
const RULES: usize = 1000;

fn flow() -> FrameBuilder {
    between(pod_v4(0, 0), pod_v4(0, 1)).macs(pod_mac(0, 0), GATEWAY.mac)
}

/// Rules of which the last lets everybody in.
fn rules() -> Policy {
    let mut compiler = Compiler::default();
    let mut put = |manifest: String| {
        let objects = read(&manifest).expect("a manifest");
        compiler.apply(objects.into_iter().map(Change::Put));
    };
    for (pod, name) in [(0, "a"), (1, "b")] {
        let address = pod_v4(0, pod);
        put(format!(
            "{{apiVersion: v1, kind: Pod,
               metadata: {{namespace: x, name: {name}, labels: {{pod: {name}}}}},
               status: {{podIP: {address}}}}}"
        ));
    }
    let mut text = String::new();
    for rule in 0..RULES - 1 {
        let net = Ipv4Addr::from(0x0b00_0000 + (u32::try_from(rule).expect("few") << 8));
        text += &format!(
            "{{from: [{{ipBlock: {{cidr: {net}/24}}}}], ports: [{{port: {}}}]}}, ",
            rule + 1
        );
    }
    put(format!(
        "{{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy,
           metadata: {{namespace: x, name: in}},
           spec: {{podSelector: {{}}, policyTypes: [Ingress], ingress: [{text} {{}}]}}}}"
    ));
    let config = Config {
        capacity: 1_000_000,
        timeouts: Timeouts::default(),
    };
    Policy {
        rules: compiler.rulebook(),
        edition: 1,
        connections: Arc::new(Tracker::new(config, 5, Instant::now())),
        denied: Arc::default(),
        log: Arc::default(),
    }
}

/// Decides a batch again and again, with so much time between.
fn bench(
    c: &mut Criterion,
    name: &str,
    tables: &Snapshot,
    pause: Duration,
    frames: impl Fn(usize) -> Vec<(VnetHeader, Vec<u8>)>,
) {
    let counters = Counters::default();
    let mut engine = Engine::new(1);
    let mut replies = Batch::new(1 << 17);
    let ingress = tables.port(PortId(0)).expect("pod 0 has a port");
    let mut round = 0;
    let mut now = Instant::now();
    c.bench_function(name, |b| {
        b.iter_batched_ref(
            || {
                round += 1;
                batch_of(&frames(round))
            },
            |batch| {
                now += pause;
                let mut scene = Scene {
                    tables,
                    counters: &counters,
                    replies: &mut replies,
                    now,
                };
                engine.from_port(&mut scene, ingress, batch);
                let verdict = black_box(batch.frames()[0].verdict);
                assert!(matches!(verdict, Verdict::Deliver(_)), "{verdict:?}");
            },
            BatchSize::LargeInput,
        );
    });
}

fn policies(c: &mut Criterion) {
    let (free, ruled) = (sim::tables(0, 1), sim::tables(0, 1).with_policy(rules()));
    let plain = |frame: &FrameBuilder| (VnetHeader::default(), frame.build());
    let same = |_| vec![plain(&flow().tcp(1, 2).filled(1398)); FRAMES];
    let many = |_| {
        let ports = 1..=u16::try_from(FRAMES).expect("few");
        ports
            .map(|port| plain(&flow().tcp(port, 2).filled(64)))
            .collect()
    };
    for (state, tables) in [("no policy", &free), ("policy", &ruled)] {
        bench(
            c,
            &format!("64 frames of one TCP flow, {state}"),
            tables,
            Duration::ZERO,
            same,
        );
        bench(
            c,
            &format!("64 frames of 64 TCP flows, {state}"),
            tables,
            Duration::ZERO,
            many,
        );
    }
    let first = |round: usize| {
        let frames = (0..FRAMES).map(|place| {
            let number = round * FRAMES + place;
            let word = |number: usize| u16::try_from(number % 50_000).expect("16 bits") + 1;
            plain(&flow().udp(word(number), word(number / 50_000)).filled(64))
        });
        frames.collect()
    };
    // So that flows are forgotten and the table does not fill.
    let pause = Duration::from_secs(1);
    bench(
        c,
        "first packets of 64 flows, no policy",
        &free,
        pause,
        first,
    );
    bench(
        c,
        "first packets of 64 flows, 1000 rules",
        &ruled,
        pause,
        first,
    );
}

criterion_group!(benches, policies);
criterion_main!(benches);

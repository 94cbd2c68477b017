//! What the steps of the packet's way cost, one by one.

use std::{hint::black_box, net::Ipv4Addr, sync::Arc, time::Instant};

use criterion::{BatchSize, Bencher, Criterion, Throughput, criterion_group, criterion_main};
use weft_engine::{
    Batch, Counters, Engine, Outbox, PeerId, PortId, Route, Runs, Scene, Snapshot, Tunnel, Verdict,
    Way,
    flow::{Egress, FlowCache, Ingress, Known},
    segment::segment,
    snapshot::Epoch,
};
use weft_testkit::{
    frames::{FrameBuilder, between},
    sim::{self, Datagrams, GATEWAY, World, batch_of, pod_mac, pod_v4},
};
use weft_wire::{Ethernet, Packet, VnetHeader, checksum, parse};

fn flow() -> FrameBuilder {
    between(pod_v4(0, 0), pod_v4(1, 0)).macs(pod_mac(0, 0), GATEWAY.mac)
}

fn packet(frame: &[u8]) -> Packet {
    match parse(frame) {
        Ok(Ethernet::Ip(packet)) => packet,
        other => panic!("{other:?} is no packet"),
    }
}

/// A super-frame of 44 segments, as one UDP_SEGMENT send carries.
fn super_frame() -> (VnetHeader, Vec<u8>) {
    flow()
        .tcp(1, 2)
        .dont_fragment()
        .filled(44 * 1398)
        .super_frame(1398)
}

fn parsing(c: &mut Criterion) {
    let frame = flow().tcp(1, 2).filled(1398).build();
    c.bench_function("parse", |b| b.iter(|| parse(black_box(&frame))));
}

fn checksums(c: &mut Criterion) {
    let frame = flow().tcp(1, 2).filled(1398).build();
    let packet = packet(&frame);
    let mut group = c.benchmark_group("checksum");
    group.throughput(Throughput::Bytes(frame.len() as u64));
    group.bench_function("verify 1398 B", |b| {
        b.iter(|| checksum::verify(black_box(&frame), &packet));
    });
    group.finish();
}

fn lookups(c: &mut Criterion) {
    let mut group = c.benchmark_group("lookup");
    for routes in ROUTES {
        let tables = with_routes(routes);
        let mut at = 0_u32;
        group.bench_function(format!("{routes} routes"), |b| {
            b.iter(|| {
                at = at.wrapping_add(0x9e37_79b9);
                tables.holder_of(black_box(within(at % routes).into()))
            });
        });
    }
    group.finish();
}

/// The whole way of frames from a port of which no flow is known, each to
/// another route.
fn unknown_flows(c: &mut Criterion) {
    const FRAMES: u32 = 64;
    let mut group = c.benchmark_group("from_port, 64 unknown flows");
    for routes in ROUTES {
        let tables = with_routes(routes);
        let counters = Counters::default();
        let mut at = 0_u32;
        let mut fresh = || {
            let frames = (0..FRAMES).map(|_| {
                at = at.wrapping_add(0x9e37_79b9);
                // The ports keep few routes from becoming few flows.
                let [_, _, high, low] = at.to_be_bytes();
                let port = u16::from_be_bytes([high, low]);
                let to = between(pod_v4(0, 0), within(at % routes));
                let frame = to.macs(pod_mac(0, 0), GATEWAY.mac).udp(port, 2);
                (VnetHeader::default(), frame.filled(64).build())
            });
            batch_of(&frames.collect::<Vec<_>>())
        };
        group.bench_function(format!("{routes} routes"), |b| {
            decide_each(b, &tables, &counters, &mut fresh);
        });
        let (hits, misses) = (counters.flow_hits.value(), counters.flow_misses.value());
        assert!(hits < misses / 50, "{hits} of {misses} flows were known");
    }
    group.finish();
}

const ROUTES: [u32; 4] = [100, 1000, 10_000, 100_000];

/// An address in the route of this place.
fn within(place: u32) -> Ipv4Addr {
    Ipv4Addr::from(0x0b00_0000 + (place << 6) + 9)
}

/// Tables in which a peer has `routes` blocks of 64 addresses.
fn with_routes(routes: u32) -> weft_engine::Snapshot {
    let block = |place: u32| {
        let address = Ipv4Addr::from(0x0b00_0000 + (place << 6));
        format!("{address}/26").parse().expect("a prefix")
    };
    let usual = sim::tables(0, 1);
    let peer = &usual.peers()[0];
    let many = weft_engine::Peer {
        remote: peer.remote,
        underlay: peer.underlay.clone(),
        mac: peer.mac,
        vni: peer.vni,
        mtu: peer.mtu,
        l3: false,
        ipip: None,
        blocks: (0..routes)
            .map(|place| (block(place), Way::Vxlan.into()))
            .collect(),
        to_peer: Arc::default(),
        from_peer: Arc::default(),
    };
    sim::tables_of(0, 1, vec![sim::port(0, 0)], vec![Arc::new(many)])
}

fn flows(c: &mut Criterion) {
    let mut cache = FlowCache::new(1);
    let from = Ingress::Port(PortId(0));
    let keys: Vec<_> = (0..8192)
        .map(|port| packet(&flow().udp(port, 53).filled(9).build()).key)
        .collect();
    let known = Known {
        egress: Egress::Peer(Route {
            peer: PeerId(0),
            way: Way::Vxlan,
        }),
        until: None,
    };
    for key in &keys {
        cache.learn(cache.hash(key), Epoch(1), from, *key, known);
    }
    let mut at = 0;
    c.bench_function("flow hit", |b| {
        b.iter(|| {
            at = (at + 1) % keys.len();
            cache.find(Epoch(1), from, black_box(&keys[at]))
        });
    });
}

fn segments(c: &mut Criterion) {
    let (vnet, frame) = super_frame();
    let packet = packet(&frame);
    let mut group = c.benchmark_group("segment");
    group.throughput(Throughput::Bytes(frame.len() as u64));
    group.bench_function("TCP super-frame of 44", |b| {
        b.iter(|| {
            segment(black_box(&frame), &packet, &vnet, |headers, payload| {
                black_box((headers, payload));
            })
        });
    });
    group.finish();
}

fn encaps(c: &mut Criterion) {
    let tunnel = Tunnel {
        peer: PeerId(0),
        way: Way::Vxlan,
        entropy: 7,
        ecn: 0,
    };
    let mut group = c.benchmark_group("encap");
    let small = flow().udp(1, 2).filled(64).build();
    for (name, frames) in [
        ("TCP super-frame of 44", vec![super_frame()]),
        ("64 small frames", vec![(VnetHeader::default(), small); 64]),
    ] {
        let mut outbox = Outbox::new(16);
        group.bench_function(name, |b| {
            b.iter_batched_ref(
                || batch_of(&frames),
                |batch| {
                    outbox.clear();
                    for place in 0..batch.len() {
                        let (&mut frame, bytes) = batch.frame_mut(place);
                        outbox
                            .push(&frame, bytes, tunnel, 4096)
                            .expect("sound frames");
                    }
                    black_box(outbox.sends().len())
                },
                BatchSize::LargeInput,
            );
        });
    }
    group.finish();
}

fn coalesce(c: &mut Criterion) {
    let mut group = c.benchmark_group("coalesce");
    let small = flow().udp(1, 2).filled(64).build();
    for (name, frames) in [
        ("44 TCP segments", vec![super_frame()]),
        (
            "64 small datagrams",
            vec![(VnetHeader::default(), small); 64],
        ),
    ] {
        let sends = sends_of(&frames);
        group.bench_function(name, |b| {
            let tables = sim::tables(1, 1);
            let counters = Counters::default();
            let mut engine = Engine::new(1);
            let mut replies = Batch::new(1 << 17);
            let mut runs = Runs::default();
            let mut inbox = sim::inbox_of(&sends);
            b.iter(|| {
                runs.clear();
                let mut scene = Scene {
                    tables: &tables,
                    counters: &counters,
                    replies: &mut replies,
                    now: Instant::now(),
                };
                engine.from_uplink(&mut scene, &mut inbox, &mut runs);
                black_box(runs.runs().len())
            });
        });
    }
    group.finish();
}

fn sends_of(frames: &[(VnetHeader, Vec<u8>)]) -> Vec<Datagrams> {
    let mut world = World {
        hold: true,
        ..World::default()
    };
    world.send_all(0, 0, frames);
    std::mem::take(&mut world.nodes[0].held)
}

fn decide(c: &mut Criterion) {
    let tables = sim::tables(0, 1);
    let counters = Counters::default();
    let small = flow().udp(1, 2).filled(64).build();
    let frames = vec![(VnetHeader::default(), small); 64];
    c.bench_function("from_port, 64 small frames", |b| {
        decide_each(b, &tables, &counters, || batch_of(&frames));
    });
}

/// The way of batches that pod 0 sends into the tunnel.
fn decide_each(
    b: &mut Bencher<'_>,
    tables: &Snapshot,
    counters: &Counters,
    fresh: impl FnMut() -> Batch,
) {
    let mut engine = Engine::new(1);
    let mut replies = Batch::new(1 << 17);
    let ingress = tables.port(PortId(0)).expect("pod 0 has a port");
    b.iter_batched_ref(
        fresh,
        |batch| {
            let mut scene = Scene {
                tables,
                counters,
                replies: &mut replies,
                now: Instant::now(),
            };
            engine.from_port(&mut scene, ingress, batch);
            assert!(matches!(batch.frames()[0].verdict, Verdict::Tunnel(_)));
        },
        BatchSize::LargeInput,
    );
}

criterion_group!(
    core,
    parsing,
    checksums,
    lookups,
    unknown_flows,
    flows,
    segments,
    encaps,
    coalesce,
    decide
);
criterion_main!(core);

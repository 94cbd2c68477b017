//! A port keeps its bandwidth, whatever is sent and however large the frames.

use std::time::{Duration, Instant};

use proptest::prelude::*;
use weft_engine::{Batch, DropReason, Engine, Port, PortId, Scene, Shaper, Verdict, batch::Frame};
use weft_testkit::{
    frames::{FrameBuilder, between},
    sim::{GATEWAY, World, pod_mac, pod_v4},
};
use weft_wire::{VnetHeader, vnet};

fn nanoseconds(count: u64) -> Duration {
    Duration::from_nanos(count)
}

/// What went, and when: the frames of a sender, each some time after the one
/// before.
fn gone(shaper: &Shaper, start: Instant, frames: &[(u64, u64)]) -> Vec<(Instant, u64)> {
    let mut now = start;
    let mut gone = Vec::new();
    for &(pause, bytes) in frames {
        now += nanoseconds(pause);
        let departure = shaper.departure(bytes, 1, now);
        gone.extend(departure.map(|departure| (departure.max(now), bytes)));
    }
    gone
}

proptest! {
    /// From any departure to any other.
    #[test]
    fn in_no_time_goes_more_than_burst_rate_and_one_frame(
        rate in prop_oneof![8_u64..10_000, 10_000_u64..100_000_000, 100_000_000_u64..100_000_000_000],
        burst in 1_u64..10_000_000,
        frames in prop::collection::vec((0_u64..50_000_000, 14_u64..70_000), 1..200),
    ) {
        let start = Instant::now();
        let gone = gone(&Shaper::new(rate, burst, start), start, &frames);
        prop_assert!(gone.is_sorted_by_key(|(departure, _)| *departure), "none overtakes");
        for (first, (from, _)) in gone.iter().enumerate() {
            let mut sum = 0;
            for (until, bytes) in &gone[first..] {
                let grown = u128::from(rate) * (*until - *from).as_nanos() / 8_000_000_000;
                // One byte and one nanosecond are lost to rounding.
                let allowed = u128::from(burst.div_ceil(8)) + grown + u128::from(rate) / 8_000_000_000 + 2;
                prop_assert!(sum <= allowed, "{sum} bytes before the last, {allowed} allowed");
                sum += u128::from(*bytes);
            }
        }
    }

    #[test]
    fn who_never_rests_gets_the_whole_rate(
        rate in 100_000_u64..10_000_000_000,
        burst in 1_u64..1_000_000,
        size in 60_u64..66_000,
    ) {
        let start = Instant::now();
        let shaper = Shaper::new(rate, burst, start);
        // Two frames are offered in the time that one takes.
        let pause = (size * 4_000_000_000 / rate).max(1);
        let frames = vec![(pause, size); 2000];
        let gone = gone(&shaper, start, &frames);
        let bytes: u64 = gone.iter().map(|(_, bytes)| bytes).sum();
        let offered = 2000.0 * pause as f64 / 1e9;
        let share = bytes as f64 * 8.0 / offered / rate as f64;
        prop_assert!(share >= 0.95, "{share} of the rate");
    }
}

#[test]
fn several_workers_share_one_bucket() {
    let start = Instant::now();
    let shaper = Shaper::new(8_000_000, 80_000, start);
    let taken = || {
        let at = |step: u64| start + Duration::from_micros(step * 10);
        let frames = (0..10_000).filter(|step| shaper.departure(1000, 1, at(*step)).is_some());
        frames.count() as u64
    };
    let taken: u64 = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..4).map(|_| scope.spawn(taken)).collect();
        workers
            .into_iter()
            .map(|one| one.join().expect("it ends"))
            .sum()
    });
    // 0.1 s of 1 MB/s, the burst, 50 ms that may wait, and one frame.
    let most = 100 + 10 + 50 + 1;
    assert!((100..=most).contains(&taken), "{taken} frames");
    assert_eq!(shaper.refused(), 40_000 - taken);
}

/// A thousand bytes a millisecond.
const RATE: u64 = 8_000_000;

fn shaper(now: Instant) -> Option<Shaper> {
    Some(Shaper::new(RATE, 8000, now))
}

fn to_node(node: usize) -> FrameBuilder {
    between(pod_v4(0, 0), pod_v4(node, 1))
        .macs(pod_mac(0, 0), GATEWAY.mac)
        .udp(1000, 2000)
}

/// Pod 0 of node 0 sends a frame at `now`.
fn decide(world: &World, now: Instant, (header, frame): &(VnetHeader, Vec<u8>)) -> Frame {
    let node = &world.nodes[0];
    let (mut batch, mut replies) = (Batch::new(1 << 17), Batch::new(1 << 17));
    let space = batch.space().expect("the batch is large");
    space[vnet::LEN..vnet::LEN + frame.len()].copy_from_slice(frame);
    batch.commit(*header, frame.len());
    let mut scene = Scene {
        tables: &node.tables,
        counters: &node.counters,
        replies: &mut replies,
        now,
    };
    let port = node.tables.port(PortId(0)).expect("a port");
    Engine::new(1).from_port(&mut scene, port, &mut batch);
    batch.frames()[0]
}

#[test]
fn a_frame_goes_at_once_or_waits_or_is_lost_with_its_reason() {
    for (to, reason) in [
        (0, DropReason::BandwidthFromPod),
        (1, DropReason::BandwidthFromPod),
        (0, DropReason::BandwidthToPod),
    ] {
        let mut world = World::default();
        let now = world.now;
        let limit = |port: &mut Port| match (reason, port.id.0) {
            (DropReason::BandwidthFromPod, 0) => port.from_pod_shaper = shaper(now),
            (DropReason::BandwidthToPod, 1) => port.to_pod_shaper = shaper(now),
            _ => {}
        };
        world.nodes[0].change(0, limit, |_| {});
        // 1000 bytes with headers: the whole burst.
        let frame = (VnetHeader::default(), to_node(to).filled(958).build());
        assert_eq!(frame.1.len(), 1000);
        let sent = |_| decide(&world, now, &frame);
        let sent: Vec<_> = (0..60).map(sent).collect();
        assert_eq!(sent[0].due, None);
        // The burst paid for the first alone; each other has a millisecond.
        for (place, frame) in sent[1..=50].iter().enumerate() {
            let due = now + Duration::from_millis(place as u64);
            assert_eq!(frame.due, Some(due).filter(|due| *due > now), "{place}");
            assert!(!matches!(frame.verdict, Verdict::Drop(_)));
        }
        assert!(
            sent[51..]
                .iter()
                .all(|frame| frame.verdict == Verdict::Drop(reason) && frame.due.is_none())
        );
        assert_eq!(world.nodes[0].counters.dropped(reason), 9);
        let later = decide(&world, now + Duration::from_millis(10), &frame);
        assert!(later.due.is_some(), "there is room again");
    }
}

#[test]
fn a_super_frame_counts_as_the_packets_that_it_stands_for() {
    let mut world = World::default();
    let now = world.now;
    let limit = |port: &mut Port| port.from_pod_shaper = shaper(now);
    world.nodes[0].change(0, limit, |_| {});
    // Ten packets of 1000 bytes each, of which 42 are headers.
    let frame = to_node(1).filled(9580).super_frame(958);
    assert_eq!(frame.1.len(), 9580 + 42);
    assert_eq!(decide(&world, now, &frame).packets, 10);
    let next = decide(&world, now, &frame);
    assert_eq!(next.due, Some(now + Duration::from_millis(9)));
}

#[test]
fn what_comes_by_the_tunnel_is_limited_too() {
    let mut world = World::default();
    let now = world.now;
    let limit = |port: &mut Port| port.to_pod_shaper = shaper(now);
    world.nodes[1].change(1, limit, |_| {});
    let frame = (VnetHeader::default(), to_node(1).filled(958).build());
    world.send_all(0, 0, &vec![frame; 60]);
    let counters = &world.nodes[1].counters;
    assert_eq!(counters.dropped(DropReason::BandwidthToPod), 9);
    assert_eq!(counters.sent_to_ports.value(), 51);
    let port = world.nodes[1].tables.port(PortId(1)).expect("a port");
    let refused = port.to_pod_shaper.as_ref().map(Shaper::refused);
    assert_eq!(refused, Some(9));
}

/// A pod without its neighbours' addresses could not even rest.
#[test]
fn the_gateway_answers_whatever_the_bandwidth() {
    let mut world = World::default();
    let now = world.now;
    let limit = |port: &mut Port| port.from_pod_shaper = Some(Shaper::new(8, 8, now));
    world.nodes[0].change(0, limit, |_| {});
    let ping = between(pod_v4(0, 0), GATEWAY.v4).macs(pod_mac(0, 0), GATEWAY.mac);
    let ping = (VnetHeader::default(), ping.echo_request(1, 1).build());
    for _ in 0..10 {
        let frame = decide(&world, now, &ping);
        assert_eq!((frame.verdict, frame.due), (Verdict::Answered, None));
    }
}

#[test]
fn packets_are_limited_whatever_their_size() {
    for (reason, header_and_frame) in [
        (DropReason::PacketsFromPod, 958),
        (DropReason::PacketsToPod, 10),
    ] {
        let mut world = World::default();
        let now = world.now;
        // Ten at once, then one each 5 ms, of which ten fit 50 ms.
        let counter = || Some(Shaper::of_packets(200, 10, now));
        let limit = |port: &mut Port| match (reason, port.id.0) {
            (DropReason::PacketsFromPod, 0) => port.from_pod_packets = counter(),
            (DropReason::PacketsToPod, 1) => port.to_pod_packets = counter(),
            _ => {}
        };
        world.nodes[0].change(0, limit, |_| {});
        let frame = to_node(0).filled(header_and_frame).build();
        let frame = (VnetHeader::default(), frame);
        let sent: Vec<_> = (0..30).map(|_| decide(&world, now, &frame)).collect();
        assert!(sent[..=10].iter().all(|frame| frame.due.is_none()));
        for (place, frame) in sent[11..20].iter().enumerate() {
            let due = now + Duration::from_millis(5 * (place as u64 + 1));
            assert_eq!(frame.due, Some(due), "{place}");
        }
        let lost = sent.iter().filter(|f| f.verdict == Verdict::Drop(reason));
        assert_eq!(lost.count(), 10);
        assert_eq!(world.nodes[0].counters.dropped(reason), 10);
        let later = decide(&world, now + Duration::from_millis(5), &frame);
        assert!(!matches!(later.verdict, Verdict::Drop(_)), "one more");
    }
}

#[test]
fn each_segment_of_a_super_frame_is_a_packet() {
    let mut world = World::default();
    let now = world.now;
    let counter = |port: &mut Port| port.from_pod_packets = Some(Shaper::of_packets(1000, 1, now));
    world.nodes[0].change(0, counter, |_| {});
    let frame = to_node(1).filled(9580).super_frame(958);
    assert_eq!(decide(&world, now, &frame).packets, 10);
    let next = decide(&world, now, &frame);
    assert_eq!(next.due, Some(now + Duration::from_millis(9)));
}

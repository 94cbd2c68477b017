//! Probes between two engines: the other node answers, the answer is heard by
//! the node that asked, and nobody can pass for it.

use std::{
    hash::RandomState,
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
};

use weft_engine::{
    Heard,
    gateway::probe::{Question, Seal},
};
use weft_testkit::sim::{World, datagram, pod_v4, tunnel_v4, underlay, vtep_mac};
use weft_wire::{Ethernet, Packet, checksum, parse};

struct Asking {
    world: World,
    seal: Arc<Seal>,
}

impl Asking {
    fn new() -> Self {
        let (mut world, seal) = (World::default(), Arc::new(Seal::new(RandomState::new())));
        world.nodes[0].listen(Arc::clone(&seal));
        Self { world, seal }
    }

    fn question(&self, dst: Ipv4Addr, number: u16, len: usize) -> Vec<u8> {
        let question = Question {
            dst_mac: vtep_mac(1),
            src_mac: vtep_mac(0),
            src: tunnel_v4(0).into(),
            dst: dst.into(),
            number,
            len,
        };
        let mut frame = Vec::new();
        assert!(self.seal.write(&question, &mut frame));
        frame
    }

    /// What node 1 answers, as it arrives.
    fn answer(&mut self, dst: Ipv4Addr, number: u16, len: usize) -> Vec<u8> {
        let question = self.question(dst, number, len);
        let mut reply = Vec::new();
        let packet = packet(&question);
        weft_engine::gateway::icmp::echo(&question, &packet, &mut reply).expect("answered");
        reply
    }
}

fn packet(frame: &[u8]) -> Packet {
    match parse(frame) {
        Ok(Ethernet::Ip(packet)) => packet,
        other => panic!("no packet: {other:?}"),
    }
}

#[test]
fn a_peer_answers_and_is_heard() {
    let mut asking = Asking::new();
    for (number, len) in [(1, 36), (2, 1450), (3, 1500)] {
        let question = asking.question(tunnel_v4(1), number, len);
        let now = asking.world.now;
        let moved = asking.world.moved(0, |world| {
            world.arrive(1, &[datagram(0, &question)]);
        });
        assert_eq!(moved, [("received_from_peers", 1), ("answered", 1)].into());
        let expected = Heard {
            from: IpAddr::from(tunnel_v4(1)),
            number,
            at: now,
        };
        assert_eq!(asking.world.nodes[0].heard(), [expected]);
    }
}

#[test]
fn a_host_port_does_not_see_answers() {
    let mut asking = Asking::new();
    asking.world.nodes[0].open_host(0);
    let answer = asking.answer(tunnel_v4(1), 1, 100);
    let moved = asking.world.moved(0, |world| {
        world.arrive(0, &[datagram(1, &answer)]);
    });
    assert_eq!(moved, [("received_from_peers", 1), ("answered", 1)].into());
    assert_eq!(asking.world.nodes[0].heard().len(), 1);
}

#[test]
fn nobody_passes_for_the_peer_that_was_asked() {
    let mut asking = Asking::new();
    let answer = asking.answer(tunnel_v4(1), 7, 100);
    let transport = packet(&answer).transport;
    let damaged = |place: usize| {
        let mut frame = answer.clone();
        frame[place] ^= 1;
        // Its checksum is right.
        frame[transport + 2..transport + 4].fill(0);
        let packet = packet(&frame);
        checksum::complete(&mut frame, &packet);
        frame
    };
    let mut unsummed = answer.clone();
    unsummed[transport + 2] ^= 1;
    let mut forged = vec![
        // The number, the token.
        damaged(transport + 7),
        damaged(transport + 8),
        unsummed,
    ];
    // An answer of somebody who was not asked, with the token of one who was.
    let mut other = asking.answer(pod_v4(1, 0), 7, 100);
    other[transport + 8..transport + 16].copy_from_slice(&answer[transport + 8..transport + 16]);
    other[transport + 2..transport + 4].fill(0);
    let other_packet = packet(&other);
    checksum::complete(&mut other, &other_packet);
    forged.push(other);
    for frame in forged {
        let moved = asking.world.moved(0, |world| {
            world.arrive(0, &[datagram(1, &frame)]);
        });
        assert_eq!(
            moved,
            [("received_from_peers", 1), ("forged_answer", 1)].into()
        );
        assert!(asking.world.nodes[0].heard().is_empty());
    }
    let mut stranger = datagram(1, &answer);
    stranger.from = Ipv4Addr::new(192, 0, 2, 99).into();
    assert_ne!(stranger.from, underlay(1));
    let moved = asking.world.moved(0, |world| world.arrive(0, &[stranger]));
    assert_eq!(
        moved,
        [("received_from_peers", 1), ("unknown_peer", 1)].into()
    );
}

#[test]
fn a_node_that_asks_nothing_takes_nothing_for_an_answer() {
    let mut asking = Asking::new();
    let answer = asking.answer(tunnel_v4(1), 7, 100);
    asking.world = World::default();
    let moved = asking.world.moved(0, |world| {
        world.arrive(0, &[datagram(1, &answer)]);
    });
    assert_eq!(moved["gateway_unserved"], 1);
}

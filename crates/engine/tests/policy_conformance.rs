//! The conformance tables of network policy a third way: packets through real
//! engines. The interpreter and the compiled rules run them in `weft-policy`.
//!
//! Every place of a case is a port on one of two nodes, turn and turn about,
//! so that probes go over one node and over two.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use weft_conntrack::{Config, Timeouts, Tracker};
use weft_engine::{Peer, Policy, Port, PortId, Reach, Way};
use weft_policy::{Compiler, Transport};
use weft_testkit::{
    frames::{ACK, FrameBuilder, SYN, between},
    policy::{Case, Probe, Step, cluster, expect_right, generated, kubernetes},
    sim::{GATEWAY, World, pod_mac, port_with, tables, tables_of},
};
use weft_wire::{Ethernet, Key, VnetHeader, parse, protocol};

#[test]
fn kubernetes_end_to_end_suite() {
    run(&kubernetes());
}

#[test]
fn cyclonus_dimensions() {
    run(&generated::cases());
}

#[test]
fn cluster_network_policy_suite() {
    run(&cluster::cases());
}

fn run(cases: &[Case]) {
    expect_right(cases, |case| Lab::new(case).run(case));
}

/// A node and a place on it.
type Seat = (usize, usize);

struct Lab {
    world: World,
    compiler: Compiler,
    seats: BTreeMap<IpAddr, Seat>,
    ports: [Vec<Arc<Port>>; 2],
    trackers: [Arc<Tracker>; 2],
    edition: u32,
}

impl Lab {
    fn new(case: &Case) -> Self {
        let probes = case.steps.iter().flat_map(|step| &step.probes);
        let addresses: BTreeSet<IpAddr> = probes
            .flat_map(|probe| [probe.flow.source, probe.flow.destination])
            .collect();
        let places = addresses.into_iter().enumerate();
        let seats: BTreeMap<_, _> = places
            .map(|(place, address)| (address, (place % 2, place / 2)))
            .collect();
        let world = World::default();
        let config = Config {
            capacity: 100_000,
            timeouts: Timeouts::default(),
        };
        Self {
            trackers: [0, 1].map(|_| Arc::new(Tracker::new(config, 5, world.now))),
            ports: [0, 1].map(|node| ports(node, &seats)),
            world,
            compiler: Compiler::default(),
            seats,
            edition: 0,
        }
    }

    /// What of a case is not as expected.
    fn run(&mut self, case: &Case) -> Vec<String> {
        let mut wrong = Vec::new();
        for step in &case.steps {
            self.compiler.apply(step.changes());
            self.enforce();
            let arrived = self.knock(step);
            let answered = self.answer(step, &arrived);
            for (number, probe) in step.probes.iter().enumerate() {
                let mut tell = |what: &str| {
                    wrong.push(format!(
                        "{}, {}: {} to {} at {}: {what}",
                        case.name, step.name, probe.from, probe.to, probe.flow.transport
                    ));
                };
                match (probe.allowed, arrived.contains(&number)) {
                    (true, false) => tell("did not arrive"),
                    (false, true) => tell("arrived"),
                    (true, true) if !answered.contains(&number) => tell("had no answer"),
                    _ => {}
                }
            }
        }
        wrong
    }

    fn enforce(&mut self) {
        self.edition += 1;
        for node in [0, 1] {
            let blocks = self.seats.iter().filter(|(_, seat)| seat.0 != node);
            let blocks = blocks.map(|(address, _)| ((*address).into(), Reach::Tunnel(Way::Vxlan)));
            let usual = tables(node, 1);
            let mut peer = Arc::clone(&usual.peers()[0]);
            drop(usual);
            let with_blocks: &mut Peer = Arc::get_mut(&mut peer).expect("nobody else has it");
            with_blocks.blocks = blocks.collect();
            let epoch = u64::from(self.edition);
            let tables = tables_of(node, epoch, self.ports[node].clone(), vec![peer]);
            self.world.nodes[node].tables = tables.with_policy(Policy {
                rules: self.compiler.rulebook(),
                edition: self.edition,
                connections: Arc::clone(&self.trackers[node]),
                denied: Arc::default(),
                log: Arc::default(),
            });
        }
    }

    /// Opens a connection for each probe of a step, and tells which arrived.
    fn knock(&mut self, step: &Step) -> BTreeSet<usize> {
        let knocks = step.probes.iter().enumerate();
        let knocks = knocks.map(|(number, probe)| {
            let name = name(self.edition, number);
            (probe.flow.source, knock(probe, name))
        });
        self.carry(knocks.collect(), |key| key.src_port)
    }

    /// Answers the probes that arrived, and tells which answers did.
    fn answer(&mut self, step: &Step, arrived: &BTreeSet<usize>) -> BTreeSet<usize> {
        let answers = arrived.iter().map(|&number| {
            let probe = &step.probes[number];
            let name = name(self.edition, number);
            (probe.flow.destination, answer(probe, name))
        });
        self.carry(answers.collect(), |key| match key.protocol {
            protocol::ICMP | protocol::ICMPV6 => key.src_port,
            _ => key.dst_port,
        })
    }

    /// Sends packets and tells the numbers of those that got to where they
    /// should; `name` finds the probe's own port in one.
    fn carry(
        &mut self,
        packets: Vec<(IpAddr, FrameBuilder)>,
        name: impl Fn(&Key) -> u16,
    ) -> BTreeSet<usize> {
        let mut by_sender: BTreeMap<Seat, Vec<(VnetHeader, Vec<u8>)>> = BTreeMap::new();
        for (from, frame) in packets {
            let seat = self.seats[&from];
            let frame = frame.macs(pod_mac(seat.0, seat.1), GATEWAY.mac).build();
            let frames = by_sender.entry(seat).or_default();
            frames.push((VnetHeader::default(), frame));
        }
        for (seat, frames) in by_sender {
            for some in frames.chunks(8) {
                self.world.send_all(seat.0, seat.1, some);
            }
        }
        let mut arrived = BTreeSet::new();
        for (address, seat) in self.seats.clone() {
            for received in self.world.received(seat.0, seat.1) {
                let Ok(Ethernet::Ip(packet)) = parse(&received.frame) else {
                    panic!("a packet became something else");
                };
                assert_eq!(packet.key.dst, address);
                arrived.insert(number(self.edition, name(&packet.key)));
            }
        }
        arrived
    }
}

fn ports(node: usize, seats: &BTreeMap<IpAddr, Seat>) -> Vec<Arc<Port>> {
    let here = seats.iter().filter(|(_, seat)| seat.0 == node);
    here.map(|(address, seat)| {
        let id = PortId(u16::try_from(seat.1).expect("few ports"));
        Arc::new(port_with(id, pod_mac(node, seat.1), vec![*address]))
    })
    .collect()
}

/// The port that a probe comes from: its own, among those of its step and the
/// steps about it.
fn name(edition: u32, number: usize) -> u16 {
    let number = u16::try_from(number).expect("few probes");
    assert!(number < 8000, "the names of a step are all given");
    20_000 + 8000 * u16::try_from(edition % 5).expect("below 5") + number
}

fn number(edition: u32, name: u16) -> usize {
    usize::from(name - self::name(edition, 0))
}

fn knock(probe: &Probe, name: u16) -> FrameBuilder {
    let frame = between(probe.flow.source, probe.flow.destination);
    match probe.flow.transport {
        Transport::Tcp(port) => frame.tcp(name, port).flags(SYN).seq(1).ack(0),
        Transport::Udp(port) => frame.udp(name, port),
        Transport::Sctp(port) => frame.protocol(132).payload(&sctp(name, port, 1)),
        Transport::Other(1 | 58) => frame.echo_request(name, 1),
        Transport::Other(other) => panic!("no probe of protocol {other} is known"),
    }
}

fn answer(probe: &Probe, name: u16) -> FrameBuilder {
    let frame = between(probe.flow.destination, probe.flow.source);
    let [high, low] = name.to_be_bytes();
    match probe.flow.transport {
        Transport::Tcp(port) => frame.tcp(port, name).flags(SYN | ACK).seq(1).ack(2),
        Transport::Udp(port) => frame.udp(port, name),
        Transport::Sctp(port) => frame.protocol(132).payload(&sctp(port, name, 2)),
        Transport::Other(1) => frame.icmp(0, 0, [high, low, 0, 1]),
        Transport::Other(_) => frame.icmp(129, 0, [high, low, 0, 1]),
    }
}

fn sctp(src: u16, dst: u16, chunk: u8) -> Vec<u8> {
    let [src, dst] = [src, dst].map(u16::to_be_bytes);
    let rest = [0, 0, 0, 0, 0, 0, 0, 0, chunk, 0, 0, 4];
    [&src[..], &dst, &rest].concat()
}

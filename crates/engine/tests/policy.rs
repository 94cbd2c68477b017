//! Rules in the packet's way: who is judged, where, and what belongs to it.

use std::{collections::HashSet, net::IpAddr, sync::Arc, time::Duration};

use proptest::{collection::vec, option, prelude::*, sample::select};
use weft_conntrack::{Account, Config, Seen, Timeouts, Tracker};
use weft_engine::{DropReason, Policy, Port};
use weft_policy::{Change, Compiler, read};
use weft_testkit::{
    frames::{ACK, FIN, FrameBuilder, RST, SYN, between},
    sim::{GATEWAY, HOST, World, host_mac, pod_mac, pod_v4, pod_v6, tunnel_v4, underlay},
};
use weft_wire::{ETHERNET_LEN, Ethernet, Key, parse};

/// A pod by its node and its place there.
type Pod = (usize, usize);

const A: Pod = (0, 0);
const B: Pod = (0, 1);
const C: Pod = (1, 0);

/// Two nodes whose four pods the rules know by the label `pod`.
struct Cluster {
    world: World,
    compiler: Compiler,
    trackers: [Arc<Tracker>; 2],
    /// By node and place; pods keep them whatever the rules are.
    accounts: [[Arc<Account>; 2]; 2],
    edition: u32,
}

impl Cluster {
    fn new(policies: &str) -> Self {
        let world = World::default();
        let config = Config {
            capacity: 1000,
            timeouts: Timeouts::default(),
        };
        let trackers = [0, 1].map(|_| Arc::new(Tracker::new(config, 3, world.now)));
        let mut cluster = Self {
            world,
            compiler: Compiler::default(),
            trackers,
            accounts: Default::default(),
            edition: 0,
        };
        for (node, pod, name) in [(0, 0, "a"), (0, 1, "b"), (1, 0, "c"), (1, 1, "d")] {
            let (v4, v6) = (pod_v4(node, pod), pod_v6(node, pod));
            cluster.put(&format!(
                "{{apiVersion: v1, kind: Pod,
                   metadata: {{namespace: x, name: {name}, labels: {{pod: {name}}}}},
                   status: {{podIPs: [{{ip: {v4}}}, {{ip: '{v6}'}}]}}}}"
            ));
        }
        cluster.apply(policies);
        cluster
    }

    fn put(&mut self, manifest: &str) {
        let objects = read(manifest).expect("a manifest");
        self.compiler.apply(objects.into_iter().map(Change::Put));
    }

    /// Puts policies beside, or in place of those of the same name.
    fn apply(&mut self, policies: &str) {
        self.put(policies);
        self.edition += 1;
        for (node, tracker) in self.trackers.iter().enumerate() {
            let accounts = &self.accounts[node];
            let keep = |port: &mut Port| {
                port.connections = Arc::clone(&accounts[usize::from(port.id.0)]);
            };
            self.world.nodes[node].change(node, keep, |_| {});
            self.world.nodes[node].tables.policy = Some(Policy {
                rules: self.compiler.rulebook(),
                edition: self.edition,
                connections: Arc::clone(tracker),
                denied: Arc::default(),
                log: Arc::default(),
            });
        }
    }

    /// What moves on the sender's node and on the receiver's when a pod sends
    /// a frame, and whether that arrives.
    fn send(&mut self, from: Pod, to: Pod, frame: &FrameBuilder) -> Fate {
        self.send_bytes(from, to, &frame.build())
    }

    fn send_bytes(&mut self, from: Pod, to: Pod, frame: &[u8]) -> Fate {
        let before = self.drops();
        let moved = self
            .world
            .moved(from.0, |world| world.send(from.0, from.1, frame));
        let arrived = self.world.received(to.0, to.1).len();
        let lost = self.drops().into_iter().zip(before);
        let lost = lost.filter(|(after, before)| after != before);
        let lost: Vec<_> = lost.map(|((_, reason, _), _)| reason).collect();
        assert!(lost.len() <= 1, "{lost:?}");
        Fate {
            arrived,
            lost: lost.first().copied(),
            is_hit: moved.contains_key("flow_hits"),
        }
    }

    fn drops(&self) -> Vec<(usize, &'static str, u64)> {
        let mut drops = Vec::new();
        for (node, its) in self.world.nodes.iter().enumerate() {
            for reason in DropReason::ALL {
                drops.push((node, reason.name(), its.counters.dropped(*reason)));
            }
        }
        drops
    }

    fn passes(&mut self, from: Pod, to: Pod, frame: &FrameBuilder) {
        let fate = self.send(from, to, frame);
        assert_eq!((fate.arrived, fate.lost), (1, None), "{frame:?}");
    }

    fn is_lost(&mut self, from: Pod, to: Pod, frame: &FrameBuilder, reason: &'static str) {
        let fate = self.send(from, to, frame);
        assert_eq!((fate.arrived, fate.lost), (0, Some(reason)), "{frame:?}");
    }

    fn wait(&mut self, seconds: u64) {
        self.world.now += Duration::from_secs(seconds);
    }
}

struct Fate {
    arrived: usize,
    lost: Option<&'static str>,
    is_hit: bool,
}

fn v4(from: Pod, to: Pod) -> FrameBuilder {
    between(pod_v4(from.0, from.1), pod_v4(to.0, to.1)).macs(pod_mac(from.0, from.1), GATEWAY.mac)
}

fn v6(from: Pod, to: Pod) -> FrameBuilder {
    between(pod_v6(from.0, from.1), pod_v6(to.0, to.1)).macs(pod_mac(from.0, from.1), GATEWAY.mac)
}

/// `pod` is reached by `from` alone, at `port`.
fn reached(pod: &str, from: &str, port: &str) -> String {
    format!(
        "{{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy,
           metadata: {{namespace: x, name: in-{pod}}},
           spec: {{podSelector: {{matchLabels: {{pod: {pod}}}}}, policyTypes: [Ingress],
                   ingress: [{{from: [{{podSelector: {{matchLabels: {{pod: {from}}}}}}}],
                               ports: [{port}]}}]}}}}"
    )
}

/// `pod` may open nothing.
fn mute(pod: &str) -> String {
    format!(
        "{{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy,
           metadata: {{namespace: x, name: out-{pod}}},
           spec: {{podSelector: {{matchLabels: {{pod: {pod}}}}}, policyTypes: [Egress],
                   egress: []}}}}"
    )
}

/// Nobody reaches anybody.
const CLOSED: &str = "{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy,
    metadata: {namespace: x, name: closed},
    spec: {podSelector: {}, policyTypes: [Ingress, Egress], ingress: [], egress: []}}";

const UDP_53: &str = "{protocol: UDP, port: 53}";
const TCP_80: &str = "{protocol: TCP, port: 80}";

#[test]
fn ingress_is_judged_where_the_receiver_is() {
    for other in [A, C] {
        let from = if other == A { "a" } else { "c" };
        let mut cluster = Cluster::new(&reached("b", from, UDP_53));
        cluster.passes(other, B, &v4(other, B).udp(7, 53));
        cluster.passes(B, other, &v4(B, other).udp(53, 7));
        cluster.is_lost(other, B, &v4(other, B).udp(7, 54), "policy_ingress");
        cluster.is_lost(
            other,
            B,
            &v4(other, B).tcp(7, 53).flags(SYN),
            "policy_ingress",
        );
        cluster.is_lost(other, B, &v6(other, B).udp(7, 54), "policy_ingress");
        cluster.passes(other, B, &v6(other, B).udp(7, 53));
        let lost = |node: usize| {
            let counters = &cluster.world.nodes[node].counters;
            counters.dropped(DropReason::PolicyIngress)
        };
        assert_eq!([lost(0), lost(1)], [3, 0], "by b's node alone");
    }
}

#[test]
fn egress_is_judged_where_the_sender_is() {
    for other in [B, C] {
        let mut cluster = Cluster::new(&mute("a"));
        cluster.is_lost(A, other, &v4(A, other).udp(7, 53), "policy_egress");
        cluster.passes(other, A, &v4(other, A).udp(9, 53));
        cluster.passes(A, other, &v4(A, other).udp(53, 9));
        cluster.is_lost(A, other, &v4(A, other).udp(53, 10), "policy_egress");
    }
}

#[test]
fn an_open_connection_finds_its_way_in_the_cache() {
    let mut cluster = Cluster::new(&reached("b", "a", TCP_80));
    let there = v4(A, B).tcp(7, 80);
    let back = v4(B, A).tcp(80, 7);
    cluster.passes(A, B, &there.clone().flags(SYN).seq(1).ack(0));
    cluster.passes(B, A, &back.clone().flags(SYN | ACK).seq(1).ack(2));
    let mut hit = |from, to, frame: &FrameBuilder| {
        let fate = cluster.send(from, to, frame);
        assert_eq!(fate.arrived, 1);
        fate.is_hit
    };
    let (data, answer) = (there.clone().seq(2).ack(2), back.seq(2).ack(2));
    assert!(!hit(A, B, &data), "it ends the handshake");
    assert!(hit(A, B, &data.clone().filled(100)));
    assert!(!hit(B, A, &answer), "the server's first");
    assert!(hit(B, A, &answer));
    assert!(!hit(A, B, &data.clone().flags(FIN | ACK)));
    cluster.wait(2);
    assert!(!cluster.send(B, A, &answer).is_hit, "a second is over");
    assert!(cluster.send(B, A, &answer).is_hit);
}

#[test]
fn new_rules_judge_open_connections() {
    for to in [B, C] {
        let pod = if to == B { "b" } else { "c" };
        let mut cluster = Cluster::new(&reached(pod, "a", TCP_80));
        let there = v4(A, to).tcp(7, 80);
        let back = v4(to, A).tcp(80, 7);
        cluster.passes(A, to, &there.clone().flags(SYN).seq(1).ack(0));
        cluster.passes(to, A, &back.clone().flags(SYN | ACK).seq(1).ack(2));
        cluster.passes(A, to, &there);
        cluster.apply(&mute("d"));
        cluster.passes(to, A, &back);
        cluster.passes(A, to, &there);
        cluster.apply(&reached(pod, "d", TCP_80));
        cluster.is_lost(to, A, &back, "policy_ingress");
        cluster.is_lost(A, to, &there, "policy_ingress");
        cluster.wait(100);
        cluster.is_lost(to, A, &back, "policy_ingress");
        cluster.apply(&reached(pod, "a", TCP_80));
        cluster.passes(to, A, &back);
    }
}

#[test]
fn errors_belong_to_the_connection_that_they_are_about() {
    for to in [B, C] {
        let mut cluster = Cluster::new(CLOSED);
        let pod = if to == B { "b" } else { "c" };
        cluster.apply(&reached(pod, "a", UDP_53));
        let allowed = "{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy,
            metadata: {namespace: x, name: out-a},
            spec: {podSelector: {matchLabels: {pod: a}}, policyTypes: [Egress], egress: [{}]}}";
        cluster.apply(allowed);
        let query = v4(A, to).udp(7, 53).filled(30);
        let quote = query.build()[ETHERNET_LEN..].to_vec();
        let refusal = v4(to, A).icmp(3, 3, [0; 4]).payload(&quote);
        cluster.is_lost(to, A, &refusal, "conntrack_unrelated");
        cluster.passes(A, to, &query);
        cluster.passes(to, A, &refusal);
        cluster.apply(&mute("d"));
        cluster.passes(to, A, &refusal);
        cluster.apply(&reached(pod, "d", UDP_53));
        cluster.is_lost(to, A, &refusal, "policy_ingress");
        cluster.apply(&reached(pod, "a", UDP_53));
        cluster.passes(to, A, &refusal);
        let meddler = (1, 1);
        let forged = v4(meddler, A).icmp(3, 3, [0; 4]).payload(&quote);
        cluster.is_lost(meddler, A, &forged, "conntrack_unrelated");
        let ping = v4(to, A).echo_request(7, 1);
        cluster.is_lost(to, A, &ping, "policy_egress");
        cluster.is_lost(
            to,
            A,
            &v4(to, A).icmp(0, 0, [0, 7, 0, 1]),
            "conntrack_unrelated",
        );
    }
}

#[test]
fn a_pod_hears_of_routers_but_not_of_what_others_have_to_do_with() {
    let node = (0, HOST);
    let mut cluster = Cluster::new(&mute("d"));
    cluster.world.nodes[0].open_host(0);
    cluster.apply(&mute("d"));
    let ip = |src: IpAddr, dst: IpAddr| between(src, dst).macs(pod_mac(0, 0), GATEWAY.mac);
    let (a, b) = (pod_v4(0, 0).into(), pod_v4(0, 1).into());
    let (stranger, router) = ([203, 0, 113, 9].into(), [198, 51, 100, 1].into());
    for (to, place, heard) in [
        (stranger, node, true),
        (underlay(0), node, false),
        (b, B, false),
    ] {
        let query = ip(a, to).udp(7, 53).filled(30);
        cluster.passes(A, place, &query);
        for source in [router, tunnel_v4(0).into()] {
            let error = ip(source, a)
                .macs(host_mac(0), GATEWAY.mac)
                .icmp(3, 4, [0; 4]);
            let error = error.payload(&query.build()[ETHERNET_LEN..]);
            match heard {
                true => cluster.passes(node, A, &error),
                false => cluster.is_lost(node, A, &error, "conntrack_unrelated"),
            }
        }
    }
}

#[test]
fn an_error_of_the_other_nodes_gateway_arrives() {
    let mut cluster = Cluster::new(&mute("c"));
    let query = v4(A, C).udp(7, 53).filled(30).ttl(2);
    let before = cluster.world.nodes[1].counters.originated.value();
    let fate = cluster.send(A, A, &query);
    assert_eq!((fate.arrived, fate.lost), (1, Some("hop_limit")));
    assert_eq!(
        cluster.world.nodes[1].counters.originated.value(),
        before + 1
    );
}

#[test]
fn later_fragments_go_with_their_first() {
    for (from, to) in [(A, B), (C, B)] {
        let name = if from == A { "a" } else { "c" };
        let mut cluster = Cluster::new(&reached("b", name, UDP_53));
        for datagram in [v4(from, to), v6(from, to)] {
            let pieces = |port, id| {
                datagram
                    .clone()
                    .udp(7, port)
                    .filled(100)
                    .id(id)
                    .fragments(48)
            };
            let mut fates = |pieces: &[Vec<u8>]| -> Vec<Option<&'static str>> {
                let fate = |piece: &Vec<u8>| {
                    let fate = cluster.send_bytes(from, to, piece);
                    assert_eq!(fate.arrived == 1, fate.lost.is_none());
                    fate.lost
                };
                pieces.iter().map(fate).collect()
            };
            let alone = Some("fragment_alone");
            assert_eq!(fates(&pieces(53, 1)), [None; 3]);
            assert_eq!(
                fates(&pieces(54, 2)),
                [Some("policy_ingress"), alone, alone]
            );
            assert_eq!(fates(&pieces(53, 3)[1..]), [alone, alone]);
            // With the same number, but as part of another datagram's port.
            assert_eq!(fates(&pieces(54, 1)[..1]), [Some("policy_ingress")]);
        }
        cluster.wait(30);
        let late = &v4(from, to).udp(7, 53).filled(100).id(1).fragments(48)[2];
        let fate = cluster.send_bytes(from, to, late);
        assert_eq!(fate.lost, Some("fragment_alone"));
    }
}

#[test]
fn fragments_under_way_outlive_a_change_of_rules() {
    let mut cluster = Cluster::new(&reached("b", "a", UDP_53));
    let pieces = v4(A, B).udp(7, 53).filled(100).fragments(48);
    let fate = |cluster: &mut Cluster, place: usize| cluster.send_bytes(A, B, &pieces[place]).lost;
    assert_eq!(fate(&mut cluster, 0), None);
    for place in 1..3 {
        cluster.apply(&reached("b", "d", UDP_53));
        assert_eq!(fate(&mut cluster, place), None);
    }
    assert_eq!(fate(&mut cluster, 0), Some("policy_ingress"));
}

#[test]
fn no_fragment_writes_over_the_first() {
    for between in [v4, v6] {
        let mut cluster = Cluster::new(&reached("b", "a", TCP_80));
        let datagram = |port| between(A, B).tcp(7, port).flags(SYN).ack(0).filled(100);
        let pieces = datagram(80).fragments(24);
        assert_eq!(cluster.send_bytes(A, B, &pieces[0]).lost, None);
        for small in [8, 16] {
            // Of another, whose header would be put in place of the first's.
            let second = &datagram(22).fragments(small)[1];
            let fate = cluster.send_bytes(A, B, second);
            assert_eq!(fate.lost, Some("fragment_overlap"));
        }
        for later in &pieces[1..] {
            assert_eq!(cluster.send_bytes(A, B, later).lost, None);
        }
    }
}

#[test]
fn a_whole_packet_without_ports_opens_nothing_for_fragments() {
    let mut cluster = Cluster::new(&reached("b", "a", "{protocol: UDP, port: 53}"));
    cluster.apply(&reached("b", "a", "{protocol: UDP}"));
    cluster.passes(A, B, &v4(A, B).udp(0, 0));
    let later = &v4(A, B).udp(7, 53).filled(100).id(9).fragments(48)[1];
    let fate = cluster.send_bytes(A, B, later);
    assert_eq!(fate.lost, Some("fragment_alone"));
}

#[test]
fn a_first_fragment_opens_nothing_for_whole_packets() {
    for to in [B, C] {
        let pod = if to == B { "b" } else { "c" };
        for (between, reply) in [(v4 as fn(Pod, Pod) -> FrameBuilder, 0), (v6, 129)] {
            let mut cluster = Cluster::new(&reached(pod, "a", UDP_53));
            let first = &between(A, to).udp(7, 53).filled(100).fragments(48)[0];
            assert_eq!(cluster.send_bytes(A, to, first).arrived, 1);
            cluster.is_lost(A, to, &between(A, to).udp(0, 0), "policy_ingress");
            cluster.apply(
                "{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy,
                metadata: {namespace: x, name: all}, spec: {podSelector: {}, ingress: [{}]}}",
            );
            let first = &between(A, to).echo_request(9, 1).filled(100).fragments(48)[0];
            assert_eq!(cluster.send_bytes(A, to, first).arrived, 1);
            let reply = between(A, to).icmp(reply, 0, [0, 0, 0, 1]);
            cluster.is_lost(A, to, &reply, "conntrack_unrelated");
        }
    }
}

#[test]
fn ports_are_found_behind_extension_headers() {
    let mut cluster = Cluster::new(&reached("b", "a", UDP_53));
    let hop_by_hop = |port| {
        let padding = [0, 0, 1, 4, 0, 0, 0, 0];
        v6(A, B)
            .extension(0, &padding)
            .extension(60, &padding)
            .udp(7, port)
    };
    cluster.passes(A, B, &hop_by_hop(53));
    cluster.is_lost(A, B, &hop_by_hop(54), "policy_ingress");
}

#[test]
fn sctp_is_judged_by_its_own_ports() {
    let init = |port: u8| {
        let packet = [0, 9, 0, port, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 4];
        v4(A, B).protocol(132).payload(&packet)
    };
    let mut cluster = Cluster::new(&reached("b", "a", "{protocol: SCTP, port: 80}"));
    cluster.passes(A, B, &init(80));
    cluster.is_lost(A, B, &init(81), "policy_ingress");
    cluster.is_lost(A, B, &v4(A, B).tcp(9, 80).flags(SYN), "policy_ingress");
    cluster.apply(&reached("b", "a", TCP_80));
    cluster.is_lost(A, B, &init(80), "policy_ingress");
}

#[test]
fn the_gateway_always_speaks() {
    let mut cluster = Cluster::new(CLOSED);
    for address in [GATEWAY.v4, tunnel_v4(0)] {
        let ping = between(pod_v4(0, 0), address).macs(pod_mac(0, 0), GATEWAY.mac);
        let fate = cluster.send(A, A, &ping.echo_request(7, 1));
        assert_eq!((fate.arrived, fate.lost), (1, None));
    }
    let node = between(pod_v4(0, 0), tunnel_v4(1)).macs(pod_mac(0, 0), GATEWAY.mac);
    let fate = cluster.send(A, A, &node.echo_request(7, 1));
    assert_eq!(
        fate.lost,
        Some("policy_egress"),
        "another node is not the gateway"
    );
}

#[test]
fn without_rules_for_them_pods_speak_and_are_tracked() {
    let mut cluster = Cluster::new(&mute("d"));
    cluster.passes(A, C, &v4(A, C).udp(7, 53));
    cluster.passes(C, A, &v4(C, A).udp(53, 7));
    assert_eq!(cluster.trackers.each_ref().map(|one| one.count()), [1, 1]);
    cluster.passes(A, A, &v4(A, A).udp(7, 53));
}

#[test]
fn a_pod_has_no_more_connections_than_it_may() {
    let mut cluster = Cluster::new(&mute("d"));
    let account = Arc::new(Account::new(5));
    cluster.accounts[0][0] = Arc::clone(&account);
    cluster.apply(&mute("d"));
    for port in 1..=5 {
        cluster.passes(A, C, &v4(A, C).udp(port, 53));
        cluster.passes(C, A, &v4(C, A).udp(53, port));
    }
    assert_eq!(account.opened(), 5);
    cluster.is_lost(A, C, &v4(A, C).udp(6, 53), "conntrack_limit");
    cluster.passes(A, C, &v4(A, C).udp(3, 53));
    cluster.passes(B, C, &v4(B, C).udp(6, 53));
    cluster.wait(121);
    cluster.passes(A, C, &v4(A, C).udp(6, 53));
}

#[test]
fn a_full_table_says_so() {
    let mut cluster = Cluster::new(&mute("d"));
    let config = Config {
        capacity: 2,
        timeouts: Timeouts::default(),
    };
    cluster.trackers = [0, 1].map(|_| Arc::new(Tracker::new(config, 3, cluster.world.now)));
    cluster.accounts[0][0] = Arc::new(Account::new(10));
    cluster.apply(&mute("d"));
    for port in 1..=2 {
        cluster.passes(A, B, &v4(A, B).udp(port, 53));
        cluster.passes(B, A, &v4(B, A).udp(53, port));
    }
    cluster.is_lost(A, B, &v4(A, B).udp(3, 53), "conntrack_full");
    cluster.wait(121);
    cluster.passes(A, B, &v4(A, B).udp(3, 53));
}

#[test]
fn the_node_reaches_its_pods_and_strangers_behind_it_are_judged() {
    let node = (0, HOST);
    let mut cluster = Cluster::new(CLOSED);
    cluster.world.nodes[0].open_host(0);
    cluster.apply(CLOSED);
    let from = |address| between(address, pod_v4(0, 0)).macs(host_mac(0), GATEWAY.mac);
    for own in [underlay(0), tunnel_v4(0).into()] {
        let to = between(pod_v4(0, 0), own).macs(pod_mac(0, 0), GATEWAY.mac);
        cluster.is_lost(A, node, &to.clone().udp(9, 80), "policy_egress");
        cluster.passes(node, A, &from(own).tcp(9, 80).flags(SYN).seq(1).ack(0));
        let answer = to.tcp(80, 9).flags(SYN | ACK).seq(1).ack(2);
        cluster.passes(A, node, &answer);
        cluster.apply(CLOSED);
        cluster.passes(A, node, &answer);
    }
    let stranger = [203, 0, 113, 9].into();
    cluster.is_lost(node, A, &from(stranger).udp(9, 80), "policy_ingress");
    cluster.apply(&reached("a", "b", UDP_53));
    cluster.is_lost(node, A, &from(stranger).udp(9, 53), "policy_ingress");
    let anyone = "{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy,
        metadata: {namespace: x, name: closed},
        spec: {podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 203.0.113.0/24}}]}]}}";
    cluster.apply(anyone);
    cluster.passes(node, A, &from(stranger).udp(9, 53));
    let back = between(pod_v4(0, 0), stranger).macs(pod_mac(0, 0), GATEWAY.mac);
    cluster.passes(A, node, &back.udp(53, 9));
}

#[test]
fn what_the_node_opens_counts_for_nobody() {
    let node = (0, HOST);
    let mut cluster = Cluster::new(CLOSED);
    cluster.world.nodes[0].open_host(0);
    let full = Arc::new(Account::new(0));
    cluster.accounts[0][0] = Arc::clone(&full);
    cluster.apply(CLOSED);
    let probe = |port| {
        let frame = between(underlay(0), pod_v4(0, 0)).macs(host_mac(0), GATEWAY.mac);
        frame.tcp(port, 80).flags(SYN).seq(1).ack(0)
    };
    cluster.passes(node, A, &probe(9));
    let answer = between(pod_v4(0, 0), underlay(0)).macs(pod_mac(0, 0), GATEWAY.mac);
    cluster.passes(A, node, &answer.tcp(80, 9).flags(SYN | ACK).seq(1).ack(2));
    assert_eq!((cluster.trackers[0].count(), full.opened()), (1, 0));
    let config = Config {
        capacity: 0,
        timeouts: Timeouts::default(),
    };
    cluster.trackers[0] = Arc::new(Tracker::new(config, 3, cluster.world.now));
    cluster.apply(CLOSED);
    for _ in 0..2 {
        cluster.passes(node, A, &probe(10));
    }
    assert!(!cluster.send(node, A, &probe(10)).is_hit, "it is not known");
}

#[test]
fn what_is_of_no_pod_here_is_not_tracked() {
    let mut cluster = Cluster::new(&mute("a"));
    cluster.world.nodes[0].open_host(0);
    cluster.apply(&mute("a"));
    cluster.world.hold = true;
    let frame = between(underlay(0), pod_v4(1, 0)).macs(host_mac(0), GATEWAY.mac);
    let mut frames = frame.clone().udp(9, 53).filled(100).fragments(48);
    frames.reverse();
    frames.push(frame.clone().udp(9, 53).build());
    frames.push(frame.icmp(0, 0, [0, 1, 0, 1]).build());
    for bytes in frames {
        cluster.world.send(0, HOST, &bytes);
        assert_eq!(std::mem::take(&mut cluster.world.nodes[0].held).len(), 1);
        assert_eq!(cluster.trackers[0].count(), 0);
    }
}

/// A packet of any kind between two pods.
fn made_up(from: Pod, to: Pod, kind: u8, flags: u8, port: u16, id: u16) -> Vec<u8> {
    let (frame, unreachable) = match id % 2 {
        0 => (v4(from, to), 3),
        _ => (v6(from, to), 1),
    };
    let piece = |place: usize| {
        let datagram = frame.clone().udp(port, 53).filled(100).id(id);
        datagram.fragments(48)[place].clone()
    };
    match kind {
        0 => frame.tcp(port, 80).flags(flags).build(),
        1 => frame.tcp(80, port).flags(flags).build(),
        2 => frame.udp(port, 53).build(),
        3 => frame.udp(53, port).build(),
        4 => frame.echo_request(port, 1).build(),
        5 => {
            let about = made_up(to, from, 0, SYN, port, id);
            let quote = &about[ETHERNET_LEN..];
            frame.icmp(unreachable, 3, [0; 4]).payload(quote).build()
        }
        6 => {
            let packet = [0, 9, 0, 80, 0, 0, 0, 0, 0, 0, 0, 0, flags, 0, 0, 4];
            frame.protocol(132).payload(&packet).build()
        }
        _ => piece(usize::from(kind) % 3),
    }
}

proptest! {
    /// Whatever pods send, whole or spoilt, is delivered or counted as lost,
    /// and a mute pod is heard by nobody but in answer to the very same packets.
    #[test]
    fn whatever_comes_is_counted(
        packets in vec((
            (0usize..2, 0usize..2), (0usize..2, 0usize..2), 0u8..10,
            select(vec![SYN, SYN | ACK, ACK, FIN | ACK, RST, 0]),
            1u16..4, 0u16..4, option::of((14usize..80, any::<u8>())), 0u64..40,
        ), 1..60),
    ) {
        let mut cluster = Cluster::new(&mute("a"));
        cluster.apply(&reached("b", "c", TCP_80));
        let mut spoken = HashSet::new();
        for (from, to, kind, flags, port, id, spoilt, pause) in packets {
            cluster.wait(pause);
            let mut frame = made_up(from, to, kind, flags, port, id);
            if let Some((place, value)) = spoilt.filter(|(place, _)| *place < frame.len()) {
                frame[place] = value;
            }
            let moved = cluster.world.moved(from.0, |world| world.send(from.0, from.1, &frame));
            cluster.world.moved(1 - from.0, |_| {});
            if from != A && let Some(key) = key_of(&frame) {
                spoken.insert(key);
            }
            cluster.world.received(0, 0);
            for (node, pod) in [B, C, (1, 1)] {
                let heard = cluster.world.received(node, pod);
                for frame in heard.iter().filter(|_| from == A) {
                    let answers = key_of(&frame.frame).map(Key::exchanged);
                    let is_answer = answers.is_none_or(|key| spoken.contains(&key));
                    prop_assert!(is_answer, "{:?}, {:?}", answers, moved);
                    prop_assert!(answers.is_some() || !spoken.is_empty());
                }
            }
        }
    }
}

/// Of the connection that the packet belongs to; none of a later fragment.
fn key_of(frame: &[u8]) -> Option<Key> {
    match parse(frame) {
        Ok(Ethernet::Ip(packet)) => Seen::of(frame, &packet).map(|seen| seen.key),
        _ => None,
    }
}

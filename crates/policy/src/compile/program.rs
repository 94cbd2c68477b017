//! The rules of all pods that the same policies select, ready to be asked.
//!
//! A rule matches when one of its peers and one of its ports does. So each
//! question makes two sets of rules, those whose peers match and those whose
//! ports do, and the first rule in both is the one that decides.
//!
//! A program knows no pod but by the numbers of the sets it belongs to:
//! pods come, go and change their labels, and it stays as it is.

use std::{net::IpAddr, ops::Range, sync::Arc};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use prefix_trie::PrefixMap;
use rapidhash::RapidHashMap;

use super::{
    Known,
    mask::{Mask, RuleSet, RulesByBit, small},
    rulebook::Endpoint,
};
use crate::{
    object::{Action, Block, Direction, NamedPort, Peer, Policy, PortMatch, Protocol, Tier},
    verdict::{Decision, Reason, Transport},
};

#[derive(Debug)]
pub struct Program {
    ingress: Side,
    egress: Side,
    /// All that select the pod, in the order in which they are asked.
    pub policies: Vec<Arc<Policy>>,
}

/// The other end of a flow, as far as rules ask about it.
#[derive(Clone, Copy, Debug)]
pub struct Remote<'a> {
    pub address: IpAddr,
    /// The sets it belongs to, if it is a pod or a node.
    pub sets: Option<&'a Mask>,
}

#[derive(Debug)]
struct Side {
    rules: Vec<Place>,
    /// Rules of the Admin tier stand before it, NetworkPolicies' from it on.
    admin_end: usize,
    /// NetworkPolicies' rules stand before it, the Baseline tier's from it on.
    network_end: usize,
    /// The NetworkPolicies that speak of the direction.
    isolated_by: Option<Arc<[Arc<Policy>]>>,
    peers: Peers,
    ports: Ports,
}

#[derive(Debug)]
struct Place {
    policy: Arc<Policy>,
    rule: usize,
    action: Action,
}

#[derive(Debug)]
struct Peers {
    /// Rules for anyone.
    anyone: RuleSet,
    members: RulesByBit,
    blocks: Option<Box<Blocks>>,
}

#[derive(Debug, Default)]
struct Blocks {
    v4: PrefixMap<Ipv4Net, Vec<Holed>>,
    v6: PrefixMap<Ipv6Net, Vec<Holed>>,
    /// Of all blocks, one after the other.
    except: Vec<IpNet>,
}

/// A block's rule, and where its exceptions stand.
#[derive(Debug)]
struct Holed {
    rule: u32,
    except: Range<usize>,
}

#[derive(Debug)]
struct Ports {
    /// Rules for every port of TCP, UDP, SCTP, and for what has no ports.
    every: [RuleSet; 4],
    single: RapidHashMap<(Protocol, u16), Vec<u32>>,
    /// Sorted.
    ranges: Vec<(Protocol, u16, u16, u32)>,
    named: RapidHashMap<String, Vec<(Option<Protocol>, u32)>>,
}

impl Program {
    /// Of policies in the order in which they are asked.
    pub(super) fn new(policies: &[&Arc<Known>]) -> Self {
        Self {
            ingress: Side::new(policies, Direction::Ingress),
            egress: Side::new(policies, Direction::Egress),
            policies: policies
                .iter()
                .map(|known| Arc::clone(&known.policy))
                .collect(),
        }
    }

    /// Named ports are those of the flow's destination.
    pub fn decide(
        &self,
        direction: Direction,
        remote: Remote<'_>,
        transport: Transport,
        destination: Option<&Endpoint>,
    ) -> Decision {
        let side = match direction {
            Direction::Ingress => &self.ingress,
            Direction::Egress => &self.egress,
        };
        side.decide(remote, transport, destination)
    }
}

impl Side {
    fn new(policies: &[&Arc<Known>], direction: Direction) -> Self {
        let mut rules = Vec::new();
        let mut members = Vec::new();
        let mut isolating = Vec::new();
        for known in policies {
            let Some(own) = known.policy.rules(direction) else {
                continue;
            };
            if known.policy.tier == Tier::Network {
                isolating.push(Arc::clone(&known.policy));
            }
            for (place, rule) in own.iter().enumerate() {
                let number = small(rules.len());
                let ids = known.peers(direction)[place].iter();
                members.extend(ids.map(|id| (small(*id), number)));
                rules.push(Place {
                    policy: Arc::clone(&known.policy),
                    rule: place,
                    action: rule.action,
                });
            }
        }
        let end_of = |last: Tier| rules.partition_point(|place: &Place| place.policy.tier <= last);
        Self {
            admin_end: end_of(Tier::Admin(u16::MAX)),
            network_end: end_of(Tier::Network),
            isolated_by: (!isolating.is_empty()).then(|| isolating.into()),
            peers: Peers::new(&rules, direction, members),
            ports: Ports::new(&rules, direction),
            rules,
        }
    }

    fn decide(
        &self,
        remote: Remote<'_>,
        transport: Transport,
        destination: Option<&Endpoint>,
    ) -> Decision {
        if self.rules.is_empty() {
            return match &self.isolated_by {
                Some(by) => Decision::deny(Reason::Isolated { by: Arc::clone(by) }),
                None => Decision::allow(Reason::Unruled),
            };
        }
        let peers = self.peers.matching(remote);
        let ports = self.ports.matching(transport, destination);
        let first = |start, end| peers.first_common(&ports, start, end);
        if let Some(decision) = self.decided_by(first(0, self.admin_end)) {
            return decision;
        }
        let network = first(self.admin_end, self.network_end);
        if let Some(decision) = self.decided_by(network) {
            return decision;
        }
        if let Some(by) = &self.isolated_by {
            return Decision::deny(Reason::Isolated { by: Arc::clone(by) });
        }
        self.decided_by(first(self.network_end, self.rules.len()))
            .unwrap_or(Decision::allow(Reason::Unruled))
    }

    fn decided_by(&self, rule: Option<usize>) -> Option<Decision> {
        let place = &self.rules[rule?];
        let reason = Reason::Rule {
            policy: Arc::clone(&place.policy),
            rule: place.rule,
        };
        match place.action {
            Action::Accept => Some(Decision::allow(reason)),
            Action::Deny => Some(Decision::deny(reason)),
            Action::Pass => None,
        }
    }
}

impl Place {
    fn peers_and_ports(&self, direction: Direction) -> (&[Peer], &[PortMatch]) {
        match self
            .policy
            .rules(direction)
            .and_then(|rules| rules.get(self.rule))
        {
            Some(rule) => (&rule.peers, &rule.ports),
            None => (&[], &[]),
        }
    }
}

impl Peers {
    fn new(rules: &[Place], direction: Direction, members: Vec<(u32, u32)>) -> Self {
        let mut anyone = RuleSet::of(rules.len());
        let mut blocks: Option<Box<Blocks>> = None;
        for (number, place) in rules.iter().enumerate() {
            let (peers, _) = place.peers_and_ports(direction);
            if peers.is_empty() {
                anyone.insert(small(number));
            }
            for peer in peers {
                if let Peer::Block(block) = peer {
                    blocks.get_or_insert_default().insert(block, small(number));
                }
            }
        }
        Self {
            anyone,
            members: RulesByBit::new(members),
            blocks,
        }
    }

    fn matching(&self, remote: Remote<'_>) -> RuleSet {
        let mut rules = self.anyone.clone();
        if let Some(sets) = remote.sets {
            self.members.each(sets, |rule| rules.insert(rule));
        }
        if let Some(blocks) = &self.blocks {
            blocks.each(remote.address, |rule| rules.insert(rule));
        }
        rules
    }
}

impl Blocks {
    fn insert(&mut self, block: &Block, rule: u32) {
        let holed = match block.net {
            IpNet::V4(net) => self.v4.entry(net).or_default(),
            IpNet::V6(net) => self.v6.entry(net).or_default(),
        };
        let start = self.except.len();
        self.except.extend(&block.except);
        let except = start..self.except.len();
        holed.push(Holed { rule, except });
    }

    fn each(&self, address: IpAddr, mut take: impl FnMut(u32)) {
        let mut rules_of = |blocks: &Vec<Holed>| {
            for Holed { rule, except } in blocks {
                let mut holes = self.except[except.clone()].iter();
                if !holes.any(|net| net.contains(&address)) {
                    take(*rule);
                }
            }
        };
        match address {
            IpAddr::V4(v4) => self.v4.cover_values(&v4.into()).for_each(&mut rules_of),
            IpAddr::V6(v6) => self.v6.cover_values(&v6.into()).for_each(&mut rules_of),
        }
    }
}

impl Ports {
    const PORTLESS: usize = 3;

    fn new(rules: &[Place], direction: Direction) -> Self {
        let mut ports = Self {
            every: std::array::from_fn(|_| RuleSet::of(rules.len())),
            single: RapidHashMap::default(),
            ranges: Vec::new(),
            named: RapidHashMap::default(),
        };
        for (number, place) in rules.iter().enumerate() {
            let (_, matches) = place.peers_and_ports(direction);
            if matches.is_empty() {
                ports
                    .every
                    .iter_mut()
                    .for_each(|set| set.insert(small(number)));
            }
            for port in matches {
                ports.insert(port, small(number));
            }
        }
        ports.ranges.sort_unstable();
        ports
    }

    fn insert(&mut self, port: &PortMatch, rule: u32) {
        match port {
            PortMatch::Named { protocol, name } => {
                let rules = self.named.entry(name.clone()).or_default();
                rules.push((*protocol, rule));
            }
            PortMatch::Numbers {
                protocol,
                first: 0,
                last: u16::MAX,
            } => {
                self.every[*protocol as usize].insert(rule);
            }
            PortMatch::Numbers {
                protocol,
                first,
                last,
            } if first == last => {
                self.single
                    .entry((*protocol, *first))
                    .or_default()
                    .push(rule);
            }
            PortMatch::Numbers {
                protocol,
                first,
                last,
            } => {
                self.ranges.push((*protocol, *first, *last, rule));
            }
        }
    }

    fn matching(&self, transport: Transport, destination: Option<&Endpoint>) -> RuleSet {
        let Some((protocol, port)) = transport.port() else {
            return self.every[Self::PORTLESS].clone();
        };
        let mut rules = self.every[protocol as usize].clone();
        for rule in self.single.get(&(protocol, port)).into_iter().flatten() {
            rules.insert(*rule);
        }
        let start = self.ranges.partition_point(|range| range.0 < protocol);
        let ranges = self.ranges[start..].iter();
        for (_, _, last, rule) in ranges.take_while(|range| (range.0, range.1) <= (protocol, port))
        {
            if *last >= port {
                rules.insert(*rule);
            }
        }
        if !self.named.is_empty()
            && let Some(pod) = destination.and_then(Endpoint::pod)
        {
            self.add_named(protocol, port, &pod.ports, &mut rules);
        }
        rules
    }

    fn add_named(&self, protocol: Protocol, port: u16, named: &[NamedPort], rules: &mut RuleSet) {
        for one in named {
            if one.protocol != protocol || one.port != port {
                continue;
            }
            for (wanted, rule) in self.named.get(&one.name).into_iter().flatten() {
                if wanted.is_none_or(|wanted| wanted == protocol) {
                    rules.insert(*rule);
                }
            }
        }
    }
}

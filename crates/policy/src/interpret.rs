//! What the specifications say, read out loud: for every flow every object is
//! looked at anew, in the order in which the API's own texts tell it.
//!
//! It is the measure of the compiled rules and shares no step with them. It
//! is slow on purpose.

use std::{net::IpAddr, sync::Arc};

use crate::{
    object::{
        Action, Direction, Node, Objects, Peer, Pod, Policy, PortMatch, Protocol, Rule, Tier,
    },
    verdict::{Decision, Flow, Reason, Verdict},
};

/// Judges a flow's first packet by the objects alone.
pub fn interpret(objects: &Objects, flow: &Flow) -> Verdict {
    let source = pod_at(objects, flow.source);
    let destination = pod_at(objects, flow.destination);
    if let (Some(source), Some(destination)) = (source, destination)
        && source.name == destination.name
    {
        return Verdict {
            egress: Decision::allow(Reason::Itself),
            ingress: Decision::allow(Reason::Itself),
        };
    }
    let egress = match source {
        None => Decision::allow(Reason::Outside),
        Some(pod) => decide(objects, Direction::Egress, pod, flow),
    };
    let ingress = match destination {
        None => Decision::allow(Reason::Outside),
        Some(pod) if comes_from_own_node(objects, pod, flow.source) => {
            Decision::allow(Reason::OwnNode)
        }
        Some(pod) => decide(objects, Direction::Ingress, pod, flow),
    };
    Verdict { egress, ingress }
}

/// Whose address it is. Where two pods claim one, the first by name has it;
/// a pod goes before a node.
fn pod_at(objects: &Objects, address: IpAddr) -> Option<&Pod> {
    let mut pods = objects.pods.values();
    pods.find(|pod| pod.addresses.contains(&address))
        .map(Arc::as_ref)
}

fn node_at(objects: &Objects, address: IpAddr) -> Option<&Node> {
    if pod_at(objects, address).is_some() {
        return None;
    }
    let mut nodes = objects.nodes.values();
    nodes
        .find(|node| node.addresses.contains(&address))
        .map(Arc::as_ref)
}

fn comes_from_own_node(objects: &Objects, pod: &Pod, source: IpAddr) -> bool {
    node_at(objects, source).is_some_and(|node| pod.node.as_ref() == Some(&node.name))
}

/// The Admin tier, then the NetworkPolicies, then the Baseline tier. The
/// first that decides has decided.
fn decide(objects: &Objects, direction: Direction, pod: &Pod, flow: &Flow) -> Decision {
    let is_admin = |tier| matches!(tier, Tier::Admin(_));
    if let Some(decision) = decide_in_cluster_tier(objects, direction, pod, flow, is_admin) {
        return decision;
    }
    if let Some(decision) = decide_by_network_policies(objects, direction, pod, flow) {
        return decision;
    }
    let is_baseline = |tier| matches!(tier, Tier::Baseline(_));
    decide_in_cluster_tier(objects, direction, pod, flow, is_baseline)
        .unwrap_or(Decision::allow(Reason::Unruled))
}

/// Rules in order of their policies' priority, then of their place; of equal
/// priorities the policy that is first by name. Pass ends the tier.
fn decide_in_cluster_tier(
    objects: &Objects,
    direction: Direction,
    pod: &Pod,
    flow: &Flow,
    in_tier: impl Fn(Tier) -> bool,
) -> Option<Decision> {
    let mut policies = policies_for(objects, pod, in_tier);
    policies.sort_by_key(|policy| policy.tier);
    for policy in policies {
        for (place, rule) in policy
            .rules(direction)
            .unwrap_or_default()
            .iter()
            .enumerate()
        {
            if !matches(objects, direction, rule, flow) {
                continue;
            }
            let reason = Reason::Rule {
                policy: Arc::clone(policy),
                rule: place,
            };
            return match rule.action {
                Action::Accept => Some(Decision::allow(reason)),
                Action::Deny => Some(Decision::deny(reason)),
                Action::Pass => None,
            };
        }
    }
    None
}

/// A pod that no policy of the direction selects is open. One that is
/// selected is closed, but for what any rule of any of its policies permits.
fn decide_by_network_policies(
    objects: &Objects,
    direction: Direction,
    pod: &Pod,
    flow: &Flow,
) -> Option<Decision> {
    let mut policies = policies_for(objects, pod, |tier| tier == Tier::Network);
    policies.retain(|policy| policy.rules(direction).is_some());
    if policies.is_empty() {
        return None;
    }
    for policy in &policies {
        for (place, rule) in policy
            .rules(direction)
            .unwrap_or_default()
            .iter()
            .enumerate()
        {
            if matches(objects, direction, rule, flow) {
                return Some(Decision::allow(Reason::Rule {
                    policy: Arc::clone(policy),
                    rule: place,
                }));
            }
        }
    }
    Some(Decision::deny(Reason::Isolated {
        by: policies.into_iter().cloned().collect(),
    }))
}

/// By name, as `Objects` keeps them.
fn policies_for<'a>(
    objects: &'a Objects,
    pod: &Pod,
    in_tier: impl Fn(Tier) -> bool,
) -> Vec<&'a Arc<Policy>> {
    let namespace = objects.namespace(&pod.name.namespace);
    let selects = |policy: &Policy| policy.subject.holds(&namespace, &pod.labels);
    let all = objects.policies.values();
    all.filter(|policy| in_tier(policy.tier) && selects(policy))
        .collect()
}

fn matches(objects: &Objects, direction: Direction, rule: &Rule, flow: &Flow) -> bool {
    let remote = match direction {
        Direction::Ingress => flow.source,
        Direction::Egress => flow.destination,
    };
    let any_peer = rule.peers.is_empty();
    let any_port = rule.ports.is_empty();
    (any_peer || rule.peers.iter().any(|peer| is_peer(objects, peer, remote)))
        && (any_port || rule.ports.iter().any(|port| is_port(objects, port, flow)))
}

fn is_peer(objects: &Objects, peer: &Peer, remote: IpAddr) -> bool {
    match peer {
        Peer::Block(block) => block.holds(remote),
        Peer::Nodes(selector) => {
            node_at(objects, remote).is_some_and(|node| selector.matches(&node.labels))
        }
        Peer::Pods(group) => pod_at(objects, remote)
            .is_some_and(|pod| group.holds(&objects.namespace(&pod.name.namespace), &pod.labels)),
    }
}

/// Names are the destination's, whichever end the rule belongs to.
fn is_port(objects: &Objects, port: &PortMatch, flow: &Flow) -> bool {
    let Some((spoken, number)) = flow.transport.port() else {
        return false;
    };
    match port {
        PortMatch::Numbers {
            protocol,
            first,
            last,
        } => *protocol == spoken && (*first..=*last).contains(&number),
        PortMatch::Named { protocol, name } => {
            let wanted = |one: Protocol| protocol.is_none_or(|protocol| protocol == one);
            pod_at(objects, flow.destination).is_some_and(|pod| {
                pod.ports.iter().any(|named| {
                    named.name == *name
                        && wanted(named.protocol)
                        && named.protocol == spoken
                        && named.port == number
                })
            })
        }
    }
}

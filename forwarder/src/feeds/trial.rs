//! A dry run: what rules that are not in force would do to what flows now.

use std::{sync::Arc, time::Instant};

use weft_api::{
    forwarder::{Changed, Error, Trial},
    names::Name,
};
use weft_conntrack::Live;
use weft_engine::{denied::Denial, policy::flow};
use weft_policy::{
    Change, Compiler, Decision, Flow, Object, Objects, Rulebook, Transport, object::Direction,
};
use weft_wire::{Key, protocol};

use super::{Feeds, Plan, given::Given, logged, told};

/// Flows that are listed at most.
const CHANGES_MAX: usize = 1000;

impl Feeds {
    /// As if the source gave these objects and no others.
    pub fn trial(&self, source: Name, objects: Vec<Given>, now: Instant) -> Result<Trial, Error> {
        let tracker = self.tracked("policies")?;
        let rules = self.rules_after(self.plan_replacement(source, objects)?);
        let in_force = self.rulebook();
        let mut trial = Trial {
            judged: 0,
            unlisted: 0,
            changes: Vec::new(),
        };
        tracker.each_live(now, |live| {
            let change = changed(&in_force, &rules, live);
            let change = change.map(|found| told(&rules, live.key, true, found));
            list(&mut trial, change);
        });
        for Denial { flow, .. } in self.denied.flows() {
            let found = freed(&in_force, &rules, &flow);
            let change = found.map(|found| told(&rules, key_of(&flow), false, found));
            list(&mut trial, change);
        }
        Ok(trial)
    }

    fn rules_after(&self, plan: Plan) -> Rulebook {
        let mut compiler = Compiler::default();
        let removes = plan.removes.into_iter().map(Change::Remove);
        let puts = plan.puts.into_iter().map(|given| Change::Put(given.object));
        compiler.apply(all(self.objects()).chain(removes).chain(puts));
        compiler.rulebook()
    }
}

fn list(trial: &mut Trial, change: Option<Changed>) {
    trial.judged += 1;
    match change {
        Some(_) if trial.changes.len() == CHANGES_MAX => trial.unlisted += 1,
        change => trial.changes.extend(change),
    }
}

fn all(objects: &Objects) -> impl Iterator<Item = Change> {
    let policies = objects.policies.values();
    let pods = objects.pods.values();
    let namespaces = objects.namespaces.values();
    let nodes = objects.nodes.values();
    policies
        .map(|one| Object::Policy(one.as_ref().clone()))
        .chain(pods.map(|one| Object::Pod(one.as_ref().clone())))
        .chain(namespaces.map(|one| Object::Namespace(one.as_ref().clone())))
        .chain(nodes.map(|one| Object::Node(one.as_ref().clone())))
        .map(Change::Put)
}

/// The decision that makes the connection's verdict another, on the sides that
/// this node judges.
fn changed(before: &Rulebook, after: &Rulebook, live: Live) -> Option<(Direction, Decision)> {
    let flow = flow(live.key);
    let sides = [
        (live.leaves, Direction::Egress),
        (live.comes, Direction::Ingress),
    ];
    let sides = sides
        .into_iter()
        .filter_map(|(judged, side)| judged.then_some(side));
    let mut decided = sides.map(|side| {
        let (was, is) = (before.judge_one(side, &flow), after.judge_one(side, &flow));
        (side, was.allowed, is)
    });
    decided
        .find(|(_, was, is)| *was && !is.allowed)
        .map(|(side, _, is)| (side, is))
}

/// The decision that lets a flow pass that is denied.
fn freed(before: &Rulebook, after: &Rulebook, flow: &Flow) -> Option<(Direction, Decision)> {
    let (was, is) = (before.judge(flow), after.judge(flow));
    let side = match was.egress.allowed {
        false => Direction::Egress,
        true => Direction::Ingress,
    };
    (!was.allowed() && is.allowed()).then(|| (side, is.decision(side).clone()))
}

fn told(rules: &Rulebook, key: Key, is_live: bool, found: (Direction, Decision)) -> Changed {
    let (direction, decision) = found;
    let pod = |address| rules.endpoint(address)?.pod().map(Arc::as_ref);
    let (mut from, to) = logged::ends(&key, pod(key.src), pod(key.dst));
    if !is_live {
        from.port = None;
    }
    Changed {
        verdict: logged::verdict(decision.allowed),
        protocol: logged::named(key.protocol),
        from,
        to,
        direction: direction.to_string(),
        decision: told::decision(&decision),
    }
}

fn key_of(flow: &Flow) -> Key {
    let (protocol, dst_port) = match flow.transport {
        Transport::Tcp(port) => (protocol::TCP, port),
        Transport::Udp(port) => (protocol::UDP, port),
        Transport::Sctp(port) => (protocol::SCTP, port),
        Transport::Other(number) => (number, 0),
    };
    Key {
        src: flow.source,
        dst: flow.destination,
        protocol,
        src_port: 0,
        dst_port,
    }
}

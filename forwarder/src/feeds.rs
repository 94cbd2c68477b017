//! The objects that policies consist of and speak of, by who gave them, and
//! the rules that follow from them. A change is planned first, which may
//! refuse it, and committed then; so a refused change has changed nothing. No
//! fd, thread or socket is known here.
//!
//! An object belongs to the source that gave it. Without a source there are no
//! rules, and no connection is tracked.

pub mod asked;
pub mod gather;
pub mod given;
mod listed;
pub mod logged;
pub mod told;
mod trial;

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
    time::Instant,
};

use weft_api::{
    forwarder::{Code, Error, PolicyChange},
    names::Name,
};
use weft_conntrack::{Config, Timeouts, Tracker};
use weft_engine::{Policy, denied::Denied, flow_log::FlowLog};
use weft_policy::{Change, Compiler, Object, ObjectName, Objects, Rulebook};

use crate::{publish::refusal, workers::seed};
use given::Given;

/// Most objects of all sources: several times what the largest clusters have.
pub const OBJECTS_MAX: usize = 1 << 18;

/// Most sources: one for each way that objects come by.
const SOURCES_MAX: usize = 64;

/// Most connections that are tracked: 400 bytes each are 400 MiB.
const CONNECTIONS_MAX: usize = 1 << 20;

#[derive(Debug, Default)]
pub struct Feeds {
    sources: BTreeMap<Name, Source>,
    compiler: Compiler,
    edition: u32,
    /// While there is a source.
    tracker: Option<Arc<Tracker>>,
    denied: Arc<Denied>,
    log: Arc<FlowLog>,
}

#[derive(Debug, Default)]
struct Source {
    objects: HashMap<ObjectName, Kept>,
}

#[derive(Debug)]
struct Kept {
    /// A policy, as it was given.
    text: Option<Box<str>>,
    /// Of the rules that it came with.
    edition: u32,
}

/// A change that may be made.
#[derive(Debug)]
pub struct Plan {
    source: Name,
    /// What the source has, and will not have any more.
    removes: HashSet<ObjectName>,
    puts: Vec<Given>,
    /// The source itself goes.
    ends: bool,
}

/// What a change comes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    Nothing,
    /// Other objects, and every flow is judged as before.
    Objects,
    /// Another edition of the rules, or none any more.
    Rules,
}

impl Plan {
    /// Objects that the source will not have any more.
    pub fn withdrawn(&self) -> usize {
        self.removes.len()
    }
}

impl Feeds {
    /// All objects of the source become these.
    pub fn plan_replacement(&self, source: Name, objects: Vec<Given>) -> Result<Plan, Error> {
        let names: HashSet<ObjectName> = objects.iter().map(|given| given.object.name()).collect();
        let gone = |name: &&ObjectName| !names.contains(*name);
        let removes = self.names_of(&source).filter(gone).cloned().collect();
        self.check(Plan {
            source,
            removes,
            puts: objects,
            ends: false,
        })
    }

    pub fn plan_change(&self, change: PolicyChange) -> Result<Plan, Error> {
        let PolicyChange {
            source,
            put,
            delete,
        } = change;
        let removes = delete.iter().map(given::name_of);
        let mut removes: HashSet<ObjectName> = removes.collect::<Result<_, _>>()?;
        let owned = |name: &ObjectName| self.owner(name) == Some(&source);
        if let Some(name) = removes.iter().find(|name| !owned(name)) {
            let message = format!("policy-change: source {source} has no {name}");
            return Err(refusal(
                Code::NotFound,
                message,
                "a source deletes what it gave; `policy-list` shows the sources",
            ));
        }
        let puts = given::read(put)?;
        for given in &puts {
            removes.remove(&given.object.name());
        }
        self.check(Plan {
            source,
            removes,
            puts,
            ends: false,
        })
    }

    /// The source is forgotten with all its objects.
    pub fn plan_end(&self, source: Name) -> Result<Plan, Error> {
        if !self.sources.contains_key(&source) {
            let message = format!("policy-drop: there is no source {source}");
            return Err(refusal(
                Code::NotFound,
                message,
                "`policy-list` shows the sources",
            ));
        }
        Ok(Plan {
            removes: self.names_of(&source).cloned().collect(),
            source,
            puts: Vec::new(),
            ends: true,
        })
    }

    /// Makes the change.
    pub fn commit(&mut self, plan: Plan, now: Instant) -> Outcome {
        let Plan {
            source,
            removes,
            puts,
            ends,
        } = plan;
        let is_news = ends || !self.sources.contains_key(&source);
        let was_on = self.tracker.is_some();
        let known = self.sources.entry(source.clone()).or_default();
        let mut changes = Vec::with_capacity(removes.len());
        for name in removes {
            known.objects.remove(&name);
            changes.push(Change::Remove(name));
        }
        let mut fresh = Vec::new();
        for Given { object, text } in puts {
            let name = object.name();
            match known.objects.get_mut(&name) {
                Some(kept) if holds(self.compiler.objects(), &object) => kept.text = text,
                _ => {
                    fresh.push((name, text));
                    changes.push(Change::Put(object));
                }
            }
        }
        let is_same = changes.is_empty();
        let is_quiet = is_same || !self.compiler.apply(changes).judges_otherwise;
        let is_on = !ends || self.sources.len() > 1;
        let is_rules = !is_quiet || is_on != was_on;
        if is_rules {
            self.edition = self.edition.wrapping_add(1);
        }
        let edition = self.edition;
        let kept = |(name, text)| (name, Kept { text, edition });
        if ends {
            self.sources.remove(&source);
        } else if let Some(known) = self.sources.get_mut(&source) {
            known.objects.extend(fresh.into_iter().map(kept));
        }
        if is_on {
            self.tracker.get_or_insert_with(|| tracker(now));
        } else {
            self.tracker = None;
        }
        match (is_rules, is_same && !is_news) {
            (true, _) => Outcome::Rules,
            (false, false) => Outcome::Objects,
            (false, true) => Outcome::Nothing,
        }
    }

    /// What packets are judged by; none without a source.
    pub fn policy(&self) -> Option<Policy> {
        let connections = Arc::clone(self.tracker.as_ref()?);
        Some(Policy {
            rules: self.compiler.rulebook(),
            edition: self.edition,
            connections,
            denied: Arc::clone(&self.denied),
            log: Arc::clone(&self.log),
        })
    }

    pub fn rulebook(&self) -> Rulebook {
        self.compiler.rulebook()
    }

    pub fn objects(&self) -> &Objects {
        self.compiler.objects()
    }

    fn check(&self, plan: Plan) -> Result<Plan, Error> {
        if self.sources.len() == SOURCES_MAX && !self.sources.contains_key(&plan.source) {
            let message = format!(
                "source {} is one too many; {SOURCES_MAX} may be",
                plan.source
            );
            return Err(refusal(
                Code::Oversized,
                message,
                "drop one that gives nothing any more; `policy-list` shows them",
            ));
        }
        let mut names = HashSet::new();
        for given in &plan.puts {
            let name = given.object.name();
            if let Some(owner) = self.owner(&name).filter(|owner| **owner != plan.source) {
                let message = format!("{name} is source {owner}'s, not {}'s", plan.source);
                return Err(refusal(
                    Code::Taken,
                    message,
                    "change it there, or drop that source",
                ));
            }
            if names.contains(&name) {
                let message = format!("{name} is given twice");
                return Err(refusal(Code::Invalid, message, "leave one of them out"));
            }
            names.insert(name);
        }
        let count: usize = self
            .sources
            .values()
            .map(|source| source.objects.len())
            .sum();
        let fresh = names.iter().filter(|name| self.owner(name).is_none());
        if count + fresh.count() - plan.removes.len() > OBJECTS_MAX {
            return Err(given::too_many());
        }
        Ok(plan)
    }

    fn names_of(&self, source: &Name) -> impl Iterator<Item = &ObjectName> {
        let source = self.sources.get(source);
        source.into_iter().flat_map(|source| source.objects.keys())
    }

    fn owner(&self, name: &ObjectName) -> Option<&Name> {
        let owns = |(_, source): &(&Name, &Source)| source.objects.contains_key(name);
        self.sources.iter().find(owns).map(|(source, _)| source)
    }
}

fn tracker(now: Instant) -> Arc<Tracker> {
    let config = Config {
        capacity: CONNECTIONS_MAX,
        timeouts: Timeouts::default(),
    };
    Arc::new(Tracker::new(config, seed(), now))
}

/// Whether the very object is there.
fn holds(objects: &Objects, object: &Object) -> bool {
    match object {
        Object::Policy(policy) => {
            objects.policies.get(&policy.name).map(Arc::as_ref) == Some(policy)
        }
        Object::Pod(pod) => objects.pods.get(&pod.name).map(Arc::as_ref) == Some(pod),
        Object::Namespace(one) => objects.namespaces.get(&one.name).map(Arc::as_ref) == Some(one),
        Object::Node(node) => objects.nodes.get(&node.name).map(Arc::as_ref) == Some(node),
    }
}

#[cfg(test)]
mod tests;

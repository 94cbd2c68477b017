//! Objects to rules that answer in well under a microsecond.
//!
//! ```text
//! pod labels ─► identity ─► the numbers of the sets that hold it   (mask)
//!                   └─────► the program of its policies            (shared)
//! rule ─► the numbers of the sets it names, blocks, ports          (program)
//! ```
//!
//! A program names sets, and an identity knows which sets hold it. Neither
//! names the other, so a pod that comes, goes or changes its labels costs its
//! own identity's work and nothing to any other pod.
//!
//! May call: `object`, `verdict`. Invariant: after [`Compiler::apply`] the
//! rulebook is what it would be had all objects come at once.

mod alike;
mod endpoints;
mod mask;
mod members;
mod program;
mod rulebook;

use std::{collections::HashSet, sync::Arc};

use rapidhash::{RapidHashMap, RapidHashSet};

use crate::object::{
    Change, Direction, Group, Object, ObjectName, Objects, Peer, PodName, Policy, PolicyName,
};
use endpoints::{Endpoints, Settled};
use mask::Mask;
use members::{Members, MembersId, Registry};

pub use program::Program;
pub use rulebook::{Endpoint, Holder, Identity, IdentityId, Rulebook, Who};

/// Keeps a [`Rulebook`] as the objects are.
#[derive(Debug, Default)]
pub struct Compiler {
    objects: Objects,
    registry: Registry,
    policies: RapidHashMap<PolicyName, Arc<Known>>,
    /// By the number of the set that they are for.
    by_subject: RapidHashMap<MembersId, Subject>,
    /// The keys of `by_subject`.
    subjects: Mask,
    /// By the versions of the subjects whose policies they hold.
    programs: RapidHashMap<Vec<u64>, Arc<Program>>,
    endpoints: Endpoints,
    rulebook: Rulebook,
    changes: u64,
}

/// The policies for one set of pods.
#[derive(Debug, Default)]
struct Subject {
    /// Tells these policies from all that any subject has or had.
    version: u64,
    policies: Vec<Arc<Known>>,
}

/// What the changes cost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Work {
    /// Identities for which selectors were evaluated.
    pub identities_matched: usize,
    /// Identities that may have got another program.
    pub identities_ruled: usize,
    pub programs_built: usize,
    /// A flow may be judged otherwise than before.
    pub judges_otherwise: bool,
}

/// A policy, and the numbers of the sets it names.
#[derive(Debug)]
struct Known {
    policy: Arc<Policy>,
    subject: MembersId,
    /// By rule.
    ingress: Vec<Vec<MembersId>>,
    egress: Vec<Vec<MembersId>>,
}

/// What a batch of changes has left to do.
#[derive(Debug, Default)]
struct Pending {
    fresh_sets: Vec<MembersId>,
    dead_sets: Vec<MembersId>,
    /// Whose policies are others now.
    changed_subjects: Mask,
    namespaces: RapidHashSet<String>,
}

/// Identities whose sets were found anew; of them, those that are new; and
/// those that nobody has any more.
struct Matched {
    ids: Vec<IdentityId>,
    fresh: HashSet<IdentityId>,
    unused: HashSet<IdentityId>,
}

impl Compiler {
    /// Takes all changes, in their order, in one go.
    pub fn apply(&mut self, changes: impl IntoIterator<Item = Change>) -> Work {
        let mut pending = Pending::default();
        for change in changes {
            self.note(&change, &mut pending);
            self.objects.apply(change);
        }
        self.settle(pending)
    }

    /// The rules as they are now; a later change leaves them alone.
    pub fn rulebook(&self) -> Rulebook {
        self.rulebook.clone()
    }

    pub fn objects(&self) -> &Objects {
        &self.objects
    }

    /// How many pods each policy selects.
    pub fn selections(&self) -> impl Iterator<Item = (&PolicyName, usize)> {
        let mut by_subject = RapidHashMap::<MembersId, usize>::default();
        for (_, identity) in self.endpoints.pods() {
            let sets = &self.rulebook.identities()[identity].sets;
            for subject in sets.common(&self.subjects) {
                *by_subject.entry(subject).or_default() += 1;
            }
        }
        let count = move |known: &Known| by_subject.get(&known.subject).copied();
        let policies = self.policies.iter();
        policies.map(move |(name, known)| (name, count(known).unwrap_or_default()))
    }

    /// The pods that the policy selects; none if there is no such policy.
    pub fn selected(&self, policy: &PolicyName) -> Option<Vec<&PodName>> {
        let subject = self.policies.get(policy)?.subject;
        let holds = |identity: IdentityId| self.rulebook.identities()[identity].sets.holds(subject);
        let pods = self.endpoints.pods();
        Some(
            pods.filter(|(_, identity)| holds(*identity))
                .map(|(name, _)| name)
                .collect(),
        )
    }

    fn note(&mut self, change: &Change, pending: &mut Pending) {
        match change {
            Change::Put(Object::Policy(policy)) => {
                if self.objects.policies.get(&policy.name).map(Arc::as_ref) != Some(policy) {
                    self.drop_policy(&policy.name, pending);
                    self.take_policy(policy, pending);
                }
            }
            Change::Remove(ObjectName::Policy(name)) => self.drop_policy(name, pending),
            Change::Put(Object::Pod(pod)) => {
                if self.objects.pods.get(&pod.name).map(Arc::as_ref) != Some(pod) {
                    self.endpoints.put_pod(Arc::new(pod.clone()));
                }
            }
            Change::Remove(ObjectName::Pod(name)) => self.endpoints.remove_pod(name),
            Change::Put(Object::Node(node)) => {
                if self.objects.nodes.get(&node.name).map(Arc::as_ref) != Some(node) {
                    self.endpoints.put_node(Arc::new(node.clone()));
                }
            }
            Change::Remove(ObjectName::Node(name)) => self.endpoints.remove_node(name),
            Change::Put(Object::Namespace(namespace)) => {
                if self.objects.namespace(&namespace.name).as_ref() != namespace {
                    pending.namespaces.insert(namespace.name.clone());
                }
            }
            Change::Remove(ObjectName::Namespace(name)) => {
                pending.namespaces.insert(name.clone());
            }
        }
    }

    fn take_policy(&mut self, policy: &Policy, pending: &mut Pending) {
        let subject = self.take_set(&Members::Pods(policy.subject.clone()), pending);
        let mut by_rule = |direction| -> Vec<Vec<MembersId>> {
            let rules = policy.rules(direction).unwrap_or_default().iter();
            let mut ids = |peers: &[Peer]| {
                let members = peers.iter().filter_map(members);
                members
                    .map(|members| self.take_set(&members, pending))
                    .collect()
            };
            rules.map(|rule| ids(&rule.peers)).collect()
        };
        let known = Arc::new(Known {
            subject,
            ingress: by_rule(Direction::Ingress),
            egress: by_rule(Direction::Egress),
            policy: Arc::new(policy.clone()),
        });
        self.changes += 1;
        let same = self.by_subject.entry(subject).or_default();
        same.version = self.changes;
        same.policies.push(Arc::clone(&known));
        self.subjects.insert(subject);
        pending.changed_subjects.insert(subject);
        self.policies.insert(policy.name.clone(), known);
    }

    fn take_set(&mut self, members: &Members, pending: &mut Pending) -> MembersId {
        let (id, is_new) = self.registry.take(members);
        if is_new {
            pending.fresh_sets.push(id);
        }
        id
    }

    fn drop_policy(&mut self, name: &PolicyName, pending: &mut Pending) {
        let Some(known) = self.policies.remove(name) else {
            return;
        };
        pending.changed_subjects.insert(known.subject);
        if let Some(same) = self.by_subject.get_mut(&known.subject) {
            self.changes += 1;
            same.version = self.changes;
            same.policies.retain(|other| !Arc::ptr_eq(other, &known));
            if same.policies.is_empty() {
                self.by_subject.remove(&known.subject);
                self.subjects.remove(known.subject);
            }
        }
        let peers = known.ingress.iter().chain(&known.egress).flatten();
        for id in peers.chain([&known.subject]) {
            if self.registry.leave(*id) {
                pending.dead_sets.push(*id);
            }
        }
    }

    /// Brings identities, programs and addresses to where the objects are.
    fn settle(&mut self, pending: Pending) -> Work {
        let mut work = Work::default();
        let before = self.rulebook.clone();
        let addresses = self.endpoints.touched();
        let Matched {
            ids: mut dirty,
            fresh,
            unused,
        } = self.settle_identities(&pending);
        work.identities_matched = dirty.len();
        self.widen(&pending.fresh_sets, &dirty);
        for (id, identity) in self.rulebook.identities().iter().enumerate() {
            if identity
                .sets
                .common(&pending.changed_subjects)
                .next()
                .is_some()
            {
                dirty.push(id);
            }
        }
        dirty.sort_unstable();
        dirty.dedup();
        self.forget_sets(pending.dead_sets);
        work.identities_ruled = dirty.len();
        for id in &dirty {
            let program = self.program_of(*id, &mut work);
            self.rulebook.identity_mut(*id).program = program;
        }
        // Who has a new identity, or had one that is gone, is among the addresses.
        dirty.retain(|id| !fresh.contains(id) && !unused.contains(id));
        work.judges_otherwise = !alike::judge_alike(&before, &self.rulebook, &addresses, &dirty);
        drop(before);
        for id in unused {
            *self.rulebook.identity_mut(id) = Identity::nobody();
        }
        if work.identities_ruled > 0 {
            self.programs
                .retain(|_, program| Arc::strong_count(program) > 1);
        }
        work
    }

    /// Evaluates new identities and those of changed namespaces.
    fn settle_identities(&mut self, pending: &Pending) -> Matched {
        let Settled { fresh, unused } = self.endpoints.settle(&self.objects, &mut self.rulebook);
        let mut dirty: Vec<_> = fresh.iter().copied().collect();
        for (id, identity) in self.rulebook.identities().iter().enumerate() {
            if let Who::Pod(namespace, _) = &identity.who
                && pending.namespaces.contains(&namespace.name)
            {
                dirty.push(id);
            }
        }
        dirty.sort_unstable();
        dirty.dedup();
        for id in &dirty {
            let objects = &self.objects;
            let identity = self.rulebook.identity_mut(*id);
            if let Who::Pod(namespace, _) = &mut identity.who {
                *namespace = objects.namespace(&namespace.name);
            }
            identity.sets = match identity.candidate() {
                Some(candidate) => self.registry.holding(candidate),
                None => Mask::default(),
            };
        }
        Matched {
            ids: dirty,
            fresh,
            unused,
        }
    }

    /// Asks the new sets about the identities that were there before them.
    fn widen(&mut self, fresh: &[MembersId], already: &[IdentityId]) {
        if fresh.is_empty() {
            return;
        }
        let index = self.registry.index_of(fresh);
        for id in 0..self.rulebook.identities().len() {
            if already.binary_search(&id).is_ok() {
                continue;
            }
            let mut found = Mask::default();
            if let Some(candidate) = self.rulebook.identities()[id].candidate() {
                self.registry.add_holding(&index, candidate, &mut found);
            }
            if !found.is_empty() {
                self.rulebook.identity_mut(id).sets.extend(&found);
            }
        }
    }

    fn forget_sets(&mut self, mut dead: Vec<MembersId>) {
        dead.retain(|id| self.registry.forget(*id));
        if dead.is_empty() {
            return;
        }
        for id in 0..self.rulebook.identities().len() {
            let held = |set: &&MembersId| self.rulebook.identities()[id].sets.holds(**set);
            let lost: Vec<_> = dead.iter().filter(held).copied().collect();
            for set in lost {
                self.rulebook.identity_mut(id).sets.remove(set);
            }
        }
    }

    fn program_of(&mut self, id: IdentityId, work: &mut Work) -> Option<Arc<Program>> {
        let identity = &self.rulebook.identities()[id];
        let subjects = identity.sets.common(&self.subjects);
        let subjects: Vec<_> = subjects
            .filter_map(|set| self.by_subject.get(&set))
            .collect();
        if subjects.is_empty() {
            return None;
        }
        let key: Vec<u64> = subjects.iter().map(|subject| subject.version).collect();
        if let Some(program) = self.programs.get(&key) {
            return Some(Arc::clone(program));
        }
        work.programs_built += 1;
        let policies = subjects.iter().flat_map(|subject| &subject.policies);
        let mut policies: Vec<_> = policies.collect();
        policies.sort_by(|a, b| a.policy.order().cmp(&b.policy.order()));
        let program = Arc::new(Program::new(&policies));
        self.programs.insert(key, Arc::clone(&program));
        Some(program)
    }
}

fn members(peer: &Peer) -> Option<Members> {
    match peer {
        Peer::Pods(group) => Some(Members::Pods(Group::clone(group))),
        Peer::Nodes(selector) => Some(Members::Nodes(selector.clone())),
        Peer::Block(_) => None,
    }
}

impl Known {
    fn peers(&self, direction: Direction) -> &[Vec<MembersId>] {
        match direction {
            Direction::Ingress => &self.ingress,
            Direction::Egress => &self.egress,
        }
    }
}

#[cfg(test)]
mod tests;

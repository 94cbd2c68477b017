//! Sets of endpoints that policies name, each known once by a small number.
//!
//! Every distinct selector is evaluated once for each identity, and only for
//! those that an [`Index`] of what the selector asks first leaves over.
//! Invariant: a number is not given again before every identity has lost it.

use std::hash::{Hash, Hasher};

use rapidhash::{RapidHashMap, fast::RapidHasher};

use super::mask::Mask;
use crate::object::{Group, Labels, Namespace, Requirement, Scope, Selector};

pub type MembersId = usize;

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Members {
    Pods(Group),
    Nodes(Selector),
}

/// Who may be a member.
#[derive(Clone, Copy, Debug)]
pub enum Candidate<'a> {
    Pod(&'a Namespace, &'a Labels),
    Node(&'a Labels),
}

#[derive(Debug, Default)]
pub struct Registry {
    slots: Vec<Slot>,
    by_members: RapidHashMap<Members, MembersId>,
    free: Vec<MembersId>,
    index: Index,
}

#[derive(Debug)]
struct Slot {
    members: Members,
    /// How many policies name it, as often as they do.
    uses: usize,
}

/// Numbers by what their selectors ask first, hashed: two questions may share
/// a hash, so what it finds is still to be asked.
#[derive(Debug, Default)]
pub struct Index(RapidHashMap<u64, Vec<MembersId>>);

impl Registry {
    /// The number of the members, and whether it is new.
    pub fn take(&mut self, members: &Members) -> (MembersId, bool) {
        if let Some(id) = self.by_members.get(members) {
            self.slots[*id].uses += 1;
            return (*id, false);
        }
        let slot = Slot {
            members: members.clone(),
            uses: 1,
        };
        let id = match self.free.pop() {
            Some(id) => {
                self.slots[id] = slot;
                id
            }
            None => {
                self.slots.push(slot);
                self.slots.len() - 1
            }
        };
        self.by_members.insert(members.clone(), id);
        self.index.insert(members, id);
        (id, true)
    }

    /// True when nobody names them any more: [`Registry::forget`] them then.
    pub fn leave(&mut self, id: MembersId) -> bool {
        self.slots[id].uses -= 1;
        self.slots[id].uses == 0
    }

    /// Frees the number, unless somebody took it again meanwhile.
    pub fn forget(&mut self, id: MembersId) -> bool {
        let slot = &self.slots[id];
        let is_dead = slot.uses == 0 && self.by_members.remove(&slot.members).is_some();
        if is_dead {
            self.index.remove(&slot.members, id);
            self.free.push(id);
        }
        is_dead
    }

    /// An index of these alone.
    pub fn index_of(&self, ids: &[MembersId]) -> Index {
        let mut index = Index::default();
        for id in ids {
            index.insert(&self.slots[*id].members, *id);
        }
        index
    }

    /// Of all that are known, those that hold the candidate.
    pub fn holding(&self, candidate: Candidate<'_>) -> Mask {
        let mut mask = Mask::default();
        self.add_holding(&self.index, candidate, &mut mask);
        mask
    }

    /// Adds those of the index that hold the candidate.
    pub fn add_holding(&self, index: &Index, candidate: Candidate<'_>, mask: &mut Mask) {
        index.each(candidate, |id| {
            if self.slots[id].members.hold(candidate) {
                mask.insert(id);
            }
        });
    }
}

impl Members {
    fn hold(&self, candidate: Candidate<'_>) -> bool {
        match (self, candidate) {
            (Self::Pods(group), Candidate::Pod(namespace, labels)) => {
                group.holds(namespace, labels)
            }
            (Self::Nodes(selector), Candidate::Node(labels)) => selector.matches(labels),
            _ => false,
        }
    }

    fn questions(&self) -> Vec<u64> {
        match self {
            Self::Nodes(selector) => match first_question(selector) {
                Some(pairs) => pairs.iter().map(|pair| hash(("node", pair))).collect(),
                None => vec![hash("any node")],
            },
            Self::Pods(Group {
                namespaces: Scope::Named(name),
                pods,
            }) => match first_question(pods) {
                Some(pairs) => pairs.iter().map(|pair| hash((name, pair))).collect(),
                None => vec![hash(("all of", name))],
            },
            Self::Pods(Group {
                namespaces: Scope::Matching(namespaces),
                pods,
            }) => {
                if let Some(pairs) = first_question(pods) {
                    pairs.iter().map(|pair| hash(("pod", pair))).collect()
                } else if let Some(pairs) = first_question(namespaces) {
                    pairs.iter().map(|pair| hash(("namespace", pair))).collect()
                } else {
                    vec![hash("any pod")]
                }
            }
        }
    }
}

type Question<'a> = (&'a str, Option<&'a str>);

/// Labels of which a member has one: the most telling requirement. None if
/// the selector only forbids.
fn first_question(selector: &Selector) -> Option<Vec<Question<'_>>> {
    let values = selector
        .requirements()
        .filter_map(|requirement| match requirement {
            Requirement::In(key, values) => Some((key, values)),
            _ => None,
        });
    if let Some((key, values)) = values.min_by_key(|(_, values)| values.len()) {
        let pair = |value| (key.as_str(), Some(String::as_str(value)));
        return Some(values.iter().map(pair).collect());
    }
    selector
        .requirements()
        .find_map(|requirement| match requirement {
            Requirement::Exists(key) => Some(vec![(key.as_str(), None)]),
            _ => None,
        })
}

impl Index {
    fn insert(&mut self, members: &Members, id: MembersId) {
        for question in members.questions() {
            self.0.entry(question).or_default().push(id);
        }
    }

    fn remove(&mut self, members: &Members, id: MembersId) {
        for question in members.questions() {
            if let Some(ids) = self.0.get_mut(&question) {
                ids.retain(|one| *one != id);
                if ids.is_empty() {
                    self.0.remove(&question);
                }
            }
        }
    }

    fn each(&self, candidate: Candidate<'_>, mut take: impl FnMut(MembersId)) {
        let mut ask = |question| {
            let ids = self.0.get(&question).into_iter().flatten();
            ids.copied().for_each(&mut take);
        };
        match candidate {
            Candidate::Node(labels) => {
                ask(hash("any node"));
                answers(labels, |pair| ask(hash(("node", pair))));
            }
            Candidate::Pod(namespace, labels) => {
                ask(hash("any pod"));
                ask(hash(("all of", &namespace.name)));
                answers(labels, |pair| {
                    ask(hash((&namespace.name, pair)));
                    ask(hash(("pod", pair)));
                });
                answers(&namespace.labels, |pair| ask(hash(("namespace", pair))));
            }
        }
    }
}

fn answers<'a>(labels: &'a Labels, mut take: impl FnMut(&Question<'a>)) {
    for (key, value) in labels.iter() {
        take(&(key, Some(value)));
        take(&(key, None));
    }
}

fn hash(question: impl Hash) -> u64 {
    let mut hasher = RapidHasher::default();
    question.hash(&mut hasher);
    hasher.finish()
}

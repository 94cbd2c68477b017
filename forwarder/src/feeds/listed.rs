//! The policies in force, for who asks.

use std::time::Instant;

use weft_api::{
    forwarder::{Code, Denied, Error, ObjectRef, PolicyRow, PolicySource, Rules},
    names::Name,
};
use weft_policy::{
    Explanation, ObjectName, PolicyName, explain,
    object::{Policy, Tier},
};

use super::{Feeds, Kept, given, told};
use crate::publish::refusal;

impl Feeds {
    pub fn rules(&self) -> Rules {
        let source = |(name, source): (&Name, &super::Source)| PolicySource {
            source: name.clone(),
            objects: source.objects.len(),
        };
        let mut policies: Vec<_> = self
            .compiler
            .selections()
            .filter_map(|(name, pods)| {
                let policy = self.objects().policies.get(name)?;
                Some((policy, self.row(policy, pods)?))
            })
            .collect();
        policies.sort_by(|(a, _), (b, _)| a.order().cmp(&b.order()));
        Rules {
            edition: self.edition,
            connections: self.tracker.as_ref().map_or(0, |tracker| tracker.count()),
            sources: self.sources.iter().map(source).collect(),
            policies: policies.into_iter().map(|(_, row)| row).collect(),
        }
    }

    /// Connections and the edition; none without a source.
    pub fn gauges(&self) -> Option<(u64, u64)> {
        let tracker = self.tracker.as_ref()?;
        Some((tracker.count() as u64, self.edition.into()))
    }

    /// One policy with its pods and its object.
    pub fn rule(&self, named: &ObjectRef) -> Result<PolicyRow, Error> {
        let name = given::name_of(named)?;
        let not_found = || {
            let message = format!("policy-show: there is no {name}");
            refusal(
                Code::NotFound,
                message,
                "`policy-list` shows the policies in force",
            )
        };
        let ObjectName::Policy(policy) = &name else {
            return Err(not_found());
        };
        let (policy, selected) = self
            .objects()
            .policies
            .get(policy)
            .zip(self.compiler.selected(policy))
            .ok_or_else(not_found)?;
        let row = self.row(policy, selected.len()).ok_or_else(not_found)?;
        let text = self
            .kept(&policy.name)
            .and_then(|(_, kept)| kept.text.as_deref());
        Ok(PolicyRow {
            selected: selected.iter().map(ToString::to_string).collect(),
            object: text.and_then(|text| serde_json::from_str(text).ok()),
            ..row
        })
    }

    pub fn explain(&self, flow: &weft_policy::Flow) -> Explanation {
        explain(&self.rulebook(), flow)
    }

    pub fn denied(&self, now: Instant) -> Denied {
        told::denied(&self.denied, now)
    }

    fn row(&self, policy: &Policy, pods: usize) -> Option<PolicyRow> {
        let (source, kept) = self.kept(&policy.name)?;
        Some(PolicyRow {
            policy: policy.name.to_string(),
            source: source.clone(),
            tier: match policy.tier {
                Tier::Admin(priority) => format!("admin {priority}"),
                Tier::Network => "network".to_owned(),
                Tier::Baseline(priority) => format!("baseline {priority}"),
            },
            edition: kept.edition,
            ingress_rules: policy.ingress.as_ref().map(Vec::len),
            egress_rules: policy.egress.as_ref().map(Vec::len),
            pods,
            selected: Vec::new(),
            object: None,
        })
    }

    fn kept(&self, policy: &PolicyName) -> Option<(&Name, &Kept)> {
        let name = ObjectName::Policy(policy.clone());
        let mut sources = self.sources.iter();
        sources.find_map(|(source, held)| Some((source, held.objects.get(&name)?)))
    }
}

//! Requests about policies: what the feeds are given, and what is asked of
//! them.

use std::{
    net::IpAddr,
    time::{Instant, SystemTime},
};

use tracing::info;
use weft_api::{
    forwarder::{Error, Explain, ObjectRef, Policies, PolicyChange, Reply},
    names::Name,
};
use weft_policy::{Decision, Flow, Reason, Verdict};

use super::Forwarder;
use crate::feeds::{Outcome, Plan, asked, gather::Gathered, logged::Moment, told};

impl Forwarder {
    /// The client is gone: what it began is forgotten.
    pub fn forget(&mut self, client: usize) {
        self.gathering.forget(client);
    }

    pub(super) fn policies(&mut self, client: usize, part: Policies) -> Result<Reply, Error> {
        let dry_run = part.dry_run;
        match self.gathering.take(client, part, Instant::now())? {
            Gathered::Part(objects) => Ok(Reply::Taken { objects }),
            Gathered::Whole(source, objects) if dry_run => {
                let trial = self.feeds.trial(source, objects, Instant::now())?;
                Ok(Reply::Trial(trial))
            }
            Gathered::Whole(source, objects) => {
                let plan = self.feeds.plan_replacement(source, objects)?;
                let withdrawn = plan.withdrawn();
                self.commit(plan)?;
                let epoch = self.epoch.0;
                Ok(Reply::Given { withdrawn, epoch })
            }
        }
    }

    pub(super) fn policy_change(&mut self, change: PolicyChange) -> Result<Reply, Error> {
        let plan = self.feeds.plan_change(change)?;
        self.commit(plan)
    }

    pub(super) fn policy_drop(&mut self, source: Name) -> Result<Reply, Error> {
        let plan = self.feeds.plan_end(source.clone())?;
        info!("source {source} is forgotten, and all its policies");
        self.commit(plan)
    }

    pub(super) fn policy_show(&self, policy: &ObjectRef) -> Result<Reply, Error> {
        let row = self.feeds.rule(policy)?;
        Ok(Reply::Policy(Box::new(row)))
    }

    pub(super) fn explain(&self, asked: &Explain) -> Result<Reply, Error> {
        let port = |name: &str| -> Option<Vec<IpAddr>> {
            let mut rows = self.state.ports();
            let row = rows.find(|row| row.spec.name.as_str() == name)?;
            Some(row.spec.addresses.clone())
        };
        let flow = asked::flow(asked, self.feeds.objects(), port)?;
        let mut found = self.feeds.explain(&flow);
        if self.node_opens(&flow) {
            found.verdict = Verdict {
                egress: Decision::allow(Reason::Outside),
                ingress: Decision::allow(Reason::OwnNode),
            };
            found.egress_candidates.clear();
            found.ingress_candidates.clear();
        }
        let told = told::explanation(&found);
        Ok(Reply::Explanation(Box::new(told)))
    }

    /// Whether it goes from the node's own addresses at its host port to a pod
    /// of this node, which no rule is asked about.
    fn node_opens(&self, flow: &Flow) -> bool {
        let holds = |address: &IpAddr, is_host: bool| {
            self.state.ports().any(|row| {
                row.port.host.is_some() == is_host && row.spec.addresses.contains(address)
            })
        };
        holds(&flow.source, true) && holds(&flow.destination, false)
    }

    pub(super) fn flows(&self, after: Option<u64>) -> Result<Reply, Error> {
        let now = Moment {
            steady: Instant::now(),
            wall: SystemTime::now(),
        };
        self.feeds.flows(after, now).map(Reply::Flows)
    }

    /// Puts what changed in force; an epoch ends only with its rules.
    fn commit(&mut self, plan: Plan) -> Result<Reply, Error> {
        let epoch = self.epoch;
        match self.feeds.commit(plan, Instant::now()) {
            Outcome::Nothing => Ok(Reply::Done { epoch: epoch.0 }),
            Outcome::Objects => self.publish_in(epoch, self.state.clone(), self.open.clone()),
            Outcome::Rules => self.publish(self.state.clone(), self.open.clone()),
        }
    }
}

//! What a forwarder has counted, taken at quiet moments and compared.

use std::{
    collections::BTreeMap,
    thread,
    time::{Duration, Instant},
};

use anyhow::bail;
use weft_api::forwarder::{Reply, Request};

use crate::forwarders::Forwarder;

/// Why packets are lost that pods' kernels send to nobody: to the groups that
/// they are in, and for duplicates of their link-local addresses.
pub const OWN_WORDS: [&str; 2] = ["multicast", "gateway_unserved"];

/// All counters of a forwarder.
#[derive(Debug, Clone, PartialEq)]
pub struct Ledger {
    pub values: BTreeMap<String, u64>,
    /// By reason; those without a drop too.
    pub drops: BTreeMap<String, u64>,
}

/// For the books to balance.
const PATIENCE: Duration = Duration::from_secs(5);
/// Without a change, for the moment to be quiet.
const QUIET: Duration = Duration::from_millis(30);

impl Ledger {
    /// At a quiet moment, which is waited for. An error where what came is not what went.
    pub fn of(forwarder: &Forwarder) -> anyhow::Result<Self> {
        let until = Instant::now() + PATIENCE;
        let mut before = None;
        loop {
            let (ledger, came, went) = Self::read(forwarder)?;
            if came == went && before.as_ref() == Some(&ledger) {
                return Ok(ledger);
            }
            if Instant::now() > until {
                bail!("out of balance, or never quiet: {came} packets came, {went} went");
            }
            before = Some(ledger);
            thread::sleep(QUIET);
        }
    }

    /// Whatever the moment is like: under load the books are never closed.
    pub fn now(forwarder: &Forwarder) -> anyhow::Result<Self> {
        Self::read(forwarder).map(|(ledger, ..)| ledger)
    }

    fn read(forwarder: &Forwarder) -> anyhow::Result<(Self, u64, u64)> {
        let mut client = forwarder.client()?;
        let Reply::Counters(counters) = client.request(&Request::Counters)? else {
            bail!("counters answers with counters");
        };
        let Reply::Drops(drops) = client.request(&Request::Drops)? else {
            bail!("drops answers with drops");
        };
        let drops = drops.into_iter().map(|drop| (drop.reason, drop.packets));
        let ledger = Self {
            values: counters.values,
            drops: drops.collect(),
        };
        Ok((ledger, counters.came, counters.went))
    }

    /// How far a counter is, by its name.
    pub fn value(&self, name: &str) -> u64 {
        self.values.get(name).copied().unwrap_or_default()
    }

    pub fn dropped(&self, reason: &str) -> u64 {
        self.drops.get(reason).copied().unwrap_or_default()
    }

    /// The drops since `before`, of the reasons for which there are any.
    pub fn drops_since(&self, before: &Self) -> BTreeMap<String, u64> {
        let more = |(reason, packets): (&String, &u64)| {
            let more = packets - before.dropped(reason);
            (more > 0).then(|| (reason.clone(), more))
        };
        self.drops.iter().filter_map(more).collect()
    }

    /// [`Ledger::drops_since`], without what is lost for [`OWN_WORDS`].
    pub fn lost_since(&self, before: &Self) -> BTreeMap<String, u64> {
        let mut drops = self.drops_since(before);
        drops.retain(|reason, _| !OWN_WORDS.contains(&reason.as_str()));
        drops
    }
}

//! Addresses of a block given and taken back, as Calico's own allocator does,
//! and what else it writes along: the block's affinity and the handle's count.
//!
//! Invariant: a block whose lists do not agree is not changed.

use std::{collections::BTreeMap, net::IpAddr};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::{Attribute, Block, CALICO, block::nth};
use crate::Error;

/// Holds several addresses of each Windows node's block.
pub const WINDOWS: &str = "windows-reserved-ipam-handle";

/// That a block is a node's, or is to become or was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Affinity {
    /// None of old versions, which knew no other than confirmed ones.
    #[serde(default)]
    pub state: State,
    #[serde(default)]
    pub deleted: bool,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum State {
    #[default]
    #[serde(alias = "")]
    Confirmed,
    Pending,
    PendingDeletion,
}

/// How many addresses of each block a handle has.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Handle {
    #[serde(default)]
    pub block: BTreeMap<String, i64>,
    #[serde(default)]
    pub deleted: bool,
}

/// Who takes an address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    pub handle: String,
    pub attributes: BTreeMap<String, String>,
}

impl Holder {
    /// Of a node's tunnel address.
    pub fn tunnel(node: &str, v6: bool) -> Self {
        let (handle, kind) = match v6 {
            false => ("vxlan-tunnel-addr", "vxlanTunnelAddress"),
            true => ("vxlan-v6-tunnel-addr", "vxlanV6TunnelAddress"),
        };
        let attributes = [("node", node), ("type", kind)];
        Self {
            handle: format!("{handle}-{node}"),
            attributes: attributes
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .into(),
        }
    }

    fn attribute(&self) -> Attribute {
        Attribute {
            handle_id: Some(self.handle.clone()),
            secondary: Some(self.attributes.clone()),
            ..Attribute::default()
        }
    }
}

impl Affinity {
    /// Of the value at `key`; old versions wrote an empty one.
    pub fn parse(key: &str, value: &[u8]) -> Result<Self, Error> {
        let value = if value.is_empty() { b"{}" } else { value };
        crate::json(key, CALICO, value)
    }

    pub fn to_json(self) -> String {
        // Plain data, as a block is.
        serde_json::to_string(&self).unwrap_or_default()
    }

    pub fn of(state: State) -> Self {
        Self {
            state,
            deleted: false,
        }
    }
}

impl Handle {
    /// Of the value at `key`.
    pub fn parse(key: &str, value: &[u8]) -> Result<Self, Error> {
        crate::json(key, CALICO, value)
    }

    pub fn to_json(&self) -> String {
        // Plain data, as a block is.
        serde_json::to_string(self).unwrap_or_default()
    }

    /// Adds to a block's count, or takes away. True when anything is left.
    pub fn count(&mut self, cidr: IpNet, by: i64) -> bool {
        let count = self.block.entry(cidr.to_string()).or_default();
        *count = count.saturating_add(by);
        self.block.retain(|_, count| *count > 0);
        !self.block.is_empty()
    }
}

impl Block {
    /// One that nobody has an address of. Numbers of a block that was there
    /// before are not to come again: `sequence` is the time in nanoseconds.
    pub fn new(cidr: IpNet, node: &str, claimed: String, sequence: u64) -> Self {
        let size = 1i64 << (cidr.max_prefix_len() - cidr.prefix_len()).min(16);
        Self {
            cidr,
            affinity: Some(format!("host:{node}")),
            affinity_claim_time: Some(claimed),
            allocations: Some((0..size).map(|_| None).collect()),
            unallocated: Some((0..size).collect()),
            attributes: None,
            sequence,
            sequences: Some(BTreeMap::new()),
            deleted: false,
            host_affinity: None,
            other: BTreeMap::new(),
        }
    }

    /// Whether no address is taken, or rests after it was.
    pub fn is_empty(&self) -> bool {
        let windows = |attribute: &Attribute| {
            let handle = attribute.handle_id.as_deref();
            handle.is_some_and(|handle| handle.eq_ignore_ascii_case(WINDOWS))
        };
        self.taken()
            .all(|(_, attribute)| attribute.is_some_and(windows))
    }

    /// The addresses that a handle has, with who it says that it is for.
    pub fn held_by<'a>(&'a self, handle: &'a str) -> impl Iterator<Item = (IpAddr, &'a Attribute)> {
        self.taken().filter_map(move |(ordinal, attribute)| {
            let attribute = attribute.filter(|one| {
                one.handle_id.as_deref() == Some(handle) && one.released_at.is_none()
            })?;
            Some((nth(self.cidr, ordinal)?.addr(), attribute))
        })
    }

    /// The addresses in use on a node: those that say so, and in its own block
    /// those that say nothing.
    pub fn held_on<'a>(&'a self, node: &'a str) -> impl Iterator<Item = (IpAddr, &'a Attribute)> {
        self.taken().filter_map(move |(ordinal, attribute)| {
            let attribute = attribute.filter(|one| {
                let said = one.secondary.as_ref().and_then(|all| all.get("node"));
                let on = said.map(String::as_str).or(self.node());
                on == Some(node) && one.released_at.is_none()
            })?;
            Some((nth(self.cidr, ordinal)?.addr(), attribute))
        })
    }

    /// The first free address that `may` be taken, taken.
    pub fn assign(&mut self, holder: &Holder, may: impl Fn(IpAddr) -> bool) -> Option<IpAddr> {
        let cidr = self.cidr;
        let address = |ordinal: i64| Some(nth(cidr, u128::try_from(ordinal).ok()?)?.addr());
        let free = self.unallocated.as_deref().unwrap_or_default();
        let (place, ordinal, address) = free.iter().enumerate().find_map(|(place, ordinal)| {
            let address = address(*ordinal).filter(|address| may(*address))?;
            Some((place, *ordinal, address))
        })?;
        let attribute = holder.attribute();
        let attributes = self.attributes.get_or_insert_default();
        let known = attributes.iter().position(|one| *one == attribute);
        let index = known.unwrap_or(attributes.len());
        let slots = self.allocations.as_mut();
        let slot = slots.and_then(|all| all.get_mut(usize::try_from(ordinal).ok()?))?;
        if slot.is_some() {
            return None;
        }
        *slot = Some(i64::try_from(index).ok()?);
        if known.is_none() {
            attributes.push(attribute);
        }
        self.unallocated.as_mut()?.remove(place);
        let sequences = self.sequences.get_or_insert_default();
        sequences.insert(ordinal.to_string(), self.sequence);
        Some(address)
    }

    /// Takes all addresses of a handle back, and says how many they were. With
    /// a time to rest they are not free before it is over: since `now`.
    pub fn release(&mut self, handle: &str, rest: Option<&str>) -> i64 {
        let ordinals: Vec<_> = self
            .taken()
            .filter(|(_, attribute)| {
                attribute.is_some_and(|one| {
                    one.handle_id.as_deref() == Some(handle) && one.released_at.is_none()
                })
            })
            .filter_map(|(ordinal, _)| usize::try_from(ordinal).ok())
            .collect();
        let count = i64::try_from(ordinals.len()).unwrap_or(i64::MAX);
        let resting = rest.filter(|_| count > 0).and_then(|now| {
            let attributes = self.attributes.get_or_insert_default();
            attributes.push(Attribute {
                released_at: Some(now.to_owned()),
                ..Attribute::default()
            });
            i64::try_from(attributes.len() - 1).ok()
        });
        for ordinal in ordinals {
            if let Some(slot) = self
                .allocations
                .as_mut()
                .and_then(|all| all.get_mut(ordinal))
            {
                *slot = resting;
            }
            let sequences = self.sequences.get_or_insert_default();
            match (resting, i64::try_from(ordinal)) {
                (None, Ok(free)) => {
                    sequences.remove(&ordinal.to_string());
                    self.unallocated.get_or_insert_default().push(free);
                }
                _ => {
                    sequences.insert(ordinal.to_string(), self.sequence);
                }
            }
        }
        self.prune();
        count
    }

    pub fn to_json(&self) -> String {
        // Plain data: there is nothing that JSON has no form for.
        serde_json::to_string(self).unwrap_or_default()
    }

    /// By ordinal. An index that leads nowhere is taken all the same.
    fn taken(&self) -> impl Iterator<Item = (u128, Option<&Attribute>)> {
        let ordinals = self.allocations.iter().flatten();
        (0u128..).zip(ordinals).filter_map(|(ordinal, index)| {
            let index = usize::try_from((*index)?).ok();
            let attributes = self.attributes.as_deref().unwrap_or_default();
            Some((ordinal, index.and_then(|index| attributes.get(index))))
        })
    }

    /// Forgets attributes that no address has.
    fn prune(&mut self) {
        let slots = self.allocations.as_deref().unwrap_or_default();
        let used: std::collections::BTreeSet<_> = slots.iter().flatten().copied().collect();
        let mut moved = BTreeMap::new();
        let mut kept = Vec::new();
        for (old, attribute) in (0i64..).zip(self.attributes.take().unwrap_or_default()) {
            if used.contains(&old) {
                moved.insert(old, i64::try_from(kept.len()).unwrap_or(old));
                kept.push(attribute);
            }
        }
        self.attributes = Some(kept);
        for slot in self.allocations.iter_mut().flatten().flatten() {
            *slot = moved.get(slot).copied().unwrap_or(*slot);
        }
    }
}

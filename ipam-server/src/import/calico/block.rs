//! Calico's blocks and pools as rows.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use ipnet::IpNet;
use serde::Deserialize;
use serde_json::Value as Json;
use weft_api::{
    ipam::{PodRef, Pool, Time, Use},
    names::{Handle, Name},
};
use weft_interop::calico::{Attribute, Block as Row, WINDOWS, parse_rfc3339};

use super::{Calico, deleted, owner};
use crate::model::{Allocation, Block, Key, Value};

impl Calico {
    pub(super) fn block(&mut self, object: &str, key: Option<IpNet>, value: &Json) {
        self.objects += 1;
        if deleted(value) {
            return;
        }
        let row = match Row::deserialize(value) {
            Ok(row) => row,
            Err(error) => return self.imported.wrong(object, error.to_string()),
        };
        let affinity = row.owner();
        let owned = affinity.and_then(|(kind, name)| owner(kind, name));
        if let Some((kind, name)) = affinity.filter(|_| owned.is_none()) {
            self.imported
                .wrong(object, format!("{kind}:{name} is no owner"));
        }
        let free = row.unallocated.iter().flatten();
        let (free, wrong): (Vec<_>, Vec<_>) = free
            .map(|o| u32::try_from(*o).map_err(|_| *o))
            .partition(Result::is_ok);
        if let Some(Err(ordinal)) = wrong.first() {
            self.imported
                .wrong(object, format!("free ordinal {ordinal} is out of range"));
        }
        let claimed = self
            .time(object, row.affinity_claim_time.as_deref())
            .unwrap_or(0);
        let block = Block {
            cidr: row.cidr,
            owner: owned.clone(),
            claimed,
            sequence: row.sequence,
            allocations: self.allocations(object, &row, owned),
            free: free.into_iter().flatten().collect(),
        };
        let key = Key::Block(key.unwrap_or(row.cidr).trunc());
        self.imported.rows.push((key, Value::Block(block.into())));
    }

    fn allocations(
        &mut self,
        object: &str,
        row: &Row,
        owner: Option<Name>,
    ) -> BTreeMap<u32, Arc<Allocation>> {
        let attributes = row.attributes.as_deref().unwrap_or_default();
        let mut used = BTreeSet::new();
        let mut allocations = BTreeMap::new();
        let ordinals = row.allocations.iter().flatten();
        for (ordinal, index) in (0u32..).zip(ordinals).filter_map(|(o, i)| Some((o, (*i)?))) {
            let attribute = usize::try_from(index)
                .ok()
                .and_then(|index| attributes.get(index));
            let Some(attribute) = attribute else {
                let message = format!(
                    "ordinal {ordinal} has attribute {index}, of {}",
                    attributes.len()
                );
                self.imported.wrong(object, message);
                continue;
            };
            used.insert(index);
            let mut allocation =
                self.allocation(object, ordinal, row.cidr, attribute, owner.as_ref());
            let sequences = row.sequences.as_ref();
            allocation.sequence = sequences
                .and_then(|all| all.get(&ordinal.to_string()))
                .copied()
                .unwrap_or(0);
            allocations.insert(ordinal, Arc::new(allocation));
        }
        for index in (0i64..)
            .take(attributes.len())
            .filter(|index| !used.contains(index))
        {
            self.imported
                .wrong(object, format!("attribute {index} belongs to no ordinal"));
        }
        allocations
    }

    fn allocation(
        &mut self,
        object: &str,
        ordinal: u32,
        cidr: IpNet,
        attribute: &Attribute,
        owner: Option<&Name>,
    ) -> Allocation {
        let text = |name: &str| attribute.secondary.as_ref().and_then(|all| all.get(name));
        let name = |of: &str| text(of).and_then(|value| Name::new(value).ok());
        let released = self.time(object, attribute.released_at.as_deref());
        let id = attribute
            .handle_id
            .as_deref()
            .filter(|_| released.is_none());
        if let Some(id) = id {
            *self
                .held
                .entry(id.to_owned())
                .or_default()
                .entry(cidr)
                .or_default() += 1;
        }
        let windows = id.is_some_and(|id| id.eq_ignore_ascii_case(WINDOWS));
        // A handle of ours has one address of a family.
        let own = id.map(|id| match windows {
            true => format!("{id}/{}", crate::check::address(cidr, ordinal)),
            false => id.to_owned(),
        });
        let handle = own.and_then(|id| {
            let handle =
                Handle::new(id).map_err(|error| self.imported.wrong(object, error.to_string()));
            handle.ok()
        });
        let tunnel = windows || text("type").is_some_and(|kind| kind.ends_with("TunnelAddress"));
        let purpose = if tunnel {
            Use::Tunnel
        } else if text("service").is_some() {
            Use::LoadBalancer
        } else {
            Use::Workload
        };
        let node = name("node").or(owner.cloned());
        Allocation {
            handle,
            sequence: 0,
            node: node.unwrap_or_else(|| Name::new("unknown").expect("a fixed, valid name")),
            purpose,
            pod: name("namespace")
                .zip(name("pod"))
                .map(|(namespace, name)| PodRef { namespace, name }),
            identity: None,
            since: 0,
            mark: 0,
            place: None,
            released,
        }
    }

    fn time(&mut self, object: &str, text: Option<&str>) -> Option<Time> {
        let text = text?;
        let time = parse_rfc3339(text).map(|seconds| seconds * 1000);
        if time.is_none() {
            self.imported.wrong(object, format!("{text:?} is no time"));
        }
        // What was released stays so, whenever it was.
        Some(time.unwrap_or(0))
    }

    pub(super) fn pool(&mut self, object: &str, name: &str, spec: &Json) {
        self.objects += 1;
        let mode = |name: &str| {
            spec.get(name)
                .and_then(Json::as_str)
                .filter(|mode| !matches!(*mode, "" | "Never"))
        };
        let (encapsulation, when) = match (mode("vxlanMode"), mode("ipipMode")) {
            (Some(_), Some(_)) => {
                return self
                    .imported
                    .wrong(object, "it has both VXLAN and IPIP".into());
            }
            (Some(when), None) => ("vxlan", when),
            (None, Some(when)) => ("ipip", when),
            (None, None) => ("none", ""),
        };
        let flag = |name: &str| spec.get(name).and_then(Json::as_bool).unwrap_or(false);
        let text = |name: &str| spec.get(name).and_then(Json::as_str).unwrap_or_default();
        let uses = allowed_uses(spec);
        let mut row = serde_json::json!({
            "name": name,
            "cidr": text("cidr"),
            "block_size": spec.get("blockSize").filter(|size| size.as_u64() != Some(0)),
            "node_selector": text("nodeSelector"),
            "namespace_selector": text("namespaceSelector"),
            "manual": text("assignmentMode") == "Manual",
            "disabled": flag("disabled"),
            "nat_outgoing": flag("natOutgoing"),
            "encapsulation": encapsulation,
            "when": if when == "CrossSubnet" { "cross-subnet" } else { "always" },
        });
        if !uses.is_empty() {
            row["uses"] = uses.into();
        }
        match Pool::deserialize(row) {
            Ok(pool) => self
                .imported
                .rows
                .push((Key::Pool(pool.name.clone()), Value::Pool(pool))),
            Err(error) => self.imported.wrong(object, error.to_string()),
        }
    }
}

fn allowed_uses(pool: &Json) -> Vec<&'static str> {
    let uses = pool.get("allowedUses").and_then(Json::as_array);
    uses.into_iter()
        .flatten()
        .map(|one| match one.as_str() {
            Some("Workload") => "workload",
            Some("Tunnel") => "tunnel",
            Some("LoadBalancer") => "load-balancer",
            _ => "unknown",
        })
        .collect()
}

//! A dump of Calico's objects: what `etcdctl get --prefix -w json` prints,
//! lines of `{"key": …, "value": …}`, or what `kubectl get -o json` prints of
//! the IPAM resources, even several such documents after one another.

use std::collections::BTreeMap;

use base64::{Engine, engine::general_purpose::STANDARD};
use ipnet::IpNet;
use serde::Deserialize;
use serde_json::Value as Json;
use weft_api::{
    ipam::{AffinityState, ProblemKind},
    names::Name,
};

use super::{ImportError, Imported};
use crate::model::{Affinity, Key, Value};

mod block;

pub fn calico(dump: &[u8]) -> Result<Imported, ImportError> {
    let mut calico = Calico::default();
    for document in serde_json::Deserializer::from_slice(dump).into_iter::<Json>() {
        calico.document(document.map_err(|error| ImportError::Json(error.to_string()))?);
    }
    if calico.objects == 0 {
        return Err(ImportError::Nothing);
    }
    calico.count_handles();
    Ok(calico.imported)
}

/// Where etcd holds pools, as the resources that `kubectl` would show.
const POOLS: &str = "calico/resources/v3/projectcalico.org/ippools/";

/// How many addresses of each block a handle has.
type Counts = BTreeMap<IpNet, i64>;

#[derive(Default)]
struct Calico {
    imported: Imported,
    objects: usize,
    /// As the handles' own objects say, and as the blocks do.
    counted: BTreeMap<String, Counts>,
    held: BTreeMap<String, Counts>,
}

impl Calico {
    fn document(&mut self, document: Json) {
        if let Some(pairs) = document.get("kvs").and_then(Json::as_array) {
            for pair in pairs {
                let part = |name| pair.get(name).and_then(Json::as_str).unwrap_or_default();
                match (STANDARD.decode(part("key")), STANDARD.decode(part("value"))) {
                    (Ok(key), Ok(value)) => self.bytes(&String::from_utf8_lossy(&key), &value),
                    _ => self
                        .imported
                        .wrong(part("key"), "the pair is not base64".into()),
                }
            }
        } else if let Some(items) = document.get("items").and_then(Json::as_array) {
            items.iter().for_each(|item| self.resource(item));
        } else if let Some(key) = document.get("key").and_then(Json::as_str) {
            match document.get("value") {
                Some(Json::String(text)) => self.bytes(key, text.as_bytes()),
                Some(value) => self.pair(key, value),
                None => self.bytes(key, b""),
            }
        } else {
            self.resource(&document);
        }
    }

    fn bytes(&mut self, key: &str, value: &[u8]) {
        // Affinities of old versions have no value.
        let value = if value.is_empty() { b"{}" } else { value };
        let ours = ["calico/ipam/v2/", POOLS];
        if !ours
            .iter()
            .any(|ours| key.trim_start_matches('/').starts_with(ours))
        {
            return;
        }
        match serde_json::from_slice(value) {
            Ok(value) => self.pair(key, &value),
            Err(error) => self
                .imported
                .wrong(key, format!("its value is not JSON: {error}")),
        }
    }

    fn pair(&mut self, key: &str, value: &Json) {
        let parts: Vec<_> = key.trim_start_matches('/').split('/').collect();
        let cidr = |text: &str| text.replacen('-', "/", 1).parse::<IpNet>().ok();
        match parts[..] {
            ["calico", "ipam", "v2", "config"] => self.objects += 1,
            ["calico", "ipam", "v2", "handle", id] => self.handle(id, value),
            ["calico", "ipam", "v2", "assignment", _, "block", net] => match cidr(net) {
                Some(net) => self.block(key, Some(net), value),
                None => self.imported.wrong(key, format!("{net:?} is no CIDR")),
            },
            ["calico", "ipam", "v2", kind, owner, _, "block", net] => match cidr(net) {
                Some(net) => self.affinity(key, (kind, owner), net, value),
                None => self.imported.wrong(key, format!("{net:?} is no CIDR")),
            },
            _ if key.trim_start_matches('/').starts_with(POOLS) => self.resource(value),
            ["calico", "ipam", "v2", ..] => {
                self.imported
                    .wrong(key, "no such kind of object is known".into());
            }
            _ => {}
        }
    }

    fn resource(&mut self, item: &Json) {
        let text = |value: &Json, name: &str| {
            value
                .get(name)
                .and_then(Json::as_str)
                .unwrap_or_default()
                .to_owned()
        };
        let kind = text(item, "kind");
        let spec = item.get("spec").unwrap_or(&Json::Null);
        let name = item
            .get("metadata")
            .map(|of| text(of, "name"))
            .unwrap_or_default();
        let object = format!("{kind} {name}");
        match kind.as_str() {
            "IPAMBlock" => self.block(&object, None, spec),
            "IPAMHandle" => self.handle(&text(spec, "handleID"), spec),
            "BlockAffinity" => match text(spec, "cidr").parse() {
                Ok(net) => {
                    let owner = (&*text(spec, "type"), &*text(spec, "node"));
                    self.affinity(&object, owner, net, spec);
                }
                Err(_) => self.imported.wrong(object, "its cidr is no CIDR".into()),
            },
            "IPPool" => self.pool(&object, &name, spec),
            _ => {}
        }
    }

    fn affinity(&mut self, object: &str, (kind, owner): (&str, &str), net: IpNet, value: &Json) {
        self.objects += 1;
        if deleted(value) {
            return;
        }
        let state = match value
            .get("state")
            .and_then(Json::as_str)
            .unwrap_or_default()
        {
            "" | "confirmed" => AffinityState::Confirmed,
            "pending" => AffinityState::Pending,
            "pendingDeletion" => AffinityState::PendingDeletion,
            other => {
                return self
                    .imported
                    .wrong(object, format!("state {other:?} is not known"));
            }
        };
        match self::owner(kind, owner) {
            Some(node) if net == net.trunc() => {
                let row = Value::Affinity(Affinity { state });
                self.imported.rows.push((Key::Affinity(node, net), row));
            }
            Some(_) => self.imported.wrong(object, format!("{net} is misaligned")),
            None => self
                .imported
                .wrong(object, format!("{kind}:{owner} is no owner")),
        }
    }

    fn handle(&mut self, id: &str, value: &Json) {
        #[derive(Deserialize)]
        struct Row {
            block: Option<BTreeMap<IpNet, i64>>,
        }
        self.objects += 1;
        if deleted(value) {
            return;
        }
        match Row::deserialize(value) {
            Ok(row) => {
                self.counted
                    .insert(id.to_owned(), row.block.unwrap_or_default());
            }
            Err(error) => self
                .imported
                .wrong(format!("handle {id}"), error.to_string()),
        }
    }

    /// A dump without any handle object was one of blocks only.
    fn count_handles(&mut self) {
        if self.counted.is_empty() {
            return;
        }
        let hint = "correct the handle's count, or delete the handle if it holds nothing";
        let nothing = Counts::new();
        for (id, counts) in &self.counted {
            let held = self.held.get(id).unwrap_or(&nothing);
            let mut nets: Vec<_> = counts.keys().chain(held.keys()).collect();
            nets.sort();
            nets.dedup();
            if held.is_empty() {
                let message = "no block holds an address of it".into();
                self.imported
                    .told(ProblemKind::Handle, format!("handle {id}"), message, hint);
                continue;
            }
            for net in nets {
                let (says, has) = (
                    counts.get(net).copied().unwrap_or(0),
                    held.get(net).copied().unwrap_or(0),
                );
                if says != has {
                    let message =
                        format!("it counts {says} addresses in block {net}, which holds {has}");
                    self.imported
                        .told(ProblemKind::Handle, format!("handle {id}"), message, hint);
                }
            }
        }
        for id in self
            .held
            .keys()
            .filter(|id| !self.counted.contains_key(*id))
        {
            let message = "blocks hold addresses of it, but it does not exist".into();
            self.imported.told(
                ProblemKind::Handle,
                format!("handle {id}"),
                message,
                "release its addresses",
            );
        }
    }
}

/// Marked so until its deletion is done; `kubectl` shows an affinity's mark
/// as a string.
fn deleted(value: &Json) -> bool {
    match value.get("deleted") {
        Some(Json::Bool(deleted)) => *deleted,
        Some(Json::String(deleted)) => deleted == "true",
        _ => false,
    }
}

fn owner(kind: &str, name: &str) -> Option<Name> {
    match kind {
        "" | "host" => Name::new(name).ok(),
        "virtual" => Name::new(format!("virtual/{name}")).ok(),
        _ => None,
    }
}

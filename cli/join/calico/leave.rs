//! What a member gives back that goes: all that is empty. While an address is
//! in use on the node, its record and its tunnel addresses stay, so that the
//! others still reach it.

use std::net::IpAddr;

use serde_json::Value as Json;
use weft_etcd::Cluster;
use weft_interop::calico::{Block, Holder, Record};

use super::{address::release, claim, member::MADE, records::Records, store};

pub fn leave(cluster: &Cluster, own: &Record) -> anyhow::Result<()> {
    let name = own.name.as_str();
    let handles = [false, true].map(|v6| Holder::tunnel(name, v6).handle);
    let records = Records::load(cluster)?;
    let used: Vec<_> = records
        .blocks()
        .flat_map(|(_, block)| on_node(block, name, &handles))
        .collect();
    let key = own.key();
    let row = store::read(cluster, &key)?;
    let made = row.as_ref().is_some_and(|row| {
        let node: Json = serde_json::from_slice(&row.value.0).unwrap_or_default();
        node["metadata"]["annotations"].get(MADE).is_some()
    });
    let goes = made && used.is_empty();
    if goes {
        // First, so that nobody sends to a tunnel address that is another's.
        if let Some(row) = row {
            store::delete(cluster, &key, row.mod_revision)?;
        }
        for (_, block) in records.blocks() {
            for handle in &handles {
                if block.held_by(handle).next().is_some() {
                    release(cluster, handle, block.cidr, records.ipam().cooldown)?;
                }
            }
        }
    } else {
        tracing::info!(%key, made, in_use = used.len(), "this node's record stays");
    }
    let blocks = records
        .blocks()
        .filter(|(_, block)| block.node() == Some(name));
    for (_, block) in blocks {
        let now = claim::block(cluster, block.cidr)?;
        if let Some((now, _)) = now
            && (now.is_empty() || goes)
        {
            let empty = now.is_empty().then_some(now.sequence);
            claim::release(cluster, name, now.cidr, empty)?;
        }
    }
    Ok(())
}

/// The addresses of a block that are in use on the node, but for its tunnels'.
fn on_node(block: &Block, node: &str, tunnels: &[String; 2]) -> Vec<IpAddr> {
    let of_node = block.held_on(node);
    let pods = of_node.filter(|(_, attribute)| {
        let handle = attribute.handle_id.as_ref();
        !handle.is_some_and(|handle| tunnels.contains(handle))
    });
    pods.map(|(address, _)| address).collect()
}

//! Affinities against blocks: a block and its owner's affinity say the same.

use ipnet::IpNet;
use weft_api::ipam::{AffinityState, ProblemKind};

use super::{Found, Rows};
use crate::model::Key;

pub(super) fn check(rows: &Rows, found: &mut Found) {
    let mut confirmed: Option<IpNet> = None;
    for ((cidr, node), affinity) in &rows.affinities {
        let object = Key::Affinity((*node).clone(), *cidr);
        match affinity.state {
            AffinityState::Pending => {
                let message = format!("node {node} has not finished claiming the block");
                let hint = "allocate an address on the node: that finishes the claim";
                found.add(ProblemKind::Unfinished, object, message, hint);
                continue;
            }
            AffinityState::PendingDeletion => {
                let message = format!("node {node} has not finished giving the block up");
                let hint = "allocate an address on the node: that takes it back or gives it up";
                found.add(ProblemKind::Unfinished, object, message, hint);
                continue;
            }
            AffinityState::Confirmed => {}
        }
        let hint = "delete the affinity";
        match rows.blocks.get(cidr) {
            None => found.structure(&object, "its block does not exist".into(), hint),
            Some(block) if block.owner.as_ref() != Some(*node) => {
                let owner = block
                    .owner
                    .as_ref()
                    .map_or("nobody", |owner| owner.as_str());
                let message = format!("the block's owner is {owner}, not {node}");
                found.structure(&object, message, hint);
            }
            Some(_) => {}
        }
        // Sorted by block: two of one block follow each other.
        if confirmed.replace(*cidr) == Some(*cidr) {
            let message = format!("block {cidr} is confirmed as another node's, too");
            found.add(ProblemKind::DoubleOwner, &object, message, hint);
        }
    }
    unclaimed(rows, found);
}

fn unclaimed(rows: &Rows, found: &mut Found) {
    for (cidr, block) in &rows.blocks {
        let Some(owner) = &block.owner else { continue };
        if !rows.affinities.contains_key(&(*cidr, owner)) {
            let message = format!("node {owner} owns it, but has no affinity with it");
            let hint = "allocate an address on the node: that writes the affinity anew";
            found.structure(format!("block {cidr}"), message, hint);
        }
    }
}

//! `weft ipam show`: pools, blocks and addresses.

use std::{net::IpAddr, process::ExitCode};

use weft_api::{
    ipam::{AddressInfo, Allocation, BlockUsage, PoolUsage, Reply, Request, Time, Usage},
    names::Name,
};

use super::{
    Session,
    age::{ago, now},
    words::{amount, holder, maybe, name, size, word},
};
use crate::output::{grouped, lines, table};

/// Show how full the pools are; or blocks, or addresses.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Show the blocks and who owns them.
    #[arg(long, conflicts_with_all = ["borrowed", "ip", "node"])]
    blocks: bool,
    /// Show the addresses that lie in a block of another node, or of none.
    #[arg(long, conflicts_with = "ip")]
    borrowed: bool,
    /// Show what is known of one address.
    #[arg(long, value_name = "ADDRESS", conflicts_with = "node")]
    ip: Option<IpAddr>,
    /// Show the addresses of one node.
    #[arg(long, value_name = "NAME", value_parser = name)]
    node: Option<Name>,
}

pub fn run(args: Args, session: &mut Session) -> anyhow::Result<ExitCode> {
    if args.blocks {
        let blocks = session.ask(&Request::Blocks, |reply| match reply {
            Reply::Blocks(blocks) => Some(blocks),
            _ => None,
        })?;
        return session.print(&blocks, |blocks| blocks_page(blocks));
    }
    if let Some(address) = args.ip {
        let known = session.address(address)?;
        return session.print(&known, |known| address_page(known, now()));
    }
    if args.borrowed || args.node.is_some() {
        let request = Request::Allocations {
            node: args.node,
            borrowed: args.borrowed,
        };
        let allocations = session.ask(&request, |reply| match reply {
            Reply::Allocations(allocations) => Some(allocations),
            _ => None,
        })?;
        return session.print(&allocations, |all| allocations_page(all, now()));
    }
    let pools = session.pools()?;
    session.print(&pools, |pools| pools_page(pools))
}

impl Session {
    pub fn pools(&mut self) -> anyhow::Result<Vec<PoolUsage>> {
        self.ask(&Request::Pools, |reply| match reply {
            Reply::Pools(pools) => Some(pools),
            _ => None,
        })
    }

    pub fn address(&mut self, address: IpAddr) -> anyhow::Result<AddressInfo> {
        self.ask(&Request::Address { address }, |reply| match reply {
            Reply::Address(known) => Some(*known),
            _ => None,
        })
    }
}

fn pools_page(pools: &[PoolUsage]) -> String {
    if pools.is_empty() {
        return "there is no pool; make one by weft ipam pool create\n".to_owned();
    }
    let mut rows = table(&[
        "pool", "cidr", "blocks", "total", "used", "kept", "resting", "reserved", "free",
    ]);
    for PoolUsage {
        pool,
        blocks,
        usage,
    } in pools
    {
        let front = [
            pool.name.to_string(),
            pool.cidr.to_string(),
            grouped(*blocks),
        ];
        let mut counts = counts(usage);
        // A count stops at 2^64, a range does not.
        counts[0] = size(&pool.cidr);
        rows.add_row(front.into_iter().chain(counts));
    }
    lines(&rows)
}

fn blocks_page(blocks: &[BlockUsage]) -> String {
    if blocks.is_empty() {
        return "there is no block yet: nodes claim them as they need them\n".to_owned();
    }
    let mut rows = table(&[
        "block", "pool", "owner", "affinity", "total", "used", "kept", "resting", "reserved",
        "free",
    ]);
    for block in blocks {
        let front = [
            block.block.to_string(),
            maybe(&block.pool),
            maybe(&block.owner),
            block.affinity.as_ref().map(word).unwrap_or_default(),
        ];
        rows.add_row(front.into_iter().chain(counts(&block.usage)));
    }
    lines(&rows)
}

fn counts(usage: &Usage) -> [String; 6] {
    [
        usage.total,
        usage.used,
        usage.kept,
        usage.resting,
        usage.reserved,
        usage.free,
    ]
    .map(amount)
}

fn allocations_page(allocations: &[Allocation], now: Time) -> String {
    if allocations.is_empty() {
        return "there is no such address\n".to_owned();
    }
    let mut rows = table(&["address", "holder", "node", "use", "since", ""]);
    for allocation in allocations {
        rows.add_row([
            allocation.address.to_string(),
            holder(allocation),
            allocation.node.to_string(),
            word(&allocation.purpose),
            ago(allocation.since, now),
            if allocation.borrowed { "borrowed" } else { "" }.to_owned(),
        ]);
    }
    lines(&rows)
}

fn address_page(known: &AddressInfo, now: Time) -> String {
    let mut rows = vec![
        ("address", known.address.to_string()),
        ("pool", maybe(&known.pool)),
    ];
    if let Some(block) = &known.block {
        let owner = match &block.owner {
            Some(owner) => format!("owned by {owner}"),
            None => "owned by nobody".to_owned(),
        };
        rows.push(("block", format!("{}, {owner}", block.block)));
    }
    if known.reserved {
        rows.push(("reserved", "yes".to_owned()));
    }
    match &known.allocation {
        None => rows.push(("holder", "nobody".to_owned())),
        Some(allocation) => rows.extend(allocation_rows(allocation, now)),
    }
    let filled = rows.into_iter().filter(|(_, value)| !value.is_empty());
    filled
        .map(|(what, value)| format!("{what:<9}{value}\n"))
        .collect()
}

fn allocation_rows(allocation: &Allocation, now: Time) -> [(&'static str, String); 8] {
    [
        ("holder", holder(allocation)),
        ("handle", maybe(&allocation.handle)),
        (
            "identity",
            match (&allocation.identity, &allocation.place) {
                (Some(identity), Some(place)) => {
                    format!("{identity} at {} of {}", place.interface, place.network)
                }
                (identity, _) => maybe(identity),
            },
        ),
        (
            "node",
            format!(
                "{}{}",
                allocation.node,
                if allocation.borrowed {
                    ", borrowed"
                } else {
                    ""
                }
            ),
        ),
        ("use", word(&allocation.purpose)),
        ("since", ago(allocation.since, now)),
        (
            "released",
            allocation
                .released
                .map(|then| ago(then, now))
                .unwrap_or_default(),
        ),
        ("sequence", allocation.sequence.to_string()),
    ]
}

#[cfg(test)]
mod tests {
    use serde_json::{from_value, json};

    use super::*;

    fn allocation() -> serde_json::Value {
        json!({
            "address": "10.1.0.9", "handle": "weft/c1/eth0", "node": "n2", "use": "workload",
            "pod": {"namespace": "web", "name": "front"}, "identity": null,
            "since": 1_000, "released": null, "sequence": 42, "borrowed": true
        })
    }

    #[test]
    fn pools_and_blocks_have_a_row_each() {
        let pools: Vec<PoolUsage> = from_value(json!([{
            "name": "v6", "cidr": "fd00:10:244::/48", "blocks": 3, "total": u64::MAX, "used": 1234,
            "kept": 1, "resting": 2, "reserved": 3, "free": u64::MAX
        }]))
        .expect("pools");
        let page = pools_page(&pools);
        for part in ["fd00:10:244::/48", " 2^80 ", "2^64 or more", "1 234"] {
            assert!(page.contains(part), "{part:?} is not in:\n{page}");
        }
        let blocks: Vec<BlockUsage> = from_value(json!([{
            "block": "10.1.0.0/24", "pool": "v4", "owner": "n1", "affinity": "pending-deletion",
            "total": 256, "used": 1, "kept": 0, "resting": 0, "reserved": 0, "free": 255
        }]))
        .expect("blocks");
        let page = blocks_page(&blocks);
        assert!(page.contains("n1     pending-deletion"), "{page}");
        assert!(page.lines().count() == 2, "{page}");
    }

    #[test]
    fn an_address_tells_its_holder() {
        let known: AddressInfo = from_value(json!({
            "address": "10.1.0.9", "pool": "v4", "reserved": true, "allocation": allocation(),
            "block": {
                "block": "10.1.0.0/24", "pool": "v4", "owner": "n1", "affinity": "confirmed",
                "total": 256, "used": 1, "kept": 0, "resting": 0, "reserved": 0, "free": 255
            }
        }))
        .expect("an address");
        assert_eq!(
            address_page(&known, 181_000),
            "address  10.1.0.9\npool     v4\nblock    10.1.0.0/24, owned by n1\nreserved yes\n\
             holder   pod web/front\nhandle   weft/c1/eth0\nnode     n2, borrowed\nuse      \
             workload\nsince    3 min ago\nsequence 42\n"
        );
        let free: AddressInfo = from_value(json!({
            "address": "10.1.0.8", "pool": null, "block": null, "reserved": false,
            "allocation": null
        }))
        .expect("an address");
        assert_eq!(
            address_page(&free, 0),
            "address  10.1.0.8\nholder   nobody\n"
        );
    }

    #[test]
    fn allocations_tell_who_kept_and_who_borrowed() {
        let mut kept = allocation();
        kept["handle"] = json!(null);
        kept["identity"] = json!("web/db-0");
        let all: Vec<Allocation> = from_value(json!([allocation(), kept])).expect("allocations");
        let page = allocations_page(&all, 2_000);
        for part in ["pod web/front", "kept for web/db-0", "1 s ago", "borrowed"] {
            assert!(page.contains(part), "{part:?} is not in:\n{page}");
        }
        assert_eq!(allocations_page(&[], 0), "there is no such address\n");
    }
}

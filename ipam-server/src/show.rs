//! What is asked and changes nothing: how full pools and blocks are, and who
//! has which address.

use std::net::IpAddr;

use ipnet::IpNet;
use weft_api::{
    ipam::{self, AddressInfo, BlockUsage, Family, PoolUsage, Reply, Usage},
    names::Name,
};

use crate::{
    book::Book,
    model::{Allocation, Block},
    pool::Range,
    range,
};

pub fn pools(book: &Book) -> Reply {
    Reply::Pools(book.pools().map(|pool| pool_usage(book, pool)).collect())
}

pub fn blocks(book: &Book) -> Reply {
    Reply::Blocks(
        book.blocks()
            .map(|block| block_usage(book, block))
            .collect(),
    )
}

pub fn address(book: &Book, address: IpAddr) -> Reply {
    let block = book.block_with(address);
    let allocation = block.and_then(|block| {
        let ordinal = block.ordinal(address)?;
        Some(shown(block, ordinal, block.allocations.get(&ordinal)?))
    });
    Reply::Address(Box::new(AddressInfo {
        address,
        pool: book
            .pool_of(&IpNet::from(address))
            .map(|pool| pool.name().clone()),
        block: block.map(|block| block_usage(book, block)),
        reserved: book
            .reserved()
            .contains(Family::of(address), range::number(address)),
        allocation,
    }))
}

pub fn allocations(book: &Book, node: Option<&Name>, borrowed: bool) -> Reply {
    let found: Vec<ipam::Allocation> = match node {
        Some(node) => {
            let addresses = book
                .share(node)
                .into_iter()
                .flat_map(|share| &share.addresses);
            let one = |address: &IpAddr| {
                let block = book.block_with(*address)?;
                let ordinal = block.ordinal(*address)?;
                Some(shown(block, ordinal, block.allocations.get(&ordinal)?))
            };
            addresses.filter_map(one).collect()
        }
        None => book.blocks().flat_map(all_of).collect(),
    };
    let wanted = |one: &ipam::Allocation| !borrowed || one.borrowed;
    Reply::Allocations(found.into_iter().filter(wanted).collect())
}

fn all_of(block: &Block) -> impl Iterator<Item = ipam::Allocation> {
    (block.allocations.iter()).map(|(ordinal, held)| shown(block, *ordinal, held))
}

fn shown(block: &Block, ordinal: u32, held: &Allocation) -> ipam::Allocation {
    ipam::Allocation {
        address: block.address(ordinal),
        handle: held.handle.clone(),
        node: held.node.clone(),
        purpose: held.purpose,
        pod: held.pod.clone(),
        identity: held.identity.clone(),
        place: held.identity.as_ref().and_then(|_| held.place()),
        since: held.since,
        released: held.released,
        sequence: held.sequence,
        mark: held.mark,
        borrowed: held.is_held() && block.owner.as_ref() != Some(&held.node),
    }
}

fn block_usage(book: &Book, block: &Block) -> BlockUsage {
    let owner = block.owner.as_ref();
    BlockUsage {
        block: block.cidr,
        pool: book.pool_of(&block.cidr).map(|pool| pool.name().clone()),
        owner: owner.cloned(),
        affinity: owner.and_then(|owner| book.affinity(owner, &block.cidr)),
        usage: block.usage(book.reserved()),
    }
}

fn pool_usage(book: &Book, pool: &Range) -> PoolUsage {
    let mut blocks = 0;
    let mut usage = Usage {
        total: pool.span.size(),
        reserved: book.reserved().size_within(pool.span),
        ..Usage::default()
    };
    for block in book.blocks_within(&pool.pool.cidr) {
        let of_block = block.usage(book.reserved());
        blocks += 1;
        usage.used += of_block.used;
        usage.kept += of_block.kept;
        usage.resting += of_block.resting;
        // What is reserved and had by somebody counts once, as had.
        let reserved = book.reserved().size_within(block.span());
        usage.reserved = usage.reserved.saturating_sub(reserved - of_block.reserved);
    }
    let had = usage.used + usage.kept + usage.resting;
    usage.reserved = usage.reserved.min(usage.total.saturating_sub(had));
    usage.free = usage.total.saturating_sub(had + usage.reserved);
    PoolUsage {
        pool: pool.pool.clone(),
        blocks,
        usage,
    }
}

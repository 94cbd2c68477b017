//! Pools: which are well formed, how they are cut, and where a node looks for
//! its next block.

use std::{collections::BTreeMap, net::IpAddr};

use ipnet::IpNet;
use weft_api::{
    ipam::{Code, Encapsulation, Error, Family, Pool, Use},
    names::Name,
};

use crate::{
    range::{self, Ranges, Span},
    selector::{Selector, SelectorError},
};

/// A pool with what is derived from its row once.
#[derive(Debug, Clone)]
pub struct Range {
    pub pool: Pool,
    pub span: Span,
    /// Prefix length of its blocks.
    pub block_size: u8,
    /// None where the row's text is no selector: it selects nothing.
    nodes: Option<Selector>,
    namespaces: Option<Selector>,
}

/// Where no pool may lie, and why.
const FORBIDDEN: [(&str, &str); 6] = [
    ("169.254.0.0/16", "link-local"),
    ("fe80::/10", "link-local"),
    ("127.0.0.0/8", "loopback"),
    ("::1/128", "loopback"),
    ("224.0.0.0/4", "multicast"),
    ("ff00::/8", "multicast"),
];

impl Range {
    pub fn new(pool: Pool) -> Self {
        Self {
            span: Span::of(&pool.cidr),
            block_size: block_size(&pool),
            nodes: Selector::parse(&pool.node_selector).ok(),
            namespaces: Selector::parse(&pool.namespace_selector).ok(),
            pool,
        }
    }

    pub fn name(&self) -> &Name {
        &self.pool.name
    }

    pub fn family(&self) -> Family {
        self.span.family
    }

    pub fn allows(&self, purpose: Use) -> bool {
        self.pool.uses.contains(&purpose)
    }

    pub fn selects_node(&self, labels: &BTreeMap<String, String>) -> bool {
        (self.nodes.as_ref()).is_some_and(|selector| selector.matches(labels))
    }

    pub fn selects_namespace(&self, labels: &BTreeMap<String, String>) -> bool {
        (self.namespaces.as_ref()).is_some_and(|selector| selector.matches(labels))
    }

    /// The block that an address of this pool lies in.
    pub fn block_at(&self, address: IpAddr) -> IpNet {
        self.block_of(range::number(address))
    }

    /// Where a node begins to look for blocks: spread over the pool, and the
    /// same each time.
    pub fn seed(&self, node: &Name) -> IpNet {
        let step = self.step();
        let last = (self.span.last - self.span.first) / step;
        let index = match last.checked_add(1) {
            Some(count) => u128::from(fnv32(node.as_str())) % count,
            None => u128::from(fnv32(node.as_str())),
        };
        self.block_of(self.span.first + index * step)
    }

    /// The first block from the seed on, around once, that is not cut yet and
    /// not wholly reserved. Whole ranges are passed over in one step.
    pub fn uncut(&self, node: &Name, cut: &Ranges, reserved: &Ranges) -> Option<IpNet> {
        let seed = range::number(self.seed(node).network());
        let before = seed.checked_sub(1);
        self.uncut_between(seed, self.span.last, cut, reserved)
            .or_else(|| self.uncut_between(self.span.first, before?, cut, reserved))
    }

    fn uncut_between(
        &self,
        mut first: u128,
        last: u128,
        cut: &Ranges,
        reserved: &Ranges,
    ) -> Option<IpNet> {
        while first <= last {
            let block = self.block_of(first);
            let span = Span::of(&block);
            let passed = if let Some(end) = cut.overlap(span) {
                Span::of(&self.block_of(end)).last
            } else if let Some(end) = reserved.cover(span) {
                // The block in which the reservation ends is not wholly
                // reserved, unless it ends with it.
                let behind = Span::of(&self.block_of(end));
                if behind.last == end {
                    end
                } else {
                    behind.first - 1
                }
            } else {
                return Some(block);
            };
            first = passed.checked_add(1)?;
        }
        None
    }

    fn block_of(&self, number: u128) -> IpNet {
        range::block_of(self.family(), number, self.block_size)
    }

    fn step(&self) -> u128 {
        let width = match self.family() {
            Family::V4 => 32,
            Family::V6 => 128,
        };
        1 << u32::from(width - self.block_size)
    }
}

/// FNV-1 of 32 bits, as Calico seeds its walk.
fn fnv32(text: &str) -> u32 {
    text.bytes().fold(0x811c_9dc5, |hash: u32, byte| {
        hash.wrapping_mul(0x0100_0193) ^ u32::from(byte)
    })
}

/// The pool's, or its family's default.
pub fn block_size(pool: &Pool) -> u8 {
    let (_, _, default) = block_sizes(Family::of(pool.cidr.addr()));
    pool.block_size.unwrap_or(default)
}

/// Least, greatest and default prefix length of blocks.
fn block_sizes(family: Family) -> (u8, u8, u8) {
    match family {
        Family::V4 => (20, 32, 26),
        Family::V6 => (116, 128, 122),
    }
}

/// Whether a pool can be cut into blocks.
pub fn shape(pool: &Pool) -> Result<(), Error> {
    let wrong = |reason: String, hint: &str| {
        let message = format!("pool {}: {reason}", pool.name);
        Err(Error::new(Code::Invalid, message, hint))
    };
    if pool.cidr.trunc() != pool.cidr {
        return wrong(
            format!("{} has bits behind its prefix", pool.cidr),
            &format!("write {}", pool.cidr.trunc()),
        );
    }
    let (least, greatest, _) = block_sizes(Family::of(pool.cidr.addr()));
    let size = block_size(pool);
    if !(least..=greatest).contains(&size) {
        return wrong(
            format!("block size {size} is not within {least} to {greatest}"),
            "choose a block size in that range",
        );
    }
    if size < pool.cidr.prefix_len() {
        return wrong(
            format!("{} is smaller than a block of /{size}", pool.cidr),
            "make the pool larger or its blocks smaller",
        );
    }
    Ok(())
}

/// Whether a pool is well formed in itself.
pub fn validate(pool: &Pool) -> Result<(), Error> {
    shape(pool)?;
    let wrong = |reason: String, hint: &str| {
        let message = format!("pool {}: {reason}", pool.name);
        Err(Error::new(Code::Invalid, message, hint))
    };
    for (net, kind) in FORBIDDEN {
        let net: IpNet = net.parse().expect("a constant");
        if net.contains(&pool.cidr) || pool.cidr.contains(&net) {
            return wrong(
                format!("{} holds {kind} addresses ({net})", pool.cidr),
                "choose a range that pods can be reached by",
            );
        }
    }
    validate_uses(pool)?;
    for (what, text) in [
        ("node", &pool.node_selector),
        ("namespace", &pool.namespace_selector),
    ] {
        let parsed: Result<_, SelectorError> = Selector::parse(text);
        if let Err(error) = parsed {
            return wrong(
                format!("{what} selector {text:?}: {error}"),
                "write it as Calico's, for example: rack == 'a' && !has(gpu)",
            );
        }
    }
    Ok(())
}

fn validate_uses(pool: &Pool) -> Result<(), Error> {
    let wrong = |reason: &str, hint: &str| {
        let message = format!("pool {}: {reason}", pool.name);
        Err(Error::new(Code::Invalid, message, hint))
    };
    let repeated = |place: usize| pool.uses[..place].contains(&pool.uses[place]);
    if pool.uses.is_empty() || (0..pool.uses.len()).any(repeated) {
        return wrong(
            "it lists no use, or one twice",
            "list workload, tunnel, or load-balancer, each at most once",
        );
    }
    let balancer = pool.uses.contains(&Use::LoadBalancer);
    if balancer && pool.uses.len() > 1 {
        return wrong(
            "load balancers share no pool with other uses",
            "make a pool of its own for them",
        );
    }
    if balancer && pool.encapsulation != Encapsulation::None {
        return wrong(
            "load balancers' addresses are not encapsulated",
            "set its encapsulation to none",
        );
    }
    if pool.encapsulation == Encapsulation::Ipip && !pool.cidr.addr().is_ipv4() {
        return wrong("ipip carries IPv4 only", "use vxlan or none");
    }
    Ok(())
}

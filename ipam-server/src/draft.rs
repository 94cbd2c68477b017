//! A plan in the making: the book as it will be after the changes so far.
//!
//! Invariant: the book itself is not touched, and of its rows only what
//! changes is copied.

use std::{collections::HashMap, net::IpAddr, sync::Arc};

use ipnet::IpNet;
use weft_api::{
    ipam::{AffinityState, Node, Reply, Time},
    names::Name,
};

use crate::{
    book::Book,
    model::{Affinity, Allocation, Block, Changes, Key, Value},
    plan::Plan,
};

#[derive(Debug)]
pub struct Draft<'a> {
    pub book: &'a Book,
    pub now: Time,
    changes: Changes,
    /// Where in `changes` a key stands last.
    last: HashMap<Key, usize>,
    guards: Vec<Key>,
}

impl<'a> Draft<'a> {
    pub fn new(book: &'a Book, now: Time) -> Self {
        Self {
            book,
            now,
            changes: Vec::new(),
            last: HashMap::new(),
            guards: Vec::new(),
        }
    }

    pub fn plan(self, reply: Reply) -> Plan {
        Plan {
            changes: self.changes,
            guards: self.guards,
            reply,
        }
    }

    pub fn put(&mut self, key: Key, value: Option<Value>) {
        self.last.insert(key.clone(), self.changes.len());
        self.changes.push((key, value));
    }

    /// The plan holds only while this row is as the book has it.
    pub fn guard(&mut self, key: Key) {
        self.guards.push(key);
    }

    /// For an allocation that is made: the mark must not have been raised
    /// meanwhile, or the allocation would look older than it is.
    pub fn mark(&mut self) -> u64 {
        self.guard(Key::Mark);
        self.book.mark()
    }

    /// Writes the settings as they are, for what must be unique over rows that
    /// do not conflict: of two servers that make pools at the same moment, the
    /// second sees the first's before it goes on.
    pub fn one_at_a_time(&mut self) {
        let config = || Value::Config(self.book.config().clone());
        let config = self
            .book
            .value(&Key::Config)
            .cloned()
            .unwrap_or_else(config);
        self.put(Key::Config, Some(config));
    }

    pub fn block(&self, cidr: &IpNet) -> Option<&Block> {
        match self.value(&Key::Block(*cidr))? {
            Value::Block(block) => Some(block),
            _ => None,
        }
    }

    /// The block that an address lies in. No plan cuts a block and then asks
    /// this for one of its addresses.
    pub fn block_with(&self, address: IpAddr) -> Option<&Block> {
        self.block(&self.book.block_with(address)?.cidr)
    }

    pub fn node(&self, name: &Name) -> Option<&Node> {
        match self.value(&Key::Node(name.clone()))? {
            Value::Node(node) => Some(node),
            _ => None,
        }
    }

    pub fn affinity(&self, node: &Name, cidr: &IpNet) -> Option<AffinityState> {
        match self.value(&Key::Affinity(node.clone(), *cidr))? {
            Value::Affinity(affinity) => Some(affinity.state),
            _ => None,
        }
    }

    /// Blocks written so far.
    pub fn written(&self) -> Vec<IpNet> {
        let blocks = self.last.keys().filter_map(|key| match key {
            Key::Block(cidr) => Some(*cidr),
            _ => None,
        });
        let mut blocks: Vec<_> = blocks.filter(|cidr| self.block(cidr).is_some()).collect();
        blocks.sort_unstable();
        blocks
    }

    pub fn is_written(&self, cidr: &IpNet) -> bool {
        self.last.contains_key(&Key::Block(*cidr))
    }

    /// A copy to change, with what has rested by now free again.
    pub fn open(&self, cidr: &IpNet) -> Option<Block> {
        let mut block = self.block(cidr)?.clone();
        block.sweep(self.now, self.book.cooldown());
        Some(block)
    }

    /// An address of the block can be given out.
    pub fn has_room(&self, cidr: &IpNet) -> bool {
        let room = |block: Block| block.has_room(self.book.reserved());
        !self.book.is_contested(cidr) && self.open(cidr).is_some_and(room)
    }

    pub fn put_block(&mut self, block: Block) {
        self.put(Key::Block(block.cidr), Some(Value::Block(Arc::new(block))));
    }

    pub fn put_affinity(&mut self, node: &Name, cidr: IpNet, state: Option<AffinityState>) {
        let value = state.map(|state| Value::Affinity(Affinity { state }));
        self.put(Key::Affinity(node.clone(), cidr), value);
    }

    /// Allocates from a block; none if there is no room, or not this ordinal.
    pub fn take(
        &mut self,
        cidr: &IpNet,
        ordinal: Option<u32>,
        allocation: Allocation,
    ) -> Option<IpAddr> {
        let mut block = self.open(cidr)?;
        let ordinal = block.take(ordinal, allocation, self.book.reserved())?;
        let address = block.address(ordinal);
        self.put_block(block);
        Some(address)
    }

    /// How many blocks of the family of `like` a node owns or claims.
    pub fn claims(&self, node: &Name, like: &IpNet) -> usize {
        let is_v4 = |cidr: &IpNet| cidr.addr().is_ipv4();
        let family = is_v4(like);
        let share = self.book.share(node);
        let mut count = share.map_or(0, |share| match family {
            true => share.claims_v4,
            false => share.claims.len() - share.claims_v4,
        });
        for key in self.last.keys() {
            let Key::Affinity(claimant, cidr) = key else {
                continue;
            };
            if claimant != node || is_v4(cidr) != family {
                continue;
            }
            let before = share.is_some_and(|share| share.claims.contains(cidr));
            let after = self.affinity(node, cidr).is_some();
            count = count + usize::from(after && !before) - usize::from(before && !after);
        }
        count
    }

    fn value(&self, key: &Key) -> Option<&Value> {
        match self.last.get(key) {
            Some(place) => self.changes.get(*place)?.1.as_ref(),
            None => self.book.value(key),
        }
    }
}

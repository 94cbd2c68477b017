//! All rows in memory, and what is asked of them often: who has which
//! address, where a node's blocks are, and where there is room.
//!
//! Invariant: every index is a function of the rows; [`Book::apply`] is the
//! only way in.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
    ops::RangeInclusive,
    sync::Arc,
};

use ipnet::IpNet;
use weft_api::{
    ipam::{AffinityState, Config, Family, Node, Reservation, Time, is_young},
    names::{Handle, Mac, Name},
};

use crate::{
    model::{Allocation, Block, Key, Revision, Value},
    pool::Range,
    range::{self, Ranges, Span},
    store::{Loaded, Row, Update},
};

mod index;

#[derive(Debug, Default)]
pub struct Book {
    revision: Revision,
    rows: HashMap<Key, Row>,
    config: Config,
    mark: Option<u64>,
    pools: BTreeMap<Name, Range>,
    /// Pools do not overlap.
    pool_names: BTreeMap<IpNet, Name>,
    reservations: BTreeSet<Name>,
    reserved: Ranges,
    nodes: BTreeSet<Name>,
    underlays: HashMap<IpAddr, Name>,
    macs: HashMap<Mac, Name>,
    /// Blocks do not overlap.
    blocks: BTreeMap<IpNet, Standing>,
    cut: Ranges,
    /// All rows of blocks, those set aside too.
    cuts: BTreeSet<IpNet>,
    /// Those that overlap others, which only a foreign hand can have made:
    /// nothing more is allocated from them.
    contested: BTreeSet<IpNet>,
    /// Blocks from which an address can be allocated at once.
    room: BTreeSet<IpNet>,
    /// Blocks in which nothing is held or kept.
    idle: BTreeSet<IpNet>,
    /// Blocks with resting addresses, by when the first was released.
    resting: BTreeSet<(Time, IpNet)>,
    claimants: HashMap<IpNet, BTreeSet<Name>>,
    shares: HashMap<Name, Share>,
    handles: HashMap<Handle, Vec<IpAddr>>,
    identities: HashMap<Name, Vec<IpAddr>>,
    allocations: usize,
    highest_sequence: u64,
    /// The highest mark of an allocation that was seen.
    newest: u64,
}

/// What is one node's.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Share {
    /// Blocks that it owns, or that a row says it claims.
    pub claims: BTreeSet<IpNet>,
    /// How many of its claims are IPv4's.
    pub claims_v4: usize,
    /// Those of its claims in which block and affinity do not agree that it
    /// is confirmed: the next request of the node settles them.
    pub unsettled: BTreeSet<IpNet>,
    /// Own blocks from which an address can be allocated at once.
    pub room: BTreeSet<IpNet>,
    /// Own blocks in which nothing is held or kept.
    pub idle: BTreeSet<IpNet>,
    /// Own blocks with resting addresses, by when the first was released.
    pub resting: BTreeSet<(Time, IpNet)>,
    /// Addresses allocated to it, wherever they lie.
    pub addresses: BTreeSet<IpAddr>,
}

/// How a block stands in the indexes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Standing {
    owner: Option<Name>,
    room: bool,
    idle: bool,
    first_released: Option<Time>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Counts {
    pub pools: usize,
    pub blocks: usize,
    /// Held, kept and resting.
    pub allocations: usize,
    pub nodes: usize,
}

impl Book {
    pub fn load(loaded: Loaded) -> Self {
        let mut book = Self::default();
        for (key, row) in loaded.rows {
            book.apply(&Update {
                key,
                row: Some(row),
            });
        }
        book.reached(loaded.revision);
        book
    }

    /// Makes the book say what a row is now.
    pub fn apply(&mut self, update: &Update) {
        let old = match &update.row {
            Some(row) => {
                self.revision = self.revision.max(row.revision);
                self.rows.insert(update.key.clone(), row.clone())
            }
            None => self.rows.remove(&update.key),
        };
        let old = old.map(|row| row.value);
        self.index(&update.key, old, update.row.as_ref().map(|row| &row.value));
    }

    /// Makes the book say what one commit wrote. What is gone goes first: a
    /// pool or block may stand in the place of another.
    pub fn apply_all(&mut self, updates: &[Update]) {
        let (put, gone): (Vec<_>, Vec<_>) = updates.iter().partition(|update| update.row.is_some());
        gone.into_iter()
            .chain(put)
            .for_each(|update| self.apply(update));
    }

    /// The highest revision that is known.
    pub fn revision(&self) -> Revision {
        self.revision
    }

    /// A commit that only deletes has a revision too.
    pub fn reached(&mut self, revision: Revision) {
        self.revision = self.revision.max(revision);
    }

    pub fn revision_of(&self, key: &Key) -> Option<Revision> {
        self.rows.get(key).map(|row| row.revision)
    }

    pub fn value(&self, key: &Key) -> Option<&Value> {
        self.rows.get(key).map(|row| &row.value)
    }

    /// In no particular order.
    pub fn rows(&self) -> impl Iterator<Item = (&Key, &Value)> {
        self.rows.iter().map(|(key, row)| (key, &row.value))
    }

    /// Whether the row is there, and not to be believed.
    pub fn is_aside(&self, key: &Key) -> bool {
        matches!(self.value(key), Some(Value::Aside(_)))
    }

    pub fn counts(&self) -> Counts {
        Counts {
            pools: self.pools.len(),
            blocks: self.blocks.len(),
            allocations: self.allocations,
            nodes: self.nodes.len(),
        }
    }

    pub fn config(&self) -> &Config {
        &self.config
    }

    /// What new allocations are given.
    pub fn mark(&self) -> u64 {
        self.mark.unwrap_or(self.newest)
    }

    /// Whether some allocation may be young; it may have gone since.
    pub fn may_have_young(&self) -> bool {
        self.allocations > 0 && is_young(self.newest, self.mark())
    }

    /// How long a released address rests, in milliseconds.
    pub fn cooldown(&self) -> Time {
        Time::from(self.config.cooldown_seconds) * 1000
    }

    pub fn pools(&self) -> impl Iterator<Item = &Range> {
        self.pools.values()
    }

    pub fn pool(&self, name: &Name) -> Option<&Range> {
        self.pools.get(name)
    }

    /// The pool that holds all of a range.
    pub fn pool_of(&self, net: &IpNet) -> Option<&Range> {
        let (cidr, name) = self.pool_names.range(..=net).next_back()?;
        cidr.contains(net).then(|| self.pools.get(name))?
    }

    pub fn reserved(&self) -> &Ranges {
        &self.reserved
    }

    pub fn reservations(&self) -> impl Iterator<Item = &Reservation> {
        self.reservations
            .iter()
            .filter_map(|name| self.reservation(name))
    }

    pub fn reservation(&self, name: &Name) -> Option<&Reservation> {
        match self.value(&Key::Reservation(name.clone()))? {
            Value::Reservation(reservation) => Some(reservation),
            _ => None,
        }
    }

    pub fn nodes(&self) -> impl Iterator<Item = &Node> {
        self.nodes.iter().filter_map(|name| self.node(name))
    }

    pub fn node(&self, name: &Name) -> Option<&Node> {
        match self.value(&Key::Node(name.clone()))? {
            Value::Node(node) => Some(node),
            _ => None,
        }
    }

    pub fn node_with_underlay(&self, address: IpAddr) -> Option<&Name> {
        self.underlays.get(&address)
    }

    pub fn node_with_mac(&self, mac: Mac) -> Option<&Name> {
        self.macs.get(&mac)
    }

    /// What is one node's; none where nothing is.
    pub fn share(&self, node: &Name) -> Option<&Share> {
        self.shares.get(node)
    }

    /// Every node that claims a block.
    pub fn claimants(&self, cidr: &IpNet) -> impl Iterator<Item = &Name> {
        self.claimants.get(cidr).into_iter().flatten()
    }

    /// Claims of any node within a range.
    pub fn claims_within(&self, cidr: &IpNet) -> Vec<(Name, IpNet)> {
        let claims = self
            .claimants
            .iter()
            .filter(|(block, _)| cidr.contains(*block));
        let mut found: Vec<_> = claims
            .flat_map(|(block, names)| names.iter().map(|name| (name.clone(), *block)))
            .collect();
        found.sort_unstable();
        found
    }

    pub fn block(&self, cidr: &IpNet) -> Option<&Block> {
        match self.value(&Key::Block(*cidr))? {
            Value::Block(block) => Some(block),
            _ => None,
        }
    }

    pub fn blocks(&self) -> impl Iterator<Item = &Block> {
        self.blocks.keys().filter_map(|cidr| self.block(cidr))
    }

    pub fn blocks_within(&self, cidr: &IpNet) -> impl Iterator<Item = &Block> {
        self.blocks
            .range(within(cidr))
            .filter_map(|(cidr, _)| self.block(cidr))
    }

    /// The block that an address lies in, whether or not a pool is left.
    pub fn block_with(&self, address: IpAddr) -> Option<&Block> {
        let net = IpNet::from(address);
        let (cidr, _) = self.blocks.range(..=net).next_back()?;
        if !cidr.contains(&address) {
            return None;
        }
        self.block(cidr)
    }

    pub fn allocation(&self, address: IpAddr) -> Option<&Arc<Allocation>> {
        let block = self.block_with(address)?;
        block.allocations.get(&block.ordinal(address)?)
    }

    pub fn affinity(&self, node: &Name, cidr: &IpNet) -> Option<AffinityState> {
        match self.value(&Key::Affinity(node.clone(), *cidr))? {
            Value::Affinity(affinity) => Some(affinity.state),
            _ => None,
        }
    }

    /// All addresses of a handle: derived from the blocks, never counted.
    pub fn held_by(&self, handle: &Handle) -> &[IpAddr] {
        self.handles.get(handle).map_or(&[], Vec::as_slice)
    }

    /// All addresses that are an identity's, attached or kept.
    pub fn identified(&self, identity: &Name) -> &[IpAddr] {
        self.identities.get(identity).map_or(&[], Vec::as_slice)
    }

    /// Whether the block's addresses may be another block's too.
    pub fn is_contested(&self, cidr: &IpNet) -> bool {
        self.contested.contains(cidr)
    }

    /// Ranges that are cut into blocks.
    pub fn cut(&self) -> &Ranges {
        &self.cut
    }

    /// Blocks of a pool with room, from `from` on and around once.
    pub fn room_from(&self, pool: &Range, from: IpNet) -> impl Iterator<Item = &IpNet> {
        around(&self.room, pool, from)
    }

    /// Blocks of a pool in which nothing is held or kept, likewise.
    pub fn idle_from(&self, pool: &Range, from: IpNet) -> impl Iterator<Item = &IpNet> {
        around(&self.idle, pool, from)
    }

    /// Blocks in which an address has rested by now.
    pub fn rested(&self, now: Time) -> impl Iterator<Item = &IpNet> {
        let cooldown = self.cooldown();
        (self.resting.iter())
            .take_while(move |(released, _)| released.saturating_add(cooldown) <= now)
            .map(|(_, cidr)| cidr)
    }

    /// When the next resting address is free.
    pub fn next_rested(&self) -> Option<Time> {
        let (released, _) = self.resting.first()?;
        Some(released.saturating_add(self.cooldown()))
    }

    /// The sequence number of a new block: the clock's microseconds, and more
    /// than any number that was seen, should the clock have been set back.
    pub fn fresh_sequence(&self, now: Time) -> u64 {
        now.saturating_mul(1_000)
            .max(self.highest_sequence.saturating_add(1))
    }
}

/// Bounds of the blocks that lie in a range, in their order.
pub fn within(cidr: &IpNet) -> RangeInclusive<IpNet> {
    let last = Span::of(cidr);
    let last = IpNet::from(range::address(last.family, last.last));
    cidr.trunc()..=last
}

fn around<'a>(
    set: &'a BTreeSet<IpNet>,
    pool: &Range,
    from: IpNet,
) -> impl Iterator<Item = &'a IpNet> + use<'a> {
    let (first, last) = within(&pool.pool.cidr).into_inner();
    set.range(from..=last).chain(set.range(first..from))
}

/// The lowest address of a family.
pub fn first_of(addresses: &[IpAddr], family: Family) -> Option<IpAddr> {
    (addresses.iter().copied())
        .filter(|a| Family::of(*a) == family)
        .min()
}

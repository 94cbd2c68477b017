//! What forwarders learn: the nodes, and which node each range of addresses
//! is behind. A confirmed block is its owner's, and an address that somebody
//! else holds in it is a route of its own.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use ipnet::IpNet;
use weft_api::{
    ipam::{AffinityState, Encapsulation, Event, Node, Pool, Route, When},
    names::Name,
};

use crate::{
    book::Book,
    model::{Block, Key, Revision, Value},
    store::Update,
};

/// All that there is.
pub fn snapshot(book: &Book) -> Event {
    let view = View {
        book,
        updates: HashMap::new(),
    };
    let mut routes = Vec::new();
    for block in book.blocks() {
        routes.extend(view.routes(&block.cidr).into_values());
    }
    Event::Snapshot {
        revision: book.revision(),
        nodes: book.nodes().cloned().collect(),
        routes,
    }
}

/// What a commit means; the book has not applied it yet.
pub fn events(book: &Book, updates: &[Update], revision: Revision) -> Vec<Event> {
    let before = View {
        book,
        updates: HashMap::new(),
    };
    let values = (updates.iter())
        .map(|update| (&update.key, update.row.as_ref().map(|row| &row.value)))
        .collect();
    let after = View {
        book,
        updates: values,
    };
    let mut events = Vec::new();
    let mut gone = Vec::new();
    let mut blocks = BTreeSet::new();
    for (key, value) in &after.updates {
        match key {
            Key::Node(name) => match value.and_then(as_node) {
                Some(node) if book.node(name) != Some(node) => {
                    events.push(Event::Node {
                        revision,
                        node: node.clone(),
                    });
                }
                None if book.node(name).is_some() => gone.push(Event::NodeGone {
                    revision,
                    name: name.clone(),
                }),
                _ => {}
            },
            Key::Pool(name) => {
                let old = book.pool(name).map(|pool| pool.pool.cidr);
                let new = value.and_then(as_pool).map(|pool| pool.cidr);
                for cidr in old.into_iter().chain(new) {
                    blocks.extend(book.blocks_within(&cidr).map(|block| block.cidr));
                }
            }
            Key::Block(cidr) | Key::Affinity(_, cidr) => {
                blocks.insert(*cidr);
            }
            Key::Config | Key::Mark | Key::Reservation(_) | Key::Underlay(_) | Key::Vtep(_) => {}
        }
    }
    for cidr in &blocks {
        changed(
            &before.routes(cidr),
            after.routes(cidr),
            revision,
            &mut events,
        );
    }
    events.append(&mut gone);
    events
}

fn changed(
    before: &BTreeMap<IpNet, Route>,
    after: BTreeMap<IpNet, Route>,
    revision: Revision,
    events: &mut Vec<Event>,
) {
    for net in before.keys().filter(|net| !after.contains_key(*net)) {
        events.push(Event::RouteGone {
            revision,
            net: *net,
        });
    }
    for (net, route) in after {
        if before.get(&net) != Some(&route) {
            events.push(Event::Route { revision, route });
        }
    }
}

/// The book, with rows that are about to change.
struct View<'a> {
    book: &'a Book,
    updates: HashMap<&'a Key, Option<&'a Value>>,
}

impl View<'_> {
    fn routes(&self, cidr: &IpNet) -> BTreeMap<IpNet, Route> {
        let mut routes = BTreeMap::new();
        let Some(Value::Block(block)) = self.value(&Key::Block(*cidr)) else {
            return routes;
        };
        let pool = self.pool(cidr);
        let route = |net: IpNet, node: &Name| Route {
            net,
            node: node.clone(),
            encapsulation: pool.map_or(Encapsulation::default(), |pool| pool.encapsulation),
            when: pool.map_or(When::default(), |pool| pool.when),
            nat_outgoing: pool.is_some_and(|pool| pool.nat_outgoing),
        };
        for (ordinal, held) in &block.allocations {
            if held.is_held() && block.owner.as_ref() != Some(&held.node) {
                let net = IpNet::from(block.address(*ordinal));
                routes.insert(net, route(net, &held.node));
            }
        }
        // In a pool of single addresses a loan and its block are one net.
        if let Some(owner) = self.confirmed(block) {
            routes.entry(*cidr).or_insert_with(|| route(*cidr, owner));
        }
        routes
    }

    fn confirmed<'b>(&self, block: &'b Block) -> Option<&'b Name> {
        let owner = block.owner.as_ref()?;
        let affinity = self.value(&Key::Affinity(owner.clone(), block.cidr))?;
        let confirmed =
            matches!(affinity, Value::Affinity(row) if row.state == AffinityState::Confirmed);
        confirmed.then_some(owner)
    }

    fn pool(&self, cidr: &IpNet) -> Option<&Pool> {
        let known = self.book.pool_of(cidr).map(|pool| &pool.pool);
        if let Some(pool) = known {
            return match self.updates.get(&Key::Pool(pool.name.clone())) {
                Some(value) => value.and_then(as_pool),
                None => Some(pool),
            };
        }
        let new = self
            .updates
            .values()
            .filter_map(|value| value.and_then(as_pool));
        new.into_iter().find(|pool| pool.cidr.contains(cidr))
    }

    fn value(&self, key: &Key) -> Option<&Value> {
        match self.updates.get(key) {
            Some(value) => *value,
            None => self.book.value(key),
        }
    }
}

fn as_node(value: &Value) -> Option<&Node> {
    match value {
        Value::Node(node) => Some(node),
        _ => None,
    }
}

fn as_pool(value: &Value) -> Option<&Pool> {
    match value {
        Value::Pool(pool) => Some(pool),
        _ => None,
    }
}

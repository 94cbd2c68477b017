use std::sync::Arc;

use proptest::prelude::*;
use weft_api::{
    ipam::{AffinityState, Encapsulation, Place, Use},
    names::{Handle, Mac, Vni},
};

use super::*;
use crate::model::Allocation;

const NOW: Time = 1_000_000;

/// A sound world: block `n` of a pool belongs to node `n` and holds one
/// address for each of the ordinals.
#[derive(Debug, Clone)]
struct World {
    rows: BTreeMap<Key, Value>,
    in_use: Vec<InUse>,
}

fn name(text: impl Into<String>) -> Name {
    Name::new(text).expect("a name")
}

fn net(text: &str) -> IpNet {
    text.parse().expect("a CIDR")
}

fn block_key(place: u8, v6: bool) -> IpNet {
    match v6 {
        false => net(&format!("10.0.{place}.64/26")),
        true => net(&format!("fd00::{place}:40/122")),
    }
}

fn pool(name_: &str, cidr: &str) -> Pool {
    let row = serde_json::json!({ "name": name_, "cidr": cidr });
    serde_json::from_value(row).expect("a pool")
}

fn node(place: u8) -> Node {
    Node {
        name: name(format!("n{place}")),
        underlay: vec![net(&format!("192.0.2.{place}/24"))],
        vtep_mac: Mac([2, 0, 0, 0, 0, place]),
        vni: Vni::DEFAULT,
        port: 4789,
        tunnel: Vec::new(),
        labels: BTreeMap::new(),
        registered: None,
    }
}

impl World {
    fn new(blocks: &[(bool, BTreeMap<u32, u8>)]) -> Self {
        let mut world = Self {
            rows: BTreeMap::new(),
            in_use: Vec::new(),
        };
        world.put(Key::Config, Value::Config(Config::default()));
        for pool in [pool("v4", "10.0.0.0/16"), pool("v6", "fd00::/64")] {
            world.put(Key::Pool(pool.name.clone()), Value::Pool(pool));
        }
        for ((v6, states), place) in blocks.iter().zip(1..) {
            let node = node(place);
            let cidr = block_key(place, *v6);
            let state = Affinity {
                state: AffinityState::Confirmed,
            };
            world.put(
                Key::Affinity(node.name.clone(), cidr),
                Value::Affinity(state),
            );
            world.block(cidr, &node.name, states);
            world.put(Key::Node(node.name.clone()), Value::Node(node));
        }
        world
    }

    fn put(&mut self, key: Key, value: Value) {
        self.rows.insert(key, value);
    }

    /// Each state is held by a pod, a tunnel, at rest, or kept.
    fn block(&mut self, cidr: IpNet, owner: &Name, states: &BTreeMap<u32, u8>) {
        let mut allocations = BTreeMap::new();
        for (ordinal, state) in states {
            let address = address(cidr, *ordinal);
            let handle = Handle::new(format!("net/{address}/eth0")).expect("a handle");
            let held = *state < 2;
            if *state == 0 {
                self.in_use.push(InUse {
                    address,
                    handle: Some(handle.clone()),
                });
            }
            let allocation = Allocation {
                handle: held.then_some(handle),
                sequence: 7,
                node: owner.clone(),
                purpose: if *state == 1 {
                    Use::Tunnel
                } else {
                    Use::Workload
                },
                pod: None,
                identity: (*state == 3).then(|| name(format!("{owner}/web-{ordinal}"))),
                since: 100,
                mark: 0,
                place: (*state == 3).then(|| Place {
                    network: name("net"),
                    interface: name("eth0"),
                }),
                released: (!held).then_some(200),
            };
            allocations.insert(*ordinal, Arc::new(allocation));
        }
        let free = (0..64)
            .filter(|ordinal| !states.contains_key(ordinal))
            .collect();
        let block = Block {
            cidr,
            owner: Some(owner.clone()),
            claimed: 50,
            sequence: 9,
            allocations,
            free,
        };
        self.put(Key::Block(cidr), Value::Block(block.into()));
    }

    fn change_block(&mut self, cidr: IpNet, change: impl FnOnce(&mut Block)) {
        match self.rows.get_mut(&Key::Block(cidr)) {
            Some(Value::Block(block)) => change(Arc::make_mut(block)),
            other => panic!("{other:?} is no block"),
        }
    }

    fn change_pool(&mut self, change: impl FnOnce(&mut Pool)) {
        match self.rows.get_mut(&Key::Pool(name("v4"))) {
            Some(Value::Pool(pool)) => change(pool),
            other => panic!("{other:?} is no pool"),
        }
    }

    fn problems(&self) -> Vec<Problem> {
        check(&self.rows, Some(&self.in_use), NOW).problems
    }
}

fn change(block: &mut Block, ordinal: u32, change: impl FnOnce(&mut Allocation)) {
    let allocation = block.allocations.get_mut(&ordinal).expect("an allocation");
    change(Arc::make_mut(allocation));
}

type Mutation = (ProblemKind, &'static str, fn(&mut World));

const B: fn() -> IpNet = || block_key(1, false);

/// On a world whose first block, of IPv4, holds pods at 0 and 1, a kept
/// address at 2, and a tunnel's at 3.
const MUTATIONS: &[Mutation] = &[
    (ProblemKind::Leak, "nothing that runs", |w| w.in_use.clear()),
    (ProblemKind::Leak, "tunnel address of node gone", |w| {
        w.change_block(B(), |b| change(b, 3, |a| a.node = name("gone")));
    }),
    (ProblemKind::NotAllocated, "not allocated", |w| {
        w.in_use.push(InUse {
            address: address(B(), 2),
            handle: None,
        });
    }),
    (ProblemKind::OutsidePools, "in no pool", |w| {
        w.in_use.push(InUse {
            address: [172, 16, 0, 1].into(),
            handle: None,
        });
    }),
    (ProblemKind::DoubleOwner, "in use by", |w| {
        let mut other = w.in_use[0].clone();
        other.handle = Some(Handle::new("other").expect("a handle"));
        w.in_use.push(other);
    }),
    (ProblemKind::DoubleOwner, "other uses it", |w| {
        w.in_use[0].handle = Some(Handle::new("other").expect("a handle"));
    }),
    (ProblemKind::DoubleOwner, "two blocks", |w| {
        w.block(net("10.0.1.64/27"), &name("n1"), &[(0, 0)].into());
    }),
    (
        ProblemKind::DoubleOwner,
        "two addresses of one family",
        |w| {
            w.change_block(B(), |b| {
                let handle = b.allocations[&0].handle.clone();
                change(b, 1, |a| a.handle = handle);
            });
        },
    ),
    (
        ProblemKind::DoubleOwner,
        "two addresses of one family",
        |w| {
            w.change_block(B(), |b| {
                change(b, 1, |a| a.identity = Some(name("n1/web-2")))
            });
        },
    ),
    (ProblemKind::DoubleOwner, "confirmed as another", |w| {
        let state = AffinityState::Confirmed;
        w.put(
            Key::Affinity(name("z"), B()),
            Value::Affinity(Affinity { state }),
        );
    }),
    (ProblemKind::Structure, "owner is n1", |w| {
        let state = AffinityState::Confirmed;
        w.put(
            Key::Affinity(name("z"), B()),
            Value::Affinity(Affinity { state }),
        );
    }),
    (ProblemKind::Structure, "overlaps block", |w| {
        w.block(net("10.0.1.64/27"), &name("n1"), &BTreeMap::new());
    }),
    (ProblemKind::Structure, "not what its key says", |w| {
        w.change_block(B(), |b| b.cidr = net("10.0.200.0/26"));
    }),
    (ProblemKind::Structure, "another kind", |w| {
        w.put(Key::Config, Value::Pool(pool("v4", "10.0.0.0/16")));
    }),
    (ProblemKind::Structure, "misaligned", |w| {
        w.change_block(B(), |b| b.cidr = net("10.0.1.65/26"));
    }),
    (ProblemKind::Structure, "in no pool", |w| {
        w.rows.remove(&Key::Pool(name("v4")));
    }),
    (ProblemKind::Structure, "no pools, but", |w| {
        w.rows.retain(|key, _| !matches!(key, Key::Pool(_)));
    }),
    (ProblemKind::Structure, "cut into blocks of /27", |w| {
        w.change_pool(|p| p.block_size = Some(27));
    }),
    (ProblemKind::Structure, "out of its 64", |w| {
        w.change_block(B(), |b| b.free.push_back(64))
    }),
    (ProblemKind::Structure, "out of its 64", |w| {
        w.change_block(B(), |b| {
            let one = b.allocations.remove(&0).expect("an allocation");
            b.allocations.insert(64, one);
            b.free.push_back(0);
        });
    }),
    (ProblemKind::Structure, "both free and", |w| {
        w.change_block(B(), |b| b.free.push_back(0))
    }),
    (ProblemKind::Structure, "free twice", |w| {
        w.change_block(B(), |b| b.free.push_back(63))
    }),
    (ProblemKind::Structure, "neither free nor", |w| {
        w.change_block(B(), |b| assert!(b.free.pop_back().is_some()));
    }),
    (ProblemKind::Structure, "neither held nor", |w| {
        w.change_block(B(), |b| change(b, 2, |a| a.released = None));
    }),
    (ProblemKind::Structure, "yet it was released", |w| {
        w.change_block(B(), |b| change(b, 0, |a| a.released = Some(200)));
    }),
    (ProblemKind::Structure, "sequence number", |w| {
        w.change_block(B(), |b| b.sequence = 6)
    }),
    (ProblemKind::Clock, "released", |w| {
        w.change_block(B(), |b| change(b, 2, |a| a.released = Some(NOW + 1)));
    }),
    (ProblemKind::Clock, "allocated", |w| {
        w.change_block(B(), |b| change(b, 0, |a| a.since = NOW + 1));
    }),
    (ProblemKind::Clock, "claimed", |w| {
        w.change_block(B(), |b| b.claimed = NOW + 1)
    }),
    (ProblemKind::Structure, "does not exist", |w| {
        w.rows.remove(&Key::Block(B()));
    }),
    (ProblemKind::Structure, "has no affinity", |w| {
        w.rows.remove(&Key::Affinity(name("n1"), B()));
    }),
    (ProblemKind::Unfinished, "claiming", |w| {
        let state = AffinityState::Pending;
        w.put(
            Key::Affinity(name("n1"), B()),
            Value::Affinity(Affinity { state }),
        );
    }),
    (ProblemKind::Unfinished, "giving the block up", |w| {
        let state = AffinityState::PendingDeletion;
        w.put(
            Key::Affinity(name("n1"), B()),
            Value::Affinity(Affinity { state }),
        );
    }),
    (ProblemKind::Unfinished, "node n1, is not known", |w| {
        w.rows.remove(&Key::Node(name("n1")));
        w.put(Key::Node(name("n99")), Value::Node(node(99)));
    }),
    (ProblemKind::Structure, "neither claim", |w| {
        let config = Config {
            strict_affinity: true,
            claim_blocks: false,
            ..Config::default()
        };
        w.put(Key::Config, Value::Config(config));
    }),
    (ProblemKind::Structure, "cooldown of 1201", |w| {
        let config = Config {
            cooldown_seconds: 1201,
            ..Config::default()
        };
        w.put(Key::Config, Value::Config(config));
    }),
    (ProblemKind::Structure, "may own a block", |w| {
        let config = Config {
            blocks_per_node: Some(0),
            ..Config::default()
        };
        w.put(Key::Config, Value::Config(config));
    }),
    (ProblemKind::Structure, "overlaps 10.0.0.0/16", |w| {
        w.put(
            Key::Pool(name("b")),
            Value::Pool(pool("b", "10.0.128.0/17")),
        );
    }),
    (ProblemKind::Structure, "link-local", |w| {
        w.put(
            Key::Pool(name("b")),
            Value::Pool(pool("b", "169.254.8.0/24")),
        );
    }),
    (ProblemKind::Structure, "beyond its prefix", |w| {
        w.put(
            Key::Pool(name("b")),
            Value::Pool(pool("b", "172.16.0.1/24")),
        );
    }),
    (ProblemKind::Structure, "blocks of /33", |w| {
        w.change_pool(|p| p.block_size = Some(33))
    }),
    (ProblemKind::Structure, "blocks of /26", |w| {
        w.put(
            Key::Pool(name("b")),
            Value::Pool(pool("b", "172.16.0.0/28")),
        );
    }),
    (ProblemKind::Structure, "its node selector", |w| {
        w.change_pool(|p| p.node_selector = "zone =".into());
    }),
    (ProblemKind::Structure, "its namespace selector", |w| {
        w.change_pool(|p| p.namespace_selector = "(".into());
    }),
    (ProblemKind::Structure, "nothing may use", |w| {
        w.change_pool(|p| p.uses.clear())
    }),
    (ProblemKind::Structure, "load balancers", |w| {
        w.change_pool(|p| p.uses.push(Use::LoadBalancer));
    }),
    (ProblemKind::Structure, "IPIP", |w| {
        let v6 = Pool {
            encapsulation: Encapsulation::Ipip,
            ..pool("v6", "fd00::/64")
        };
        w.put(Key::Pool(name("v6")), Value::Pool(v6));
    }),
    (
        ProblemKind::Structure,
        "underlay address 192.0.2.1 is",
        |w| {
            let twin = Node {
                underlay: vec![net("192.0.2.1/24")],
                ..node(99)
            };
            w.put(Key::Node(name("n99")), Value::Node(twin));
        },
    ),
    (ProblemKind::Structure, "VTEP MAC", |w| {
        let twin = Node {
            vtep_mac: Mac([2, 0, 0, 0, 0, 1]),
            ..node(99)
        };
        w.put(Key::Node(name("n99")), Value::Node(twin));
    }),
    (ProblemKind::Structure, "two underlay", |w| {
        let two = Node {
            underlay: vec![net("192.0.2.8/24"), net("192.0.2.9/24")],
            ..node(99)
        };
        w.put(Key::Node(name("n99")), Value::Node(two));
    }),
];

#[test]
fn a_row_that_comes_twice_is_told() {
    let world = World::new(&[(false, BTreeMap::new())]);
    let twice = world.rows.iter().chain(world.rows.iter());
    let told = check(twice, None, NOW).problems;
    assert!(told.iter().all(|problem| problem.message.contains("twice")));
    assert_eq!(told.len(), world.rows.len());
}

fn blocks() -> impl Strategy<Value = Vec<(bool, BTreeMap<u32, u8>)>> {
    // The last ordinal stays free: one mutation takes it from the list.
    let states = proptest::collection::btree_map(4u32..63, 0u8..4, 0..20);
    proptest::collection::vec((any::<bool>(), states), 1..6).prop_map(|mut blocks| {
        blocks[0].0 = false;
        blocks[0].1.extend([(0, 0), (1, 0), (2, 3), (3, 1)]);
        blocks
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn a_sound_world_has_no_problem_and_each_fault_has_its_own(blocks in blocks()) {
        let sound = World::new(&blocks);
        prop_assert_eq!(sound.problems(), vec![]);
        for (kind, message, mutate) in MUTATIONS {
            let mut world = sound.clone();
            mutate(&mut world);
            let problems = world.problems();
            prop_assert!(
                problems.iter().any(|p| p.kind == *kind && p.message.contains(message)),
                "{kind:?} {message:?} is not among {problems:#?}"
            );
            prop_assert!(problems.iter().all(|p| !p.object.is_empty() && !p.hint.is_empty()));
        }
    }
}

//! Several servers whose books are behind, on shared rows, against a plain
//! map of who has what.

mod support;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use proptest::prelude::*;
use support::*;
use weft_api::{
    ipam::{
        Attachment, ConfigChange, Family, Place, ProblemKind, Release, Released, Reply, Request,
        Time,
    },
    names::{Handle, Name},
};
use weft_ipam::model::Value;

const SERVERS: usize = 3;
const COOLDOWN: Time = 20_000;

#[derive(Debug, Clone)]
enum Step {
    Allocate {
        container: u8,
        dual: bool,
        identity: bool,
    },
    Release(u8),
    ReleaseIdentity(u8),
    Gc {
        node: u8,
        valid: BTreeSet<u8>,
    },
    Reserve(u8),
    Unreserve(u8),
    Disable(bool),
    Recreate(u8),
    NodePut(u8, bool),
    NodeDelete(u8),
    Strict(bool),
    Cool(bool),
    Limit(u32),
    Sync,
    Wait(Time),
    SetClockBack(Time),
    Raise,
}

#[derive(Debug, Default)]
struct Model {
    held: BTreeMap<IpAddr, Handle>,
    /// Of a held or kept address.
    identities: BTreeMap<IpAddr, String>,
    /// Until when a released address may not be given.
    resting: BTreeMap<IpAddr, Time>,
    /// How often the mark was raised, and had been when an address was given.
    raised: u64,
    made: BTreeMap<IpAddr, u64>,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let allocate = (0_u8..14, any::<bool>(), prop::bool::weighted(0.3));
    let allocate = allocate.prop_map(|(container, dual, identity)| Step::Allocate {
        container,
        dual,
        identity,
    });
    let step = prop_oneof![
        12 => allocate,
        6 => (0_u8..14).prop_map(Step::Release),
        1 => (0_u8..14).prop_map(Step::ReleaseIdentity),
        3 => Just(Step::Raise),
        1 => (0_u64..70_000).prop_map(Step::SetClockBack),
        2 => (1_u8..5, prop::collection::btree_set(0_u8..14, 0..10))
            .prop_map(|(node, valid)| Step::Gc { node, valid }),
        1 => (0_u8..16).prop_map(Step::Reserve),
        1 => (0_u8..16).prop_map(Step::Unreserve),
        1 => any::<bool>().prop_map(Step::Disable),
        1 => (29_u8..32).prop_map(Step::Recreate),
        1 => (1_u8..5, any::<bool>()).prop_map(|(node, fast)| Step::NodePut(node, fast)),
        1 => (1_u8..5).prop_map(Step::NodeDelete),
        1 => any::<bool>().prop_map(Step::Strict),
        1 => any::<bool>().prop_map(Step::Cool),
        1 => (0_u32..3).prop_map(Step::Limit),
        3 => Just(Step::Sync),
        3 => (0_u64..70_000).prop_map(Step::Wait),
    ];
    prop::collection::vec(step, 1..120)
}

fn request(step: &Step) -> Option<Request> {
    let container = |number: &u8| format!("c{number}");
    let identity = |number: &u8| format!("ns/pod-{}", number % 4);
    Some(match step {
        Step::Allocate {
            container: number,
            dual,
            identity: sticky,
        } => want_with(&format!("n{}", 1 + number % 4), &container(number), |ask| {
            ask.attachment = attachment_of(*number);
            if *dual {
                ask.families.push(Family::V6);
            }
            ask.identity = sticky.then(|| name(&identity(&(number / 2))));
        }),
        Step::Release(number) => Request::Release(Release::Attachment(attachment_of(*number))),
        Step::ReleaseIdentity(number) => Request::Release(Release::Identity {
            identity: name(&identity(number)),
        }),
        Step::Gc { node, valid } => {
            let valid: Vec<_> = valid.iter().map(container).collect();
            let valid: Vec<_> = valid.iter().map(String::as_str).collect();
            gc(&format!("n{node}"), &valid)
        }
        Step::Reserve(at) => reserve(&format!("r{at}"), &[&format!("10.0.0.{at}/32")]),
        Step::Unreserve(at) => Request::Unreserve {
            name: name(&format!("r{at}")),
        },
        Step::Disable(disabled) => Request::PoolDisable {
            name: name("four"),
            disabled: *disabled,
        },
        Step::Recreate(_) => Request::PoolDelete { name: name("four") },
        Step::NodePut(node, fast) => {
            let labels: &[_] = if *fast { &[("disk", "fast")] } else { &[] };
            node_put(*node, labels)
        }
        Step::NodeDelete(node) => Request::NodeDelete {
            name: name(&format!("n{node}")),
        },
        Step::Strict(strict) => Request::Configure(ConfigChange {
            strict_affinity: Some(*strict),
            ..ConfigChange::default()
        }),
        Step::Cool(cool) => Request::Configure(cooldown(if *cool { 20 } else { 0 })),
        Step::Limit(limit) => Request::Configure(ConfigChange {
            blocks_per_node: Some(*limit),
            ..ConfigChange::default()
        }),
        Step::Sync | Step::Wait(_) | Step::SetClockBack(_) | Step::Raise => return None,
    })
}

/// Pods' identities are of two containers, one of which has another interface
/// and every third another network.
fn attachment_of(number: u8) -> Attachment {
    let mut attachment = attachment(&format!("c{number}"));
    if number.is_multiple_of(3) {
        attachment.interface = name("net1");
    }
    if number > 9 {
        attachment.network = name("other");
    }
    attachment
}

fn at(identity: &Name, place: &Place) -> String {
    format!("{identity} at {} of {}", place.interface, place.network)
}

impl Model {
    fn note(&mut self, request: &Request, reply: &Reply, now: Time, cools: bool) {
        match (request, reply) {
            (Request::Allocate(ask), Reply::Allocated(allocated)) => {
                assert_eq!(allocated.addresses.len(), ask.families.len());
                let handle = ask.attachment.handle();
                let place = ask.attachment.place();
                let identity = ask.identity.as_ref().map(|name| at(name, &place));
                for assigned in &allocated.addresses {
                    self.give(assigned.address, &handle, identity.as_ref(), now);
                }
            }
            (Request::Gc(gc), Reply::Released(released)) => {
                let valid: BTreeSet<_> = gc.valid.iter().map(|one| one.handle()).collect();
                for address in released.released.iter().chain(&released.kept) {
                    assert!(!valid.contains(&self.held[address]), "{address} is valid");
                    let age = self.raised - self.made[address];
                    assert!(age >= 2, "{address} is young");
                }
                self.take(released, now, cools);
            }
            (Request::Release(_), Reply::Released(released)) => self.take(released, now, cools),
            _ => {}
        }
    }

    fn give(&mut self, address: IpAddr, handle: &Handle, identity: Option<&String>, now: Time) {
        self.made.insert(address, self.raised);
        if self.held.get(&address) == Some(handle) {
            return;
        }
        let had = self.identities.get(&address);
        let is_free = !self.held.contains_key(&address) && had.is_none();
        assert!(
            is_free || had == identity,
            "{address} for {handle}: {self:?}"
        );
        if is_free {
            let rests = self.resting.get(&address).is_some_and(|until| *until > now);
            assert!(!rests, "{address} rests");
        }
        self.held.insert(address, handle.clone());
        if let Some(identity) = identity {
            self.identities.insert(address, identity.clone());
        }
    }

    fn take(&mut self, released: &Released, now: Time, cools: bool) {
        for address in &released.released {
            let had = self.held.remove(address).map(|_| ());
            let kept = self.identities.remove(address).map(|_| ());
            assert!(had.or(kept).is_some(), "{address} was nobody's");
            if cools {
                self.resting.insert(*address, now + COOLDOWN);
            }
        }
        for address in &released.kept {
            assert!(
                self.held.remove(address).is_some(),
                "{address} was not held"
            );
            assert!(self.identities.contains_key(address));
        }
    }

    fn equals(&self, rows: &Rows) {
        let mut held = BTreeMap::new();
        let mut identities = BTreeMap::new();
        for row in rows.rows.values() {
            let Value::Block(block) = &row.value else {
                continue;
            };
            for (ordinal, allocation) in &block.allocations {
                let address = block.address(*ordinal);
                if let Some(handle) = &allocation.handle {
                    assert_eq!(held.insert(address, handle.clone()), None);
                }
                if let Some(identity) = &allocation.identity {
                    let place = allocation.place().expect("it says where");
                    identities.insert(address, at(identity, &place));
                }
            }
        }
        assert_eq!(held, self.held);
        assert_eq!(identities, self.identities);
    }
}

fn structural(rows: &Rows, now: Time) -> Vec<weft_api::ipam::Problem> {
    let bad = [
        ProblemKind::DoubleOwner,
        ProblemKind::Structure,
        ProblemKind::Handle,
    ];
    let mut problems = rows.problems(now);
    // Two servers that have not heard of each other may both begin an identity:
    // it has two addresses then, but no address has two owners.
    let begun_twice = |object: &str| object.starts_with("identity");
    problems.retain(|problem| bad.contains(&problem.kind) && !begun_twice(&problem.object));
    problems
}

/// A book that was kept up to date says what one loaded anew says.
fn same_as_loaded(server: &Server, rows: &Rows, now: Time) {
    let loaded = weft_ipam::book::Book::load(weft_ipam::store::Loaded {
        revision: rows.revision,
        rows: rows
            .rows
            .iter()
            .map(|(key, row)| (key.clone(), row.clone()))
            .collect(),
    });
    assert_eq!(loaded.counts(), server.book.counts());
    for node in 1..5 {
        let node = name(&format!("n{node}"));
        assert_eq!(loaded.share(&node), server.book.share(&node));
    }
    for container in 0..14 {
        let request = want("n1", &format!("c{container}"));
        let plan = |book| weft_ipam::plan::plan(book, &request, now).map(|plan| plan.reply);
        let (a, b) = (plan(&loaded), plan(&server.book));
        assert_eq!(a, b);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn servers_that_are_behind_agree_with_a_plain_map(
        steps in steps(),
        choices in prop::collection::vec(0..SERVERS, 120),
    ) {
        let mut rows = Rows::default();
        let mut servers: Vec<_> = (0..SERVERS).map(|_| Server::default()).collect();
        let mut model = Model::default();
        let mut now = NOW;
        let mut fast = pool("six", "fd00::/124", 126);
        fast.node_selector = "disk != 'slow'".to_owned();
        for pool in [pool("four", "10.0.0.0/28", 30), fast] {
            let create = Request::PoolCreate(Box::new(pool));
            servers[0].ask(&mut rows, &create, now).expect("allowed");
        }
        for (step, choice) in steps.iter().zip(choices) {
            // A container asks on one node, and a node has one server; what
            // gives back comes from anywhere.
            let choice = match step {
                Step::Allocate { container, .. } => usize::from(container % 4) % SERVERS,
                _ => choice,
            };
            let server = &mut servers[choice];
            match step {
                Step::Sync => server.sync(&rows),
                Step::Wait(time) => now += time,
                Step::SetClockBack(time) => {
                    now -= time;
                    // What was swept before stays free.
                    model.resting.clear();
                }
                Step::Raise if server.book.may_have_young() => {
                    model.raised += u64::from(raise(server, &mut rows));
                }
                _ => {}
            }
            let Some(request) = request(step) else {
                continue;
            };
            if matches!(step, Step::Recreate(_)) {
                // No block is cut in a disabled pool: from here on the server
                // knows them all.
                let disable = Request::PoolDisable {
                    name: name("four"),
                    disabled: true,
                };
                let _ = server.ask(&mut rows, &disable, now);
            }
            let reply = server.ask(&mut rows, &request, now);
            let cools = server.book.config().cooldown_seconds > 0;
            if let Ok(reply) = &reply {
                model.note(&request, reply, now, cools);
            }
            if let Step::Recreate(size) = step {
                let create = Request::PoolCreate(Box::new(pool("four", "10.0.0.0/28", *size)));
                let _ = server.ask(&mut rows, &create, now);
            }
            // A pool's deletion ends its addresses' rest, and so does no cooldown.
            if matches!(step, Step::Cool(false) | Step::Recreate(_)) {
                model.resting.clear();
            }
            if matches!(step, Step::Cool(_)) {
                servers.iter_mut().for_each(|server| server.sync(&rows));
            }
            model.equals(&rows);
            prop_assert_eq!(structural(&rows, now), vec![]);
        }
        for server in &mut servers {
            server.sync(&rows);
            same_as_loaded(server, &rows, now);
        }
    }
}

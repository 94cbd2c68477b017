//! 5 000 nodes claim their first blocks at the same time, through servers
//! that do not hear of each other until they collide.

mod support;

use std::collections::{BTreeMap, BTreeSet};

use support::*;
use weft_api::ipam::{AffinityState, Reply};
use weft_ipam::model::{Key, Value};

const NODES: usize = 5_000;
const SERVERS: usize = 8;

#[test]
fn five_thousand_nodes_claim_at_once_and_no_block_has_two_owners() {
    let mut rows = Rows::default();
    let mut servers: Vec<_> = (0..SERVERS).map(|_| Server::default()).collect();
    let create = weft_api::ipam::Request::PoolCreate(Box::new(pool("p", "10.0.0.0/13", 26)));
    servers[0].ask(&mut rows, &create, NOW).expect("allowed");
    for server in &mut servers {
        server.sync(&rows);
    }
    let mut addresses = BTreeSet::new();
    let mut collisions = 0;
    // Each round every server plans for some nodes on what it knows, and
    // only then do they commit.
    let mut waiting = vec![Vec::new(); SERVERS];
    for node in 0..NODES {
        waiting[node % SERVERS].push(node);
    }
    while waiting.iter().any(|queue| !queue.is_empty()) {
        let group: Vec<_> = waiting.iter_mut().filter_map(Vec::pop).collect();
        let plan = |node: &usize| {
            let request = want(&format!("node-{node}"), &format!("c{node}"));
            let book = &servers[node % SERVERS].book;
            weft_ipam::plan::plan(book, &request, NOW).expect("there is room")
        };
        let plans: Vec<_> = group.iter().map(plan).collect();
        for (node, plan) in group.iter().zip(plans) {
            let server = &mut servers[node % SERVERS];
            if !rows.commit(&server.book, &plan) {
                collisions += 1;
                server.sync(&rows);
                waiting[node % SERVERS].push(*node);
                continue;
            }
            match plan.reply {
                Reply::Allocated(allocated) => {
                    assert!(!allocated.addresses[0].borrowed);
                    assert!(addresses.insert(allocated.addresses[0].address));
                }
                other => panic!("{other:?}"),
            }
        }
    }
    assert_eq!(addresses.len(), NODES);
    assert!(collisions > 0, "no two servers met: the test shows nothing");
    let mut owners = BTreeMap::new();
    for (key, row) in &rows.rows {
        match (key, &row.value) {
            (Key::Block(cidr), Value::Block(block)) => {
                let owner = block.owner.clone().expect("owned");
                assert_eq!(owners.insert(owner, *cidr), None, "one block each");
            }
            (Key::Affinity(..), Value::Affinity(affinity)) => {
                assert_eq!(affinity.state, AffinityState::Confirmed);
            }
            _ => {}
        }
    }
    assert_eq!(owners.len(), NODES);
    assert_eq!(rows.problems(NOW), vec![]);
}

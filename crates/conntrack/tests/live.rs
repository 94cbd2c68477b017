//! A look at all connections that are alive.

mod support;

use std::sync::Arc;

use support::{CLIENT, Lab, SERVER, client, key, server};
use weft_conntrack::{Account, Live};
use weft_testkit::frames::{SYN, between};

fn live(lab: &Lab) -> Vec<Live> {
    let mut all = Vec::new();
    lab.tracker.each_live(lab.now, |one| all.push(one));
    all
}

#[test]
fn each_is_told_as_it_was_opened_and_who_judges_it() {
    for (here, leaves, comes) in [(CLIENT, true, false), (SERVER, false, true)] {
        for opening in [client(), server()] {
            let mut lab = Lab::new(1000);
            lab.accounts
                .push((here.into(), Arc::new(Account::default())));
            lab.passes(&opening.clone().flags(SYN));
            let turned = key(&opening).src != CLIENT;
            let told = Live {
                key: key(&opening),
                leaves: leaves != turned,
                comes: comes != turned,
            };
            assert_eq!(live(&lab), [told]);
        }
    }
}

#[test]
fn what_the_node_opens_comes_to_nobody() {
    let mut lab = Lab::new(1000);
    let node = Arc::clone(lab.tracker.node());
    lab.accounts.push((CLIENT.into(), node));
    lab.accounts
        .push((SERVER.into(), Arc::new(Account::default())));
    lab.passes(&between(CLIENT, SERVER).udp(5000, 53));
    let all = live(&lab);
    assert_eq!((all[0].leaves, all[0].comes), (false, false));
}

#[test]
fn what_is_forgotten_or_forbidden_is_left_out() {
    let mut lab = Lab::new(1000);
    let query = between(CLIENT, SERVER).udp(5000, 53);
    lab.passes(&query);
    assert_eq!(live(&lab).len(), 1);
    lab.silence(CLIENT);
    assert!(lab.see(&query).is_err());
    assert_eq!(live(&lab), []);
    lab.silenced.clear();
    lab.edition += 1;
    lab.passes(&query);
    assert_eq!(live(&lab).len(), 1);
    lab.wait(31);
    assert_eq!(live(&lab), []);
}

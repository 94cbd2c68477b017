//! The tracker against models that are too simple to be wrong.

mod support;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
};

use proptest::{collection::vec, prelude::*, sample::select};
use support::{CLIENT, Lab, SERVER};
use weft_conntrack::{Account, Refused};
use weft_testkit::frames::{ACK, FIN, RST, SYN, between};

/// An address and a port.
type End = (Ipv4Addr, u16);

#[derive(Debug, Clone)]
enum Act {
    Datagram(End, End),
    Wait(u64),
    /// The rules silence an address, or no longer.
    Toggle(Ipv4Addr),
    Sweep,
}

/// All flows in one list, by who opened them.
#[derive(Default)]
struct Model {
    flows: BTreeMap<(End, End), Flow>,
    silenced: BTreeSet<Ipv4Addr>,
}

#[derive(Clone, Copy)]
struct Flow {
    heard: u64,
    answered: bool,
    forbidden: bool,
}

impl Model {
    fn sees(&mut self, from: End, to: End, now: u64) -> bool {
        self.flows.retain(|_, flow| {
            let timeout = match flow.answered && !flow.forbidden {
                true => 120,
                false => 30,
            };
            now <= flow.heard + timeout
        });
        let (opener, answers) = match self.flows.contains_key(&(to, from)) {
            true => ((to, from), true),
            false => ((from, to), false),
        };
        let may = !self.silenced.contains(&opener.0.0);
        match self.flows.get_mut(&opener) {
            Some(flow) if may => {
                flow.heard = now;
                flow.answered |= answers;
                flow.forbidden = false;
            }
            Some(flow) => {
                if !flow.forbidden {
                    flow.heard = now;
                }
                flow.forbidden = true;
            }
            None if may => {
                let flow = Flow {
                    heard: now,
                    answered: false,
                    forbidden: false,
                };
                self.flows.insert(opener, flow);
            }
            None => {}
        }
        may
    }
}

fn address() -> impl Strategy<Value = Ipv4Addr> {
    (1u8..=3).prop_map(|last| Ipv4Addr::new(10, 0, 0, last))
}

fn end() -> impl Strategy<Value = End> {
    (address(), 1u16..=2)
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        8 => (end(), end())
            .prop_filter("no flow to oneself", |(from, to)| from != to)
            .prop_map(|(from, to)| Act::Datagram(from, to)),
        3 => select(vec![1, 5, 29, 30, 31, 60, 119, 121]).prop_map(Act::Wait),
        1 => address().prop_map(Act::Toggle),
        1 => Just(Act::Sweep),
    ]
}

proptest! {
    #[test]
    fn udp_is_as_the_model_has_it(acts in vec(act(), 1..120)) {
        let mut lab = Lab::new(1000);
        let mut model = Model::default();
        let start = lab.now;
        for act in acts {
            match act {
                Act::Datagram(from, to) => {
                    let frame = between(from.0, to.0).udp(from.1, to.1);
                    let second = (lab.now - start).as_secs();
                    let expected = model.sees(from, to, second);
                    prop_assert_eq!(lab.see(&frame).is_ok(), expected);
                }
                Act::Wait(seconds) => lab.wait(seconds),
                Act::Toggle(address) => {
                    if !model.silenced.remove(&address) {
                        model.silenced.insert(address);
                    }
                    lab.silenced = model.silenced.iter().copied().map(IpAddr::V4).collect();
                    lab.edition += 1;
                }
                Act::Sweep => {
                    lab.tracker.sweep(lab.now);
                }
            }
        }
    }

    /// Whatever two ends say to each other: who may open nothing gets no SYN
    /// through, and what is counted is what is there.
    #[test]
    fn no_segments_open_what_may_not_be(
        segments in vec((any::<bool>(), select(vec![
            SYN, SYN | ACK, ACK, FIN | ACK, RST, RST | ACK, SYN | FIN, 0,
        ]), 0u32..8, 0u32..8, 0u64..4), 1..80),
    ) {
        let mut lab = Lab::new(1000);
        let account = Arc::new(Account::new(1));
        lab.accounts = vec![(CLIENT.into(), Arc::clone(&account))];
        lab.silence(SERVER);
        let mut client_spoke = false;
        for (by_client, flags, seq, ack, pause) in segments {
            lab.wait(pause);
            let frame = match by_client {
                true => between(CLIENT, SERVER).tcp(4000, 80),
                false => between(SERVER, CLIENT).tcp(80, 4000),
            };
            let outcome = lab.see(&frame.flags(flags).seq(seq).ack(ack));
            let is_syn = flags & (SYN | ACK | RST) == SYN;
            if by_client {
                prop_assert!(outcome.is_ok());
                client_spoke = true;
            } else if is_syn || !client_spoke {
                prop_assert_eq!(outcome, Err(Refused::Forbidden("forbidden")));
            }
            prop_assert!(lab.tracker.count() <= 1);
            prop_assert_eq!(lab.tracker.count(), account.opened() as usize);
        }
    }

    /// However full, a table holds no more than it may, and an account has
    /// what is in the table.
    #[test]
    fn a_full_table_keeps_its_books(
        flows in vec((1u16..60, any::<bool>(), 0u64..20), 1..200),
        capacity in 1usize..20,
        limit in 1u32..20,
    ) {
        let mut lab = Lab::new(capacity);
        let account = Arc::new(Account::new(limit));
        lab.accounts = vec![(CLIENT.into(), Arc::clone(&account))];
        for (port, answered, pause) in flows {
            lab.wait(pause);
            let passed = lab.see(&between(CLIENT, SERVER).udp(port, 53)).is_ok();
            if answered && passed {
                lab.passes(&between(SERVER, CLIENT).udp(53, port));
            }
            prop_assert!(lab.tracker.count() <= capacity);
            prop_assert!(account.opened() <= limit);
            prop_assert_eq!(lab.tracker.count(), account.opened() as usize);
        }
        lab.wait(121);
        lab.sweep();
        prop_assert_eq!((lab.tracker.count(), account.opened()), (0, 0));
    }
}

//! The flows: found by key, counted by pod, and who gives way when there are
//! too many.
//!
//! A pod may have so many flows and all pods together so many. A flow of
//! datagrams that finds no room takes the place of the one that was idle
//! longest: its own pod's when the pod has its share, else that of the pod which
//! has most. Connections never give way.

use std::{
    collections::{HashMap, VecDeque},
    net::IpAddr,
    time::{Duration, Instant},
};

use slab::Slab;
use weft_wire::Key;

use crate::{caller::Caller, datagrams::Datagrams, pace::Pace, tcp::Tcp};

#[derive(Debug)]
pub struct Flow {
    pub key: Key,
    /// Tells flows apart that had the same slot.
    pub serial: u64,
    /// When a timer wakes it, if one does.
    pub timer: Option<Instant>,
    /// It waits for its turn.
    pub touched: bool,
    pub kind: Kind,
}

#[derive(Debug)]
pub enum Kind {
    Tcp(Box<Tcp>),
    Datagrams(Datagrams),
    Caller(Caller),
}

impl Kind {
    /// When a flow of datagrams was used last. Connections are never idle.
    fn used(&self) -> Option<Instant> {
        match self {
            Self::Tcp(_) => None,
            Self::Datagrams(flow) => Some(flow.used),
            Self::Caller(caller) => Some(caller.used),
        }
    }

    /// The door that it came by.
    pub fn door(&self) -> Option<usize> {
        match self {
            Self::Tcp(tcp) => tcp.door,
            Self::Datagrams(_) => None,
            Self::Caller(caller) => Some(caller.call.door),
        }
    }

    /// When it ends for want of use.
    pub fn ends(&self, key: &Key) -> Option<Instant> {
        match self {
            Self::Tcp(_) => None,
            Self::Datagrams(flow) => Some(flow.ends(key)),
            Self::Caller(caller) => Some(caller.ends()),
        }
    }
}

#[derive(Debug, Clone, Copy)]
pub struct Limits {
    pub all: usize,
    pub pod: usize,
}

#[derive(Debug)]
pub struct Table {
    flows: Slab<Flow>,
    by_key: HashMap<Key, usize>,
    pods: HashMap<IpAddr, Pod>,
    limits: Limits,
    serial: u64,
    pace: Pace,
}

#[derive(Debug, Default)]
struct Pod {
    flows: usize,
    pace: Pace,
    /// Flows of datagrams, of which the one in front was idle longest when it
    /// was put there.
    datagrams: VecDeque<Seen>,
}

#[derive(Debug, Clone, Copy)]
struct Seen {
    slot: usize,
    serial: u64,
    used: Instant,
}

/// Of the loop's time, what opening flows of datagrams may take: for all pods one
/// part in so many, and for one of them.
const PARTS: u32 = 2;
const PARTS_OF_POD: u32 = 4;

/// What a new flow finds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Room {
    Free,
    /// The flow in this slot gives way.
    Instead(usize),
    None,
}

impl Table {
    pub fn new(limits: Limits) -> Self {
        Self {
            flows: Slab::new(),
            by_key: HashMap::new(),
            pods: HashMap::new(),
            limits,
            serial: 0,
            pace: Pace::default(),
        }
    }

    pub fn len(&self) -> usize {
        self.flows.len()
    }

    pub fn find(&self, key: &Key) -> Option<usize> {
        self.by_key.get(key).copied()
    }

    pub fn flow(&mut self, slot: usize) -> Option<&mut Flow> {
        self.flows.get_mut(slot)
    }

    /// The slots of the flows that are meant.
    pub fn slots(&self, meant: impl Fn(&Flow) -> bool) -> Vec<usize> {
        let flows = self.flows.iter();
        flows
            .filter(|(_, flow)| meant(flow))
            .map(|(slot, _)| slot)
            .collect()
    }

    /// Whether the pod may open one more flow of datagrams now.
    pub fn is_paced(&self, pod: IpAddr, now: Instant) -> bool {
        let pod = self.pods.get(&pod);
        self.pace.may_spend(now) && pod.is_none_or(|pod| pod.pace.may_spend(now))
    }

    /// It took so long to open one.
    pub fn spend(&mut self, pod: IpAddr, time: Duration, now: Instant) {
        self.pace.spend(time, PARTS, now);
        if let Some(pod) = self.pods.get_mut(&pod) {
            pod.pace.spend(time, PARTS_OF_POD, now);
        }
    }

    /// The room for one more flow of that pod.
    pub fn room(&mut self, pod: IpAddr) -> Room {
        let own = self.pods.get(&pod).map_or(0, |pod| pod.flows);
        if own >= self.limits.pod {
            return self.longest_idle(pod).map_or(Room::None, Room::Instead);
        }
        if self.flows.len() < self.limits.all {
            return Room::Free;
        }
        // Each look at a pod in vain leaves its list empty.
        while let Some(busiest) = self.busiest() {
            if let Some(slot) = self.longest_idle(busiest) {
                return Room::Instead(slot);
            }
        }
        Room::None
    }

    fn busiest(&self) -> Option<IpAddr> {
        let busy = self
            .pods
            .iter()
            .filter(|(_, pod)| !pod.datagrams.is_empty());
        let (address, _) = busy.max_by_key(|(_, pod)| pod.datagrams.len())?;
        Some(*address)
    }

    fn longest_idle(&mut self, pod: IpAddr) -> Option<usize> {
        let queue = &mut self.pods.get_mut(&pod)?.datagrams;
        while let Some(seen) = queue.pop_front() {
            let Some(flow) = self.flows.get(seen.slot) else {
                continue;
            };
            match flow.kind.used() {
                Some(used) if flow.serial == seen.serial && used == seen.used => {
                    return Some(seen.slot);
                }
                // It was used since; the next may not have been.
                Some(used) if flow.serial == seen.serial => {
                    queue.push_back(Seen { used, ..seen });
                }
                _ => {}
            }
        }
        None
    }

    pub fn insert(&mut self, key: Key, kind: Kind) -> usize {
        self.serial += 1;
        let serial = self.serial;
        let used = kind.used();
        let slot = self.flows.insert(Flow {
            key,
            serial,
            timer: None,
            touched: false,
            kind,
        });
        self.by_key.insert(key, slot);
        let pod = self.pods.entry(key.src).or_default();
        pod.flows += 1;
        if let Some(used) = used {
            pod.datagrams.push_back(Seen { slot, serial, used });
            if pod.datagrams.len() > 2 * pod.flows + 16 {
                let flows = &self.flows;
                let lives = |seen: &Seen| {
                    flows
                        .get(seen.slot)
                        .is_some_and(|flow| flow.serial == seen.serial)
                };
                pod.datagrams.retain(lives);
            }
        }
        slot
    }

    pub fn remove(&mut self, slot: usize) -> Option<Flow> {
        let flow = self.flows.try_remove(slot)?;
        self.by_key.remove(&flow.key);
        if let Some(pod) = self.pods.get_mut(&flow.key.src) {
            pod.flows -= 1;
            if pod.flows == 0 {
                self.pods.remove(&flow.key.src);
            }
        }
        Some(flow)
    }
}

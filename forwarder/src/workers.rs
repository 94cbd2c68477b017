//! The worker threads, as the control thread sees them.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread::JoinHandle,
    time::Duration,
};

use arc_swap::ArcSwap;
use crossbeam::channel;
use mio::{Poll, Waker};
use weft_engine::{Counters, Epoch};
use weft_socket::confine::confine;

use crate::{
    dispatch::Dispatch,
    paths::Ears,
    steer::Steering,
    tables::Tables,
    uplink::{Receiver, Sender, UplinkConfig, UplinkError},
    worker::Worker,
};

/// How long a worker may take to put new tables in force before it is said
/// to be late: a batch lasts well below a millisecond.
const PATIENCE: Duration = Duration::from_secs(5);

#[derive(Debug, thiserror::Error)]
pub enum WorkersError {
    #[error(transparent)]
    Uplink(#[from] UplinkError),
    #[error("start worker {index}: {source}")]
    Start { index: usize, source: io::Error },
}

/// All workers of a forwarder.
#[derive(Debug)]
pub struct Workers {
    shared: Arc<Shared>,
    wakers: Vec<Waker>,
    acknowledged: channel::Receiver<(usize, Epoch)>,
    threads: Vec<JoinHandle<()>>,
    sender: Arc<Sender>,
    /// One per worker, and that of the probes.
    all_counters: Vec<Arc<Counters>>,
    gro: bool,
}

/// What the workers and the control thread have in common.
#[derive(Debug)]
pub struct Shared {
    pub tables: ArcSwap<Tables>,
    /// How many workers there are.
    pub count: usize,
    /// One per worker.
    pub counters: Vec<Arc<Counters>>,
    /// Where answers to probes go.
    pub ears: Ears,
    /// Hides from senders which flows collide; one for all, so that a flow
    /// has one outer source port.
    pub seed: u64,
    stop: AtomicBool,
    acknowledge: channel::Sender<(usize, Epoch)>,
}

impl Shared {
    pub fn stopping(&self) -> bool {
        self.stop.load(Relaxed)
    }

    pub fn acknowledge(&self, index: usize, epoch: Epoch) {
        // The other end lives as long as the workers.
        let _ = self.acknowledge.send((index, epoch));
    }
}

impl Workers {
    /// Opens the uplink sockets and starts `count` threads on `tables`.
    pub fn start(
        count: usize,
        uplink: &UplinkConfig,
        tables: Tables,
        ears: Ears,
    ) -> Result<Self, WorkersError> {
        let count = count.max(1);
        let (acknowledge, acknowledged) = channel::unbounded();
        let shared = Arc::new(Shared {
            tables: ArcSwap::from_pointee(tables),
            count,
            counters: (0..count).map(|_| Arc::default()).collect(),
            ears,
            seed: seed(),
            stop: AtomicBool::new(false),
            acknowledge,
        });
        let sender = Arc::new(Sender::open(uplink)?);
        let mut receivers: Vec<_> = (0..count)
            .map(|_| Receiver::open(uplink))
            .collect::<Result<_, _>>()?;
        if let (Some(ipip), Some(first)) = (sender.ipip(), receivers.first_mut()) {
            let reader = ipip.reader();
            first.add_ipip(reader.map_err(|source| WorkersError::Start { index: 0, source })?);
        }
        let gro = receivers.iter().all(Receiver::gro);
        let probes = Arc::<Counters>::default();
        let all_counters = shared.counters.iter().cloned().chain([probes]).collect();
        let mut workers = Self {
            shared,
            all_counters,
            wakers: Vec::new(),
            acknowledged,
            threads: Vec::new(),
            sender,
            gro,
        };
        for (index, receiver) in receivers.into_iter().enumerate() {
            workers
                .start_one(index, receiver, uplink.entropy_ports)
                .map_err(|source| WorkersError::Start { index, source })?;
        }
        workers.settle(workers.tables().snapshot.epoch);
        Ok(workers)
    }

    fn start_one(&mut self, index: usize, receiver: Receiver, spread: u16) -> io::Result<()> {
        let poll = Poll::new()?;
        self.wakers
            .push(Waker::new(poll.registry(), Worker::token())?);
        let counters = Arc::clone(&self.shared.counters[index]);
        let steering = Steering {
            index,
            workers: self.shared.count,
        };
        let (sender, ears) = (Arc::clone(&self.sender), self.shared.ears.clone());
        let dispatch = Dispatch::new(steering, counters, sender, ears, spread);
        let worker = Worker::new(steering, Arc::clone(&self.shared), poll, receiver, dispatch)?;
        let name = format!("weft-worker-{index}");
        let shared = Arc::clone(&self.shared);
        let run = move || {
            let _end = ProcessEnd(Arc::clone(&shared));
            match confine() {
                Ok(()) => {
                    shared.acknowledge(index, shared.tables.load().snapshot.epoch);
                    worker.run();
                }
                Err(error) => tracing::error!(%error, "a worker cannot confine itself"),
            }
        };
        self.threads
            .push(std::thread::Builder::new().name(name).spawn(run)?);
        Ok(())
    }

    /// Puts new tables in force: returns once every worker uses them and has
    /// let go of the queues of ports that are gone.
    pub fn publish(&self, tables: Tables) {
        let epoch = tables.snapshot.epoch;
        // Else a worker would be the last to hold the old ones, and its packets
        // would wait while it takes them apart.
        let old = self.shared.tables.swap(Arc::new(tables));
        self.wake();
        self.settle(epoch);
        drop(old);
    }

    /// Waits until every worker has acknowledged `epoch`. A worker that ends
    /// takes the process with it, so this ends.
    fn settle(&self, epoch: Epoch) {
        let mut waiting: Vec<_> = (0..self.shared.count).collect();
        while !waiting.is_empty() {
            match self.acknowledged.recv_timeout(PATIENCE) {
                Ok((index, seen)) if seen >= epoch => waiting.retain(|&other| other != index),
                Ok(_) => {}
                Err(_) => tracing::error!(?waiting, ?epoch, "workers are late with new tables"),
            }
        }
    }

    pub fn tables(&self) -> Arc<Tables> {
        self.shared.tables.load_full()
    }

    /// One per worker, and the last that of the probes.
    pub fn counters(&self) -> &[Arc<Counters>] {
        &self.all_counters
    }

    /// What all send by.
    pub fn sender(&self) -> &Arc<Sender> {
        &self.sender
    }

    /// Whether sends use UDP_SEGMENT; false after the kernel refused it.
    pub fn gso(&self) -> bool {
        self.sender.gso()
    }

    /// Whether IP-in-IP can be sent and received.
    pub fn ipip(&self) -> bool {
        self.sender.ipip().is_some()
    }

    /// Whether the kernel merges received datagrams into trains.
    pub fn gro(&self) -> bool {
        self.gro
    }

    fn wake(&self) {
        for waker in &self.wakers {
            if let Err(error) = waker.wake() {
                tracing::error!(%error, "cannot wake a worker");
            }
        }
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        self.shared.stop.store(true, Relaxed);
        self.wake();
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// Ends the process when a worker ends unasked, by a panic too: its queues
/// and its share of the datagrams would be nobody's, and whoever supervises
/// the forwarder can start it anew.
struct ProcessEnd(Arc<Shared>);

impl Drop for ProcessEnd {
    fn drop(&mut self) {
        if !self.0.stopping() {
            tracing::error!("a worker ended; the forwarder ends with it");
            std::process::exit(1);
        }
    }
}

/// A number nobody outside can guess, from the standard library's own source
/// of hash keys.
pub(crate) fn seed() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(0)
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, net::UdpSocket};

    use weft_api::{
        forwarder::Node,
        names::{Mac, Name, Vni},
    };

    use super::*;
    use crate::{
        paths::{ProbesConfig, Quiet},
        publish::State,
    };

    fn uplink() -> UplinkConfig {
        let free = UdpSocket::bind("127.0.0.1:0").and_then(|socket| socket.local_addr());
        let free = free.expect("a free port");
        UplinkConfig {
            addresses: vec![free.ip()],
            port: free.port(),
            mtu: 1500,
            mtu_of_links: false,
            entropy_ports: 1,
            gso: false,
            gro: false,
            ipip: false,
        }
    }

    fn ears() -> Ears {
        let pace = weft_engine::path::Pace {
            interval: Duration::from_secs(5),
            raise: Duration::from_secs(600),
        };
        let enabled = false;
        let quiet = Quiet::new(&ProbesConfig { enabled, pace });
        quiet.expect("a poll").ears()
    }

    fn tables(uplink: &UplinkConfig, epoch: u64) -> Tables {
        let own = Node {
            name: Name::new("n1").expect("valid"),
            underlay: uplink.addresses.clone(),
            vtep_mac: Mac([2, 0, 0, 0, 0, 1]),
            vni: Vni::DEFAULT,
            port: uplink.port,
            blocks: Vec::new(),
            ways: BTreeMap::new(),
            tunnel: Vec::new(),
        };
        let snapshot = State::new(own, uplink.mtu).snapshot(Epoch(epoch));
        Tables {
            snapshot: snapshot.expect("no contradiction"),
            ports: Vec::new(),
        }
    }

    /// Else a worker might be the last to own a port that is gone, and its
    /// packets wait while the kernel takes the port's link down.
    #[test]
    fn no_worker_holds_old_tables_once_new_ones_are_in_force() {
        let uplink = uplink();
        let workers = Workers::start(2, &uplink, tables(&uplink, 0), ears()).expect("workers");
        for epoch in 1..2000 {
            let old = workers.tables();
            workers.publish(tables(&uplink, epoch));
            assert_eq!(Arc::strong_count(&old), 1, "epoch {epoch}");
        }
    }
}

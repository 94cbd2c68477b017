//! What the underlay carries to each peer, as this node finds out: by what the
//! kernel knows of links, routes and routers' complaints, and by questions
//! inside the tunnel, which [`weft_engine::path`] decides.
//!
//! One thread asks ([`asking`]). Workers bring it the answers ([`Ears`]), the
//! control thread tells it of the peers and puts in force what it has found
//! ([`Board`]). The packet path waits for none of them.

mod asking;
mod board;
mod watch;

use std::{
    collections::HashMap,
    hash::RandomState,
    io,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread::JoinHandle,
};

use crossbeam::channel;
use mio::{Poll, Token, Waker};
use weft_api::names::Name;
use weft_engine::{Counters, Heard, Way, gateway::probe::Seal, path::Pace};
use weft_socket::confine::confine;
use weft_wire::Mac;

use crate::uplink::question::Questioner;
use asking::Asking;
pub use board::{Board, Found};

/// Answers that may wait for the asking thread: more than it asks in a second.
const ANSWERS_MAX: usize = 1024;

#[derive(Debug, Clone)]
pub struct ProbesConfig {
    pub enabled: bool,
    pub pace: Pace,
}

/// A peer, and how it is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    pub name: Name,
    pub underlay: IpAddr,
    /// None if one of the nodes has no address in the pod network, or that is
    /// not reached by the tunnel.
    pub tunnel: Option<Tunnel>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tunnel {
    pub src: IpAddr,
    pub dst: IpAddr,
    pub src_mac: Mac,
    pub dst_mac: Mac,
    pub way: Way,
    pub vni: u32,
    pub remote: SocketAddr,
    /// Bytes of an outer IP packet that the inner one does not have.
    pub overhead: usize,
}

/// By what workers bring answers to the asking thread.
#[derive(Debug, Clone)]
pub struct Ears {
    /// None if nothing is asked.
    pub seal: Option<Arc<Seal>>,
    answers: channel::Sender<Heard>,
    /// A datagram was too big for the underlay.
    too_big: Arc<AtomicBool>,
    waker: Arc<Waker>,
}

/// The asking thread before it runs.
#[derive(Debug)]
pub struct Quiet {
    poll: Poll,
    answers: channel::Receiver<Heard>,
    ears: Ears,
}

/// The asking thread, as the control thread sees it.
#[derive(Debug)]
pub struct Paths {
    board: Arc<Board>,
    targets: channel::Sender<Vec<Target>>,
    waker: Arc<Waker>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

const WAKER: Token = Token(0);
const KERNEL: Token = Token(1);

impl Quiet {
    pub fn new(config: &ProbesConfig) -> io::Result<Self> {
        let poll = Poll::new()?;
        let waker = Arc::new(Waker::new(poll.registry(), WAKER)?);
        let (sender, answers) = channel::bounded(ANSWERS_MAX);
        let seal = config
            .enabled
            .then(|| Arc::new(Seal::new(RandomState::new())));
        let ears = Ears {
            seal,
            answers: sender,
            too_big: Arc::default(),
            waker,
        };
        Ok(Self {
            poll,
            answers,
            ears,
        })
    }

    pub fn ears(&self) -> Ears {
        self.ears.clone()
    }

    /// Starts to watch the underlay, and to ask if it is to.
    pub fn start(
        self,
        config: &ProbesConfig,
        underlay: Underlay,
        questioner: Questioner,
        counters: Arc<Counters>,
    ) -> io::Result<Paths> {
        let (sender, targets) = channel::unbounded();
        let board = Arc::new(Board::new(underlay.mtu));
        let stop = Arc::new(AtomicBool::new(false));
        let waker = Arc::clone(&self.ears.waker);
        let asking = Asking::new(asking::Parts {
            poll: self.poll,
            answers: self.answers,
            targets,
            seal: self.ears.seal,
            too_big: self.ears.too_big,
            pace: config.pace,
            underlay,
            questioner,
            counters,
            board: Arc::clone(&board),
            stop: Arc::clone(&stop),
        });
        let builder = std::thread::Builder::new().name("weft-paths".to_owned());
        let (settled, is_settled) = channel::bounded(1);
        let thread = builder.spawn(move || {
            if let Err(error) = confine() {
                tracing::error!(%error, "the thread that asks peers cannot confine itself");
                return;
            }
            let _ = settled.send(());
            asking.run();
        })?;
        // Before it has given up its capabilities, nothing is served.
        is_settled.recv().map_err(io::Error::other)?;
        Ok(Paths {
            board,
            targets: sender,
            waker,
            stop,
            thread: Some(thread),
        })
    }
}

/// This node's side of the underlay.
#[derive(Debug, Clone)]
pub struct Underlay {
    pub addresses: Vec<IpAddr>,
    pub mtu: u16,
    /// Whether that is what the links say, and so may change.
    pub follow_links: bool,
}

impl Ears {
    /// Brings an answer. One that finds no room is as one that was lost.
    pub fn hear(&self, heard: Heard) {
        if self.answers.try_send(heard).is_ok() {
            wake(&self.waker);
        }
    }

    /// The kernel refused a datagram as too big, and so knows more than was
    /// known of a path.
    pub fn hear_too_big(&self) {
        if !self.too_big.swap(true, Relaxed) {
            wake(&self.waker);
        }
    }
}

impl Paths {
    /// These are the peers from now on.
    pub fn follow(&self, targets: Vec<Target>) {
        // The other end lives as long as this.
        let _ = self.targets.send(targets);
        wake(&self.waker);
    }

    pub fn board(&self) -> &Board {
        &self.board
    }
}

impl Drop for Paths {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
        wake(&self.waker);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// The MTU of the outer packet by peer, where it was found out.
pub type Mtus = HashMap<Name, u16>;

fn wake(waker: &Waker) {
    if let Err(error) = waker.wake() {
        tracing::error!(%error, "cannot wake the thread that asks peers");
    }
}

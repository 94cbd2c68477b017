//! The thread that listens to the IPAM server. It never gives up: a server
//! that is away is asked again, after a pause that grows, for what it told
//! after the last revision.

use std::{
    io::{self, BufRead, BufReader, Read, Write},
    mem,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};

use mio::Waker;
use tracing::{debug, info, warn};
use weft_api::{
    forwarder::{Node, Nodes},
    framing::{Line, Lines, encode},
    ipam::{self, Answer, Error, Reply, Request},
    names::Name,
};
use weft_socket::ipam::Client;

use super::{LeftOut, View};

/// Longest line that is read: some hundred thousand routes.
const EVENT_MAX: usize = 64 << 20;
const READ_LEN: usize = 64 << 10;
const PAUSE_FIRST: Duration = Duration::from_millis(100);
const PAUSE_MOST: Duration = Duration::from_secs(5);
/// A server that says nothing for so long, not even that it is alive, hangs.
const SILENCE: Duration = Duration::from_secs(60);
/// Longest answer to a registration in bytes.
const ANSWER_MAX: u64 = 64 << 10;
/// For the server to hear that the node leaves.
const PARTING: Duration = Duration::from_secs(2);
/// For the server to take the request.
const PATIENCE: Duration = Duration::from_secs(10);

/// What the control thread has not heard yet, the newest only.
#[derive(Debug, Default)]
pub struct Told {
    pub connected: bool,
    /// The server holds this node's registration, as far as is known.
    pub registered: bool,
    pub revision: Option<u64>,
    /// None where they are what they were.
    pub nodes: Option<Nodes>,
}

/// The control thread's end.
#[derive(Debug)]
pub struct Following {
    told: Arc<Mutex<Told>>,
}

impl Following {
    /// Starts to listen at `socket` on behalf of node `own`, and wakes the
    /// control thread at each news. `registration` makes the node known there.
    pub fn start(
        socket: &Path,
        own: Node,
        registration: Option<ipam::Node>,
        waker: Arc<Waker>,
    ) -> io::Result<Self> {
        let told = Arc::<Mutex<Told>>::default();
        let mut listener = Listener {
            socket: socket.to_owned(),
            own,
            registration,
            view: View::default(),
            nodes: None,
            left_out: Vec::new(),
            told: Arc::clone(&told),
            waker,
        };
        thread::Builder::new()
            .name("weft-ipam".to_owned())
            .spawn(move || listener.run())?;
        Ok(Self { told })
    }

    pub fn news(&self) -> Told {
        let mut told = hold(&self.told);
        Told {
            nodes: told.nodes.take(),
            ..*told
        }
    }

    /// Takes leave of the server at `socket`, where it knows node `name` by
    /// this connection alone. What does not arrive, its grace does.
    pub fn leave(self, socket: &Path, name: Name) {
        let registered = hold(&self.told).registered;
        // The thread does not register again.
        drop(self);
        if !registered {
            return;
        }
        let left = Client::connect_within(socket, PARTING)
            .and_then(|mut client| client.request(&Request::NodeLeave { name }));
        if let Err(fault) = left {
            warn!("the IPAM server was not told that this node leaves: {fault}");
        }
    }
}

struct Listener {
    socket: PathBuf,
    own: Node,
    registration: Option<ipam::Node>,
    view: View,
    /// As the control thread was told last.
    nodes: Option<Nodes>,
    left_out: Vec<LeftOut>,
    told: Arc<Mutex<Told>>,
    waker: Arc<Waker>,
}

#[derive(Debug, thiserror::Error)]
enum Lost {
    #[error("it is away: {0}")]
    Away(#[from] io::Error),
    #[error("it hung up")]
    HungUp,
    #[error("it refuses: {0}")]
    Refused(Error),
    #[error("it does not register this node: {0}")]
    Unregistered(Error),
    #[error("it says what no IPAM server says ({0}); are both of one version?")]
    Confused(String),
}

impl Listener {
    fn run(&mut self) {
        let mut pause = PAUSE_FIRST;
        let mut known_lost = false;
        // Until nobody is left to listen for.
        while Arc::strong_count(&self.told) > 1 {
            let mut heard = false;
            let Err(lost) = self.listen(&mut heard);
            if heard {
                (pause, known_lost) = (PAUSE_FIRST, false);
            }
            if let Lost::Refused(_) | Lost::Confused(_) = lost {
                // What it holds against may be the revision.
                self.view = View::default();
            }
            let socket = self.socket.display();
            if mem::replace(&mut known_lost, true) {
                debug!("the IPAM server at {socket}: {lost}");
            } else {
                warn!("the IPAM server at {socket}: {lost}; the tables stay as they are");
            }
            self.tell(false);
            thread::sleep(pause);
            pause = (pause * 2).min(PAUSE_MOST);
        }
    }

    /// Hears what one connection brings. `heard`: it brought something.
    fn listen(&mut self, heard: &mut bool) -> Result<std::convert::Infallible, Lost> {
        let mut stream = UnixStream::connect(&self.socket)?;
        stream.set_write_timeout(Some(PATIENCE))?;
        stream.set_read_timeout(Some(SILENCE))?;
        if let Some(node) = self.registration.clone() {
            register(&mut stream, node)?;
            hold(&self.told).registered = true;
        }
        let from = self.view.resume();
        stream.write_all(&encode(&Request::Watch { from }).map_err(io::Error::other)?)?;
        let mut lines = Lines::new(EVENT_MAX);
        let mut buffer = vec![0; READ_LEN];
        loop {
            match stream.read(&mut buffer) {
                Ok(0) => return Err(Lost::HungUp),
                Ok(len) => lines.push(&buffer[..len]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error.into()),
            }
            // A burst becomes one set of tables.
            let mut events = 0;
            while let Some(line) = lines.pop() {
                self.hear(line)?;
                events += 1;
            }
            if events == 0 {
                continue;
            }
            if !mem::replace(heard, true) {
                let revision = self.view.revision();
                info!(socket = %self.socket.display(), revision, "following the IPAM server");
            }
            self.tell(true);
        }
    }

    fn hear(&mut self, line: Line) -> Result<(), Lost> {
        let Line::Whole(line) = line else {
            return Err(Lost::Confused(format!("more than {EVENT_MAX} bytes")));
        };
        match serde_json::from_slice(&line) {
            Ok(Answer::Event(event)) => {
                self.view.take(*event);
                Ok(())
            }
            Ok(Answer::Error(error)) => Err(Lost::Refused(error)),
            Ok(Answer::Ok(_)) => Err(Lost::Confused("an answer instead of an event".to_owned())),
            Err(error) => Err(Lost::Confused(error.to_string())),
        }
    }

    fn tell(&mut self, connected: bool) {
        let fresh = connected.then(|| self.fresh_nodes()).flatten();
        let mut told = hold(&self.told);
        told.connected = connected;
        if connected {
            told.revision = self.view.revision();
        }
        if fresh.is_some() {
            told.nodes = fresh;
        }
        drop(told);
        if let Err(fault) = self.waker.wake() {
            warn!("the control thread cannot be woken: {fault}");
        }
    }

    /// The nodes, if they are others than before.
    fn fresh_nodes(&mut self) -> Option<Nodes> {
        let (nodes, left_out) = self.view.nodes(&self.own);
        for reason in left_out.iter().filter(|new| !self.left_out.contains(new)) {
            warn!("{reason}");
        }
        self.left_out = left_out;
        self.own.tunnel.clone_from(&nodes.node.tunnel);
        if self.nodes.as_ref() == Some(&nodes) {
            return None;
        }
        self.nodes = Some(nodes.clone());
        Some(nodes)
    }
}

/// Asks, and waits for the answer.
fn register(stream: &mut UnixStream, node: ipam::Node) -> Result<(), Lost> {
    let request = Request::NodeRegister(Box::new(node));
    stream.write_all(&encode(&request).map_err(io::Error::other)?)?;
    let mut answer = String::new();
    // Nothing stands behind the answer before more is asked.
    if BufReader::new(stream.take(ANSWER_MAX)).read_line(&mut answer)? == 0 {
        return Err(Lost::HungUp);
    }
    match serde_json::from_str(&answer) {
        Ok(Answer::Ok(reply)) if matches!(*reply, Reply::Registered(_)) => Ok(()),
        Ok(Answer::Error(error)) => Err(Lost::Unregistered(error)),
        Ok(_) => Err(Lost::Confused("another answer".to_owned())),
        Err(error) => Err(Lost::Confused(error.to_string())),
    }
}

/// Whoever held it before and panicked left a whole record.
fn hold(told: &Mutex<Told>) -> MutexGuard<'_, Told> {
    told.lock().unwrap_or_else(PoisonError::into_inner)
}

//! Two whole nodes in memory: engines joined by a scripted underlay, in
//! virtual time. What a forwarder does with verdicts is done here with
//! vectors.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use weft_engine::{
    Batch, Counters, DropReason, Engine, Heard, Inbox, Outbox, Peer, PeerId, Port, PortId, Runs,
    Scene, Snapshot, Verdict, Way, batch::Frame, fragment::fragment, gateway::probe::Seal,
    inbox::Train, outbox::Send,
};
use weft_wire::{ETHERNET_LEN, Ethernet, VnetHeader, parse, vnet};

mod plan;

pub use plan::*;

/// One node: two pods, and what they have received.
#[derive(Debug)]
pub struct Node {
    pub tables: Snapshot,
    pub counters: Counters,
    pub received: Vec<Received>,
    /// Sends that left for the other node, kept by [`World::hold`].
    pub held: Vec<Datagrams>,
    engine: Engine,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Received {
    pub port: PortId,
    pub vnet: VnetHeader,
    pub frame: Vec<u8>,
}

/// Datagrams of one send, on their way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Datagrams {
    pub from: IpAddr,
    pub way: Way,
    pub ecn: u8,
    pub stride: usize,
    pub bytes: Vec<u8>,
}

/// Node 0 and node 1.
#[derive(Debug)]
pub struct World {
    pub nodes: [Node; 2],
    pub now: Instant,
    /// Keep sends instead of carrying them.
    pub hold: bool,
}

impl Node {
    fn new(node: usize) -> Self {
        Self {
            tables: tables(node, 1),
            counters: Counters::default(),
            received: Vec::new(),
            held: Vec::new(),
            engine: Engine::new(42),
        }
    }

    /// Puts tables in force in which this node's port or the peer differ.
    pub fn change(
        &mut self,
        node: usize,
        port_edit: impl Fn(&mut Port),
        peer_edit: impl Fn(&mut Peer),
    ) {
        let edited = |mut port: Arc<Port>| {
            port_edit(Arc::get_mut(&mut port).expect("just made"));
            port
        };
        let mut other = peer(1 - node);
        peer_edit(Arc::get_mut(&mut other).expect("just made"));
        let mut ports = vec![edited(port(node, 0)), edited(port(node, 1))];
        if self.tables.host().is_some() {
            ports.push(host(node));
        }
        self.tables = tables_of(node, self.tables.epoch.0 + 1, ports, vec![other]);
    }

    /// Gives the node its host port, at place [`HOST`].
    pub fn open_host(&mut self, node: usize) {
        let ports = vec![port(node, 0), port(node, 1), host(node)];
        self.tables = tables_of(node, self.tables.epoch.0 + 1, ports, vec![peer(1 - node)]);
    }

    /// Takes answers to questions under `seal` for the node's own.
    pub fn listen(&mut self, seal: Arc<Seal>) {
        self.engine = Engine::new(42).listening(Some(seal));
    }

    /// The answers since the last time.
    pub fn heard(&mut self) -> Vec<Heard> {
        self.engine.take_heard().collect()
    }

    fn port_reads(
        &mut self,
        now: Instant,
        pod: usize,
        frames: &[(VnetHeader, Vec<u8>)],
    ) -> Vec<Datagrams> {
        let mut batch = batch_of(frames);
        let mut replies = Batch::new(1 << 17);
        let (tables, counters) = (&self.tables, &self.counters);
        let mut scene = Scene {
            tables,
            counters,
            replies: &mut replies,
            now,
        };
        let ingress = tables
            .port(PortId(byte(pod).into()))
            .expect("the pod has a port");
        self.engine.from_port(&mut scene, ingress, &mut batch);
        let mut out = self.dispatch(&mut batch);
        out.extend(self.dispatch(&mut replies));
        out
    }

    fn uplink_reads(&mut self, now: Instant, datagrams: &[Datagrams]) -> Vec<Datagrams> {
        let mut inbox = inbox_of(datagrams);
        let (mut runs, mut replies) = (Runs::default(), Batch::new(1 << 17));
        let (tables, counters) = (&self.tables, &self.counters);
        let mut scene = Scene {
            tables,
            counters,
            replies: &mut replies,
            now,
        };
        self.engine.from_uplink(&mut scene, &mut inbox, &mut runs);
        for run in runs.runs() {
            let mut bytes = run.bytes.clone();
            let vnet = VnetHeader::read(&bytes).expect("a head begins with it");
            let frame = bytes.split_off(vnet::LEN);
            self.received.push(Received {
                port: run.port,
                vnet,
                frame,
            });
            self.counters.sent_to_ports.add(run.packets);
        }
        self.dispatch(&mut replies)
    }

    fn dispatch(&mut self, batch: &mut Batch) -> Vec<Datagrams> {
        let mut outbox = Outbox::new(4);
        for place in 0..batch.len() {
            let frame = batch.frames()[place];
            match frame.verdict {
                Verdict::Deliver(port) => {
                    let bytes = batch.bytes(&frame).to_vec();
                    self.deliver(port, &frame, bytes);
                }
                Verdict::Tunnel(tunnel) => {
                    let vni = self.tables.peer(tunnel.peer).vni;
                    let (_, bytes) = batch.frame_mut(place);
                    if let Err(reason) = outbox.push(&frame, bytes, tunnel, vni) {
                        self.counters.lose(reason, frame.packets);
                    }
                }
                Verdict::Answered | Verdict::Drop(_) => {}
            }
        }
        outbox.sends().iter().map(|send| self.leave(send)).collect()
    }

    fn deliver(&mut self, port: PortId, frame: &Frame, bytes: Vec<u8>) {
        self.counters.sent_to_ports.add(frame.packets);
        let vnet = frame.vnet;
        let whole = |frame| Received { port, vnet, frame };
        match (frame.cut, parse(&bytes)) {
            (Some(mtu), Ok(Ethernet::Ip(packet))) => fragment(&bytes, &packet, mtu, |piece| {
                self.received.push(whole(piece.to_vec()));
            }),
            _ => self.received.push(whole(bytes)),
        }
    }

    fn leave(&self, send: &Send) -> Datagrams {
        assert_eq!(send.peer, PeerId(0), "a node has one peer");
        self.counters.sent_to_peers.add(send.count() as u64);
        Datagrams {
            from: underlay(0),
            way: send.way,
            ecn: send.ecn,
            stride: send.size,
            bytes: send.bytes.clone(),
        }
    }
}

impl Default for World {
    fn default() -> Self {
        // Far enough from the clock's zero that an hour before it exists.
        let now = Instant::now() + Duration::from_secs(3600);
        Self {
            nodes: [Node::new(0), Node::new(1)],
            now,
            hold: false,
        }
    }
}

impl World {
    /// A pod sends one frame, and everything that follows happens.
    pub fn send(&mut self, node: usize, pod: usize, frame: &[u8]) {
        self.send_all(node, pod, &[(VnetHeader::default(), frame.to_vec())]);
    }

    /// A pod sends frames that are read in one batch.
    pub fn send_all(&mut self, node: usize, pod: usize, frames: &[(VnetHeader, Vec<u8>)]) {
        let out = self.nodes[node].port_reads(self.now, pod, frames);
        self.carry(node, out);
    }

    /// Datagrams reach a node in one read.
    pub fn arrive(&mut self, node: usize, datagrams: &[Datagrams]) {
        let out = self.nodes[node].uplink_reads(self.now, datagrams);
        self.carry(node, out);
    }

    fn carry(&mut self, node: usize, mut out: Vec<Datagrams>) {
        for send in &mut out {
            send.from = underlay(node);
            if send.way == Way::Ipip {
                *send = outer(node, send);
            }
        }
        if self.hold {
            self.nodes[node].held.extend(out);
        } else if !out.is_empty() {
            self.arrive(1 - node, &out);
        }
    }

    /// What a pod has received since last asked.
    pub fn received(&mut self, node: usize, pod: usize) -> Vec<Received> {
        let port = PortId(byte(pod).into());
        let all = std::mem::take(&mut self.nodes[node].received);
        let (its, others) = all.into_iter().partition(|received| received.port == port);
        self.nodes[node].received = others;
        its
    }

    /// Runs `act` and tells which of a node's counters moved, by how much.
    /// Whatever it does, the node's balance must hold.
    pub fn moved(
        &mut self,
        node: usize,
        act: impl FnOnce(&mut Self),
    ) -> BTreeMap<&'static str, u64> {
        let before = values(&self.nodes[node].counters);
        act(self);
        let (came, went) = self.nodes[node].counters.balance();
        assert_eq!(came, went, "node {node}: what came in is not what went out");
        let after = values(&self.nodes[node].counters);
        let deltas = after
            .into_iter()
            .map(|(name, value)| (name, value - before[name]));
        deltas.filter(|(_, delta)| *delta > 0).collect()
    }
}

/// All counters by name, drops by their reason.
pub fn values(counters: &Counters) -> BTreeMap<&'static str, u64> {
    let drops = DropReason::ALL
        .iter()
        .map(|reason| (reason.name(), counters.dropped(*reason)));
    counters
        .each()
        .map(|(name, _, value)| (name, value))
        .chain(drops)
        .collect()
}

/// A VXLAN datagram as node `from` would send it, around a frame for the
/// other node.
pub fn datagram(from: usize, inner: &[u8]) -> Datagrams {
    let mut bytes = weft_wire::vxlan::header(VNI).to_vec();
    bytes.extend_from_slice(inner);
    if inner.len() >= ETHERNET_LEN {
        weft_wire::edit::set_macs(&mut bytes[8..], vtep_mac(1 - from), vtep_mac(from));
    }
    Datagrams {
        from: underlay(from),
        way: Way::Vxlan,
        ecn: 0,
        stride: bytes.len(),
        bytes,
    }
}

/// An IP-in-IP packet as node `from` would send it, around the IP packet of a
/// frame for the other node.
pub fn ipip(from: usize, frame: &[u8]) -> Datagrams {
    let bytes = frame.get(ETHERNET_LEN..).unwrap_or_default().to_vec();
    let send = Datagrams {
        from: underlay(from),
        way: Way::Ipip,
        ecn: 0,
        stride: bytes.len().max(1),
        bytes,
    };
    outer(from, &send)
}

/// The send with the outer headers that the kernel of node `from` makes.
fn outer(from: usize, send: &Datagrams) -> Datagrams {
    let mut bytes = Vec::new();
    for inner in send.bytes.chunks(send.stride) {
        let (IpAddr::V4(src), IpAddr::V4(dst)) = (underlay(from), underlay(1 - from)) else {
            panic!("the underlay of these nodes is IPv4");
        };
        let len = u16::try_from(20 + inner.len()).expect("one packet");
        let [high, low] = len.to_be_bytes();
        let mut header = vec![0x45, send.ecn, high, low, 0, 0, 0x40, 0, 64, 4, 0, 0];
        header.extend(src.octets());
        header.extend(dst.octets());
        weft_wire::edit::refresh_ipv4_checksum(&mut header);
        bytes.extend(header);
        bytes.extend_from_slice(inner);
    }
    Datagrams {
        stride: send.stride + 20,
        bytes,
        ..send.clone()
    }
}

/// One read of the uplink that yields these sends.
pub fn batch_of(frames: &[(VnetHeader, Vec<u8>)]) -> Batch {
    let mut batch = Batch::new(1 << 20);
    for (vnet, frame) in frames {
        let space = batch.space().expect("the batch is large");
        space[vnet::LEN..vnet::LEN + frame.len()].copy_from_slice(frame);
        batch.commit(*vnet, frame.len());
    }
    batch
}

pub fn inbox_of(datagrams: &[Datagrams]) -> Inbox {
    let mut inbox = Inbox::new(datagrams.len());
    for (place, send) in datagrams.iter().enumerate() {
        let slot = inbox.slots().nth(place).expect("a slot for each");
        slot[..send.bytes.len()].copy_from_slice(&send.bytes);
        inbox.trains.push(Train {
            start: Inbox::start(place),
            len: send.bytes.len(),
            stride: send.stride,
            from: send.from,
            way: send.way,
            ecn: send.ecn,
            truncated: false,
        });
    }
    inbox
}

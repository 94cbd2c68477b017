//! Does what verdicts say: writes to ports, sends into the tunnel, and counts
//! what became of each packet.

use std::{sync::Arc, time::Instant};

use weft_engine::{
    Batch, Counters, DropReason, Outbox, PortId, Runs, Verdict, fragment::fragment,
    segment::segment,
};
use weft_wire::{Ethernet, checksum, parse, vnet};

use crate::{held::Held, paths::Ears, port::Port, steer::Steering, tables::Tables, uplink::Sender};

#[derive(Debug)]
pub struct Dispatch {
    steering: Steering,
    counters: Arc<Counters>,
    sender: Arc<Sender>,
    ears: Ears,
    outbox: Outbox,
    held: Held,
}

impl Dispatch {
    /// `spread` is the number of sockets that flows are spread over.
    pub fn new(
        steering: Steering,
        counters: Arc<Counters>,
        sender: Arc<Sender>,
        ears: Ears,
        spread: u16,
    ) -> Self {
        Self {
            steering,
            counters,
            sender,
            ears,
            outbox: Outbox::new(spread),
            held: Held::default(),
        }
    }

    /// Writes and sends the frames of a batch, each by its verdict and when
    /// it is due.
    pub fn frames(&mut self, tables: &Tables, batch: &mut Batch) {
        self.outbox.clear();
        for place in 0..batch.len() {
            let frame = batch.frames()[place];
            if let Some(due) = frame.due {
                self.held.push(due, frame, batch.with_vnet(&frame));
                continue;
            }
            match frame.verdict {
                Verdict::Deliver(id) => {
                    let written = match tables.port(id) {
                        Some(port) => deliver(port, self.queue(id, port), batch, place),
                        None => Written::lost(DropReason::PortDown, frame.packets),
                    };
                    self.count(tables, id, frame.inner, &written);
                }
                Verdict::Tunnel(tunnel) => {
                    let vni = tables.snapshot.peer(tunnel.peer).vni;
                    let (_, bytes) = batch.frame_mut(place);
                    if let Err(reason) = self.outbox.push(&frame, bytes, tunnel, vni) {
                        self.counters.lose(reason, frame.packets);
                    }
                }
                Verdict::Answered | Verdict::Drop(_) => {}
            }
        }
        self.flush(tables);
    }

    /// When the first of the frames that wait is due.
    pub fn due(&self) -> Option<Instant> {
        self.held.due()
    }

    /// Writes and sends what has waited long enough. To be called before
    /// others are decided at `now`, which else would overtake.
    pub fn release(&mut self, tables: &Tables, now: Instant, batch: &mut Batch) {
        while self.due().is_some_and(|due| due <= now) {
            batch.clear();
            self.held.take_due(now, batch);
            self.frames(tables, batch);
        }
    }

    /// Writes and sends all that waits, before `tables` end. What is early
    /// is paid for by those who come after.
    pub fn release_all(&mut self, tables: &Tables, batch: &mut Batch) {
        while let Some(due) = self.due() {
            self.release(tables, due, batch);
        }
    }

    /// Writes the runs that came out of the tunnel, each when it is due.
    pub fn runs(&mut self, tables: &Tables, runs: &Runs) {
        for run in runs.runs() {
            if let Some(due) = run.due {
                self.held.push(due, run.frame(), &run.bytes);
                continue;
            }
            let port = tables.port(run.port).ok_or(DropReason::PortDown);
            let mut written = Written::default();
            written.take(
                run.packets,
                port.and_then(|port| port.send(self.queue(run.port, port), &run.bytes)),
            );
            self.count(tables, run.port, run.inner, &written);
        }
    }

    fn queue(&self, id: PortId, port: &Port) -> usize {
        self.steering.writes(usize::from(id.0), port.queues())
    }

    fn flush(&self, tables: &Tables) {
        for send in self.outbox.sends() {
            let peer = tables.snapshot.peer(send.peer);
            let sent = self.sender.send(send, peer);
            self.counters.uplink_writes.add(sent.system_calls);
            self.counters.sent_to_peers.add(sent.datagrams);
            if let Some((reason, datagrams)) = sent.lost {
                self.counters.lose(reason, datagrams);
                if reason == DropReason::UplinkTooBig {
                    self.ears.hear_too_big();
                }
            }
            let inner = send.inner(sent.bytes, sent.datagrams as usize);
            peer.to_peer.add(sent.datagrams, inner);
        }
    }

    fn count(&self, tables: &Tables, port: PortId, bytes: usize, written: &Written) {
        self.counters.port_writes.add(written.writes);
        self.counters.sent_to_ports.add(written.packets);
        if let Some((reason, packets)) = written.lost {
            self.counters.lose(reason, packets);
        }
        if let Some(row) = tables.snapshot.port(port).filter(|_| written.packets > 0) {
            row.to_pod.add(written.packets, bytes);
        }
    }
}

/// What became of a frame's packets.
#[derive(Debug, Default)]
struct Written {
    packets: u64,
    writes: u64,
    /// All for the first reason.
    lost: Option<(DropReason, u64)>,
}

impl Written {
    fn lost(reason: DropReason, packets: u64) -> Self {
        Self {
            lost: Some((reason, packets)),
            ..Self::default()
        }
    }

    fn take(&mut self, packets: u64, result: Result<(), DropReason>) {
        match result {
            Ok(()) => {
                self.packets += packets;
                self.writes += 1;
            }
            Err(reason) => self.lost.get_or_insert((reason, 0)).1 += packets,
        }
    }
}

/// Writes the batch's frame at `place`, finishing first what the port does
/// not take unfinished.
fn deliver(port: &Port, queue: usize, batch: &mut Batch, place: usize) -> Written {
    let mut written = Written::default();
    let (&mut frame, bytes) = batch.frame_mut(place);
    let vnet = frame.vnet;
    let taken = match vnet.gso_kind() {
        vnet::GSO_NONE => port.takes_tcp() || !vnet.needs_checksum(),
        vnet::GSO_UDP_L4 => port.takes_udp(),
        _ => port.takes_tcp(),
    };
    if taken && frame.cut.is_none() {
        written.take(frame.packets, port.send(queue, batch.with_vnet(&frame)));
        return written;
    }
    let Ok(Ethernet::Ip(packet)) = parse(bytes) else {
        return Written::lost(DropReason::MalformedIp, frame.packets);
    };
    if vnet.is_super_frame() {
        let cut = segment(bytes, &packet, &vnet, |headers, payload| {
            written.take(1, port.send_pieces(queue, [headers, &bytes[payload]]));
        });
        if !cut {
            return Written::lost(DropReason::MalformedOffload, frame.packets);
        }
        return written;
    }
    if vnet.needs_checksum() {
        checksum::complete(bytes, &packet);
    }
    match frame.cut {
        Some(mtu) => fragment(bytes, &packet, mtu, |piece| {
            written.take(1, port.send_pieces(queue, [piece, &[]]));
        }),
        None => written.take(frame.packets, port.send_pieces(queue, [bytes, &[]])),
    }
    written
}

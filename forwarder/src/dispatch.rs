//! Does what verdicts say: writes to ports, sends into the tunnel, and counts
//! what became of each packet.

use std::{io::IoSlice, sync::Arc};

use weft_engine::{Batch, Counters, DropReason, Outbox, PortId, Runs, Verdict, segment::segment};
use weft_wire::{Ethernet, VnetHeader, checksum, parse, vnet, vxlan};
use zerocopy::IntoBytes;

use crate::{port::Port, steer::Steering, tables::Tables, uplink::Sender};

#[derive(Debug)]
pub struct Dispatch {
    steering: Steering,
    counters: Arc<Counters>,
    sender: Arc<Sender>,
    outbox: Outbox,
}

impl Dispatch {
    /// `spread` is the number of sockets that flows are spread over.
    pub fn new(
        steering: Steering,
        counters: Arc<Counters>,
        sender: Arc<Sender>,
        spread: u16,
    ) -> Self {
        Self {
            steering,
            counters,
            sender,
            outbox: Outbox::new(spread),
        }
    }

    /// Writes and sends the frames of a batch, each by its verdict.
    pub fn frames(&mut self, tables: &Tables, batch: &mut Batch) {
        self.outbox.clear();
        for place in 0..batch.len() {
            let frame = batch.frames()[place];
            match frame.verdict {
                Verdict::Deliver(id) => {
                    let port = tables.port(id).ok_or(DropReason::PortDown);
                    let written =
                        port.and_then(|port| deliver(port, self.queue(id, port), batch, place));
                    self.count(tables, id, frame.packets, frame.len, written);
                }
                Verdict::Tunnel(tunnel) => {
                    let vni = tables.snapshot.peer(tunnel.peer).vni;
                    let (_, bytes) = batch.frame_mut(place);
                    if let Err(reason) = self.outbox.push(bytes, &frame.vnet, tunnel, vni) {
                        self.counters.lose(reason, frame.packets);
                    }
                }
                Verdict::Answered | Verdict::Fragmented | Verdict::Drop(_) => {}
            }
        }
        self.flush(tables);
    }

    /// Writes the runs that came out of the tunnel.
    pub fn runs(&self, tables: &Tables, runs: &Runs) {
        for run in runs.runs() {
            let port = tables.port(run.port).ok_or(DropReason::PortDown);
            let written = port.and_then(|port| port.send(self.queue(run.port, port), &run.bytes));
            self.count(tables, run.port, run.packets, run.inner, written);
        }
    }

    fn queue(&self, id: PortId, port: &Port) -> usize {
        self.steering.writes(usize::from(id.0), port.queues())
    }

    fn flush(&self, tables: &Tables) {
        for send in self.outbox.sends() {
            let peer = tables.snapshot.peer(send.peer);
            let Some(remote) = peer.remote else {
                self.counters
                    .lose(DropReason::NoUplink, send.count() as u64);
                continue;
            };
            let sent = self.sender.send(send, remote);
            self.counters.uplink_writes.add(sent.system_calls);
            self.counters.sent_to_peers.add(sent.datagrams);
            if let Some((reason, datagrams)) = sent.lost {
                self.counters.lose(reason, datagrams);
            }
            // Traffic is counted without the VXLAN headers.
            let headers = sent.datagrams as usize * vxlan::LEN;
            peer.to_peer.add(sent.datagrams, sent.bytes - headers);
        }
    }

    fn count(
        &self,
        tables: &Tables,
        port: PortId,
        packets: u64,
        bytes: usize,
        written: Result<(), DropReason>,
    ) {
        match written {
            Ok(()) => {
                self.counters.port_writes.add(1);
                self.counters.sent_to_ports.add(packets);
                if let Some(row) = tables.snapshot.port(port) {
                    row.to_pod.add(packets, bytes);
                }
            }
            Err(reason) => self.counters.lose(reason, packets),
        }
    }
}

/// Writes the batch's frame at `place`, finishing first what the port does
/// not take unfinished.
fn deliver(port: &Port, queue: usize, batch: &mut Batch, place: usize) -> Result<(), DropReason> {
    let (frame, bytes) = batch.frame_mut(place);
    let vnet = frame.vnet;
    let whole = match vnet.gso_kind() {
        vnet::GSO_NONE => port.takes_tcp() || !vnet.needs_checksum(),
        vnet::GSO_UDP_L4 => port.takes_udp(),
        _ => port.takes_tcp(),
    };
    if whole {
        let frame = batch.frames()[place];
        return port.send(queue, batch.with_vnet(&frame));
    }
    let Ok(Ethernet::Ip(packet)) = parse(bytes) else {
        return Err(DropReason::MalformedIp);
    };
    if !vnet.is_super_frame() {
        checksum::complete(bytes, &packet);
        let frame = batch.frames()[place];
        return port.send(queue, batch.with_vnet(&frame));
    }
    let mut written = Ok(());
    let empty = VnetHeader::default();
    let cut = segment(bytes, &packet, &vnet, |headers, payload| {
        let mut pieces = [empty.as_bytes(), headers, &bytes[payload]].map(IoSlice::new);
        written = written.and(port.send_pieces(queue, &mut pieces));
    });
    if cut {
        written
    } else {
        Err(DropReason::MalformedOffload)
    }
}

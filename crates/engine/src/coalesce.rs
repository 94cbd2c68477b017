//! Frames out of the tunnel into super-frames: a run of TCP or UDP packets
//! of one flow becomes one write to the port, as the kernel's GRO would
//! merge it (`net/ipv4/tcp_offload.c`, `net/ipv4/udp_offload.c`).
//!
//! A run stands in one piece: copying a payload whose checksum has just been
//! verified costs less than the kernel's walk over a list of pieces.
//!
//! Order within a flow is kept by construction: runs are written in the
//! order they were begun, and a packet joins only the newest run of its
//! flow.

use std::time::Instant;

use weft_wire::{ETHERNET_LEN, Key, Mac, Packet, VnetHeader, checksum, edit, protocol, vnet};
use zerocopy::IntoBytes;

use crate::{
    DropReason, Port, Verdict,
    batch::Frame,
    fragment::{HEADERS as FRAGMENT_HEADERS, fragment},
    segment::segment,
    snapshot::PortId,
    unfinished,
};

mod candidate;

use candidate::Candidate;

/// How many runs are looked at for one that a packet may join. A flow whose
/// run is further back begins a new one.
const WINDOW: usize = 32;

/// Most datagrams that one UDP super-frame holds: as many as the kernel's own
/// GRO merges (`UDP_GRO_CNT_MAX`, net/ipv4/udp_offload.c), and no kernel with
/// GSO takes fewer.
const DATAGRAMS_MAX: u64 = 64;

/// Largest IP packet (RFC 791, RFC 8200: 16-bit lengths).
const IP_MAX: usize = 65_535;

#[derive(Debug, Default)]
pub struct Runs {
    runs: Vec<Run>,
    /// Those in use; the rest keep their memory for later.
    live: usize,
    /// When the runs that begin from now on may go, if they have to wait.
    pub due: Option<Instant>,
}

/// One write to a port.
#[derive(Debug)]
pub struct Run {
    pub port: PortId,
    pub packets: u64,
    /// Ethernet bytes that came out of the tunnel.
    pub inner: usize,
    /// Virtio-net header, the frame's headers, payload.
    pub bytes: Vec<u8>,
    /// When it may go, if it has to wait: as its first packet.
    pub due: Option<Instant>,
    /// Bytes of virtio-net header and headers.
    head: usize,
    key: Key,
    transport: usize,
    /// Payload bytes of each packet but perhaps the last.
    size: usize,
    /// Whether more may follow.
    open: bool,
    /// Whether more than one packet joined, so that the head is to be
    /// rewritten.
    merged: bool,
    payload: usize,
    next_sequence: u32,
    next_identification: u16,
}

impl Runs {
    pub fn clear(&mut self) {
        self.live = 0;
    }

    /// The writes, in the order they must be made; call [`Runs::finish`]
    /// first.
    pub fn runs(&self) -> &[Run] {
        &self.runs[..self.live]
    }

    /// Takes the packet of `frame` for `port`; `vnet` is that of a
    /// super-frame. Its hop limit must be above zero and is taken one from.
    pub fn push(
        &mut self,
        frame: &mut [u8],
        packet: &Packet,
        vnet: Option<VnetHeader>,
        port: &Port,
        gateway: Mac,
    ) -> Result<(), DropReason> {
        if let Some(vnet) = vnet {
            return self.push_super_frame(frame, packet, vnet, port, gateway);
        }
        let candidate = Candidate::of(frame, packet, port);
        let finished = candidate.is_some() && checksum::verify(frame, packet);
        let partial = !finished && checksum::is_partial(frame, packet);
        let candidate = candidate.filter(|_| finished || partial);
        if let Some(candidate) = &candidate
            && let Some(run) = self.newest(port.id, &packet.key)
            && run.takes(candidate, frame)
        {
            run.join(candidate, frame);
            return Ok(());
        }
        if partial && !port.takes_tcp {
            checksum::complete(frame, packet);
        }
        let (headers, payload) = frame[..packet.end].split_at(packet.payload);
        let run = self.begin(headers, payload, packet, port, gateway);
        if partial && port.takes_tcp {
            run.describe(unfinished::needs_checksum(packet));
        }
        if let Some(candidate) = candidate {
            run.open = !candidate.last;
            run.next_sequence = candidate.sequence.wrapping_add(length32(run.payload));
            run.next_identification = candidate.identification.wrapping_add(1);
        }
        Ok(())
    }

    /// One write, or one for each segment where the port does not take them
    /// whole. Nothing joins them.
    fn push_super_frame(
        &mut self,
        frame: &[u8],
        packet: &Packet,
        vnet: VnetHeader,
        port: &Port,
        gateway: Mac,
    ) -> Result<(), DropReason> {
        let tcp = packet.key.protocol == protocol::TCP;
        let taken = if tcp { port.takes_tcp } else { port.takes_udp };
        if !taken {
            let cut = segment(frame, packet, &vnet, |headers, payload| {
                self.begin(headers, &frame[payload], packet, port, gateway);
            });
            return if cut {
                Ok(())
            } else {
                Err(DropReason::MalformedOffload)
            };
        }
        let (headers, payload) = frame[..packet.end].split_at(packet.payload);
        let run = self.begin(headers, payload, packet, port, gateway);
        run.describe(vnet);
        run.packets = payload.len().div_ceil(usize::from(vnet.gso_size).max(1)) as u64;
        Ok(())
    }

    /// Takes a packet too big for `port` in fragments, which its sender must
    /// allow. Says how many.
    pub fn push_fragments(
        &mut self,
        frame: &[u8],
        packet: &Packet,
        port: &Port,
        gateway: Mac,
    ) -> u64 {
        let mut pieces = 0;
        fragment(frame, packet, port.mtu, |piece| {
            let (headers, payload) = piece.split_at(FRAGMENT_HEADERS);
            self.begin(headers, payload, packet, port, gateway);
            pieces += 1;
        });
        pieces
    }

    /// Writes the heads of the runs that more than one packet joined.
    pub fn finish(&mut self) {
        self.runs[..self.live]
            .iter_mut()
            .filter(|run| run.merged)
            .for_each(Run::finish);
    }

    fn newest(&mut self, port: PortId, key: &Key) -> Option<&mut Run> {
        let window = self.live.saturating_sub(WINDOW)..self.live;
        self.runs[window]
            .iter_mut()
            .rev()
            .find(|run| run.port == port && run.key == *key)
    }

    /// A run of one packet.
    fn begin(
        &mut self,
        headers: &[u8],
        payload: &[u8],
        packet: &Packet,
        port: &Port,
        gateway: Mac,
    ) -> &mut Run {
        let spent = self.runs.get_mut(self.live);
        let mut bytes = spent
            .map(|run| std::mem::take(&mut run.bytes))
            .unwrap_or_default();
        bytes.clear();
        bytes.extend_from_slice(VnetHeader::default().as_bytes());
        bytes.extend_from_slice(headers);
        edit::set_macs(&mut bytes[vnet::LEN..], port.mac, gateway);
        edit::decrement_hop_limit(&mut bytes[vnet::LEN..], packet);
        bytes.extend_from_slice(payload);
        let run = Run {
            port: port.id,
            packets: 1,
            inner: headers.len() + payload.len(),
            bytes,
            due: self.due,
            head: vnet::LEN + headers.len(),
            key: packet.key,
            transport: packet.transport,
            size: payload.len(),
            open: false,
            merged: false,
            payload: payload.len(),
            next_sequence: 0,
            next_identification: 0,
        };
        match self.runs.get_mut(self.live) {
            Some(spent) => *spent = run,
            None => self.runs.push(run),
        }
        self.live += 1;
        &mut self.runs[self.live - 1]
    }
}

impl Run {
    /// The run as a frame of its own.
    pub fn frame(&self) -> Frame {
        Frame {
            start: vnet::LEN,
            len: self.bytes.len() - vnet::LEN,
            vnet: VnetHeader::read(&self.bytes).unwrap_or_default(),
            packets: self.packets,
            verdict: Verdict::Deliver(self.port),
            cut: None,
            due: self.due,
            inner: self.inner,
        }
    }

    fn describe(&mut self, vnet: VnetHeader) {
        self.bytes[..vnet::LEN].copy_from_slice(vnet.as_bytes());
    }

    /// Key and port are the run's own.
    fn takes(&self, candidate: &Candidate, frame: &[u8]) -> bool {
        let head = &self.bytes[vnet::LEN..self.head];
        let len = candidate.payload.len();
        let ip_len = head.len() - ETHERNET_LEN + self.payload + len;
        self.open
            && len <= self.size
            && ip_len <= IP_MAX
            && (self.key.protocol == protocol::TCP || self.packets < DATAGRAMS_MAX)
            && head.len() == candidate.headers
            && self.same_network(head, frame, candidate)
            && (self.key.protocol != protocol::TCP || self.same_tcp(head, frame, candidate))
    }

    fn same_network(&self, head: &[u8], frame: &[u8], candidate: &Candidate) -> bool {
        let (head, ip) = (&head[ETHERNET_LEN..], &frame[ETHERNET_LEN..]);
        if self.key.src.is_ipv6() {
            // Version, traffic class, flow label; hop limit, taken one from.
            return head[..4] == ip[..4] && head[7].wrapping_add(1) == ip[7];
        }
        const DONT_FRAGMENT: u8 = 0x40;
        let counted = candidate.identification == self.next_identification;
        head[1] == ip[1]
            && head[6..8] == ip[6..8]
            && head[8].wrapping_add(1) == ip[8]
            && (ip[6] & DONT_FRAGMENT != 0 || counted)
    }

    fn same_tcp(&self, head: &[u8], frame: &[u8], candidate: &Candidate) -> bool {
        let (head, tcp) = (
            &head[self.transport..],
            &frame[self.transport..candidate.headers],
        );
        // Acknowledgement, header length, window, urgent pointer, options.
        candidate.sequence == self.next_sequence
            && head[8..13] == tcp[8..13]
            && head[14..16] == tcp[14..16]
            && head[18..] == tcp[18..]
    }

    fn join(&mut self, candidate: &Candidate, frame: &[u8]) {
        let len = candidate.payload.len();
        self.bytes
            .extend_from_slice(&frame[candidate.payload.clone()]);
        self.merged = true;
        self.packets += 1;
        self.payload += len;
        self.inner += candidate.headers + len;
        self.next_sequence = self.next_sequence.wrapping_add(length32(len));
        self.next_identification = self.next_identification.wrapping_add(1);
        self.open = !candidate.last && len == self.size;
        if self.key.protocol == protocol::TCP {
            self.bytes[vnet::LEN + self.transport + 13] |= candidate.flags;
        }
    }

    fn finish(&mut self) {
        let tcp = self.key.protocol == protocol::TCP;
        let (vnet_bytes, head) = self.bytes[..self.head].split_at_mut(vnet::LEN);
        let checksum_offset = if tcp { 16 } else { 6 };
        let header = VnetHeader {
            flags: vnet::NEEDS_CSUM,
            gso_type: match (tcp, self.key.src.is_ipv4()) {
                (true, true) => vnet::GSO_TCPV4,
                (true, false) => vnet::GSO_TCPV6,
                (false, _) => vnet::GSO_UDP_L4,
            },
            hdr_len: length16(head.len()),
            gso_size: length16(self.size),
            csum_start: length16(self.transport),
            csum_offset: checksum_offset,
        };
        vnet_bytes.copy_from_slice(header.as_bytes());

        let ip_len = head.len() - ETHERNET_LEN + self.payload;
        let transport_len = head.len() - self.transport + self.payload;
        let (ip, transport) = head[ETHERNET_LEN..].split_at_mut(self.transport - ETHERNET_LEN);
        if self.key.src.is_ipv4() {
            ip[2..4].copy_from_slice(&length16(ip_len).to_be_bytes());
            edit::refresh_ipv4_checksum(ip);
        } else {
            ip[4..6].copy_from_slice(&length16(transport_len).to_be_bytes());
        }
        if !tcp {
            transport[4..6].copy_from_slice(&length16(transport_len).to_be_bytes());
        }
        let at = usize::from(checksum_offset);
        let partial = checksum::pseudo_header(&self.key, transport_len);
        transport[at..at + 2].copy_from_slice(&partial.to_be_bytes());
    }
}

/// Lengths here are those of parts of one IP packet: below 65 536.
fn length16(len: usize) -> u16 {
    u16::try_from(len).unwrap_or(u16::MAX)
}

fn length32(len: usize) -> u32 {
    u32::from(length16(len))
}

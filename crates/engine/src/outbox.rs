//! Frames for peers, gathered into sends: all datagrams of a send go to one
//! peer from one socket and are of one size, the last perhaps shorter, as
//! UDP_SEGMENT asks.
//!
//! Order within a flow is kept by construction: a flow has one socket, and a
//! datagram joins only the newest send of its peer and socket.

use weft_wire::{Ethernet, VnetHeader, checksum, parse, vnet, vxlan};

use crate::{Batch, DropReason, Tunnel, segment::segment, snapshot::PeerId};

/// Most datagrams in one send (`UDP_MAX_SEGMENTS`, linux/udp.h).
pub const SEGMENTS_MAX: usize = 128;

/// Most bytes in one send: an IPv4 packet less its own and the UDP header.
pub const SEND_MAX: usize = 65_535 - 20 - 8;

#[derive(Debug)]
pub struct Outbox {
    /// Sockets that flows are spread over.
    spread: u16,
    headers: Vec<u8>,
    sends: Vec<Send>,
    /// Those in use; the rest keep their memory for later.
    live: usize,
}

/// One send: what goes where, and the bytes in order.
#[derive(Debug)]
pub struct Send {
    pub peer: PeerId,
    /// Which of the sockets sends.
    pub socket: u16,
    /// The outer header's ECN bits.
    pub ecn: u8,
    /// Bytes of each datagram but perhaps the last.
    pub size: usize,
    /// Bytes in all.
    pub len: usize,
    pub datagrams: u64,
    /// Inner bytes, as traffic is counted.
    pub inner: usize,
    pub pieces: Vec<Piece>,
    closed: bool,
}

/// A run of bytes of a send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Piece {
    /// In the batch's buffer.
    Batch { start: usize, len: usize },
    /// In [`Outbox::headers`].
    Header { start: usize, len: usize },
}

impl Outbox {
    pub fn new(spread: u16) -> Self {
        Self {
            spread: spread.max(1),
            headers: Vec::new(),
            sends: Vec::new(),
            live: 0,
        }
    }

    pub fn clear(&mut self) {
        self.headers.clear();
        self.live = 0;
    }

    /// The sends, in the order they must leave.
    pub fn sends(&self) -> &[Send] {
        &self.sends[..self.live]
    }

    pub fn headers(&self) -> &[u8] {
        &self.headers
    }

    /// Encapsulates the batch's frame at `place`, whose MACs are set. A
    /// VXLAN header overwrites the frame's virtio-net header in place.
    pub fn push(
        &mut self,
        batch: &mut Batch,
        place: usize,
        tunnel: Tunnel,
        vni: u32,
    ) -> Result<(), DropReason> {
        let (frame, bytes) = batch.frame_mut(place);
        let (start, vnet) = (frame.start, frame.vnet);
        let Ok(Ethernet::Ip(packet)) = parse(bytes) else {
            return Err(DropReason::MalformedIp);
        };
        let header = vxlan::header(vni);
        if vnet.is_super_frame() {
            let emitted = segment(bytes, &packet, &vnet, |headers, payload| {
                let at = self.headers.len();
                self.headers.extend_from_slice(&header);
                self.headers.extend_from_slice(headers);
                let len = header.len() + headers.len() + payload.len();
                let send = self.room(tunnel, len);
                send.pieces.push(Piece::Header {
                    start: at,
                    len: header.len() + headers.len(),
                });
                send.pieces.push(Piece::Batch {
                    start: start + payload.start,
                    len: payload.len(),
                });
            });
            return if emitted {
                Ok(())
            } else {
                Err(DropReason::MalformedOffload)
            };
        }
        if vnet.needs_checksum() && !finish_checksum(&mut bytes[..packet.end], &vnet) {
            return Err(DropReason::MalformedOffload);
        }
        // Ethernet padding is not carried.
        let end = packet.end;
        batch.buffer_mut()[start - header.len()..start].copy_from_slice(&header);
        let len = header.len() + end;
        let send = self.room(tunnel, len);
        send.pieces.push(Piece::Batch {
            start: start - header.len(),
            len,
        });
        Ok(())
    }

    /// The send that a datagram of `len` bytes joins.
    fn room(&mut self, tunnel: Tunnel, len: usize) -> &mut Send {
        let socket = tunnel.entropy % self.spread;
        let same = |send: &Send| {
            send.peer == tunnel.peer && send.socket == socket && send.ecn == tunnel.ecn
        };
        let newest = self.sends[..self.live].iter().rposition(same);
        let joins = |send: &Send| {
            !send.closed
                && len <= send.size
                && send.len + len <= SEND_MAX
                && send.datagrams < SEGMENTS_MAX as u64
        };
        let place = match newest.filter(|&place| joins(&self.sends[place])) {
            Some(place) => place,
            None => self.open(tunnel, socket, len),
        };
        let send = &mut self.sends[place];
        send.closed = len < send.size;
        send.len += len;
        send.datagrams += 1;
        send.inner += len - vxlan::LEN;
        send
    }

    fn open(&mut self, tunnel: Tunnel, socket: u16, size: usize) -> usize {
        let pieces = match self.sends.get_mut(self.live) {
            Some(spent) => std::mem::take(&mut spent.pieces),
            None => Vec::new(),
        };
        let mut send = Send {
            peer: tunnel.peer,
            socket,
            ecn: tunnel.ecn,
            size,
            len: 0,
            datagrams: 0,
            inner: 0,
            pieces,
            closed: false,
        };
        send.pieces.clear();
        match self.sends.get_mut(self.live) {
            Some(spent) => *spent = send,
            None => self.sends.push(send),
        }
        self.live += 1;
        self.live - 1
    }
}

fn finish_checksum(bytes: &mut [u8], vnet: &VnetHeader) -> bool {
    /// UDP's checksum field, from the transport header (RFC 768).
    const UDP_FIELD: u16 = 6;
    let udp = vnet.csum_offset == UDP_FIELD;
    checksum::complete_partial(bytes, vnet.csum_start.into(), vnet.csum_offset.into(), udp)
}

// In-place encapsulation needs the room of a virtio-net header.
const _: () = assert!(vnet::LEN >= vxlan::LEN);

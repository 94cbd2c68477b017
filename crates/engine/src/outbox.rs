//! Frames for peers, gathered into sends: all datagrams of a send go to one
//! peer from one socket and are of one size, the last perhaps shorter, as
//! UDP_SEGMENT asks.
//!
//! A send stands in one piece: copying a payload whose checksum is being
//! summed anyway costs less than the kernel's walk over a list of pieces.
//!
//! Order within a flow is kept by construction: a flow has one socket, and a
//! datagram joins only the newest send of its peer and socket.

use weft_wire::{ETHERNET_LEN, Ethernet, checksum, parse, vxlan};

use crate::{
    DropReason, Tunnel, Way, batch::Frame, fragment::fragment, segment::segment, snapshot::PeerId,
};

/// Most datagrams in one send (`UDP_MAX_SEGMENTS`, linux/udp.h).
pub const SEGMENTS_MAX: usize = 128;

/// Most bytes in one send: an IPv4 packet less its own and the UDP header.
pub const SEND_MAX: usize = 65_535 - 20 - 8;

#[derive(Debug)]
pub struct Outbox {
    /// Sockets that flows are spread over.
    spread: u16,
    sends: Vec<Send>,
    /// Those in use; the rest keep their memory for later.
    live: usize,
}

/// One send: what goes where.
#[derive(Debug)]
pub struct Send {
    pub peer: PeerId,
    pub way: Way,
    /// Which of the sockets sends.
    pub socket: u16,
    /// The outer header's ECN bits.
    pub ecn: u8,
    /// Bytes of each datagram but perhaps the last.
    pub size: usize,
    /// The datagrams, one behind another.
    pub bytes: Vec<u8>,
    closed: bool,
}

impl Outbox {
    /// `spread` is the number of sockets to spread flows over.
    pub fn new(spread: u16) -> Self {
        Self {
            spread: spread.max(1),
            sends: Vec::new(),
            live: 0,
        }
    }

    pub fn clear(&mut self) {
        self.live = 0;
    }

    /// The sends, in the order they must leave.
    pub fn sends(&self) -> &[Send] {
        &self.sends[..self.live]
    }

    /// Encapsulates a frame whose MACs are set, in all but IP-in-IP's outer
    /// header, finishing what the pod's kernel left to its device.
    pub fn push(
        &mut self,
        frame: &Frame,
        bytes: &mut [u8],
        tunnel: Tunnel,
        vni: u32,
    ) -> Result<(), DropReason> {
        let Ok(Ethernet::Ip(packet)) = parse(bytes) else {
            return Err(DropReason::MalformedIp);
        };
        let vxlan = vxlan::header(vni);
        let (header, strip) = form(tunnel.way, &vxlan);
        if frame.vnet.is_super_frame() {
            let emitted = segment(bytes, &packet, &frame.vnet, |headers, payload| {
                self.add(tunnel, &[header, &headers[strip..], &bytes[payload]]);
            });
            return if emitted {
                Ok(())
            } else {
                Err(DropReason::MalformedOffload)
            };
        }
        if frame.vnet.needs_checksum() {
            checksum::complete(bytes, &packet);
        }
        match frame.cut {
            Some(mtu) => fragment(bytes, &packet, mtu, |piece| {
                self.add(tunnel, &[header, &piece[strip..]])
            }),
            // Ethernet padding is not carried.
            None => self.add(tunnel, &[header, &bytes[strip..packet.end]]),
        }
        Ok(())
    }

    /// Adds one datagram, given in parts, to the send that it joins.
    fn add(&mut self, tunnel: Tunnel, parts: &[&[u8]]) {
        let len = parts.iter().map(|part| part.len()).sum();
        let socket = match tunnel.way {
            Way::Vxlan | Way::VxlanL3 => tunnel.entropy % self.spread,
            // Without ports there is nothing to spread.
            Way::Ipip => 0,
        };
        let same = |send: &Send| {
            send.peer == tunnel.peer && send.way == tunnel.way && send.socket == socket
        };
        let newest = self.sends[..self.live].iter().rposition(same);
        let place = match newest.filter(|&place| self.sends[place].takes(len, tunnel.ecn)) {
            Some(place) => place,
            None => self.open(tunnel, socket, len),
        };
        let send = &mut self.sends[place];
        send.closed = len < send.size;
        parts
            .iter()
            .for_each(|part| send.bytes.extend_from_slice(part));
    }

    fn open(&mut self, tunnel: Tunnel, socket: u16, size: usize) -> usize {
        let spent = self
            .sends
            .get_mut(self.live)
            .map(|send| std::mem::take(&mut send.bytes));
        let mut bytes = spent.unwrap_or_default();
        bytes.clear();
        let Tunnel { peer, way, ecn, .. } = tunnel;
        let send = Send {
            peer,
            way,
            socket,
            ecn,
            size,
            bytes,
            closed: false,
        };
        match self.sends.get_mut(self.live) {
            Some(spent) => *spent = send,
            None => self.sends.push(send),
        }
        self.live += 1;
        self.live - 1
    }
}

/// The frame as it goes by `way`, in all but IP-in-IP's outer header: what
/// the kernel adds is its IP header, and UDP's.
pub fn encapsulate(way: Way, vni: u32, frame: &[u8]) -> Vec<u8> {
    let vxlan = vxlan::header(vni);
    let (header, strip) = form(way, &vxlan);
    [header, &frame[strip..]].concat()
}

/// What stands before the packet, and how much of the frame does not.
fn form(way: Way, vxlan: &[u8]) -> (&[u8], usize) {
    match way {
        Way::Vxlan => (vxlan, 0),
        Way::VxlanL3 => (vxlan, ETHERNET_LEN),
        Way::Ipip => (&[], ETHERNET_LEN),
    }
}

impl Send {
    /// One datagram alone.
    pub fn one(way: Way, bytes: Vec<u8>) -> Self {
        Self {
            peer: PeerId(0),
            way,
            socket: 0,
            ecn: 0,
            size: bytes.len().max(1),
            bytes,
            closed: true,
        }
    }

    /// Bytes of the inner Ethernet frames, or of what they would be, in
    /// `count` datagrams of `bytes` together.
    pub fn inner(&self, bytes: usize, count: usize) -> usize {
        match self.way {
            Way::Vxlan => bytes.saturating_sub(count * vxlan::LEN),
            Way::VxlanL3 => bytes + count * (ETHERNET_LEN - vxlan::LEN),
            Way::Ipip => bytes + count * ETHERNET_LEN,
        }
    }

    pub fn datagrams(&self) -> impl Iterator<Item = &[u8]> {
        self.bytes.chunks(self.size)
    }

    pub fn count(&self) -> usize {
        self.bytes.len().div_ceil(self.size)
    }

    /// Whether a datagram of `len` bytes may follow.
    fn takes(&self, len: usize, ecn: u8) -> bool {
        !self.closed
            && ecn == self.ecn
            && len <= self.size
            && self.bytes.len() + len <= SEND_MAX
            && self.bytes.len() < SEGMENTS_MAX * self.size
    }
}

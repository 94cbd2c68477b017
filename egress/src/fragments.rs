//! Packets in pieces: those of pods are put together before they go outside
//! (RFC 791 section 3.2, RFC 8200 section 4.5), those of IPv6 that a pod's link
//! does not hold are cut, as their sender has to.
//!
//! What waits for its other pieces is bounded in number, size and time. Of a
//! packet whose pieces overlap nothing is kept (RFC 5722).

use std::{
    net::IpAddr,
    time::{Duration, Instant},
};

use weft_wire::{
    ETHERNET_LEN, Key, Packet, edit, ethertype,
    parse::Fragment,
    piece::{self, Piece},
};

use crate::refusal::{ip_len, write_ip};

/// How long a packet may take to arrive whole; Linux' `ipfrag_time`.
const LIFETIME: Duration = Duration::from_secs(30);

/// Packets that wait, of all pods and of one: 64 KiB each at most.
const WAITING: usize = 64;
const WAITING_OF_POD: usize = 16;

/// Pieces of one packet: links of 576 bytes make 119 of the largest.
const PIECES: usize = 256;

/// Most bytes behind the headers.
const BYTES: usize = 65_535;

/// Bytes of IPv6's fragment header, and the number that it has.
const HEADER: usize = 8;
const FRAGMENT_HEADER: u8 = 44;

#[derive(Debug, Default)]
pub struct Fragments {
    /// Oldest first.
    waiting: Vec<Partial>,
}

#[derive(Debug)]
struct Partial {
    name: Name,
    since: Instant,
    bytes: Vec<u8>,
    /// What of `bytes` has come, in order, no two of them touching.
    ranges: Vec<(usize, usize)>,
    pieces: usize,
    /// Known from the last piece.
    len: Option<usize>,
    first: Option<First>,
    /// Its pieces overlap.
    refused: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Name {
    src: IpAddr,
    dst: IpAddr,
    /// 0 for IPv6, which leaves it out.
    protocol: u8,
    id: u32,
}

#[derive(Debug, Clone, Copy)]
struct First {
    protocol: u8,
    hop_limit: u8,
    /// Extension headers before the transport's.
    skip: usize,
}

/// What came of a piece.
#[derive(Debug, PartialEq, Eq)]
pub struct Taken {
    /// The frame of which it was the last missing piece.
    pub whole: Option<Vec<u8>>,
    /// Pieces that are lost by it.
    pub lost: u64,
}

impl Fragments {
    /// Takes a piece out of a frame.
    pub fn take(&mut self, frame: &[u8], packet: &Packet, now: Instant) -> Taken {
        let mut taken = Taken {
            whole: None,
            lost: self.expire(now),
        };
        let Some(piece) = piece::of(frame, packet) else {
            taken.lost += 1;
            return taken;
        };
        let name = Name {
            src: packet.key.src,
            dst: packet.key.dst,
            protocol: if packet.is_v4() {
                packet.key.protocol
            } else {
                0
            },
            id: piece.id,
        };
        let place = match self.waiting.iter().position(|one| one.name == name) {
            Some(place) => place,
            None => {
                taken.lost += self.make_room(name.src);
                self.waiting.push(Partial::new(name, now));
                self.waiting.len() - 1
            }
        };
        let partial = &mut self.waiting[place];
        match partial.add(frame, packet, piece) {
            Ok(()) if partial.is_whole() => taken.whole = self.waiting.remove(place).join(),
            Ok(()) => {}
            Err(lost) => taken.lost += lost,
        }
        taken
    }

    /// Forgets what took too long, and says how many pieces that were.
    fn expire(&mut self, now: Instant) -> u64 {
        let over = |one: &Partial| now.saturating_duration_since(one.since) >= LIFETIME;
        let count = self.waiting.iter().take_while(|one| over(one)).count();
        self.waiting.drain(..count).map(|one| one.held()).sum()
    }

    /// Has the pod's oldest give way, or the oldest of all.
    fn make_room(&mut self, pod: IpAddr) -> u64 {
        let own = |one: &&Partial| one.name.src == pod;
        let place = if self.waiting.iter().filter(own).count() >= WAITING_OF_POD {
            self.waiting.iter().position(|one| one.name.src == pod)
        } else {
            (self.waiting.len() >= WAITING).then_some(0)
        };
        place.map_or(0, |place| self.waiting.remove(place).held())
    }
}

impl Partial {
    fn new(name: Name, since: Instant) -> Self {
        Self {
            name,
            since,
            bytes: Vec::new(),
            ranges: Vec::new(),
            pieces: 0,
            len: None,
            first: None,
            refused: false,
        }
    }

    /// Pieces that are lost with it.
    fn held(&self) -> u64 {
        if self.refused { 0 } else { self.pieces as u64 }
    }

    /// Err says how many pieces are lost.
    fn add(&mut self, frame: &[u8], packet: &Packet, piece: Piece) -> Result<(), u64> {
        let Piece { from, to, .. } = piece;
        let start = packet.end - (to - from);
        let last = is_last(frame, packet, start);
        let sound = to <= BYTES
            && from < to
            && (last || (to - from).is_multiple_of(8))
            && self.pieces < PIECES
            && match self.len {
                Some(len) => to <= len && (!last || to == len),
                None => !last || self.ranges.last().is_none_or(|range| range.1 <= to),
            };
        if self.refused {
            return Err(1);
        }
        if !sound || !self.mark(from, to) {
            let lost = self.held() + 1;
            *self = Self {
                refused: true,
                ..Self::new(self.name, self.since)
            };
            return Err(lost);
        }
        self.pieces += 1;
        if last {
            self.len = Some(to);
        }
        if packet.fragment == Fragment::First {
            self.first = Some(First {
                protocol: packet.key.protocol,
                hop_limit: packet.hop_limit,
                skip: packet.transport - start,
            });
        }
        if self.bytes.len() < to {
            self.bytes.resize(to, 0);
        }
        self.bytes[from..to].copy_from_slice(&frame[start..packet.end]);
        Ok(())
    }

    /// False if some of it was there.
    fn mark(&mut self, from: usize, to: usize) -> bool {
        let place = self.ranges.partition_point(|range| range.1 <= from);
        if self.ranges.get(place).is_some_and(|range| range.0 < to) {
            return false;
        }
        self.ranges.insert(place, (from, to));
        if self.ranges.get(place + 1).is_some_and(|next| next.0 == to) {
            self.ranges[place].1 = self.ranges.remove(place + 1).1;
        }
        if place > 0 && self.ranges[place - 1].1 == from {
            self.ranges[place - 1].1 = self.ranges.remove(place).1;
        }
        true
    }

    fn is_whole(&self) -> bool {
        self.first.is_some()
            && self
                .len
                .is_some_and(|len| self.ranges.as_slice() == [(0, len)])
    }

    /// The frame, with no headers but the network's and the transport's.
    fn join(self) -> Option<Vec<u8>> {
        let First {
            protocol,
            hop_limit,
            skip,
        } = self.first?;
        let content = self.bytes.get(skip..)?;
        let (src, dst) = (self.name.src, self.name.dst);
        let head = ETHERNET_LEN + ip_len(src);
        // The length that an IPv4 header tells counts the header.
        if src.is_ipv4() && ip_len(src) + content.len() > BYTES {
            return None;
        }
        let mut frame = vec![0; head + content.len()];
        frame[12..14].copy_from_slice(&ethertype_of(src).to_be_bytes());
        frame[head..].copy_from_slice(content);
        let packet = &mut frame[ETHERNET_LEN..];
        write_ip(packet, src, dst, protocol, 0);
        if src.is_ipv4() {
            packet[8] = hop_limit;
            edit::refresh_ipv4_checksum(&mut packet[..20]);
        } else {
            packet[7] = hop_limit;
        }
        Some(frame)
    }
}

pub fn ethertype_of(address: IpAddr) -> u16 {
    match address {
        IpAddr::V4(_) => ethertype::IPV4,
        IpAddr::V6(_) => ethertype::IPV6,
    }
}

/// `start` is where the piece's bytes are.
fn is_last(frame: &[u8], packet: &Packet, start: usize) -> bool {
    match packet.is_v4() {
        true => frame[ETHERNET_LEN + 6] & 0x20 == 0,
        // The flag ends the word before the number.
        false => frame[start - 5] & 1 == 0,
    }
}

/// The pieces of an IPv6 packet from `key`'s destination to its source, none
/// longer than `mtu`. `content` is what follows the header.
pub fn cut<'a>(
    key: &'a Key,
    protocol: u8,
    id: u32,
    content: &'a [u8],
    mtu: usize,
) -> impl Iterator<Item = (usize, impl FnOnce(&mut [u8]) + 'a)> {
    const HEAD: usize = 40 + HEADER;
    let size = mtu.saturating_sub(HEAD).max(8) / 8 * 8;
    let count = content.len().div_ceil(size);
    content.chunks(size).enumerate().map(move |(place, bytes)| {
        let write = move |packet: &mut [u8]| {
            write_ip(packet, key.dst, key.src, FRAGMENT_HEADER, 0);
            let more = u16::from(place + 1 < count);
            // A packet's length fits 16 bits.
            let offset = u16::try_from(place * size).unwrap_or(u16::MAX);
            let header = &mut packet[40..HEAD];
            header.fill(0);
            header[0] = protocol;
            header[2..4].copy_from_slice(&(offset | more).to_be_bytes());
            header[4..].copy_from_slice(&id.to_be_bytes());
            packet[HEAD..].copy_from_slice(bytes);
        };
        (HEAD + bytes.len(), write)
    })
}

#[cfg(test)]
mod tests;

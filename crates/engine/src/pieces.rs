//! Whose later fragments may pass: those of datagrams whose first fragment
//! did. Only that one has ports to be judged by.
//!
//! All fragments of a datagram come to one worker, in order, as all packets
//! of a flow do. The memory has a fixed size: a datagram may be pushed out by
//! another, and then its later fragments are lost.

use std::{
    hash::{Hash, Hasher},
    net::IpAddr,
    time::{Duration, Instant},
};

use rapidhash::quality::RapidHasher;
use weft_wire::{Packet, parse::Fragment, piece};

/// How long a datagram may take to arrive; Linux' `ipfrag_time`.
const LIFETIME: Duration = Duration::from_secs(30);

/// Datagrams that are remembered at most, in some 100 KiB.
const PLACES: usize = 1024;

#[derive(Debug)]
pub struct Pieces {
    seed: u64,
    places: Box<[Option<Datagram>]>,
}

#[derive(Debug, Clone, Copy)]
struct Datagram {
    name: Name,
    edition: u32,
    until: Instant,
}

/// What fragments are put together by (RFC 791 section 3.2, RFC 8200 section
/// 4.5).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Name {
    src: IpAddr,
    dst: IpAddr,
    /// 0 for IPv6, which leaves it out.
    protocol: u8,
    id: u32,
}

impl Pieces {
    /// `seed` keeps senders from choosing datagrams that share a place.
    pub fn new(seed: u64) -> Self {
        Self {
            seed,
            places: vec![None; PLACES].into(),
        }
    }

    /// Takes note of a packet that may pass, if it is a first fragment.
    pub fn learn(&mut self, edition: u32, frame: &[u8], packet: &Packet, now: Instant) {
        if packet.fragment != Fragment::First {
            return;
        }
        if let Some(name) = Name::of(frame, packet) {
            self.places[self.place(&name)] = Some(Datagram {
                name,
                edition,
                until: now + LIFETIME,
            });
        }
    }

    /// Whether a fragment's first passed these rules.
    pub fn knows(&self, edition: u32, frame: &[u8], packet: &Packet, now: Instant) -> bool {
        let Some(name) = Name::of(frame, packet) else {
            return false;
        };
        let known = self.places[self.place(&name)];
        known.is_some_and(|known| {
            known.name == name && known.edition == edition && now < known.until
        })
    }

    fn place(&self, name: &Name) -> usize {
        let mut hasher = RapidHasher::new(self.seed);
        name.hash(&mut hasher);
        hasher.finish() as usize % PLACES
    }
}

impl Name {
    fn of(frame: &[u8], packet: &Packet) -> Option<Self> {
        let protocol = match packet.is_v4() {
            true => packet.key.protocol,
            false => 0,
        };
        piece::id(frame, packet).map(|id| Self {
            src: packet.key.src,
            dst: packet.key.dst,
            protocol,
            id,
        })
    }
}

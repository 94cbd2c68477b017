//! Whose later fragments may pass: those of datagrams whose first fragment
//! did. Only that one has ports to be judged by.
//!
//! All fragments of a datagram come to one worker, in order, as all packets
//! of a flow do. The memory has a fixed size: a datagram may be pushed out by
//! another, of the same sender if it has one there, and then its later
//! fragments are lost. Rules that change do not matter to datagrams that are
//! under way.

use std::{
    hash::{Hash, Hasher},
    net::IpAddr,
    time::{Duration, Instant},
};

use rapidhash::quality::RapidHasher;
use weft_wire::{Packet, parse::Fragment, piece, piece::Piece};

use crate::DropReason;

/// How long a datagram may take to arrive; Linux' `ipfrag_time`.
const LIFETIME: Duration = Duration::from_secs(30);

/// 256 sets of 4: 1024 datagrams in some 80 KiB.
const SETS: usize = 256;
const WAYS: usize = 4;

#[derive(Debug)]
pub struct Pieces {
    seed: u64,
    sets: Box<[[Option<Datagram>; WAYS]]>,
}

#[derive(Debug, Clone, Copy)]
struct Datagram {
    name: Name,
    /// Where the first fragment ends.
    first: usize,
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
            sets: vec![[None; WAYS]; SETS].into(),
        }
    }

    /// Takes note of a packet that may pass, if it is a first fragment.
    pub fn learn(&mut self, frame: &[u8], packet: &Packet, now: Instant) {
        if packet.fragment != Fragment::First {
            return;
        }
        if let Some((name, piece)) = Name::of(frame, packet) {
            let set = self.set(&name);
            let place = victim(&self.sets[set], &name, now);
            self.sets[set][place] = Some(Datagram {
                name,
                first: piece.to,
                until: now + LIFETIME,
            });
        }
    }

    /// What a later fragment may not: go without the first, or write over
    /// that, by which alone the datagram was judged (RFC 3128, RFC 5722).
    pub fn admit(&self, frame: &[u8], packet: &Packet, now: Instant) -> Result<(), DropReason> {
        let (name, piece) = Name::of(frame, packet).ok_or(DropReason::FragmentAlone)?;
        let mut all = self.sets[self.set(&name)].iter().flatten();
        let first = all
            .find(|known| known.name == name && now < known.until)
            .ok_or(DropReason::FragmentAlone)?
            .first;
        match piece.from < first {
            true => Err(DropReason::FragmentOverlap),
            false => Ok(()),
        }
    }

    fn set(&self, name: &Name) -> usize {
        let mut hasher = RapidHasher::new(self.seed);
        name.hash(&mut hasher);
        hasher.finish() as usize % SETS
    }
}

/// The place for a datagram: its own, a free one, the oldest of its sender's,
/// or the oldest of all.
fn victim(set: &[Option<Datagram>; WAYS], name: &Name, now: Instant) -> usize {
    let rank = |place: &usize| match &set[*place] {
        Some(known) if known.name == *name => (0, None),
        Some(known) if now < known.until => {
            let kin = known.name.src == name.src;
            (if kin { 2 } else { 3 }, Some(known.until))
        }
        _ => (1, None),
    };
    (0..WAYS).min_by_key(rank).unwrap_or_default()
}

impl Name {
    fn of(frame: &[u8], packet: &Packet) -> Option<(Self, Piece)> {
        let protocol = match packet.is_v4() {
            true => packet.key.protocol,
            false => 0,
        };
        let piece = piece::of(frame, packet)?;
        let name = Self {
            src: packet.key.src,
            dst: packet.key.dst,
            protocol,
            id: piece.id,
        };
        Some((name, piece))
    }
}

#[cfg(test)]
mod tests {
    use weft_testkit::sim::World;

    use super::*;

    fn name(src: u8, id: u32) -> Name {
        Name {
            src: [10, 0, 0, src].into(),
            dst: [10, 0, 1, 1].into(),
            protocol: 17,
            id,
        }
    }

    #[test]
    fn a_full_set_gives_up_the_oldest_of_the_same_sender() {
        let now = World::default().now;
        let known = |name, age| {
            Some(Datagram {
                name,
                first: 48,
                until: now + LIFETIME - Duration::from_secs(age),
            })
        };
        let mut set = [
            known(name(1, 1), 9),
            known(name(2, 1), 3),
            known(name(2, 2), 5),
            known(name(2, 3), 4),
        ];
        assert_eq!(victim(&set, &name(2, 9), now), 2);
        assert_eq!(victim(&set, &name(3, 9), now), 0);
        assert_eq!(victim(&set, &name(2, 3), now), 3, "itself");
        set[3] = known(name(2, 3), 30);
        assert_eq!(victim(&set, &name(2, 9), now), 3, "its time is over");
        set[1] = None;
        assert_eq!(victim(&set, &name(2, 9), now), 1);
    }
}

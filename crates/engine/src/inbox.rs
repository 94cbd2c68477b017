//! What one read of the uplink yields: trains of datagrams, as UDP_GRO
//! delivers them.

use std::net::IpAddr;

use crate::Way;

/// Bytes for one train: the largest that the kernel hands out.
pub const TRAIN_MAX: usize = 65_536;

/// Bytes before each train, for an Ethernet header that its first packet may
/// lack.
const HEADROOM: usize = 16;
const SLOT: usize = HEADROOM + TRAIN_MAX;

#[derive(Debug)]
pub struct Inbox {
    buffer: Box<[u8]>,
    pub trains: Vec<Train>,
}

/// Datagrams, or IP-in-IP packets with their outer headers, from one sender,
/// `stride` bytes each, the last perhaps shorter.
#[derive(Debug, Clone, Copy)]
pub struct Train {
    pub start: usize,
    pub len: usize,
    pub stride: usize,
    pub from: IpAddr,
    pub way: Way,
    /// The outer header's ECN bits.
    pub ecn: u8,
    /// The kernel cut off what did not fit.
    pub truncated: bool,
}

impl Inbox {
    /// Room for `trains` trains.
    pub fn new(trains: usize) -> Self {
        Self {
            buffer: vec![0; trains * SLOT].into(),
            trains: Vec::with_capacity(trains),
        }
    }

    pub fn buffer(&self) -> &[u8] {
        &self.buffer
    }

    pub fn split(&mut self) -> (&[Train], &mut [u8]) {
        (&self.trains, &mut self.buffer)
    }

    /// One slot of [`TRAIN_MAX`] bytes for each train.
    pub fn slots(&mut self) -> impl Iterator<Item = &mut [u8]> {
        let slots = self.buffer.chunks_exact_mut(SLOT);
        slots.map(|slot| &mut slot[HEADROOM..])
    }

    /// Where the slot at `place` starts in the buffer.
    pub fn start(place: usize) -> usize {
        place * SLOT + HEADROOM
    }
}

impl Train {
    /// Where its datagrams lie in the inbox. There is at least one, perhaps
    /// an empty one.
    pub fn datagrams(&self) -> impl Iterator<Item = std::ops::Range<usize>> + use<> {
        let (start, end, stride) = (self.start, self.start + self.len, self.stride.max(1));
        (start..end.max(start + 1))
            .step_by(stride)
            .map(move |at| at..end.min(at + stride))
    }

    pub fn count(&self) -> u64 {
        self.len.div_ceil(self.stride.max(1)).max(1) as u64
    }
}

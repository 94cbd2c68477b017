//! The unit of work from ports: frames one behind another in one buffer,
//! each with its virtio-net header in front and a verdict when decided.

use std::time::Instant;

use weft_wire::{FRAME_MAX, VnetHeader, vnet};

use crate::{DropReason, Verdict};

/// Bytes that must be free for one more frame of any size.
pub const SLOT: usize = vnet::LEN + FRAME_MAX;

#[derive(Debug)]
pub struct Batch {
    buffer: Box<[u8]>,
    used: usize,
    frames: Vec<Frame>,
}

#[derive(Debug, Clone, Copy)]
pub struct Frame {
    /// Where the first Ethernet byte is; [`vnet::LEN`] bytes before it are
    /// the frame's too.
    pub start: usize,
    pub len: usize,
    pub vnet: VnetHeader,
    /// How many packets the frame counts as.
    pub packets: u64,
    pub verdict: Verdict,
    /// The largest IP packet that the frame's way takes, if the frame is to
    /// be cut into fragments that fit.
    pub cut: Option<usize>,
    /// When the frame may go, if it has to wait.
    pub due: Option<Instant>,
    /// Ethernet bytes that the frame counts as.
    pub inner: usize,
}

impl Batch {
    /// Room for `bytes`, and for at least one frame.
    pub fn new(bytes: usize) -> Self {
        Self {
            buffer: vec![0; bytes.max(SLOT)].into(),
            used: 0,
            frames: Vec::new(),
        }
    }

    pub fn clear(&mut self) {
        self.used = 0;
        self.frames.clear();
    }

    /// The free bytes, if a frame of any size still fits: the first
    /// [`vnet::LEN`] for its virtio-net header, the frame behind.
    pub fn space(&mut self) -> Option<&mut [u8]> {
        let space = &mut self.buffer[self.used..];
        (space.len() >= SLOT).then_some(space)
    }

    /// Takes in the `len` Ethernet bytes that were written to [`space`]
    /// behind the virtio-net header `vnet`.
    ///
    /// [`space`]: Self::space
    pub fn commit(&mut self, vnet: VnetHeader, len: usize) {
        self.frames.push(Frame {
            start: self.used + vnet::LEN,
            len,
            vnet,
            packets: 1,
            verdict: Verdict::Drop(DropReason::MalformedEthernet),
            cut: None,
            due: None,
            inner: len,
        });
        self.used += vnet::LEN + len;
    }

    /// Copies in a frame that has been decided, with its virtio-net header
    /// and Ethernet bytes, if there is room. It waits no more.
    pub fn restore(&mut self, frame: Frame, bytes: &[u8]) -> bool {
        let end = self.used + bytes.len();
        let Some(space) = self.buffer.get_mut(self.used..end) else {
            return false;
        };
        space.copy_from_slice(bytes);
        self.frames.push(Frame {
            start: self.used + vnet::LEN,
            due: None,
            ..frame
        });
        self.used = end;
        true
    }

    /// Copies a frame in and gives it its verdict, if there is room.
    pub fn push(&mut self, frame: &[u8], verdict: Verdict) -> bool {
        let end = self.used + vnet::LEN + frame.len();
        let Some(space) = self.buffer.get_mut(self.used..end) else {
            return false;
        };
        space[..vnet::LEN].fill(0);
        space[vnet::LEN..].copy_from_slice(frame);
        self.commit(VnetHeader::default(), frame.len());
        if let Some(pushed) = self.frames.last_mut() {
            pushed.verdict = verdict;
        }
        true
    }

    pub fn len(&self) -> usize {
        self.frames.len()
    }

    pub fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    pub fn frames(&self) -> &[Frame] {
        &self.frames
    }

    /// The frame at `place` and its Ethernet bytes.
    pub fn frame_mut(&mut self, place: usize) -> (&mut Frame, &mut [u8]) {
        let frame = &mut self.frames[place];
        let bytes = &mut self.buffer[frame.start..frame.start + frame.len];
        (frame, bytes)
    }

    /// The frame's Ethernet bytes.
    pub fn bytes(&self, frame: &Frame) -> &[u8] {
        &self.buffer[frame.start..frame.start + frame.len]
    }

    /// The frame's virtio-net header and Ethernet bytes, as a port takes
    /// them.
    pub fn with_vnet(&self, frame: &Frame) -> &[u8] {
        &self.buffer[frame.start - vnet::LEN..frame.start + frame.len]
    }
}

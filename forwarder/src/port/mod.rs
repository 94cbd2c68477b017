//! A pod's attachment: fds that carry frames.
//!
//! All drivers speak one format, a virtio-net header and an Ethernet frame,
//! and differ in how their fds are recognised and set up: [`tap`], [`veth`],
//! [`packets`] and, without the header and so without offloads, [`basic`].
//!
//! Any worker may write to any port; a queue is read by one worker only.

use std::{
    io::{self, IoSlice},
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    fcntl,
    sys::uio::writev,
    unistd::{read, write},
};
use weft_api::forwarder::Driver;
use weft_engine::{Batch, DropReason};
use weft_wire::{VnetHeader, vnet};

mod basic;
mod packets;
mod tap;
mod veth;

#[derive(Debug)]
pub struct Port {
    driver: Driver,
    queues: Vec<OwnedFd>,
    offloads: Offloads,
    gone: AtomicBool,
    opened: Instant,
}

/// What may be written to a port without being finished first.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Offloads {
    /// TCP super-frames and partial checksums.
    pub tcp: bool,
    /// UDP super-frames.
    pub udp: bool,
}

#[derive(Debug, thiserror::Error)]
pub enum PortError {
    #[error("a {driver} port takes {expected}, not {found} fds")]
    Count {
        driver: &'static str,
        expected: &'static str,
        found: usize,
    },
    #[error("fd {place} is no {expected}: {error}")]
    NotThis {
        place: usize,
        expected: &'static str,
        error: io::Error,
    },
    #[error("fd {place}: {what}: {error}")]
    Setup {
        place: usize,
        what: &'static str,
        error: io::Error,
    },
}

/// What is left to read after a [`Port::receive`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Left {
    /// Perhaps more.
    More,
    Nothing,
    /// The pod's link was deleted: there will never be more.
    Gone,
}

impl Port {
    /// Checks that each fd is what `driver` says and sets it up.
    pub fn open(driver: Driver, queues: Vec<OwnedFd>) -> Result<Self, PortError> {
        let offloads = match driver {
            Driver::Tap => tap::open(&queues)?,
            Driver::Veth => veth::open(&queues)?,
            Driver::Basic => basic::open(&queues)?,
            Driver::Packets => packets::open(&queues)?,
        };
        for (place, queue) in queues.iter().enumerate() {
            let what = "make it non-blocking";
            non_blocking(queue).map_err(|error| PortError::Setup { place, what, error })?;
        }
        Ok(Self {
            driver,
            queues,
            offloads,
            gone: AtomicBool::new(false),
            opened: Instant::now(),
        })
    }

    pub fn driver(&self) -> Driver {
        self.driver
    }

    pub fn age(&self) -> Duration {
        self.opened.elapsed()
    }

    pub fn queues(&self) -> usize {
        self.queues.len()
    }

    pub fn queue(&self, queue: usize) -> BorrowedFd<'_> {
        self.queues[queue % self.queues.len()].as_fd()
    }

    /// Whether whole UDP super-frames may be written (USO).
    pub fn takes_udp(&self) -> bool {
        self.offloads.udp
    }

    /// Whether whole TCP super-frames may be written.
    pub fn takes_tcp(&self) -> bool {
        self.offloads.tcp
    }

    /// The pod's link was deleted. Its queues may not have said so: the
    /// kernel wakes their reader just before they are detached, and only once.
    pub fn gone(&self) -> bool {
        self.gone.load(Relaxed) || self.is_detached(self.queue(0))
    }

    fn is_detached(&self, fd: BorrowedFd<'_>) -> bool {
        match self.driver {
            Driver::Tap | Driver::Basic => tap::is_detached(fd),
            Driver::Veth => veth::unbound(fd),
            Driver::Packets => packets::hung_up(fd),
        }
    }

    /// Fills the batch with frames from one queue, as far as there are any
    /// and there is room.
    pub fn receive(&self, queue: usize, batch: &mut Batch) -> Left {
        let fd = self.queue(queue);
        while let Some(space) = batch.space() {
            // Without offloads there is no header; its place stays empty.
            let header = if self.offloads.tcp { 0 } else { vnet::LEN };
            space[..header].fill(0);
            match read(fd, &mut space[header..]) {
                Ok(n) if header + n < vnet::LEN && self.driver == Driver::Packets => {
                    if n == 0 && packets::hung_up(fd) {
                        self.gone.store(true, Relaxed);
                        return Left::Gone;
                    }
                    // No frame: it is counted as one that has no Ethernet
                    // header.
                    batch.commit(VnetHeader::default(), 0);
                }
                Ok(n) if header + n < vnet::LEN => return Left::Nothing,
                Ok(n) => {
                    let vnet = VnetHeader::read(space).unwrap_or_default();
                    batch.commit(vnet, header + n - vnet::LEN);
                }
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return Left::Nothing,
                Err(error) => return self.failed(fd, error),
            }
        }
        Left::More
    }

    fn failed(&self, fd: BorrowedFd<'_>, error: Errno) -> Left {
        let may_be = matches!(error, Errno::EBADFD | Errno::ENETDOWN | Errno::ECONNRESET);
        if may_be && self.is_detached(fd) {
            self.gone.store(true, Relaxed);
            return Left::Gone;
        }
        match error {
            // News of the link, told once, or a frame that has no virtio-net
            // header. Frames may be queued behind it, and no edge will tell.
            Errno::ENETDOWN | Errno::EINVAL => Left::More,
            _ => Left::Nothing,
        }
    }

    /// Writes one frame that stands in one piece behind its virtio-net
    /// header.
    pub fn send(&self, queue: usize, frame: &[u8]) -> Result<(), DropReason> {
        let frame = if self.offloads.tcp {
            frame
        } else {
            &frame[vnet::LEN..]
        };
        let fd = self.queue(queue);
        write(fd, frame)
            .map(drop)
            .map_err(|error| self.reason(fd, error))
    }

    /// Writes one finished frame that stands in two pieces.
    pub fn send_pieces(&self, queue: usize, pieces: [&[u8]; 2]) -> Result<(), DropReason> {
        let [first, second] = pieces.map(IoSlice::new);
        let all = [IoSlice::new(&[0; vnet::LEN]), first, second];
        let pieces = if self.offloads.tcp {
            &all[..]
        } else {
            &all[1..]
        };
        let fd = self.queue(queue);
        writev(fd, pieces)
            .map(drop)
            .map_err(|error| self.reason(fd, error))
    }

    fn reason(&self, fd: BorrowedFd<'_>, error: Errno) -> DropReason {
        let is_veth = self.driver == Driver::Veth;
        match error {
            Errno::ENOBUFS if is_veth && !veth::has_carrier(fd) => DropReason::PortDown,
            error => reason(error),
        }
    }
}

fn reason(error: Errno) -> DropReason {
    match error {
        Errno::EAGAIN | Errno::ENOBUFS | Errno::ENOMEM => DropReason::PortFull,
        Errno::EBADFD | Errno::EIO | Errno::ENXIO | Errno::ENETDOWN => DropReason::PortDown,
        Errno::EPIPE | Errno::ECONNRESET | Errno::ENOTCONN => DropReason::PortDown,
        _ => DropReason::PortRefused,
    }
}

fn non_blocking(fd: &OwnedFd) -> io::Result<()> {
    let flags = fcntl::OFlag::from_bits_retain(fcntl::fcntl(fd, fcntl::FcntlArg::F_GETFL)?);
    fcntl::fcntl(
        fd,
        fcntl::FcntlArg::F_SETFL(flags | fcntl::OFlag::O_NONBLOCK),
    )?;
    Ok(())
}

impl std::fmt::Display for Port {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let fds: Vec<_> = self.queues.iter().map(AsRawFd::as_raw_fd).collect();
        write!(f, "{:?} port on fds {fds:?}", self.driver)
    }
}

//! The host port's other end: frames from pods, and frames to them.
//!
//! A frame that the forwarder does not take now waits here; whoever can wait
//! asks [`Link::is_free`] first.

use std::{
    collections::VecDeque,
    os::fd::{AsFd, AsRawFd, OwnedFd, RawFd},
};

use nix::{
    errno::Errno,
    sys::socket::{MsgFlags, recv, send},
};
use weft_api::{forwarder::GATEWAY_MAC, names::Mac};
use weft_wire::{
    ETHERNET_LEN, Ethernet, FRAME_MAX, Packet, VnetHeader, checksum, ethertype, parse,
    parse::Fragment, protocol, vnet,
};
use zerocopy::IntoBytes;

/// The egress's MAC on its link to the forwarder: locally administered, "egr".
pub const MAC: Mac = Mac([0x02, 0x77, 0x66, 0x65, 0x67, 0x72]);

/// Bytes before the IP packet in a message.
pub const HEAD: usize = vnet::LEN + ETHERNET_LEN;

/// Most frames that wait for the forwarder; further ones are lost. TCP stops
/// before that.
const BACKLOG: usize = 256;

#[derive(Debug)]
pub struct Link {
    socket: OwnedFd,
    frame: Vec<u8>,
    backlog: VecDeque<Box<[u8]>>,
}

/// How a frame is cut where it is several packets.
#[derive(Debug, Clone, Copy, Default)]
pub struct Segments {
    /// Payload bytes of each packet; a frame with no more is one packet.
    pub size: Option<u16>,
}

/// What came of reading.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Came {
    Frame(usize),
    Nothing,
    /// The forwarder has let the port go.
    Gone,
}

/// A frame did not find room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Full;

impl Link {
    pub fn new(socket: OwnedFd) -> Self {
        Self {
            socket,
            frame: Vec::with_capacity(vnet::LEN + FRAME_MAX),
            backlog: VecDeque::new(),
        }
    }

    pub fn as_raw_fd(&self) -> RawFd {
        self.socket.as_fd().as_raw_fd()
    }

    /// The next message into `buffer`.
    pub fn receive(&self, buffer: &mut [u8]) -> Came {
        loop {
            match recv(self.as_raw_fd(), buffer, MsgFlags::MSG_DONTWAIT) {
                Ok(0) => return Came::Gone,
                Ok(bytes) => return Came::Frame(bytes),
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return Came::Nothing,
                Err(_) => return Came::Gone,
            }
        }
    }

    /// Whether a frame would leave at once, as far as is known.
    pub fn is_free(&self) -> bool {
        self.backlog.is_empty()
    }

    /// Sends what waits, as far as the forwarder takes it.
    pub fn drain(&mut self) {
        while let Some(frame) = self.backlog.front() {
            if write(&self.socket, frame) == Err(Errno::EAGAIN) {
                return;
            }
            self.backlog.pop_front();
        }
    }

    /// Has `write_packet` write an IP packet of `len` bytes, and sends it to
    /// the pod whose address it names. The checksum of TCP and UDP is left to
    /// whoever needs it.
    pub fn send<R>(
        &mut self,
        len: usize,
        segments: Segments,
        write_packet: impl FnOnce(&mut [u8]) -> R,
    ) -> (R, Result<(), Full>) {
        self.frame.resize(HEAD + len, 0);
        let written = write_packet(&mut self.frame[HEAD..]);
        finish(&mut self.frame, segments);
        (written, self.push())
    }

    fn push(&mut self) -> Result<(), Full> {
        if self.backlog.is_empty() && write(&self.socket, &self.frame) != Err(Errno::EAGAIN) {
            return Ok(());
        }
        if self.backlog.len() >= BACKLOG {
            return Err(Full);
        }
        self.backlog.push_back(self.frame.as_slice().into());
        Ok(())
    }
}

/// A link that is gone swallows frames: its flows end with it.
fn write(socket: &OwnedFd, frame: &[u8]) -> Result<(), Errno> {
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
    loop {
        match send(socket.as_raw_fd(), frame, flags) {
            Err(Errno::EINTR) => {}
            // The kernel has no memory for it now.
            Err(Errno::ENOBUFS | Errno::ENOMEM) => return Err(Errno::EAGAIN),
            other => return other.map(drop),
        }
    }
}

/// Writes the headers before the IP packet, and the part of the checksum that
/// is not left to others.
fn finish(frame: &mut [u8], segments: Segments) {
    let ethertype = match frame[HEAD] >> 4 {
        6 => ethertype::IPV6,
        _ => ethertype::IPV4,
    };
    let ethernet = &mut frame[vnet::LEN..];
    ethernet[..6].copy_from_slice(&GATEWAY_MAC.0);
    ethernet[6..12].copy_from_slice(&MAC.0);
    ethernet[12..14].copy_from_slice(&ethertype.to_be_bytes());
    let header = match parse(ethernet) {
        Ok(Ethernet::Ip(packet)) => leave_checksum(ethernet, &packet, segments),
        _ => VnetHeader::default(),
    };
    frame[..vnet::LEN].copy_from_slice(header.as_bytes());
}

fn leave_checksum(frame: &mut [u8], packet: &Packet, segments: Segments) -> VnetHeader {
    // Of what is cut, the whole had one.
    if packet.fragment != Fragment::Whole {
        return VnetHeader::default();
    }
    let key = &packet.key;
    let kind = match (key.protocol, packet.is_v4()) {
        (protocol::TCP, true) => vnet::GSO_TCPV4,
        (protocol::TCP, false) => vnet::GSO_TCPV6,
        (protocol::UDP, _) => vnet::GSO_UDP_L4,
        _ => {
            checksum::complete(frame, packet);
            return VnetHeader::default();
        }
    };
    let Some(offset) = checksum::field_offset(key.protocol) else {
        return VnetHeader::default();
    };
    let partial = checksum::pseudo_header(key, packet.end - packet.transport);
    let field = packet.transport + offset;
    frame[field..field + 2].copy_from_slice(&partial.to_be_bytes());
    // Places in a frame's headers fit 16 bits.
    let word = |number: usize| u16::try_from(number).unwrap_or(u16::MAX);
    let payload = packet.end - packet.payload;
    let size = segments.size.filter(|size| payload > usize::from(*size));
    VnetHeader {
        flags: vnet::NEEDS_CSUM,
        gso_type: size.map_or(vnet::GSO_NONE, |_| kind),
        hdr_len: size.map_or(0, |_| word(packet.payload)),
        gso_size: size.unwrap_or(0),
        csum_start: word(packet.transport),
        csum_offset: word(offset),
    }
}

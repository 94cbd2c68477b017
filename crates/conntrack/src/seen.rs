//! What a packet says to those who track connections.

use weft_wire::{Key, Packet, parse::Fragment, piece, protocol, quote};

use crate::{
    sctp::Chunk,
    tcp::{FIN, RST, SYN, Segment},
};

/// A packet as a part of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seen {
    /// Equal for all packets of one direction; the other direction's has the
    /// ends exchanged. For ICMP echo both ports are the identifier. An ICMP
    /// error has the key of answers to what it is about.
    pub key: Key,
    pub says: Says,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Says {
    Tcp(Segment),
    /// The first chunk alone.
    Sctp(Chunk),
    Udp,
    EchoRequest,
    EchoReply,
    /// An ICMP error about a packet of where the error goes.
    Error,
    /// An ICMP error that belongs to nothing that can be tracked.
    Stray,
    Other,
}

impl Seen {
    /// None for a datagram's later fragments, which do not say.
    pub fn of(frame: &[u8], packet: &Packet) -> Option<Self> {
        let key = piece::whole_key(frame, packet)?;
        if quote::is_error(frame, packet) {
            return Some(Self::of_error(frame, packet, key));
        }
        let says = match key.protocol {
            protocol::TCP => Says::Tcp(Segment::read(&frame[packet.transport..])),
            protocol::SCTP => Says::Sctp(Chunk::read(&frame[packet.transport..packet.end])),
            protocol::UDP => Says::Udp,
            protocol::ICMP | protocol::ICMPV6 => echo(&key),
            _ => Says::Other,
        };
        Some(Self {
            key: tuple(key),
            says,
        })
    }

    fn of_error(frame: &[u8], packet: &Packet, key: Key) -> Self {
        let about = quote::about(frame, packet).filter(|about| about.src == key.dst);
        match about {
            Some(about) => Self {
                key: tuple(about).exchanged(),
                says: Says::Error,
            },
            None => Self {
                key,
                says: Says::Stray,
            },
        }
    }

    /// Whether it asks for a connection that was not there before.
    pub(crate) fn opens(&self) -> bool {
        match self.says {
            Says::Tcp(segment) => segment.opens(),
            Says::Sctp(chunk) => chunk == Chunk::Init,
            Says::EchoRequest => true,
            _ => false,
        }
    }
}

/// Whether a packet may do more to its connection than go on with it, so that
/// the tracker must see it at once. The packet must be whole.
pub fn changes_state(frame: &[u8], packet: &Packet) -> bool {
    match packet.key.protocol {
        _ if packet.fragment != Fragment::Whole => true,
        protocol::TCP => frame[packet.transport + 13] & (SYN | FIN | RST) != 0,
        protocol::SCTP => Chunk::read(&frame[packet.transport..packet.end]) != Chunk::Data,
        _ => false,
    }
}

fn echo(key: &Key) -> Says {
    match (key.protocol, key.dst_port >> 8) {
        (protocol::ICMP, 8) | (protocol::ICMPV6, 128) => Says::EchoRequest,
        (protocol::ICMP, 0) | (protocol::ICMPV6, 129) => Says::EchoReply,
        _ => Says::Other,
    }
}

/// Both ports of an echo are its identifier. Whatever else is ICMP shares one
/// connection between two ends, which differing ports keep apart from echoes.
fn tuple(mut key: Key) -> Key {
    if matches!(key.protocol, protocol::ICMP | protocol::ICMPV6) {
        (key.src_port, key.dst_port) = match echo(&key) {
            Says::EchoRequest | Says::EchoReply => (key.src_port, key.src_port),
            _ if key.src <= key.dst => (0, 1),
            _ => (1, 0),
        };
    }
    key
}

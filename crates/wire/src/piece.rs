//! What a fragment says of the datagram that it is a piece of.

use crate::{
    ETHERNET_LEN, Key, Packet,
    parse::{Fragment, ports, walk_extensions},
    read_u16,
};

/// Where a piece belongs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece {
    /// The number that all pieces of the datagram bear.
    pub id: u32,
    /// Of the datagram's bytes behind the headers that all pieces bear, those
    /// that this one holds.
    pub from: usize,
    pub to: usize,
}

/// None of what is whole.
pub fn of(frame: &[u8], packet: &Packet) -> Option<Piece> {
    if packet.fragment == Fragment::Whole {
        return None;
    }
    let (id, from, start) = if packet.is_v4() {
        let ip = &frame[ETHERNET_LEN..];
        let from = usize::from(read_u16(ip, 6) & 0x1fff) * 8;
        (read_u16(ip, 4).into(), from, packet.transport)
    } else {
        let walked = walk_extensions(&frame[..packet.end], frame[ETHERNET_LEN + 6]).ok()?;
        let cut = walked.cut?;
        (cut.id, cut.offset, cut.start)
    };
    let to = from + packet.end - start;
    Some(Piece { id, from, to })
}

/// The key that the whole datagram would have. Only what is whole and a first
/// piece know it.
pub fn whole_key(frame: &[u8], packet: &Packet) -> Option<Key> {
    match packet.fragment {
        Fragment::Whole => Some(packet.key),
        Fragment::Later => None,
        Fragment::First => {
            let segment = &frame[packet.transport..packet.end];
            let (src_port, dst_port) = ports(packet.key.protocol, segment)?;
            Some(Key {
                src_port,
                dst_port,
                ..packet.key
            })
        }
    }
}

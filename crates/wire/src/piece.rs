//! What a fragment says of the datagram that it is a piece of.

use crate::{
    ETHERNET_LEN, Key, Packet,
    parse::{Fragment, walk_extensions},
    quote::ports,
    read_u16,
};

/// The number that all pieces of a datagram bear; none of what is whole.
pub fn id(frame: &[u8], packet: &Packet) -> Option<u32> {
    if packet.fragment == Fragment::Whole {
        return None;
    }
    if packet.is_v4() {
        return Some(read_u16(frame, ETHERNET_LEN + 4).into());
    }
    let walked = walk_extensions(&frame[..packet.end], frame[ETHERNET_LEN + 6]);
    walked.ok()?.id
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

//! Which packets may be merged into a super-frame at all.

use std::ops::Range;

use weft_wire::{ETHERNET_LEN, Packet, parse::Fragment, protocol};

use crate::Port;

const TCP_FIN: u8 = 0x01;
const TCP_PSH: u8 = 0x08;
const TCP_ACK: u8 = 0x10;

/// A packet that may be part of a super-frame, if its checksum is right.
pub(super) struct Candidate {
    pub(super) headers: usize,
    pub(super) payload: Range<usize>,
    pub(super) sequence: u32,
    pub(super) identification: u16,
    pub(super) flags: u8,
    /// Nothing may follow it in its run.
    pub(super) last: bool,
}

impl Candidate {
    pub(super) fn of(frame: &[u8], packet: &Packet, port: &Port) -> Option<Self> {
        let tcp = match packet.key.protocol {
            protocol::TCP => true,
            protocol::UDP => false,
            _ => return None,
        };
        let taken = if tcp { port.takes_tcp } else { port.takes_udp };
        let plain = if packet.is_v4() { 20 } else { 40 };
        if !taken
            || packet.fragment != Fragment::Whole
            || packet.transport != ETHERNET_LEN + plain
            || packet.payload == packet.end
        {
            return None;
        }
        let transport = &frame[packet.transport..packet.payload];
        let flags = if tcp { transport[13] } else { 0 };
        let mergeable = if tcp {
            flags & !(TCP_PSH | TCP_FIN) == TCP_ACK
        } else {
            // Without a checksum there is nothing to vouch for the merge.
            let checksum = [transport[6], transport[7]];
            let len = usize::from(u16::from_be_bytes([transport[4], transport[5]]));
            checksum != [0, 0] && len == packet.end - packet.transport
        };
        if !mergeable {
            return None;
        }
        Some(Self {
            headers: packet.payload,
            payload: packet.payload..packet.end,
            sequence: if tcp { read_u32(transport, 4) } else { 0 },
            identification: if packet.is_v4() {
                identification(frame)
            } else {
                0
            },
            flags,
            last: flags & (TCP_PSH | TCP_FIN) != 0,
        })
    }
}

fn identification(frame: &[u8]) -> u16 {
    u16::from_be_bytes([frame[ETHERNET_LEN + 4], frame[ETHERNET_LEN + 5]])
}

fn read_u32(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

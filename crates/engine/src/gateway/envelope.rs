//! The Ethernet and IP headers around an ICMP message of the gateway's.

use std::net::IpAddr;

use smoltcp::{
    phy::ChecksumCapabilities,
    wire::{
        EthernetAddress, EthernetFrame, EthernetProtocol, EthernetRepr, Icmpv4Packet, Icmpv6Packet,
        IpProtocol, Ipv4Packet, Ipv4Repr, Ipv6Packet, Ipv6Repr,
    },
};
use weft_wire::{ETHERNET_LEN, Mac};

pub(super) struct Envelope {
    pub dst_mac: Mac,
    pub src_mac: Mac,
    pub src: IpAddr,
    pub dst: IpAddr,
    pub hop_limit: u8,
}

impl Envelope {
    /// Writes a frame with an ICMP message of `len` bytes, which `fill` finds
    /// zeroed and whose checksum is set behind it. Says whether it could: the
    /// two addresses must be of one family and the packet within 65 535
    /// bytes.
    pub fn write(&self, len: usize, reply: &mut Vec<u8>, fill: impl FnOnce(&mut [u8])) -> bool {
        reply.clear();
        let header_len = match self.src {
            IpAddr::V4(_) => 20,
            IpAddr::V6(_) => 40,
        };
        if self.src.is_ipv4() != self.dst.is_ipv4() || header_len + len > usize::from(u16::MAX) {
            return false;
        }
        reply.resize(ETHERNET_LEN + header_len + len, 0);
        self.write_ethernet(reply);
        let (ip, message) = reply[ETHERNET_LEN..].split_at_mut(header_len);
        fill(message);
        self.write_ip(ip, message);
        true
    }

    fn write_ethernet(&self, frame: &mut [u8]) {
        let ethertype = match self.src {
            IpAddr::V4(_) => EthernetProtocol::Ipv4,
            IpAddr::V6(_) => EthernetProtocol::Ipv6,
        };
        let header = EthernetRepr {
            src_addr: EthernetAddress(self.src_mac),
            dst_addr: EthernetAddress(self.dst_mac),
            ethertype,
        };
        header.emit(&mut EthernetFrame::new_unchecked(frame));
    }

    fn write_ip(&self, ip: &mut [u8], message: &mut [u8]) {
        match (self.src, self.dst) {
            (IpAddr::V4(src_addr), IpAddr::V4(dst_addr)) => {
                Icmpv4Packet::new_unchecked(&mut *message).fill_checksum();
                let header = Ipv4Repr {
                    src_addr,
                    dst_addr,
                    next_header: IpProtocol::Icmp,
                    payload_len: message.len(),
                    hop_limit: self.hop_limit,
                };
                let sums = ChecksumCapabilities::default();
                header.emit(&mut Ipv4Packet::new_unchecked(ip), &sums);
            }
            (IpAddr::V6(src_addr), IpAddr::V6(dst_addr)) => {
                Icmpv6Packet::new_unchecked(&mut *message).fill_checksum(&src_addr, &dst_addr);
                let header = Ipv6Repr {
                    src_addr,
                    dst_addr,
                    next_header: IpProtocol::Icmpv6,
                    payload_len: message.len(),
                    hop_limit: self.hop_limit,
                };
                header.emit(&mut Ipv6Packet::new_unchecked(ip));
            }
            _ => {}
        }
    }
}

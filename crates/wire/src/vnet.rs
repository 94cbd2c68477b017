//! The virtio-net header that precedes each frame on a tap with
//! `IFF_VNET_HDR` and on a packet socket with `PACKET_VNET_HDR`.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// `struct virtio_net_hdr` (linux/virtio_net.h): 10 bytes, native-endian on
/// taps and packet sockets.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct VnetHeader {
    /// [`NEEDS_CSUM`] and [`DATA_VALID`].
    pub flags: u8,
    /// One of the `GSO_*` kinds, possibly with [`GSO_ECN`].
    pub gso_type: u8,
    /// Bytes of all headers of a super-frame; a hint.
    pub hdr_len: u16,
    /// Payload bytes of each segment of a super-frame.
    pub gso_size: u16,
    /// Where the unfinished checksum's coverage starts, from the first
    /// Ethernet byte.
    pub csum_start: u16,
    /// Where the checksum field is, from `csum_start`.
    pub csum_offset: u16,
}

/// Bytes of a [`VnetHeader`].
pub const LEN: usize = size_of::<VnetHeader>();

/// `VIRTIO_NET_HDR_F_NEEDS_CSUM`: the checksum field holds only the
/// pseudo-header's sum.
pub const NEEDS_CSUM: u8 = 1;
/// `VIRTIO_NET_HDR_F_DATA_VALID`: the checksum has been verified.
pub const DATA_VALID: u8 = 2;

/// `VIRTIO_NET_HDR_GSO_NONE`: not a super-frame.
pub const GSO_NONE: u8 = 0;
/// `VIRTIO_NET_HDR_GSO_TCPV4`.
pub const GSO_TCPV4: u8 = 1;
/// `VIRTIO_NET_HDR_GSO_TCPV6`.
pub const GSO_TCPV6: u8 = 4;
/// `VIRTIO_NET_HDR_GSO_UDP_L4`.
pub const GSO_UDP_L4: u8 = 5;
/// `VIRTIO_NET_HDR_GSO_ECN`: the TCP super-frame carries CWR.
pub const GSO_ECN: u8 = 0x80;

impl VnetHeader {
    /// The header in the first [`LEN`] bytes, if there are as many.
    pub fn read(bytes: &[u8]) -> Option<Self> {
        Self::read_from_prefix(bytes).ok().map(|(header, _)| header)
    }

    /// The kind of super-frame without the ECN bit.
    pub fn gso_kind(&self) -> u8 {
        self.gso_type & !GSO_ECN
    }

    pub fn is_super_frame(&self) -> bool {
        self.gso_kind() != GSO_NONE
    }

    pub fn needs_checksum(&self) -> bool {
        self.flags & NEEDS_CSUM != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_stand_where_the_kernel_puts_them() {
        let mut bytes = vec![NEEDS_CSUM, GSO_TCPV4 | GSO_ECN];
        for field in [54_u16, 1448, 34, 16] {
            bytes.extend_from_slice(&field.to_ne_bytes());
        }
        let header = VnetHeader {
            flags: NEEDS_CSUM,
            gso_type: GSO_TCPV4 | GSO_ECN,
            hdr_len: 54,
            gso_size: 1448,
            csum_start: 34,
            csum_offset: 16,
        };
        assert_eq!(LEN, 10);
        assert_eq!(header.as_bytes(), bytes);
        bytes.extend_from_slice(b"frame");
        assert_eq!(VnetHeader::read(&bytes), Some(header));
        assert_eq!(VnetHeader::read(&bytes[..LEN - 1]), None);
    }

    #[test]
    fn the_ecn_bit_is_no_kind() {
        let header = |gso_type, flags| VnetHeader {
            gso_type,
            flags,
            ..VnetHeader::default()
        };
        assert_eq!(header(GSO_TCPV6 | GSO_ECN, 0).gso_kind(), GSO_TCPV6);
        assert!(header(GSO_UDP_L4, 0).is_super_frame());
        assert!(!header(GSO_ECN, 0).is_super_frame());
        assert!(header(GSO_NONE, NEEDS_CSUM | DATA_VALID).needs_checksum());
        assert!(!header(GSO_NONE, DATA_VALID).needs_checksum());
    }
}

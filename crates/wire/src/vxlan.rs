//! The VXLAN header (RFC 7348 section 5), as strict as Linux: any bit set
//! that is not understood makes the packet unacceptable
//! (`drivers/net/vxlan/vxlan_core.c`, `vxlan_rcv`).

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Bytes of a VXLAN header.
pub const LEN: usize = 8;

/// The I flag: the VNI is valid.
const FLAG_VNI: u8 = 0x08;

/// UDP payload overhead plus headers on an IPv4 underlay:
/// IPv4 20, UDP 8, VXLAN 8, inner Ethernet 14.
pub const OVERHEAD_V4: u16 = 20 + 8 + 8 + 14;
/// The same on an IPv6 underlay.
pub const OVERHEAD_V6: u16 = 40 + 8 + 8 + 14;
/// What a peer spares of either that takes IP packets without Ethernet headers.
pub const ETHERNET_OVERHEAD: u16 = 14;

#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Header {
    flags: u8,
    reserved: [u8; 3],
    vni: [u8; 3],
    reserved_low: u8,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum VxlanError {
    #[error("shorter than a VXLAN header")]
    Truncated,
    #[error("the flag that marks the VNI as valid is not set")]
    NoVni,
    #[error("a reserved bit is set")]
    Reserved,
}

/// The VNI and the inner frame of one datagram.
pub fn decap(datagram: &[u8]) -> Result<(u32, &[u8]), VxlanError> {
    let (header, frame) = Header::ref_from_prefix(datagram).map_err(|_| VxlanError::Truncated)?;
    if header.flags & FLAG_VNI == 0 {
        return Err(VxlanError::NoVni);
    }
    if header.flags != FLAG_VNI || header.reserved != [0; 3] || header.reserved_low != 0 {
        return Err(VxlanError::Reserved);
    }
    let [high, middle, low] = header.vni;
    Ok((u32::from_be_bytes([0, high, middle, low]), frame))
}

/// The header for `vni`, of which the low 24 bits count.
pub fn header(vni: u32) -> [u8; LEN] {
    let [_, high, middle, low] = vni.to_be_bytes();
    [FLAG_VNI, 0, 0, 0, high, middle, low, 0]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_header_writes_decap_reads() {
        let mut datagram = header(0x00ab_cdef).to_vec();
        datagram.extend_from_slice(b"frame");
        assert_eq!(decap(&datagram), Ok((0x00ab_cdef, &b"frame"[..])));
    }

    #[test]
    fn each_bit_that_is_not_understood_is_refused() {
        assert_eq!(decap(&header(1)[..7]), Err(VxlanError::Truncated));
        for bit in 0..64 {
            let mut datagram = header(1);
            datagram[bit / 8] ^= 0x80 >> (bit % 8);
            let expected = match bit {
                4 => Err(VxlanError::NoVni),
                32..56 => Ok((1 ^ (1 << (55 - bit)), &[][..])),
                _ => Err(VxlanError::Reserved),
            };
            assert_eq!(decap(&datagram), expected, "bit {bit}");
        }
    }
}

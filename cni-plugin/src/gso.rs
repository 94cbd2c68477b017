//! How large the super-frames of a pod may be. Arithmetic only.

/// How large a super-frame the link's owner may make (`gso_max_size` and
/// `gso_ipv4_max_size` in bytes, `gso_max_segs`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gso {
    pub v4: u32,
    pub v6: u32,
    pub segments: u32,
}

impl Gso {
    /// UDP payload of the largest IPv4 datagram: 65 535 − 20 (IPv4) − 8 (UDP).
    const SEND_MAX: u32 = 65_507;
    /// UDP_MAX_SEGMENTS of udp.h.
    const SEGMENTS_MAX: u32 = 128;
    /// What the kernel takes off gso_max_size before it fills a TCP
    /// super-frame: MAX_TCP_HEADER + 1 with the usual LL_MAX_HEADER of 128.
    /// Where that constant is smaller, a few bytes more are asked for than a
    /// whole segment needs, and rounding down to segments takes them away.
    const TCP_HEADROOM: u32 = 321;
    /// GSO_MAX_SIZE, the most that a device takes unless it says otherwise.
    const SIZE_MAX: u32 = 65_535;

    /// The limits under which a pod's super-frame always fits one
    /// UDP_SEGMENT send of its VXLAN datagrams.
    ///
    /// A segment costs `mtu` + 14 (inner Ethernet) + 8 (VXLAN) bytes of the
    /// send. It carries `mtu` − 20 or 40 (IP) − 32 (TCP with timestamps)
    /// bytes of the super-frame's payload.
    pub const fn one_send(mtu: u16) -> Self {
        let mtu = mtu as u32;
        let fitting = Self::SEND_MAX / (mtu + 14 + 8);
        let segments = if fitting < 1 {
            1
        } else if fitting > Self::SEGMENTS_MAX {
            Self::SEGMENTS_MAX
        } else {
            fitting
        };
        Self {
            v4: Self::size(segments, mtu.saturating_sub(20 + 32)),
            v6: Self::size(segments, mtu.saturating_sub(40 + 32)),
            segments: Self::SEGMENTS_MAX,
        }
    }

    const fn size(segments: u32, payload: u32) -> u32 {
        let size = segments * payload + Self::TCP_HEADROOM;
        if size > Self::SIZE_MAX {
            Self::SIZE_MAX
        } else {
            size
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_super_frame_fits_one_send_whatever_the_mtu() {
        for mtu in 576..=65_485_u16 {
            let gso = Gso::one_send(mtu);
            for (size, ip) in [(gso.v4, 20), (gso.v6, 40)] {
                // With and without TCP timestamps.
                for tcp in [32, 20] {
                    let payload = u32::from(mtu) - ip - tcp;
                    let segments = ((size - Gso::TCP_HEADROOM) / payload).max(1);
                    let sent = segments * (u32::from(mtu) + 22);
                    assert!(
                        sent <= Gso::SEND_MAX,
                        "mtu {mtu}: {segments} segments, {sent} bytes"
                    );
                    assert!(
                        segments <= Gso::SEGMENTS_MAX,
                        "mtu {mtu}: {segments} segments"
                    );
                }
            }
        }
    }

    #[test]
    fn a_super_frame_fills_its_send() {
        let gso = Gso::one_send(1450);
        assert_eq!((gso.v4 - Gso::TCP_HEADROOM) / (1450 - 52), 65_507 / 1472);
        assert_eq!((gso.v6 - Gso::TCP_HEADROOM) / (1450 - 72), 65_507 / 1472);
    }
}

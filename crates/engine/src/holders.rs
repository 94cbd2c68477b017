//! Whose an address is: that of the longest block which holds it.
//!
//! A cluster's blocks have few lengths, so a look-up asks a hash table once for
//! each, and costs little more with 100 000 blocks than with 100.

use std::{collections::HashMap, net::IpAddr};

use ipnet::IpNet;
use rapidhash::fast::RandomState;

use crate::Holder;

#[derive(Debug, Default)]
pub struct Holders {
    by_block: HashMap<IpNet, Holder, RandomState>,
    /// Of IPv4's blocks and of IPv6's, the longest first.
    lengths: [Vec<u8>; 2],
}

impl Holders {
    /// Returns who had the same block before.
    pub fn insert(&mut self, block: IpNet, holder: Holder) -> Option<Holder> {
        let lengths = &mut self.lengths[family(block.addr())];
        let longer = lengths.partition_point(|length| *length > block.prefix_len());
        if lengths.get(longer) != Some(&block.prefix_len()) {
            lengths.insert(longer, block.prefix_len());
        }
        self.by_block.insert(block.trunc(), holder)
    }

    pub fn of(&self, address: IpAddr) -> Option<Holder> {
        let lengths = self.lengths[family(address)].iter();
        let mut blocks = lengths.filter_map(|length| IpNet::new(address, *length).ok());
        blocks.find_map(|block| self.by_block.get(&block.trunc()).copied())
    }
}

fn family(address: IpAddr) -> usize {
    usize::from(address.is_ipv6())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{PeerId, Reach, Way};

    #[test]
    fn the_longest_block_has_the_address() {
        let peer = |id| Holder::Peer(PeerId(id), Reach::Tunnel(Way::Vxlan));
        let mut holders = Holders::default();
        for (block, holder) in [
            ("10.0.0.0/8", peer(0)),
            ("10.1.0.77/24", peer(1)),
            ("10.1.0.9/32", Holder::Here),
            ("0.0.0.0/0", peer(2)),
            ("fd00::/64", peer(3)),
        ] {
            assert_eq!(
                holders.insert(block.parse().expect("a block"), holder),
                None
            );
        }
        for (address, holder) in [
            ("10.1.0.9", Some(Holder::Here)),
            ("10.1.0.10", Some(peer(1))),
            ("10.2.0.9", Some(peer(0))),
            ("11.0.0.1", Some(peer(2))),
            ("fd00::1", Some(peer(3))),
            ("fd01::1", None),
        ] {
            assert_eq!(
                holders.of(address.parse().expect("one")),
                holder,
                "{address}"
            );
        }
        let same = "10.1.0.0/24".parse().expect("a block");
        assert_eq!(holders.insert(same, Holder::Here), Some(peer(1)));
    }
}

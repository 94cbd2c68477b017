//! What the paths to peers carry, and how peers are asked about it.

use std::sync::Arc;

use weft_api::forwarder::{Error, Node};
use weft_engine::{Holder, PeerId, Reach, Snapshot, Way};
use weft_wire::ipip;

use super::{PeerRow, State, ways};
use crate::paths::{Mtus, Target, Tunnel};

impl State {
    /// Bytes of the largest outer packet to the node.
    pub fn outer_mtu(&self, node: &Node) -> u16 {
        let found = self.mtus.get(&node.name).copied();
        found.unwrap_or(self.uplink_mtu)
    }

    /// The same nodes behind other paths; nothing if that makes no difference.
    pub fn with_paths(&self, uplink_mtu: u16, mtus: Mtus) -> Result<Option<Self>, Error> {
        let state = Self {
            uplink_mtu,
            mtus: Arc::new(mtus),
            ..self.clone()
        };
        let mut nodes = self.peers.iter().map(|row| &row.node);
        let same = nodes.all(|node| self.outer_mtu(node) == state.outer_mtu(node));
        if same && uplink_mtu == self.uplink_mtu {
            return Ok(None);
        }
        let peers = self.peers.iter().map(|row| row.node.clone()).collect();
        state.with_rows(self.own.clone(), peers).map(Some)
    }

    /// Whether all nodes are known by the same records and paths.
    pub fn has_same_nodes(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.peers, &other.peers) && self.own == other.own
    }

    /// Whom to ask, by the tables that follow from this.
    pub fn targets(&self, tables: &Snapshot) -> Vec<Target> {
        let rows = self.peers.iter().enumerate();
        rows.filter_map(|(place, row)| {
            let id = PeerId(u16::try_from(place).ok()?);
            Some(Target {
                name: row.node.name.clone(),
                underlay: row.peer.remote?.ip(),
                tunnel: self.tunnel(tables, id, row),
            })
        })
        .collect()
    }

    fn tunnel(&self, tables: &Snapshot, id: PeerId, row: &PeerRow) -> Option<Tunnel> {
        row.node.tunnel.iter().find_map(|&dst| {
            let mut own = self.own.tunnel.iter();
            let src = *own.find(|own| own.is_ipv4() == dst.is_ipv4())?;
            let way = match tables.holder_of(dst)? {
                Holder::Peer(holder, Reach::Tunnel(way)) if holder == id => way,
                _ => return None,
            };
            let remote = row.peer.remote?;
            let overhead = match way {
                Way::Ipip => ipip::OVERHEAD,
                Way::Vxlan | Way::VxlanL3 => ways::vxlan_overhead(&row.node, remote.is_ipv4()),
            };
            row.peer.has(way).then(|| Tunnel {
                src,
                dst,
                src_mac: self.own.vtep_mac.0,
                dst_mac: row.peer.mac,
                way,
                vni: row.peer.vni,
                remote,
                overhead: overhead.into(),
            })
        })
    }
}

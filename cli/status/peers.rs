//! The peers, and what the underlay carries to each. Black holes stand out.

use std::time::Duration;

use ipnet::IpNet;
use weft_api::forwarder::{Node, Path, PathState, Peer, Way};

use super::traffic;
use crate::{
    ipam::words::{joined, word},
    output::{lines, table},
};

pub(super) fn peers_table(peers: &[Peer]) -> String {
    let mut rows = table(&["peer", "underlay", "blocks", "to peer", "from peer"]);
    for peer in peers {
        rows.add_row([
            peer.node.name.to_string(),
            joined(&peer.node.underlay),
            joined(&blocks(&peer.node)),
            traffic(peer.to_peer),
            traffic(peer.from_peer),
        ]);
    }
    lines(&rows)
}

/// Each with its way, if that is another than VXLAN.
fn blocks(node: &Node) -> Vec<String> {
    let told = |block: &IpNet| match node.ways.get(block) {
        None | Some(Way::Vxlan) => block.to_string(),
        Some(way) => format!("{block} ({})", word(way)),
    };
    node.blocks.iter().map(told).collect()
}

pub(super) fn paths_table(peers: &[Peer]) -> String {
    let headings = [
        "path to",
        "state",
        "mtu",
        "for pods",
        "round trip",
        "least",
        "jitter",
        "lost",
    ];
    let mut rows = table(&headings);
    for Peer { node, path, .. } in peers {
        let [mean, least, jitter] = times(path);
        rows.add_row([
            node.name.to_string(),
            state(path.state).to_owned(),
            path.mtu.to_string(),
            path.inner_mtu.to_string(),
            mean,
            least,
            jitter,
            loss(path),
        ]);
    }
    let is_hole = |peer: &&Peer| peer.path.state == PathState::BlackHole;
    let told = peers.iter().filter(is_hole).map(|peer| {
        format!(
            "black hole: packets of more than {} bytes to {} vanish and nobody says so; look for \
             a smaller MTU, or for a filter of ICMP or of fragments, on the way\n",
            peer.path.mtu, peer.node.name
        )
    });
    lines(&rows) + &told.collect::<String>()
}

fn state(state: PathState) -> &'static str {
    match state {
        PathState::Unasked => "not asked",
        PathState::Unknown => "unknown",
        PathState::Searching => "searching",
        PathState::Good => "good",
        PathState::BlackHole => "BLACK HOLE",
        PathState::Silent => "silent",
    }
}

fn times(path: &Path) -> [String; 3] {
    path.round_trip.map_or_else(Default::default, |took| {
        [took.mean_us, took.least_us, took.jitter_us]
            .map(|micros| format!("{:.1?}", Duration::from_micros(micros)))
    })
}

fn loss(path: &Path) -> String {
    match path.asked {
        0 => String::new(),
        asked => format!("{} of {asked}", path.lost),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(path: serde_json::Value) -> Peer {
        serde_json::from_value(serde_json::json!({
            "name": "n2", "underlay": ["192.0.2.2"], "vtep_mac": "02:00:00:00:00:02",
            "to_peer": {"packets": 0, "bytes": 0}, "from_peer": {"packets": 0, "bytes": 0},
            "path": path
        }))
        .expect("a peer")
    }

    #[test]
    fn a_black_hole_stands_out() {
        let told = paths_table(&[peer(serde_json::json!({
            "state": "black-hole", "mtu": 1400, "inner_mtu": 1350, "asked": 32, "lost": 1,
            "round_trip": {"last_us": 900, "least_us": 250, "mean_us": 1250, "jitter_us": 80}
        }))]);
        for part in [
            "BLACK HOLE",
            "1350",
            "1.2ms",
            "250.0µs",
            "80.0µs",
            "1 of 32",
            "more than 1400 bytes to n2 vanish",
        ] {
            assert!(told.contains(part), "{part:?} is not in:\n{told}");
        }
    }

    #[test]
    fn a_good_path_has_no_remark() {
        let told = paths_table(&[peer(serde_json::json!({
            "state": "good", "mtu": 1500, "inner_mtu": 1450, "asked": 0, "lost": 0
        }))]);
        assert!(told.contains("good"), "{told}");
        assert_eq!(told.lines().count(), 2, "{told}");
    }
}

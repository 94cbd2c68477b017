//! A member of a Calico network: its own node record and tunnel addresses, and
//! what the others' records say.

use std::{fs, net::IpAddr, sync::Arc};

use anyhow::{Context, bail, ensure};
use serde_json::{Value as Json, json};
use weft_api::forwarder::{Node, Nodes};
use weft_etcd::{
    Cluster,
    message::{Event, EventKind, KeyValue},
};
use weft_interop::calico::{Record, Tunnel, node_key, peers, record, rfc3339};
use weft_wire::vxlan::{OVERHEAD_V4, OVERHEAD_V6};

use super::{
    address::ensure_tunnel,
    claim::{TRIES, now},
    leave::leave,
    records::{self, Records},
    store,
};
use crate::join::{
    forwarder::View,
    life::{self, Listing, Outcome},
};

/// An annotation of a node record that no other wrote first: who made it may
/// delete it.
pub const MADE: &str = "weft/made";

/// An underlay whose MTU nobody named.
const USUAL_MTU: u16 = 1500;

#[derive(Debug)]
pub struct Member {
    cluster: Arc<Cluster>,
    /// But for its blocks.
    node: Node,
    /// Of its addresses' subnets, by family.
    lens: [u8; 2],
    records: Records,
}

impl Member {
    pub fn new(cluster: Arc<Cluster>, node: Node, lens: [u8; 2]) -> Self {
        Self {
            cluster,
            node,
            lens,
            records: Records::default(),
        }
    }

    fn name(&self) -> &str {
        self.node.name.as_str()
    }

    fn own(&self) -> Record {
        record(&self.node, self.lens)
    }

    fn take_tunnels(&mut self) -> anyhow::Result<()> {
        let families = self.node.underlay.iter().map(IpAddr::is_ipv6);
        let tunnels = families.map(|v6| ensure_tunnel(&self.cluster, self.name(), v6));
        let tunnels: Vec<_> = tunnels.collect::<Result<_, _>>()?;
        self.node.tunnel = tunnels.into_iter().flatten().collect();
        let plain = || Records::load(&self.cluster).map(|records| records.have_plain_pool());
        ensure!(
            !self.node.tunnel.is_empty() || plain()?,
            "no pool that is enabled and for this node has VXLAN in a family of --public-ip, and \
             none goes without a tunnel; set a pool's vxlanMode (or both modes to Never), or \
             check its nodeSelector"
        );
        Ok(())
    }

    fn publish(&self) -> anyhow::Result<()> {
        let own = self.own();
        let key = own.key();
        for _ in 0..TRIES {
            let row = store::read(&self.cluster, &key)?;
            let before = row
                .as_ref()
                .and_then(|row| serde_json::from_slice(&row.value.0).ok());
            let seen = row.map_or(0, |row| row.mod_revision);
            let after = own.to_json(Some(match &before {
                Some(before) => Json::clone(before),
                None => new_metadata()?,
            }));
            if before.as_ref() == Some(&after) {
                return Ok(());
            }
            if store::write(&self.cluster, &key, seen, after.to_string())?.is_some() {
                tracing::info!(%key, tunnel = ?self.node.tunnel, "this node is published");
                return Ok(());
            }
        }
        bail!("{key}: others wrote it {TRIES} times in between; is its name another node's too?")
    }

    fn tell_mtu(&self) {
        let wire = self.records.wire(self.name());
        for address in &self.node.tunnel {
            let v6 = address.is_ipv6();
            let overhead = if v6 { OVERHEAD_V6 } else { OVERHEAD_V4 };
            let mtu = wire.mtu[usize::from(v6)].unwrap_or(USUAL_MTU - overhead);
            tracing::info!(tunnel = %address, mtu, "give the pods' links at most this MTU");
        }
    }

    /// Whether another writes what this node writes of itself.
    fn check_own(&self, kv: &KeyValue) -> Outcome {
        let key = node_key(self.name());
        let of = |tunnel: &Tunnel| (tunnel.address, tunnel.tunnel);
        let own = self.own();
        let theirs = Record::parse(&key, &kv.value.0);
        let same = theirs.as_ref().is_ok_and(|theirs| {
            (of(&theirs.v4), of(&theirs.v6)) == (of(&own.v4), of(&own.v6))
                && theirs.mac(false) == own.mac(false)
                && theirs.mac(true) == own.mac(true)
        });
        if same {
            return Outcome::Changed;
        }
        tracing::error!(
            %key,
            "another wrote this node's record; give each node a name of its own; writing it anew"
        );
        Outcome::Lost
    }

    /// What every node has in common with this one has changed.
    fn check_wire(&mut self) {
        let wire = self.records.wire(self.name());
        if wire.port != self.node.port {
            tracing::error!(
                port = wire.port,
                "the network's VXLAN port changed; set the forwarder's uplink.port, and start again"
            );
        }
        self.node.vni = wire.vni;
    }
}

impl life::Member for Member {
    fn cluster(&self) -> &Arc<Cluster> {
        &self.cluster
    }

    fn begin(&mut self) -> anyhow::Result<()> {
        self.take_tunnels()?;
        self.publish()
    }

    fn list(&self) -> anyhow::Result<Listing> {
        records::list(&self.cluster)
    }

    fn start(&mut self, rows: Vec<KeyValue>) -> Outcome {
        self.records = Records::of(&rows);
        self.check_wire();
        self.tell_mtu();
        Outcome::Changed
    }

    fn take(&mut self, Event { kind, kv }: Event) -> Outcome {
        let key = String::from_utf8_lossy(&kv.key.0).into_owned();
        let own = key == node_key(self.name());
        let known = match kind {
            EventKind::Put => self.records.put(&kv),
            EventKind::Delete => self.records.remove(&key),
        };
        if !known {
            return Outcome::Same;
        }
        self.check_wire();
        if !self.records.holds_tunnels(self.name(), &self.node.tunnel) {
            tracing::error!("this node's tunnel address was released; taking one again");
            return Outcome::Lost;
        }
        match kind {
            EventKind::Put if own => self.check_own(&kv),
            EventKind::Delete if own => {
                tracing::error!(key, "this node's record was deleted; writing it anew");
                Outcome::Lost
            }
            _ => Outcome::Changed,
        }
    }

    fn view(&self) -> View {
        let (pools, overlaps) = self.records.pools();
        let wire = weft_interop::calico::Wire {
            port: self.node.port,
            ..self.records.wire(self.name())
        };
        let blocks = self.records.blocks().map(|(_, block)| block);
        let found = peers(&self.own(), self.records.nodes(), blocks, &pools, wire);
        let errors = self.records.errors().chain(&overlaps).chain(&found.errors);
        View {
            complaints: errors.map(ToString::to_string).collect(),
            nodes: Nodes {
                node: Node {
                    blocks: found.own,
                    ..self.node.clone()
                },
                peers: found.nodes,
            },
        }
    }

    fn end(&mut self) {
        if let Err(error) = leave(&self.cluster, &self.own()) {
            tracing::error!("what this node has in etcd stays: {error:#}");
        }
    }
}

/// What Calico sets of a record that is new.
fn new_metadata() -> anyhow::Result<Json> {
    const RANDOM: &str = "/proc/sys/kernel/random/uuid";
    let uid = fs::read_to_string(RANDOM).with_context(|| format!("read {RANDOM}"))?;
    Ok(json!({ "metadata": {
        "uid": uid.trim(),
        "creationTimestamp": rfc3339(now().as_secs()),
        "annotations": { MADE: "true" },
    }}))
}

//! A member of a flannel network: it holds a lease, and reads the others'.

use std::{collections::BTreeMap, fs, io, path::PathBuf, sync::Arc};

use anyhow::Context;
use weft_api::forwarder::{Node, Nodes};
use weft_cni::netlink::Netlink;
use weft_etcd::{
    Cluster, below,
    message::{Bytes, Event, EventKind, KeyValue},
};
use weft_interop::flannel::{
    Config, Lease, Range, Record, SubnetEnv, SubnetKey, Vxlan, peers, record,
};
use weft_wire::vxlan::{OVERHEAD_V4, OVERHEAD_V6};

use super::lease::{self, Held};
use crate::join::{
    fabric::is_near,
    forwarder::View,
    life::{self, Listing, Outcome},
};

/// An underlay whose MTU nobody named.
const USUAL_MTU: u16 = 1500;

#[derive(Debug)]
pub struct Member {
    pub cluster: Arc<Cluster>,
    pub prefix: String,
    pub config: Config,
    pub vxlan: Vxlan,
    /// Of a network with DirectRouting.
    pub links: Option<Netlink>,
    /// But for its subnets.
    pub node: Node,
    pub subnet_env: Option<PathBuf>,
    pub own: Option<Own>,
    /// By key: each row, with its revision.
    pub rows: BTreeMap<Bytes, (u64, Result<Lease, weft_interop::Error>)>,
}

#[derive(Debug)]
pub struct Own {
    lease: Lease,
    held: Held,
}

impl life::Member for Member {
    fn cluster(&self) -> &Arc<Cluster> {
        &self.cluster
    }

    fn begin(&mut self) -> anyhow::Result<()> {
        let families = SubnetKey {
            v4: self.config.v4.map(|_| ipnet::Ipv4Net::default()),
            v6: self.config.v6.map(|_| ipnet::Ipv6Net::default()),
        };
        let record = record(&self.node, &families);
        let wanted = self.subnet_of_before();
        let held = lease::acquire(&self.cluster, &self.prefix, &self.config, &record, wanted)?;
        let key = held.key;
        self.write_subnet_env(&key)?;
        // The row was under the lease of before until now.
        self.own = Some(Own {
            lease: Lease { key, record },
            held,
        });
        Ok(())
    }

    fn list(&self) -> anyhow::Result<Listing> {
        lease::list(&self.cluster, &self.prefix)
    }

    fn start(&mut self, rows: Vec<KeyValue>) -> Outcome {
        self.rows = rows.iter().map(read).collect();
        let own = self.own().map(|key| below(&self.subnets(), &key));
        if own.is_some_and(|own| self.rows.contains_key(&own)) {
            return Outcome::Changed;
        }
        tracing::error!("this node's lease was deleted; taking one again");
        Outcome::Lost
    }

    fn take(&mut self, Event { kind, kv }: Event) -> Outcome {
        let name = String::from_utf8_lossy(&kv.key.0).into_owned();
        let subnets = format!("{}/", self.subnets());
        let Some(short) = name.strip_prefix(&subnets) else {
            tracing::warn!(key = name, "it changed; start again to take it up");
            return Outcome::Same;
        };
        let own = self.own().as_deref() == Some(short);
        match kind {
            EventKind::Put if own => {
                self.check_own(&kv);
                return Outcome::Same;
            }
            EventKind::Put => {
                let (key, row) = read(&kv);
                self.rows.insert(key, row);
            }
            EventKind::Delete if own => {
                tracing::error!(
                    key = name,
                    "this node's lease was deleted; taking one again"
                );
                return Outcome::Lost;
            }
            EventKind::Delete => {
                self.rows.remove(&kv.key);
            }
        }
        Outcome::Changed
    }

    /// Of two leases that want the same the newer has it: its node came later.
    fn view(&self) -> View {
        let mut rows: Vec<_> = self.rows.values().collect();
        rows.sort_by_key(|(revision, _)| std::cmp::Reverse(*revision));
        let leases = rows.iter().filter_map(|(_, lease)| lease.as_ref().ok());
        let links = self.links.as_ref();
        let near = |public| links.is_some_and(|links| is_near(links, public));
        let found = match &self.own {
            Some(own) => peers(&own.lease, leases, &self.config, self.vxlan.port, near),
            None => Default::default(),
        };
        let unread = rows.iter().filter_map(|(_, lease)| lease.as_ref().err());
        let complaints = unread.chain(&found.errors).map(ToString::to_string);
        let own = self.own.iter().flat_map(|own| own.lease.key.subnets());
        let blocks: Vec<_> = own.collect();
        View {
            complaints: complaints.collect(),
            nodes: Nodes {
                node: Node {
                    tunnel: blocks.iter().map(ipnet::IpNet::addr).collect(),
                    blocks,
                    ..self.node.clone()
                },
                peers: found.nodes,
            },
        }
    }

    /// Which nodes are near is the kernel's to know.
    fn moves(&self) -> bool {
        self.links.is_some()
    }

    /// The subnet stays this node's for the rest of its lease.
    fn end(&mut self) {
        let lease = self.own.take().and_then(|own| own.held.lease);
        lease.into_iter().for_each(weft_etcd::Lease::leave);
    }
}

fn read(row: &KeyValue) -> (Bytes, (u64, Result<Lease, weft_interop::Error>)) {
    let name = String::from_utf8_lossy(&row.key.0);
    let lease = SubnetKey::parse(&name).and_then(|key| {
        let record = Record::parse(&name, &row.value.0)?;
        Ok(Lease { key, record })
    });
    (row.key.clone(), (row.mod_revision, lease))
}

impl Member {
    fn subnets(&self) -> String {
        lease::subnets(&self.prefix)
    }

    /// The last part of its key.
    fn own(&self) -> Option<String> {
        self.own.as_ref().map(|own| own.lease.key.to_string())
    }

    fn check_own(&self, row: &KeyValue) {
        let key = String::from_utf8_lossy(&row.key.0);
        let found = Record::parse(&key, &row.value.0);
        if self.own.as_ref().map(|own| &own.lease.record) != found.as_ref().ok() {
            tracing::error!(
                %key,
                "another node writes this node's lease; give each a --public-ip of its own, \
                 and start again"
            );
        }
    }

    fn subnet_of_before(&self) -> Option<SubnetKey> {
        let path = self.subnet_env.as_ref()?;
        let text = fs::read_to_string(path).ok()?;
        match SubnetEnv::parse(&path.display().to_string(), &text) {
            Ok(env) => Some(SubnetKey {
                v4: env.v4.map(|(_, subnet)| subnet),
                v6: env.v6.map(|(_, subnet)| subnet),
            }),
            Err(error) => {
                tracing::warn!(%error, "the subnet of before is not known");
                None
            }
        }
    }

    fn write_subnet_env(&self, key: &SubnetKey) -> anyhow::Result<()> {
        let Some(path) = &self.subnet_env else {
            return Ok(());
        };
        let overhead = match self.config.v6 {
            None => OVERHEAD_V4,
            Some(_) => OVERHEAD_V6,
        };
        let outer = self.vxlan.mtu.unwrap_or(USUAL_MTU);
        let v4 = |range: Range| match range.network {
            ipnet::IpNet::V4(net) => Some(net),
            ipnet::IpNet::V6(_) => None,
        };
        let v6 = |range: Range| match range.network {
            ipnet::IpNet::V6(net) => Some(net),
            ipnet::IpNet::V4(_) => None,
        };
        let env = SubnetEnv {
            v4: self.config.v4.and_then(v4).zip(key.v4),
            v6: self.config.v6.and_then(v6).zip(key.v6),
            mtu: outer.saturating_sub(overhead),
            masquerade: false,
        };
        replace(path, &env.to_string()).with_context(|| format!("write {}", path.display()))
    }
}

/// Whole or not at all.
fn replace(path: &std::path::Path, text: &str) -> io::Result<()> {
    let new = path.with_extension("new");
    fs::write(&new, text)?;
    fs::rename(&new, path)
}

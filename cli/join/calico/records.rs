//! All records of the network that a member reads, by key. What cannot be read
//! is kept as what is wrong with it.

use std::{collections::BTreeMap, net::IpAddr};

use weft_etcd::{Cluster, message::KeyValue};
use weft_interop::{
    Error,
    calico::{
        BLOCKS, Block, FELIX, Holder, IPAM, Ipam, NODES, POOLS, Pool, Pools, RESERVATIONS, Record,
        Reservation, Wire, labels,
    },
};

use super::store;
use crate::join::life::Listing;

#[derive(Debug, Default)]
pub struct Records(BTreeMap<String, (u64, Result<Value, Error>)>);

#[derive(Debug)]
enum Value {
    Node(Record, BTreeMap<String, String>),
    Block(Block),
    Pool(Pool),
    Felix(Vec<u8>),
    Reservation(Reservation),
    Ipam(Ipam),
}

pub fn list(cluster: &Cluster) -> anyhow::Result<Listing> {
    let (revision, mut rows) = store::list(cluster, NODES, 0)?;
    for key in [POOLS, FELIX, RESERVATIONS, BLOCKS] {
        rows.extend(store::list(cluster, key, revision)?.1);
    }
    rows.extend(store::read(cluster, IPAM)?);
    Ok(Listing { revision, rows })
}

impl Records {
    pub fn load(cluster: &Cluster) -> anyhow::Result<Self> {
        Ok(Self::of(&list(cluster)?.rows))
    }

    pub fn of(rows: &[KeyValue]) -> Self {
        let mut records = Self::default();
        for row in rows {
            records.put(row);
        }
        records
    }

    /// False of what a member does not read.
    pub fn put(&mut self, row: &KeyValue) -> bool {
        let key = String::from_utf8_lossy(&row.key.0).into_owned();
        let text = row.value.0.as_slice();
        let value = match () {
            () if key.starts_with(NODES) => {
                Record::parse(&key, text).and_then(|node| match node.key() == key {
                    true => Ok(Value::Node(node, labels(text))),
                    false => Err(Error::Key {
                        key: key.clone(),
                        network: "Calico",
                    }),
                })
            }
            () if key.starts_with(BLOCKS) => Block::parse(&key, text).map(Value::Block),
            () if key.starts_with(POOLS) => Pool::parse(&key, text).map(Value::Pool),
            () if key.starts_with(FELIX) => {
                let checked = Wire::default().with(&key, text);
                checked.map(|_| Value::Felix(text.to_vec()))
            }
            () if key.starts_with(RESERVATIONS) => {
                Reservation::parse(&key, text).map(Value::Reservation)
            }
            () if key == IPAM => Ipam::parse(&key, text).map(Value::Ipam),
            () => return false,
        };
        self.0.insert(key, (row.mod_revision, value));
        true
    }

    /// False of what was not there.
    pub fn remove(&mut self, key: &str) -> bool {
        self.0.remove(key).is_some()
    }

    /// The newest first: of two that want the same its node came later.
    pub fn nodes(&self) -> Vec<&Record> {
        let mut nodes: Vec<_> = self
            .0
            .values()
            .filter_map(|(revision, value)| match value {
                Ok(Value::Node(node, _)) => Some((revision, node)),
                _ => None,
            })
            .collect();
        nodes.sort_by_key(|(revision, _)| std::cmp::Reverse(*revision));
        nodes.into_iter().map(|(_, node)| node).collect()
    }

    pub fn labels(&self, node: &str) -> BTreeMap<String, String> {
        match self.0.get(&weft_interop::calico::node_key(node)) {
            Some((_, Ok(Value::Node(_, labels)))) => labels.clone(),
            _ => BTreeMap::new(),
        }
    }

    /// With the revision of each.
    pub fn blocks(&self) -> impl Iterator<Item = (u64, &Block)> {
        self.0.values().filter_map(|(revision, value)| match value {
            Ok(Value::Block(block)) => Some((*revision, block)),
            _ => None,
        })
    }

    /// Whether the node still has these addresses by its handles.
    pub fn holds_tunnels(&self, node: &str, tunnels: &[IpAddr]) -> bool {
        tunnels.iter().all(|address| {
            let handle = Holder::tunnel(node, address.is_ipv6()).handle;
            let mut blocks = self
                .blocks()
                .filter(|(_, block)| block.cidr.contains(address));
            blocks.any(|(_, block)| block.held_by(&handle).any(|(held, _)| held == *address))
        })
    }

    pub fn pools(&self) -> (Pools, Vec<Error>) {
        Pools::new(self.0.values().filter_map(|(_, value)| match value {
            Ok(Value::Pool(pool)) => Some(pool.clone()),
            _ => None,
        }))
    }

    pub fn have_plain_pool(&self) -> bool {
        let (pools, _) = self.pools();
        pools.iter().any(Pool::leaves_some_plain)
    }

    /// As all nodes have it but for what is this node's own.
    pub fn wire(&self, node: &str) -> Wire {
        let keys = [format!("{FELIX}default"), format!("{FELIX}node.{node}")];
        keys.iter().fold(Wire::default(), |wire, key| {
            match self.0.get(key) {
                // It was read before.
                Some((_, Ok(Value::Felix(text)))) => wire.with(key, text).unwrap_or(wire),
                _ => wire,
            }
        })
    }

    pub fn ipam(&self) -> Ipam {
        match self.0.get(IPAM) {
            Some((_, Ok(Value::Ipam(ipam)))) => *ipam,
            _ => Ipam::default(),
        }
    }

    pub fn is_reserved(&self, address: IpAddr) -> bool {
        self.0.values().any(|(_, value)| {
            matches!(value, Ok(Value::Reservation(reservation)) if reservation.covers(address))
        })
    }

    /// Of what cannot be read.
    pub fn errors(&self) -> impl Iterator<Item = &Error> {
        self.0
            .values()
            .filter_map(|(_, value)| value.as_ref().err())
    }
}

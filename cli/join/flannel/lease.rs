//! A lease in etcd, taken as flannel takes it: the node's own of before, else
//! a free one by a transaction that only one of several can win.

use std::{
    collections::hash_map::RandomState,
    hash::{BuildHasher, Hasher},
    sync::Arc,
    time::Duration,
};

use anyhow::bail;
use ipnet::IpNet;
use weft_etcd::{
    Cluster, below, end_of,
    message::{
        Bytes, Compare, Operation, RANGE, RangeRequest, RangeResponse, TXN, TxnRequest, TxnResponse,
    },
};
use weft_interop::flannel::{Config, Range, Record, SubnetKey};

use crate::join::life::Listing;

/// How long a subnet outlives its node.
const DAY: Duration = Duration::from_secs(24 * 3600);

/// Out of so many free subnets one is taken by chance, so that nodes that
/// start together seldom want the same.
const CANDIDATES: usize = 100;

/// How often a race may be lost.
const TRIES: usize = 20;

#[derive(Debug)]
pub struct Held {
    pub key: SubnetKey,
    /// None of a reservation, which has no end.
    pub lease: Option<weft_etcd::Lease>,
}

pub fn list(cluster: &Cluster, prefix: &str) -> anyhow::Result<Listing> {
    let subnets = subnets(prefix);
    let query = RangeRequest {
        key: below(&subnets, ""),
        range_end: Some(end_of(&subnets)),
        ..RangeRequest::default()
    };
    let found: RangeResponse = cluster.read(RANGE, &query)?;
    Ok(Listing {
        revision: found.header.revision,
        rows: found.kvs,
    })
}

pub fn subnets(prefix: &str) -> String {
    format!("{prefix}/subnets")
}

pub fn acquire(
    cluster: &Arc<Cluster>,
    prefix: &str,
    config: &Config,
    record: &Record,
    wanted: Option<SubnetKey>,
) -> anyhow::Result<Held> {
    for _ in 0..TRIES {
        let listing = list(cluster, prefix)?;
        let choice = choose(config, record, &listing, wanted)?;
        let lease = match choice.reserved {
            true => None,
            false => Some(weft_etcd::Lease::grant(cluster, DAY)?),
        };
        let id = lease.as_ref().and_then(weft_etcd::Lease::id).unwrap_or(0);
        let row = below(&subnets(prefix), &choice.key.to_string());
        let answer: TxnResponse = cluster.read(TXN, &put(row, &choice, record, id))?;
        if answer.succeeded {
            let key = choice.key;
            tracing::info!(%key, reserved = choice.reserved, "this node's lease");
            return Ok(Held { key, lease });
        }
        tracing::info!(key = %choice.key, "another node was faster; choosing again");
    }
    bail!(
        "{}: {TRIES} subnets were taken by others first; start again",
        subnets(prefix)
    );
}

/// Writes the record if the row is as it was seen.
fn put(key: Bytes, choice: &Choice, record: &Record, lease: u64) -> TxnRequest {
    let compare = Compare::last_written(key.clone(), choice.seen.unwrap_or(0));
    let value = Bytes(record.to_json().into_bytes());
    TxnRequest {
        compare: vec![compare],
        success: vec![Operation::Put { key, value, lease }],
        failure: Vec::new(),
    }
}

#[derive(Debug, PartialEq)]
struct Choice {
    key: SubnetKey,
    /// The revision of this node's row; none: there is no row.
    seen: Option<u64>,
    reserved: bool,
}

fn choose(
    config: &Config,
    record: &Record,
    listing: &Listing,
    wanted: Option<SubnetKey>,
) -> anyhow::Result<Choice> {
    let public = [
        record.public_v4.map(Into::into),
        record.public_v6.map(Into::into),
    ];
    let public: Vec<_> = public.into_iter().flatten().collect();
    let mut taken = Vec::new();
    for row in &listing.rows {
        let name = String::from_utf8_lossy(&row.key.0);
        // What is no lease takes no subnet; what cannot be read takes its own.
        let Ok(key) = SubnetKey::parse(&name) else {
            continue;
        };
        let found = Record::parse(&name, &row.value.0);
        let own = found.is_ok_and(|found| found.is_of(&public));
        if own && allowed(config, &key) {
            return Ok(Choice {
                key,
                seen: Some(row.mod_revision),
                reserved: row.lease == 0,
            });
        }
        taken.extend(key.subnets());
    }
    let is_free = |subnet: &IpNet| {
        !taken
            .iter()
            .any(|other| other.contains(subnet) || subnet.contains(other))
    };
    let wanted = wanted.filter(|key| allowed(config, key) && key.subnets().all(|s| is_free(&s)));
    let key = match wanted {
        Some(key) => key,
        None => {
            let mut key = SubnetKey { v4: None, v6: None };
            for range in config.ranges() {
                match pick(range, is_free)? {
                    IpNet::V4(net) => key.v4 = Some(net),
                    IpNet::V6(net) => key.v6 = Some(net),
                }
            }
            key
        }
    };
    Ok(Choice {
        key,
        seen: None,
        reserved: false,
    })
}

fn allowed(config: &Config, key: &SubnetKey) -> bool {
    let ranges: Vec<_> = config.ranges().collect();
    let subnets: Vec<_> = key.subnets().collect();
    ranges.len() == subnets.len() && ranges.iter().zip(&subnets).all(|(r, s)| r.allows(s))
}

fn pick(range: &Range, is_free: impl Fn(&IpNet) -> bool) -> anyhow::Result<IpNet> {
    let free: Vec<_> = range.subnets().filter(is_free).take(CANDIDATES).collect();
    // A hasher's keys are random.
    let random = RandomState::new().build_hasher().finish();
    let Some(last) = free.len().checked_sub(1) else {
        bail!(
            "{}: every /{} of it is taken; delete leases of nodes that are gone, or make it larger",
            range.network,
            range.len
        );
    };
    let place = usize::try_from(random).unwrap_or(0) % (last + 1);
    Ok(free[place])
}

#[cfg(test)]
mod tests {
    use weft_etcd::message::KeyValue;

    use super::*;

    const KEY: &str = "/coreos.com/network/subnets/";

    fn config(text: &str) -> Config {
        Config::parse("config", text.as_bytes()).expect("valid")
    }

    fn record(public: &str) -> Record {
        let text = format!(r#"{{"PublicIP":"{public}","PublicIPv6":null,"BackendType":"vxlan"}}"#);
        Record::parse("k", text.as_bytes()).expect("a record")
    }

    fn row(name: &str, public: &str, lease: u64) -> KeyValue {
        KeyValue {
            key: format!("{KEY}{name}").as_str().into(),
            value: record(public).to_json().as_str().into(),
            mod_revision: 7,
            lease,
        }
    }

    fn chosen(config: &Config, rows: Vec<KeyValue>) -> anyhow::Result<Choice> {
        let listing = Listing { revision: 9, rows };
        choose(config, &record("192.0.2.1"), &listing, None)
    }

    #[test]
    fn a_node_takes_its_own_of_before_else_a_free_one() {
        let config = config(r#"{"Network":"10.5.0.0/22"}"#);
        let own = chosen(&config, vec![row("10.5.1.0-24", "192.0.2.1", 3)]).expect("a choice");
        assert_eq!((own.seen, own.reserved), (Some(7), false));
        let kept = chosen(&config, vec![row("10.5.1.0-24", "192.0.2.1", 0)]).expect("a choice");
        assert!(kept.reserved);
        let taken = ["10.5.1.0-24", "10.5.2.0-25"].map(|name| row(name, "192.0.2.9", 3));
        let free = chosen(&config, taken.into()).expect("a choice");
        assert_eq!(
            (free.key.to_string().as_str(), free.seen),
            ("10.5.3.0-24", None)
        );
        // Its own of another length is not what the network has now.
        let old = vec![row("10.5.1.0-26", "192.0.2.1", 3)];
        assert_eq!(chosen(&config, old).expect("a choice").seen, None);
    }

    #[test]
    fn a_full_network_is_refused_by_its_name() {
        let full =
            config(r#"{"Network":"10.5.0.0/24","SubnetMin":"10.5.0.64","SubnetMax":"10.5.0.64"}"#);
        let refused = chosen(&full, vec![row("10.5.0.0-24", "192.0.2.9", 3)]);
        let told = refused.expect_err("no room").to_string();
        assert!(told.contains("10.5.0.0/24"), "{told}");
    }
}

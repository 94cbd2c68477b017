//! The directory of the `host-local` plugin: a file per address, named by it,
//! that holds the container's id and, on a line of its own, the interface.

use std::{
    collections::{BTreeMap, VecDeque},
    net::IpAddr,
    ops::RangeInclusive,
    sync::Arc,
};

use ipnet::IpNet;
use weft_api::{
    ipam::{ProblemKind, Use},
    names::{Handle, Name},
};

use super::Imported;
use crate::model::{Allocation, Block, Key, Value};

/// As [`host_local`], of a network whose configured ranges are known.
pub fn host_local_within(
    entries: impl Iterator<Item = (String, Vec<u8>)>,
    ranges: &[RangeInclusive<IpAddr>],
) -> Imported {
    let mut imported = host_local(entries);
    let held: Vec<_> = imported
        .rows
        .iter()
        .flat_map(|(_, row)| addresses(row))
        .collect();
    let outside = |address: &IpAddr| !ranges.iter().any(|range| range.contains(address));
    for address in held.into_iter().filter(outside) {
        let message = "it is held, and lies in no range of the network".into();
        let hint = "restart its container, or widen the ranges";
        imported.told(ProblemKind::OutsidePools, address, message, hint);
    }
    imported
}

fn addresses(row: &Value) -> impl Iterator<Item = IpAddr> {
    let block = match row {
        Value::Block(block) => Some(block),
        _ => None,
    };
    block.into_iter().flat_map(|block| {
        let ordinals = block.allocations.keys();
        ordinals.map(|ordinal| crate::check::address(block.cidr, *ordinal))
    })
}

/// Rows of blocks of the default size, which nobody owns. Pools are not
/// known, so that they are as large as the blocks.
pub fn host_local(entries: impl Iterator<Item = (String, Vec<u8>)>) -> Imported {
    let mut imported = Imported::default();
    let mut held = BTreeMap::new();
    for (file, content) in entries {
        if file == "lock" {
            continue;
        }
        if file.starts_with("last_reserved_ip.") {
            let text = String::from_utf8_lossy(&content);
            if text.trim().parse::<IpAddr>().is_err() {
                imported.wrong(file, format!("it holds {text:?}, which is no address"));
            }
            continue;
        }
        // On Windows a file's name cannot hold a colon.
        let Ok(address) = file.replace('_', ":").parse::<IpAddr>() else {
            imported.wrong(file, "its name is no address".into());
            continue;
        };
        let handle = match holder(&content) {
            Ok(handle) => handle,
            Err(reason) => {
                imported.wrong(file, reason);
                continue;
            }
        };
        if let Some(other) = held.insert(address, handle.clone()) {
            let message = format!("two files give it, to {other} and to {handle}");
            let hint = "delete the file of the container that does not run";
            imported.told(ProblemKind::DoubleOwner, address, message, hint);
        }
    }
    let blocks = blocks(held);
    imported
        .rows
        .extend(pools(blocks.keys().copied().collect()));
    let row = |(cidr, block)| (Key::Block(cidr), Value::Block(Arc::new(block)));
    imported.rows.extend(blocks.into_iter().map(row));
    imported
}

/// Container and interface; old versions wrote only the container.
fn holder(content: &[u8]) -> Result<Handle, String> {
    let text = str::from_utf8(content).map_err(|_| "it is not text".to_owned())?;
    let parts: Vec<_> = text.split_whitespace().collect();
    match parts.len() {
        0 => Err("it is empty: its writer was interrupted".into()),
        1 | 2 => Handle::new(parts.join("/")).map_err(|error| error.to_string()),
        _ => Err("it holds more than a container and an interface".into()),
    }
}

fn blocks(held: BTreeMap<IpAddr, Handle>) -> BTreeMap<IpNet, Block> {
    let mut blocks = BTreeMap::new();
    let node = Name::new("host-local").expect("a fixed, valid name");
    for (address, handle) in held {
        let length = if address.is_ipv4() { 26 } else { 122 };
        let cidr = IpNet::new_assert(address, length).trunc();
        let block = blocks.entry(cidr).or_insert_with(|| Block {
            cidr,
            owner: None,
            claimed: 0,
            sequence: 0,
            allocations: BTreeMap::new(),
            free: VecDeque::new(),
        });
        let last_byte = match address {
            IpAddr::V4(address) => address.octets()[3],
            IpAddr::V6(address) => address.octets()[15],
        };
        let allocation = Allocation {
            handle: Some(handle),
            sequence: 0,
            node: node.clone(),
            purpose: Use::Workload,
            pod: None,
            identity: None,
            since: 0,
            mark: 0,
            place: None,
            released: None,
        };
        block
            .allocations
            .insert(u32::from(last_byte) % 64, Arc::new(allocation));
    }
    for block in blocks.values_mut() {
        let taken = &block.allocations;
        block.free = (0..64)
            .filter(|ordinal| !taken.contains_key(ordinal))
            .collect();
    }
    blocks
}

pub(super) fn pools(blocks: Vec<IpNet>) -> impl Iterator<Item = (Key, Value)> {
    IpNet::aggregate(&blocks).into_iter().map(|cidr| {
        let text = cidr.to_string().replace(':', "-");
        let name = Name::new(format!("range/{text}")).expect("digits, letters, '.', '/' and '-'");
        let pool = weft_api::ipam::Pool {
            name: name.clone(),
            cidr,
            block_size: None,
            node_selector: String::new(),
            namespace_selector: String::new(),
            uses: vec![Use::Workload],
            manual: false,
            disabled: false,
            nat_outgoing: false,
            encapsulation: weft_api::ipam::Encapsulation::None,
            when: weft_api::ipam::When::Always,
        };
        (Key::Pool(name), Value::Pool(pool))
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::check::check;

    fn files(files: &[(&str, &[u8])]) -> Imported {
        let owned = files
            .iter()
            .map(|(name, content)| ((*name).to_owned(), content.to_vec()));
        host_local(owned)
    }

    #[test]
    fn a_sound_directory_has_no_problem() {
        let imported = files(&[
            ("10.1.0.2", b"c1\r\neth0"),
            ("10.1.0.130", b"old-container"),
            ("fd00::2", b"c1\r\neth0"),
            ("last_reserved_ip.0", b"10.1.0.130"),
            ("lock", b""),
        ]);
        assert_eq!(imported.problems, []);
        let report = check(imported.rows.iter().map(|(k, v)| (k, v)), None, 0);
        assert_eq!((report.problems, report.allocations), (vec![], 3));
    }

    #[test]
    fn faults_are_told() {
        for (file, content, message) in [
            ("readme", &b""[..], "no address"),
            ("10.1.0.2", b"", "empty"),
            ("10.1.0.2", b"\xff", "not text"),
            ("10.1.0.2", b"a b c", "more than"),
            ("last_reserved_ip.0", b"x", "no address"),
        ] {
            let problems = files(&[(file, content)]).problems;
            assert!(
                problems.len() == 1 && problems[0].message.contains(message),
                "{problems:?}"
            );
        }
        let twice = files(&[("fd00::2", b"a"), ("fd00:0::2", b"b")]);
        assert_eq!(twice.problems[0].kind, ProblemKind::DoubleOwner);
        let two = files(&[("10.1.0.2", b"a\r\neth0"), ("10.1.0.3", b"a\r\neth0")]);
        let problems = check(two.rows.iter().map(|(k, v)| (k, v)), None, 0).problems;
        assert_eq!(problems[0].kind, ProblemKind::DoubleOwner);
    }

    #[test]
    fn what_lies_outside_the_ranges_is_told() {
        let entries = ["10.1.0.2", "10.1.0.9"].map(|file| (file.to_owned(), file.into()));
        let ranges = [[10, 1, 0, 1].into()..=[10, 1, 0, 8].into()];
        let problems = host_local_within(entries.into_iter(), &ranges).problems;
        assert_eq!(problems.len(), 1);
        assert_eq!(problems[0].object, "10.1.0.9");
    }

    proptest! {
        #[test]
        fn no_files_panic(entries in proptest::collection::vec(
            ("[0-9a-f.:_]{0,12}|.{0,8}", proptest::collection::vec(any::<u8>(), 0..12)), 0..6)) {
            let imported = host_local(entries.into_iter());
            check(imported.rows.iter().map(|(k, v)| (k, v)), None, 0);
        }
    }
}

//! What flannel's and Calico's nodes may have written. `fuzz_targets/interop.rs`
//! calls it with bytes that libFuzzer makes up, `tests/corpus.rs` with the
//! committed corpus: the key, a line feed, and what stands there.

use weft_interop::{
    calico::{self, Block},
    flannel::{self, Config, Lease, SubnetEnv, SubnetKey},
};

/// What is read reads back as it is written, and becomes nodes or errors.
pub fn interop(bytes: &[u8]) {
    let cut = bytes.iter().position(|byte| *byte == b'\n');
    let (key, value) = cut.map_or((bytes, &b""[..]), |at| (&bytes[..at], &bytes[at + 1..]));
    let key = String::from_utf8_lossy(key);
    if let Ok(config) = Config::parse(&key, value) {
        for range in config.ranges() {
            assert!(
                range
                    .subnets()
                    .take(300)
                    .all(|subnet| range.allows(&subnet))
            );
        }
    }
    if let Ok(env) = SubnetEnv::parse(&key, &String::from_utf8_lossy(value)) {
        assert_eq!(SubnetEnv::parse(&key, &env.to_string()), Ok(env));
    }
    let subnet = SubnetKey::parse(&key);
    if let Ok(subnet) = subnet {
        assert_eq!(SubnetKey::parse(&subnet.to_string()), Ok(subnet));
    }
    let record = flannel::Record::parse(&key, value);
    if let (Ok(key), Ok(record)) = (subnet, record) {
        lease(Lease { key, record });
    }
    if let Ok(node) = calico::Record::parse(&key, value) {
        let written = node.to_json(None).to_string();
        assert_eq!(
            calico::Record::parse(&key, written.as_bytes()),
            Ok(node.clone())
        );
        assert_eq!(
            calico::Record::of_annotations(&node.name, &node.annotations()),
            Ok(node)
        );
    }
    if let Ok(block) = Block::parse(&key, value) {
        assert!(
            block
                .lent()
                .all(|(_, address)| block.cidr.contains(&address))
        );
        let own = calico::Record {
            name: "n".to_owned(),
            v4: calico::Tunnel::default(),
            v6: calico::Tunnel::default(),
        };
        let blocks = [block.clone(), block];
        let pools = calico::Pools::default();
        calico::peers(&own, [], &blocks, &pools, calico::Wire::default());
    }
}

fn lease(lease: Lease) {
    let key = lease.key.to_string();
    if lease.record.backend == flannel::VXLAN {
        let written = lease.record.to_json();
        let again = flannel::Record::parse(&key, written.as_bytes());
        assert_eq!(again.as_ref(), Ok(&lease.record));
    }
    let other = Lease {
        key: SubnetKey::parse("192.0.2.0-24").expect("a key"),
        ..lease.clone()
    };
    let all = br#"{"EnableIPv6":true,"Network":"0.0.0.0/0","IPv6Network":"::/0"}"#;
    let all = flannel::Config::parse("config", all).expect("a network");
    let found = flannel::peers(&other, [&lease, &lease], &all, 8472, |_| true);
    assert!(found.nodes.is_empty(), "its address is taken");
    let stranger = Lease {
        key: other.key,
        record: flannel::Record {
            public_v4: None,
            public_v6: None,
            v4: None,
            v6: None,
            ..lease.record.clone()
        },
    };
    let found = flannel::peers(&stranger, [&lease, &lease], &all, 8472, |_| true);
    assert!(
        found.nodes.len() <= 2,
        "a lease is a node in each family, once"
    );
}

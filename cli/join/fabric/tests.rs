use weft_api::names::{Mac, Name, Vni};

use super::*;

fn node(number: u8, blocks: &[(&str, Way)]) -> Node {
    let parsed = blocks
        .iter()
        .map(|(block, way)| (block.parse().expect("a block"), *way));
    let ways: BTreeMap<IpNet, Way> = parsed.collect();
    Node {
        name: Name::new(format!("n{number}")).expect("a name"),
        underlay: vec![
            IpAddr::from([192, 0, 2, number]),
            format!("2001:db8::{number}").parse().expect("an address"),
        ],
        vtep_mac: Mac([2, 0, 0, 0, 0, number]),
        vni: Vni::DEFAULT,
        port: 4789,
        blocks: ways.keys().copied().collect(),
        ways: ways
            .into_iter()
            .filter(|(_, way)| *way != Way::Vxlan)
            .collect(),
        tunnel: Vec::new(),
    }
}

#[test]
fn what_is_lent_out_of_a_direct_block_is_where_it_is() {
    let own = node(
        1,
        &[
            ("10.1.0.0/24", Way::Vxlan),
            ("10.2.0.9/32", Way::Vxlan),
            ("10.4.0.9/32", Way::Vxlan),
            ("fd00:2::9/128", Way::Vxlan),
        ],
    );
    let near = node(
        2,
        &[
            ("10.1.0.9/32", Way::Direct),
            ("10.2.0.0/24", Way::Direct),
            ("fd00:2::/64", Way::Direct),
        ],
    );
    let far = node(
        3,
        &[("10.2.0.7/32", Way::Vxlan), ("10.4.0.0/24", Way::Ipip)],
    );
    let nodes = Nodes {
        node: own,
        peers: vec![near, far],
    };
    let expected = [
        ("10.1.0.9/32", "192.0.2.2"),
        ("10.2.0.0/24", "192.0.2.2"),
        ("10.2.0.7/32", "169.254.1.1"),
        ("10.2.0.9/32", "169.254.1.1"),
        ("fd00:2::/64", "2001:db8::2"),
        ("fd00:2::9/128", &GATEWAY_V6.to_string()),
    ]
    .map(|(to, via)| (to.parse().expect("a net"), via.parse().expect("an address")));
    assert_eq!(gateways(&nodes), Gateways::from(expected));
}

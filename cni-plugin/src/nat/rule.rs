//! Words that rules of nftables are made of (linux/netfilter/nf_tables.h).
//! The kernel loads parts of a packet into registers and judges those.

use netlink_packet_netfilter::nftables::{
    Bitwise, Cmp, DataAttribute, Expressions, Immediate, Lookup, Meta, MetaKey, Operator, Payload,
    Register, Verdict, VerdictAttribute,
};
use rtnetlink::packet_core::DefaultNla;

use super::entry::Family;

/// Where what is to be judged is loaded, and keys of maps begin.
const KEY: u32 = 8; // NFT_REG32_00
/// Where what a map holds is found, behind the longest key: an IPv6 address,
/// protocol and port.
const FOUND: u32 = KEY + 6;

/// NFT_PAYLOAD_NETWORK_HEADER and NFT_PAYLOAD_TRANSPORT_HEADER.
const NETWORK: u32 = 1;
const TRANSPORT: u32 = 2;

/// Of ports in the headers of TCP, UDP and SCTP.
const DESTINATION_PORT: u32 = 2;

/// As long as IFNAMSIZ.
const NAME: usize = 16;

#[derive(Debug, Clone, Copy)]
pub enum End {
    Source,
    Destination,
}

fn register(number: u32) -> Register {
    Register::Other(number)
}

fn load(base: u32, offset: u32, length: u32, to: u32) -> Expressions {
    Expressions::Payload(vec![
        Payload::DestinationRegister(register(to)),
        Payload::Base(base),
        Payload::Offset(offset),
        Payload::Len(length),
    ])
}

fn load_address(family: Family, end: End, to: u32) -> Expressions {
    let offset = match (family, end) {
        (Family::V4, End::Source) => 12,
        (Family::V4, End::Destination) => 16,
        (Family::V6, End::Source) => 8,
        (Family::V6, End::Destination) => 24,
    };
    load(NETWORK, offset, family.length(), to)
}

fn load_meta(key: MetaKey, to: u32) -> Expressions {
    Expressions::Meta(vec![
        Meta::Key(key),
        Meta::DestinationRegister(register(to)),
    ])
}

fn judge(operator: Operator, value: Vec<u8>) -> Expressions {
    Expressions::Cmp(vec![
        Cmp::SourceRegister(register(KEY)),
        Cmp::Op(operator),
        Cmp::Data(DataAttribute::Value(value)),
    ])
}

fn mask(mask: Vec<u8>) -> Expressions {
    let length = u32::try_from(mask.len()).unwrap_or(u32::MAX);
    let nothing = vec![0; mask.len()];
    Expressions::Bitwise(vec![
        Bitwise::SourceRegister(register(KEY)),
        Bitwise::DestinationRegister(register(KEY)),
        Bitwise::Length(length),
        Bitwise::Mask(DataAttribute::Value(mask)),
        Bitwise::Xor(DataAttribute::Value(nothing)),
    ])
}

/// An expression that the crate has no words for.
fn other(kind: &str, attributes: &[(u16, u32)]) -> Expressions {
    let attribute = |&(kind, value): &(u16, u32)| DefaultNla::new(kind, value.to_be_bytes().into());
    Expressions::Other {
        expression_type: kind.to_owned(),
        attributes: attributes.iter().map(attribute).collect(),
    }
}

/// The packet is of this family.
pub fn of(family: Family) -> [Expressions; 2] {
    [
        load_meta(MetaKey::Nfproto, KEY),
        judge(Operator::Equal, vec![family.number()]),
    ]
}

/// The packet leaves by this link.
pub fn leaves_by(link: &str) -> [Expressions; 2] {
    let mut name = link.as_bytes().to_vec();
    name.resize(NAME, 0);
    [
        load_meta(MetaKey::Oifname, KEY),
        judge(Operator::Equal, name),
    ]
}

/// The packet's address lies in a network.
pub fn within(end: End, net: ipnet::IpNet) -> Vec<Expressions> {
    let family = Family::of(net.addr());
    let (bits, address) = (octets(net.netmask()), octets(net.network()));
    let mut rule = of(family).to_vec();
    rule.extend([
        load_address(family, end, KEY),
        mask(bits),
        judge(Operator::Equal, address),
    ]);
    rule
}

/// The packet goes to an address that this node has.
pub fn to_this_node() -> [Expressions; 2] {
    /// NFTA_FIB_DREG, NFTA_FIB_RESULT and NFTA_FIB_FLAGS.
    const ATTRIBUTES: [u16; 3] = [1, 2, 3];
    /// NFT_FIB_RESULT_ADDRTYPE, by NFTA_FIB_F_DADDR.
    const KIND: u32 = 3;
    const OF_DESTINATION: u32 = 2;
    /// RTN_LOCAL.
    const LOCAL: u32 = 2;

    let [to, result, flags] = ATTRIBUTES;
    [
        other("fib", &[(to, KEY), (result, KIND), (flags, OF_DESTINATION)]),
        judge(Operator::Equal, LOCAL.to_ne_bytes().into()),
    ]
}

/// The packet's destination was translated on this node.
pub fn was_led_here() -> [Expressions; 3] {
    /// NFTA_CT_DREG and NFTA_CT_KEY.
    const ATTRIBUTES: [u16; 2] = [1, 2];
    /// NFT_CT_STATUS.
    const STATUS: u32 = 2;
    /// IPS_DST_NAT.
    const DESTINATION: u32 = 1 << 5;

    let [to, key] = ATTRIBUTES;
    [
        other("ct", &[(to, KEY), (key, STATUS)]),
        mask(DESTINATION.to_ne_bytes().into()),
        judge(Operator::NotEqual, 0_u32.to_ne_bytes().into()),
    ]
}

/// Leads the packet to where `map` says for its protocol and port, and for the
/// address it goes to if the map is of such.
pub fn lead_by(map: &str, family: Family, by_address: bool) -> Vec<Expressions> {
    /// NFTA_NAT_TYPE, NFTA_NAT_FAMILY, NFTA_NAT_REG_ADDR_MIN and
    /// NFTA_NAT_REG_PROTO_MIN.
    const ATTRIBUTES: [u16; 4] = [1, 2, 3, 5];
    /// NFT_NAT_DNAT.
    const DESTINATION: u32 = 1;

    let mut rule = of(family).to_vec();
    let mut next = KEY;
    if by_address {
        rule.push(load_address(family, End::Destination, next));
        next += family.registers();
    }
    rule.extend([
        load_meta(MetaKey::L4Proto, next),
        load(TRANSPORT, DESTINATION_PORT, 2, next + 1),
        Expressions::Lookup(vec![
            Lookup::Set(map.to_owned()),
            Lookup::SourceRegister(register(KEY)),
            Lookup::DestinationRegister(register(FOUND)),
        ]),
    ]);
    let [kind, of, address, port] = ATTRIBUTES;
    rule.push(other(
        "nat",
        &[
            (kind, DESTINATION),
            (of, family.number().into()),
            (address, FOUND),
            (port, FOUND + family.registers()),
        ],
    ));
    rule
}

/// The packet gets this node's address. `fully_random`: and a port that
/// nobody foretells, for which two processors seldom race.
pub fn masquerade(fully_random: bool) -> Expressions {
    /// NFTA_MASQ_FLAGS, NF_NAT_RANGE_PROTO_RANDOM_FULLY.
    const FLAGS: u16 = 1;
    const RANDOM: u32 = 1 << 4;

    let flags = [(FLAGS, RANDOM)];
    other("masq", if fully_random { &flags } else { &[] })
}

pub fn enough() -> Expressions {
    verdict(Verdict::Return, None)
}

pub fn goto(chain: &str) -> Expressions {
    verdict(Verdict::Goto, Some(chain))
}

fn verdict(verdict: Verdict, chain: Option<&str>) -> Expressions {
    let mut attributes = vec![VerdictAttribute::Code(verdict)];
    attributes.extend(chain.map(|chain| VerdictAttribute::Chain(chain.to_owned())));
    Expressions::Immediate(vec![
        Immediate::DestinationRegister(Register::Verdict),
        Immediate::Data(DataAttribute::Verdict(attributes)),
    ])
}

fn octets(address: std::net::IpAddr) -> Vec<u8> {
    match address {
        std::net::IpAddr::V4(v4) => v4.octets().into(),
        std::net::IpAddr::V6(v6) => v6.octets().into(),
    }
}

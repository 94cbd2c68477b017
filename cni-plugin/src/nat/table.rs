//! The table: who takes this node's address on the way out, and where ports of
//! the node lead.
//!
//! ```text
//! prerouting, output ─ to an address of this node ─► a map's pod
//! postrouting ─ by weft0 ─► to_pods: who could not be answered otherwise
//!             └ else ─────► outside: pools that ask for it
//! ```

use std::{
    collections::BTreeSet,
    net::{Ipv4Addr, Ipv6Addr},
};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use netlink_packet_netfilter::nftables::{
    ChainAttribute, ChainMessage, DataAttribute, Expressions, Hook, InetHookNumber, ListAttribute,
    NfTablesMessage, RuleAttribute, RuleMessage, SetAttribute, SetElementAttribute, SetElementList,
    SetElementMessage, SetFlags, SetMessage, TableAttribute, TableMessage,
};
use weft_api::forwarder::HOST_LINK;

use super::{
    entry::{Entry, Map},
    rule::{self, End},
};

/// A table of the family inet, by its name.
#[derive(Debug, Clone, Copy)]
pub struct Table(&'static str);

/// The name of weft's own.
pub const NAME: &str = "weft";

/// NF_IP_PRI_NAT_DST and NF_IP_PRI_NAT_SRC.
const BEFORE_ROUTING: i32 = -100;
const AFTER_ROUTING: i32 = 100;

const PORTS: &str = "ports";
const TO_PODS: &str = "to-pods";
const OUTSIDE: &str = "outside";

const LOOPBACK_V4: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(127, 0, 0, 0), 8);
const LOOPBACK_V6: Ipv6Net = Ipv6Net::new_assert(Ipv6Addr::LOCALHOST, 128);

/// Most elements of one message: each takes less than 100 of the 65535 bytes
/// that an attribute holds.
const AT_ONCE: usize = 400;

/// What the node's kernel is to translate, besides what is published.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ways {
    /// All that pods' addresses come from.
    pub pools: Vec<IpNet>,
    /// Those whose pods have the node's address outside the pools.
    pub masqueraded: Vec<IpNet>,
}

impl Table {
    pub const WEFT: Self = Self(NAME);
    /// For a transaction that takes away what it makes.
    pub const TRIAL: Self = Self("weft-trial");

    /// Takes away what there is of the table, and makes it anew.
    pub fn anew(self, ways: &Ways, published: &BTreeSet<Entry>) -> Vec<NfTablesMessage> {
        let mut changes = vec![self.there(), self.gone(), self.there()];
        changes.extend(
            Map::ALL
                .into_iter()
                .zip(1..)
                .map(|(map, id)| self.map(map, id)),
        );
        changes.extend([PORTS, TO_PODS, OUTSIDE].map(|name| self.chain(name, None)));
        let hooks = [
            ("prerouting", InetHookNumber::PreRouting, BEFORE_ROUTING),
            ("output", InetHookNumber::LocalOut, BEFORE_ROUTING),
            ("postrouting", InetHookNumber::PostRouting, AFTER_ROUTING),
        ];
        changes.extend(hooks.map(|(name, hook, at)| self.chain(name, Some((hook, at)))));
        let rules = rules(ways).into_iter();
        changes.extend(rules.map(|(chain, rule)| self.rule(chain, rule)));
        changes.extend(self.change(&BTreeSet::new(), published));
        changes
    }

    /// Takes the table away, which has to be there.
    pub fn gone(self) -> NfTablesMessage {
        NfTablesMessage::DeleteTable(self.named())
    }

    fn there(self) -> NfTablesMessage {
        NfTablesMessage::NewTable(self.named())
    }

    fn named(self) -> TableMessage {
        let attributes = vec![TableAttribute::Name(self.0.to_owned())];
        TableMessage { attributes }
    }

    /// From what is published to what shall be.
    pub fn change(self, from: &BTreeSet<Entry>, to: &BTreeSet<Entry>) -> Vec<NfTablesMessage> {
        let mut changes = Vec::new();
        for map in Map::ALL {
            let of = |entry: &&Entry| entry.map() == map;
            let stale: Vec<_> = from.difference(to).filter(of).collect();
            let new: Vec<_> = to.difference(from).filter(of).collect();
            let removals = stale.chunks(AT_ONCE).map(|entries| {
                let keys = entries.iter().map(|entry| vec![key(entry)]);
                NfTablesMessage::DeleteSetElement(self.elements(map, keys))
            });
            let additions = new.chunks(AT_ONCE).map(|entries| {
                let lines = entries.iter().map(|entry| vec![key(entry), value(entry)]);
                NfTablesMessage::NewSetElement(self.elements(map, lines))
            });
            changes.extend(removals.chain(additions));
        }
        changes
    }

    fn chain(self, name: &str, hook: Option<(InetHookNumber, i32)>) -> NfTablesMessage {
        let mut attributes = vec![
            ChainAttribute::Table(self.0.to_owned()),
            ChainAttribute::Name(name.to_owned()),
        ];
        if let Some((number, priority)) = hook {
            let hook = vec![
                Hook::Number(number.into()),
                Hook::Priority(priority.cast_unsigned()),
            ];
            attributes.extend([
                ChainAttribute::Hook(hook),
                ChainAttribute::Type("nat".to_owned()),
            ]);
        }
        NfTablesMessage::NewChain(ChainMessage { attributes })
    }

    fn rule(self, chain: &str, rule: Vec<Expressions>) -> NfTablesMessage {
        let attributes = vec![
            RuleAttribute::Table(self.0.to_owned()),
            RuleAttribute::Chain(chain.to_owned()),
            RuleAttribute::Expressions(rule.into_iter().map(ListAttribute::from).collect()),
        ];
        NfTablesMessage::NewRule(RuleMessage { attributes })
    }

    fn map(self, map: Map, id: u32) -> NfTablesMessage {
        let attributes = vec![
            SetAttribute::Table(self.0.to_owned()),
            SetAttribute::Name(map.name().to_owned()),
            SetAttribute::Flags(SetFlags::Map),
            SetAttribute::KeyType(map.key_type()),
            SetAttribute::KeyLen(map.key_length()),
            SetAttribute::DataType(map.value_type()),
            SetAttribute::DataLen(map.value_length()),
            SetAttribute::Id(id),
        ];
        NfTablesMessage::NewSet(SetMessage { attributes })
    }

    fn elements(
        self,
        map: Map,
        lines: impl Iterator<Item = Vec<SetElementAttribute>>,
    ) -> SetElementMessage {
        let attributes = vec![
            SetElementList::Table(self.0.to_owned()),
            SetElementList::Set(map.name().to_owned()),
            SetElementList::Elements(lines.map(ListAttribute::Element).collect()),
        ];
        SetElementMessage { attributes }
    }
}

fn rules(ways: &Ways) -> Vec<(&'static str, Vec<Expressions>)> {
    let then = |conditions: &[Expressions], action| [conditions, &[action]].concat();
    let led = then(&rule::to_this_node(), rule::goto(PORTS));
    let by_weft0 = rule::leaves_by(HOST_LINK);
    let to_localhost_v4 = rule::within(End::Destination, LOOPBACK_V4.into());
    let to_localhost_v6 = rule::within(End::Destination, LOOPBACK_V6.into());
    let by_localhost = rule::within(End::Source, LOOPBACK_V4.into());
    let mut rules = vec![
        // Only this node may speak to its own loopback, and does so by output.
        ("prerouting", then(&to_localhost_v4, rule::enough())),
        ("prerouting", led.clone()),
        // The kernel routes no packet from ::1 to a pod.
        ("output", then(&to_localhost_v6, rule::enough())),
        ("output", led),
        ("postrouting", then(&by_weft0, rule::goto(TO_PODS))),
        ("postrouting", vec![rule::goto(OUTSIDE)]),
        (TO_PODS, then(&by_localhost, rule::masquerade(false))),
    ];
    let lookups =
        Map::ALL.map(|map| (PORTS, rule::lead_by(map.name(), map.family, map.by_address)));
    rules.extend(lookups);
    for &pool in &ways.pools {
        let from_pod = [&rule::was_led_here()[..], &rule::within(End::Source, pool)].concat();
        rules.push((TO_PODS, then(&from_pod, rule::masquerade(false))));
        let to_pod = rule::within(End::Destination, pool);
        rules.push((OUTSIDE, then(&to_pod, rule::enough())));
    }
    for &pool in &ways.masqueraded {
        let from_pod = rule::within(End::Source, pool);
        rules.push((OUTSIDE, then(&from_pod, rule::masquerade(true))));
    }
    rules
}

fn key(entry: &Entry) -> SetElementAttribute {
    SetElementAttribute::Key(DataAttribute::Value(entry.key()))
}

fn value(entry: &Entry) -> SetElementAttribute {
    SetElementAttribute::Data(DataAttribute::Value(entry.value()))
}

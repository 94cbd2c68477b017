//! ClusterNetworkPolicy of `policy.networking.k8s.io/v1alpha2`.
//!
//! Peers by domain name are refused: weft sees packets, and a name that is
//! not enforced must not look as if it were.

use ipnet::IpNet;
use serde::{Deserialize, de::IgnoredAny};

use super::{
    Action, Block, Group, Peer, Policy, PolicyName, PortMatch, Rule, Scope, Selector, Tier,
    ports::ClusterPort,
};

/// The most rules of a direction, peers of a rule, protocols of a rule and
/// networks of a peer: the API's own `maxItems`.
const ITEMS_MAX: usize = 25;
const RULE_NAME_MAX: usize = 100;
const PRIORITY_MAX: u16 = 1000;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Spec {
    tier: TierText,
    priority: Priority,
    subject: Subject,
    ingress: Option<AtMost<IngressText>>,
    egress: Option<AtMost<EgressText>>,
}

#[derive(Clone, Copy, Deserialize)]
enum TierText {
    Admin,
    Baseline,
}

#[derive(Deserialize)]
#[serde(try_from = "i64")]
struct Priority(u16);

/// No more than [`ITEMS_MAX`].
#[derive(Deserialize)]
#[serde(try_from = "Vec<T>", bound = "T: Deserialize<'de>")]
struct AtMost<T>(Vec<T>);

/// As [`AtMost`], and one at least.
#[derive(Deserialize)]
#[serde(try_from = "Vec<T>", bound = "T: Deserialize<'de>")]
struct Some1<T>(Vec<T>);

#[derive(Deserialize)]
#[serde(try_from = "PodsFields")]
struct Subject(Group);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PodsFields {
    namespaces: Option<Selector>,
    pods: Option<NamespacedPod>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct NamespacedPod {
    #[serde(default)]
    namespace_selector: Selector,
    pod_selector: Selector,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct IngressText {
    name: Option<RuleName>,
    action: Action,
    from: Some1<Subject>,
    protocols: Option<Some1<PortText>>,
}

#[derive(Deserialize)]
#[serde(try_from = "EgressFields")]
struct EgressText(EgressFields);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct EgressFields {
    name: Option<RuleName>,
    action: Action,
    to: Some1<EgressPeers>,
    protocols: Option<Some1<PortText>>,
}

#[derive(Default, Deserialize)]
#[serde(try_from = "String")]
struct RuleName(String);

/// One peer as it is written can be several: each network is one.
#[derive(Deserialize)]
#[serde(try_from = "EgressPeerFields")]
struct EgressPeers(Vec<Peer>);

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct EgressPeerFields {
    namespaces: Option<Selector>,
    pods: Option<NamespacedPod>,
    nodes: Option<Selector>,
    networks: Option<Some1<IpNet>>,
    domain_names: Option<IgnoredAny>,
}

#[derive(Deserialize)]
#[serde(try_from = "ClusterPort")]
struct PortText(PortMatch);

impl Spec {
    pub(super) fn policy(self, name: String) -> Policy {
        let ingress = self.ingress.map_or_else(Vec::new, |rules| rules.0);
        let egress = self.egress.map_or_else(Vec::new, |rules| rules.0);
        let ingress = ingress.into_iter().map(|rule| Rule {
            name: rule.name.unwrap_or_default().0,
            action: rule.action,
            peers: rule
                .from
                .0
                .into_iter()
                .map(|peer| Peer::Pods(peer.0))
                .collect(),
            ports: ports(rule.protocols),
        });
        let egress = egress.into_iter().map(|EgressText(rule)| Rule {
            name: rule.name.unwrap_or_default().0,
            action: rule.action,
            peers: rule.to.0.into_iter().flat_map(|peers| peers.0).collect(),
            ports: ports(rule.protocols),
        });
        let some = |rules: Vec<Rule>| (!rules.is_empty()).then_some(rules);
        Policy {
            tier: match self.tier {
                TierText::Admin => Tier::Admin(self.priority.0),
                TierText::Baseline => Tier::Baseline(self.priority.0),
            },
            subject: self.subject.0,
            ingress: some(ingress.collect()),
            egress: some(egress.collect()),
            name: PolicyName {
                namespace: None,
                name,
            },
        }
    }
}

fn ports(protocols: Option<Some1<PortText>>) -> Vec<PortMatch> {
    let protocols = protocols.map_or_else(Vec::new, |protocols| protocols.0);
    protocols.into_iter().map(|port| port.0).collect()
}

impl TryFrom<i64> for Priority {
    type Error = String;

    fn try_from(number: i64) -> Result<Self, String> {
        match u16::try_from(number) {
            Ok(number) if number <= PRIORITY_MAX => Ok(Self(number)),
            _ => Err(format!("{number} is no priority: 0 to {PRIORITY_MAX}")),
        }
    }
}

impl<T> TryFrom<Vec<T>> for AtMost<T> {
    type Error = String;

    fn try_from(items: Vec<T>) -> Result<Self, String> {
        match items.len() {
            0..=ITEMS_MAX => Ok(Self(items)),
            count => Err(format!("{count} items, of at most {ITEMS_MAX}")),
        }
    }
}

impl<T> TryFrom<Vec<T>> for Some1<T> {
    type Error = String;

    fn try_from(items: Vec<T>) -> Result<Self, String> {
        let AtMost(items) = items.try_into()?;
        match items.is_empty() {
            true => Err("no item: say one at least".into()),
            false => Ok(Self(items)),
        }
    }
}

impl TryFrom<PodsFields> for Subject {
    type Error = &'static str;

    fn try_from(text: PodsFields) -> Result<Self, &'static str> {
        pods(text.namespaces, text.pods)
            .map(Self)
            .ok_or("say exactly one of namespaces and pods")
    }
}

impl TryFrom<EgressPeerFields> for EgressPeers {
    type Error = &'static str;

    fn try_from(text: EgressPeerFields) -> Result<Self, &'static str> {
        if text.domain_names.is_some() {
            return Err("domainNames are not supported: say networks instead");
        }
        let one = match (text.nodes, text.networks) {
            (None, None) => pods(text.namespaces, text.pods).map(|group| vec![Peer::Pods(group)]),
            _ if text.namespaces.is_some() || text.pods.is_some() => None,
            (Some(nodes), None) => Some(vec![Peer::Nodes(nodes)]),
            (None, Some(Some1(networks))) => Some(networks.into_iter().map(network).collect()),
            (Some(_), Some(_)) => None,
        };
        one.map(Self)
            .ok_or("say exactly one of namespaces, pods, nodes and networks")
    }
}

fn network(net: IpNet) -> Peer {
    Peer::Block(Block {
        net: net.trunc(),
        except: Vec::new(),
    })
}

fn pods(namespaces: Option<Selector>, pods: Option<NamespacedPod>) -> Option<Group> {
    let (namespaces, pods) = match (namespaces, pods) {
        (Some(namespaces), None) => (namespaces, Selector::default()),
        (None, Some(pods)) => (pods.namespace_selector, pods.pod_selector),
        _ => return None,
    };
    Some(Group {
        namespaces: Scope::Matching(namespaces),
        pods,
    })
}

impl TryFrom<EgressFields> for EgressText {
    type Error = &'static str;

    fn try_from(text: EgressFields) -> Result<Self, &'static str> {
        let named = |port: &PortText| matches!(port.0, PortMatch::Named { .. });
        let has_name = text
            .protocols
            .as_ref()
            .is_some_and(|ports| ports.0.iter().any(named));
        let mut peers = text.to.0.iter().flat_map(|peers| &peers.0);
        if has_name && peers.any(|peer| !matches!(peer, Peer::Pods(_))) {
            return Err("destinationNamedPort with nodes or networks, whose ports have no names");
        }
        Ok(Self(text))
    }
}

impl TryFrom<String> for RuleName {
    type Error = String;

    fn try_from(name: String) -> Result<Self, String> {
        match name.chars().count() {
            0..=RULE_NAME_MAX => Ok(Self(name)),
            length => Err(format!("{length} characters, of at most {RULE_NAME_MAX}")),
        }
    }
}

impl TryFrom<ClusterPort> for PortText {
    type Error = String;

    fn try_from(text: ClusterPort) -> Result<Self, String> {
        text.try_into().map(Self)
    }
}

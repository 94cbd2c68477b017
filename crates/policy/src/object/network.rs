//! NetworkPolicy of `networking.k8s.io/v1`.

use ipnet::IpNet;
use serde::Deserialize;

use super::{
    Action, Block, Group, Peer, Policy, PolicyName, PortMatch, Rule, Scope, Selector, Tier,
    ports::NetworkPort,
};

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Spec {
    /// Absent means every pod, as in Kubernetes.
    pod_selector: Option<Selector>,
    ingress: Option<Vec<IngressText>>,
    egress: Option<Vec<EgressText>>,
    policy_types: Option<Vec<PolicyType>>,
}

#[derive(Clone, Copy, PartialEq, Eq, Deserialize)]
enum PolicyType {
    Ingress,
    Egress,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct IngressText {
    from: Option<Vec<PeerText>>,
    ports: Option<Vec<PortText>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct EgressText {
    to: Option<Vec<PeerText>>,
    ports: Option<Vec<PortText>>,
}

#[derive(Deserialize)]
#[serde(try_from = "NetworkPort")]
struct PortText(PortMatch);

impl TryFrom<NetworkPort> for PortText {
    type Error = String;

    fn try_from(text: NetworkPort) -> Result<Self, String> {
        text.try_into().map(Self)
    }
}

/// A peer whose namespace may still be told by the policy's own.
#[derive(Deserialize)]
#[serde(try_from = "PeerFields")]
enum PeerText {
    Pods {
        namespaces: Option<Selector>,
        pods: Selector,
    },
    Block(Block),
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct PeerFields {
    pod_selector: Option<Selector>,
    namespace_selector: Option<Selector>,
    ip_block: Option<BlockText>,
}

#[derive(Deserialize)]
#[serde(try_from = "BlockFields")]
struct BlockText(Block);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct BlockFields {
    cidr: IpNet,
    except: Option<Vec<IpNet>>,
}

impl Spec {
    pub(super) fn policy(self, namespace: String, name: String) -> Policy {
        let types = self.policy_types.unwrap_or_default();
        let has_egress = self.egress.as_ref().is_some_and(|rules| !rules.is_empty());
        let speaks_of = |one: PolicyType| match types.is_empty() {
            true => one == PolicyType::Ingress || has_egress,
            false => types.contains(&one),
        };
        let ingress = self.ingress.unwrap_or_default().into_iter();
        let ingress = ingress.map(|rule| network_rule(&namespace, rule.from, rule.ports));
        let egress = self.egress.unwrap_or_default().into_iter();
        let egress = egress.map(|rule| network_rule(&namespace, rule.to, rule.ports));
        Policy {
            tier: Tier::Network,
            subject: Group {
                namespaces: Scope::Named(namespace.clone()),
                pods: self.pod_selector.unwrap_or_default(),
            },
            ingress: speaks_of(PolicyType::Ingress).then(|| ingress.collect()),
            egress: speaks_of(PolicyType::Egress).then(|| egress.collect()),
            name: PolicyName {
                namespace: Some(namespace),
                name,
            },
        }
    }
}

fn network_rule(
    namespace: &str,
    peers: Option<Vec<PeerText>>,
    ports: Option<Vec<PortText>>,
) -> Rule {
    let peers = peers.unwrap_or_default().into_iter();
    Rule {
        name: String::new(),
        action: Action::Accept,
        peers: peers.map(|peer| peer.seen_from(namespace)).collect(),
        ports: ports
            .unwrap_or_default()
            .into_iter()
            .map(|port| port.0)
            .collect(),
    }
}

impl PeerText {
    fn seen_from(self, namespace: &str) -> Peer {
        match self {
            Self::Block(block) => Peer::Block(block),
            Self::Pods { namespaces, pods } => Peer::Pods(Group {
                namespaces: match namespaces {
                    Some(selector) => Scope::Matching(selector),
                    None => Scope::Named(namespace.to_owned()),
                },
                pods,
            }),
        }
    }
}

impl TryFrom<PeerFields> for PeerText {
    type Error = &'static str;

    fn try_from(text: PeerFields) -> Result<Self, &'static str> {
        match (text.ip_block, text.namespace_selector, text.pod_selector) {
            (Some(block), None, None) => Ok(Self::Block(block.0)),
            (Some(_), _, _) => {
                Err("ipBlock stands alone: put the selectors in a peer of their own")
            }
            (None, None, None) => {
                Err("an empty peer: say podSelector, namespaceSelector or ipBlock")
            }
            (None, namespaces, pods) => Ok(Self::Pods {
                namespaces,
                pods: pods.unwrap_or_default(),
            }),
        }
    }
}

impl TryFrom<BlockFields> for BlockText {
    type Error = String;

    fn try_from(text: BlockFields) -> Result<Self, String> {
        let net = text.cidr.trunc();
        let except = text.except.unwrap_or_default();
        for hole in &except {
            let inside = net.contains(hole) && hole.prefix_len() > net.prefix_len();
            if !inside {
                return Err(format!("except: {hole} is no part of {net}"));
            }
        }
        let except = except.iter().map(IpNet::trunc).collect();
        Ok(Self(Block { net, except }))
    }
}

//! What keeps a rule from matching a flow.

use std::{
    collections::BTreeSet,
    fmt::{self, Display, Formatter},
    net::IpAddr,
};

use ipnet::IpNet;

use super::{End, Known};
use crate::{
    object::{
        Block, Group, Labels, NamedPort, Peer, PortMatch, Requirement, Rule, Scope, Selector,
    },
    verdict::Transport,
};

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Miss {
    /// The rule speaks of other ports.
    Port {
        asked: Transport,
        ports: Vec<PortMatch>,
    },
    /// The other end is no pod, and the rule speaks of pods.
    NoPod(String),
    /// The other end is no node, and the rule speaks of nodes.
    NoNode(String),
    Namespace {
        is: String,
        wanted: String,
    },
    NamespaceLabel {
        namespace: String,
        value: Option<String>,
        wanted: Requirement,
    },
    Label {
        who: String,
        value: Option<String>,
        wanted: Requirement,
    },
    OutsideBlock {
        address: IpAddr,
        net: IpNet,
    },
    Excepted {
        address: IpAddr,
        except: IpNet,
    },
}

/// Of a rule with several peers, what the nearest of them misses.
pub fn misses(
    rule: &Rule,
    remote: &End,
    asked: Transport,
    destination_ports: &[NamedPort],
) -> Vec<Miss> {
    let by_peer = rule.peers.iter().map(|peer| peer_misses(peer, remote));
    let mut misses = by_peer.min_by_key(Vec::len).unwrap_or_default();
    let fits = |port: &PortMatch| port_fits(port, asked, destination_ports);
    if !rule.ports.is_empty() && !rule.ports.iter().any(fits) {
        misses.push(Miss::Port {
            asked,
            ports: rule.ports.clone(),
        });
    }
    misses
}

fn port_fits(port: &PortMatch, asked: Transport, destination_ports: &[NamedPort]) -> bool {
    let Some((spoken, number)) = asked.port() else {
        return false;
    };
    match port {
        PortMatch::Numbers {
            protocol,
            first,
            last,
        } => *protocol == spoken && *first <= number && number <= *last,
        PortMatch::Named { protocol, name } => destination_ports.iter().any(|port| {
            port.name == *name
                && (port.protocol, port.port) == (spoken, number)
                && protocol.is_none_or(|protocol| protocol == spoken)
        }),
    }
}

fn peer_misses(peer: &Peer, remote: &End) -> Vec<Miss> {
    match (peer, &remote.who) {
        (Peer::Block(block), _) => block_misses(block, remote.address),
        (Peer::Nodes(selector), Known::Node { labels, .. }) => {
            label_misses(selector, labels, &remote.to_string()).collect()
        }
        (Peer::Nodes(_), _) => vec![Miss::NoNode(remote.to_string())],
        (
            Peer::Pods(group),
            Known::Pod {
                namespace, labels, ..
            },
        ) => {
            let mut misses = namespace_misses(group, &namespace.name, &namespace.labels);
            misses.extend(label_misses(&group.pods, labels, &remote.to_string()));
            misses
        }
        (Peer::Pods(_), _) => vec![Miss::NoPod(remote.to_string())],
    }
}

fn block_misses(block: &Block, address: IpAddr) -> Vec<Miss> {
    if !block.net.contains(&address) {
        let net = block.net;
        return vec![Miss::OutsideBlock { address, net }];
    }
    let except = block.except.iter().find(|net| net.contains(&address));
    except
        .map(|net| Miss::Excepted {
            address,
            except: *net,
        })
        .into_iter()
        .collect()
}

fn namespace_misses(group: &Group, name: &str, labels: &Labels) -> Vec<Miss> {
    match &group.namespaces {
        Scope::Named(wanted) if wanted == name => Vec::new(),
        Scope::Named(wanted) => vec![Miss::Namespace {
            is: name.to_owned(),
            wanted: wanted.clone(),
        }],
        Scope::Matching(selector) => unmet(selector, labels)
            .map(|(value, wanted)| Miss::NamespaceLabel {
                namespace: name.to_owned(),
                value,
                wanted,
            })
            .collect(),
    }
}

fn label_misses<'a>(
    selector: &'a Selector,
    labels: &'a Labels,
    who: &'a str,
) -> impl Iterator<Item = Miss> + 'a {
    unmet(selector, labels).map(|(value, wanted)| Miss::Label {
        who: who.to_owned(),
        value,
        wanted,
    })
}

/// Requirements that are not met, and the value that is there instead.
fn unmet<'a>(
    selector: &'a Selector,
    labels: &'a Labels,
) -> impl Iterator<Item = (Option<String>, Requirement)> + 'a {
    let unmet = selector
        .requirements()
        .filter(|requirement| !requirement.is_met(labels));
    unmet.map(|requirement| {
        let value = labels.value(requirement.key()).map(str::to_owned);
        (value, requirement.clone())
    })
}

impl Display for Miss {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Port { asked, ports } => {
                let ports = list(ports.iter());
                match asked {
                    Transport::Other(_) => write!(f, "{asked} has no port, and it names {ports}"),
                    _ => write!(f, "port {asked} is not {ports}"),
                }
            }
            Self::NoPod(who) => write!(f, "{who} is no pod"),
            Self::NoNode(who) => write!(f, "{who} is no node"),
            Self::Namespace { is, wanted } => write!(f, "namespace {is} is not {wanted}"),
            Self::NamespaceLabel {
                namespace,
                value,
                wanted,
            } => {
                write!(f, "namespace {namespace} ")?;
                label(f, value.as_deref(), wanted)
            }
            Self::Label { who, value, wanted } => {
                write!(f, "{who} ")?;
                label(f, value.as_deref(), wanted)
            }
            Self::OutsideBlock { address, net } => write!(f, "{address} is not in {net}"),
            Self::Excepted { address, except } => {
                write!(f, "{address} is in {except}, which is excepted")
            }
        }
    }
}

fn label(f: &mut Formatter<'_>, value: Option<&str>, wanted: &Requirement) -> fmt::Result {
    match (wanted, value) {
        (Requirement::In(key, values), Some(value)) => {
            write!(f, "has {key}={value}, not {}", list(values.iter()))
        }
        (Requirement::In(key, values), None) => {
            write!(f, "has no label {key}, not {}", list(values.iter()))
        }
        (Requirement::Exists(key), _) => write!(f, "has no label {key}"),
        (Requirement::NotIn(key, _), value) => {
            write!(
                f,
                "has {key}={}, which is shut out",
                value.unwrap_or_default()
            )
        }
        (Requirement::DoesNotExist(key), _) => {
            write!(f, "has the label {key}, which is shut out")
        }
    }
}

fn list<T: Display>(items: impl Iterator<Item = T>) -> String {
    let once: BTreeSet<_> = items.map(|item| item.to_string()).collect();
    Vec::from_iter(once).join(" or ")
}

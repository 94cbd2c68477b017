//! Protocols and ports that rules name.

use std::fmt::{self, Display, Formatter};

use serde::Deserialize;

use super::{labels::check, spelling};

/// The protocols whose ports policies can tell apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Protocol {
    #[default]
    Tcp,
    Udp,
    Sctp,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PortMatch {
    /// Both ends belong to it; all ports are 0 to 65535.
    Numbers {
        protocol: Protocol,
        first: u16,
        last: u16,
    },
    /// The port that the destination pod gives this name. Of any protocol if
    /// none is told.
    Named {
        protocol: Option<Protocol>,
        name: String,
    },
}

impl PortMatch {
    pub const fn every(protocol: Protocol) -> Self {
        let (first, last) = (0, u16::MAX);
        Self::Numbers {
            protocol,
            first,
            last,
        }
    }
}

/// As `networking.k8s.io/v1` spells it.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct NetworkPort {
    protocol: Option<Protocol>,
    port: Option<NumberOrName>,
    end_port: Option<i64>,
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "expected a port's number or name")]
enum NumberOrName {
    Number(i64),
    Name(String),
}

impl TryFrom<NetworkPort> for PortMatch {
    type Error = String;

    fn try_from(text: NetworkPort) -> Result<Self, String> {
        let protocol = text.protocol.unwrap_or_default();
        match (text.port, text.end_port) {
            (None, None) => Ok(Self::every(protocol)),
            (None, Some(_)) => Err("endPort without port: say where the range begins".into()),
            (Some(NumberOrName::Name(name)), Some(_)) => Err(format!(
                "endPort with the named port \"{name}\": a range begins with a number"
            )),
            (Some(NumberOrName::Name(name)), None) => named(Some(protocol), name),
            (Some(NumberOrName::Number(first)), last) => {
                let (first, last) = (number(first)?, number(last.unwrap_or(first))?);
                if last < first {
                    return Err(format!("endPort {last} is less than port {first}"));
                }
                Ok(Self::Numbers {
                    protocol,
                    first,
                    last,
                })
            }
        }
    }
}

/// As `policy.networking.k8s.io/v1alpha2` spells it.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct ClusterPort {
    tcp: Option<ClusterPortOfProtocol>,
    udp: Option<ClusterPortOfProtocol>,
    sctp: Option<ClusterPortOfProtocol>,
    destination_named_port: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct ClusterPortOfProtocol {
    destination_port: NumberOrRange,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NumberOrRange {
    number: Option<i64>,
    range: Option<Range>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Range {
    start: i64,
    end: i64,
}

impl TryFrom<ClusterPort> for PortMatch {
    type Error = String;

    fn try_from(text: ClusterPort) -> Result<Self, String> {
        let (protocol, port) = match (text.tcp, text.udp, text.sctp, text.destination_named_port) {
            (Some(port), None, None, None) => (Protocol::Tcp, port),
            (None, Some(port), None, None) => (Protocol::Udp, port),
            (None, None, Some(port), None) => (Protocol::Sctp, port),
            (None, None, None, Some(name)) => return named(None, name),
            _ => return Err("say exactly one of tcp, udp, sctp and destinationNamedPort".into()),
        };
        let NumberOrRange { number: one, range } = port.destination_port;
        let (first, last) = match (one, range) {
            (Some(one), None) => (number(one)?, number(one)?),
            (None, Some(Range { start, end })) => (number(start)?, number(end)?),
            _ => return Err("destinationPort: say exactly one of number and range".into()),
        };
        if one.is_none() && last <= first {
            return Err(format!(
                "range: end {last} is not greater than start {first}"
            ));
        }
        Ok(Self::Numbers {
            protocol,
            first,
            last,
        })
    }
}

fn named(protocol: Option<Protocol>, name: String) -> Result<PortMatch, String> {
    check(&name, spelling::port_name)?;
    Ok(PortMatch::Named { protocol, name })
}

pub(super) fn number(text: i64) -> Result<u16, String> {
    match u16::try_from(text) {
        Ok(number) if number > 0 => Ok(number),
        _ => Err(format!("{text} is no port: 1 to 65535")),
    }
}

impl Protocol {
    pub const ALL: [Self; 3] = [Self::Tcp, Self::Udp, Self::Sctp];
}

impl Display for Protocol {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
            Self::Sctp => "SCTP",
        })
    }
}

impl Display for PortMatch {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Numbers {
                protocol,
                first: 0,
                last: u16::MAX,
            } => write!(f, "all {protocol}"),
            Self::Numbers {
                protocol,
                first,
                last,
            } if first == last => {
                write!(f, "{first}/{protocol}")
            }
            Self::Numbers {
                protocol,
                first,
                last,
            } => write!(f, "{first}-{last}/{protocol}"),
            Self::Named {
                protocol: Some(protocol),
                name,
            } => write!(f, "{name}/{protocol}"),
            Self::Named {
                protocol: None,
                name,
            } => f.write_str(name),
        }
    }
}

//! `weft ipam node`: which nodes there are, and how they are reached.

use std::{net::IpAddr, process::ExitCode};

use clap::Subcommand;
use ipnet::IpNet;
use weft_api::{
    forwarder::DEFAULT_PORT,
    ipam::{Node, Reply, Request},
    names::{Mac, Name, NameError, Vni},
};
use weft_forwarder::config::mac_of;

use super::{
    Session,
    words::{joined, name},
};
use crate::output::{lines, table};

/// Which nodes there are, and how they are reached.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// List the nodes.
    List,
    Put(Put),
    /// Forget a node, with its tunnel addresses and its empty blocks.
    Delete {
        #[arg(value_parser = name)]
        name: Name,
    },
}

/// Make a node known, or replace what is known of it.
#[derive(Debug, clap::Args)]
pub struct Put {
    #[arg(value_parser = name)]
    name: Name,
    /// An underlay address with its subnet's length, as 192.0.2.1/24; at
    /// most one of each family.
    #[arg(long, value_name = "ADDRESS/LENGTH", required = true)]
    underlay: Vec<IpNet>,
    /// The MAC of its tunnel's end [default: what its forwarder makes of the
    /// name].
    #[arg(long, value_name = "MAC")]
    vtep_mac: Option<Mac>,
    #[arg(long, default_value_t = Vni::DEFAULT.value())]
    vni: u32,
    /// The UDP port of its VXLAN.
    #[arg(long, default_value_t = DEFAULT_PORT)]
    port: u16,
    /// Its own address in the pod network.
    #[arg(long, value_name = "ADDRESS")]
    tunnel: Vec<IpAddr>,
    /// A label for the pools' node selectors.
    #[arg(long, value_name = "KEY=VALUE", value_parser = label)]
    label: Vec<(String, String)>,
}

fn label(text: &str) -> Result<(String, String), String> {
    let (key, value) = text
        .split_once('=')
        .filter(|(key, _)| !key.is_empty())
        .ok_or("write KEY=VALUE")?;
    Ok((key.to_owned(), value.to_owned()))
}

pub fn run(command: Command, session: &mut Session) -> anyhow::Result<ExitCode> {
    match command {
        Command::List => {
            let nodes = session.ask(&Request::Nodes, |reply| match reply {
                Reply::Nodes(nodes) => Some(nodes),
                _ => None,
            })?;
            session.print(&nodes, |nodes| page(nodes))
        }
        Command::Put(put) => {
            let made = format!("node {} is known", put.name);
            session.change(&Request::NodePut(Box::new(put.node()?)), &made)
        }
        Command::Delete { name } => {
            let made = format!("node {name} is forgotten");
            session.change(&Request::NodeDelete { name }, &made)
        }
    }
}

impl Put {
    fn node(self) -> Result<Node, NameError> {
        Ok(Node {
            vtep_mac: self.vtep_mac.unwrap_or_else(|| mac_of(&self.name)),
            name: self.name,
            underlay: self.underlay,
            vni: Vni::new(self.vni)?,
            port: self.port,
            tunnel: self.tunnel,
            labels: self.label.into_iter().collect(),
            registered: None,
        })
    }
}

fn page(nodes: &[Node]) -> String {
    if nodes.is_empty() {
        return "no node is known; make one known by weft ipam node put\n".to_owned();
    }
    let mut rows = table(&[
        "node", "underlay", "vtep mac", "vni", "port", "tunnel", "labels",
    ]);
    for node in nodes {
        let labels: Vec<_> = node
            .labels
            .iter()
            .map(|(key, value)| format!("{key}={value}"))
            .collect();
        rows.add_row([
            node.name.to_string(),
            joined(&node.underlay),
            node.vtep_mac.to_string(),
            node.vni.value().to_string(),
            node.port.to_string(),
            joined(&node.tunnel),
            labels.join(", "),
        ]);
    }
    lines(&rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_have_a_key() {
        assert_eq!(label("rack=a=b"), Ok(("rack".into(), "a=b".into())));
        assert_eq!(label("rack="), Ok(("rack".into(), String::new())));
        assert!(label("rack").is_err() && label("=a").is_err());
    }
}

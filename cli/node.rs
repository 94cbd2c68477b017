//! `weft node`: which nodes there are, how they are reached, whether they live,
//! and what is behind them.

use std::{collections::BTreeMap, process::ExitCode};

use anyhow::Context;
use clap::Subcommand;
use ipnet::IpNet;
use serde::Serialize;
use weft_api::{
    ipam::{BlockUsage, Node, Reply, Request, Time},
    names::Name,
};

use crate::{
    ipam::{
        Server, Session,
        age::{ago, now},
        words::{joined, maybe, name, word},
    },
    output::{lines, table},
};

/// See which nodes there are, and whether they live.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    server: Server,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// List the nodes, also those that were withdrawn and still own blocks.
    List,
    /// Show all that is known of one.
    Show {
        #[arg(value_parser = name)]
        name: Name,
    },
}

pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let mut session = args.server.session()?;
    let members = members(&mut session)?;
    match args.command {
        Command::List => session.print(&members, |members| page(members, now())),
        Command::Show { name } => {
            let found = members.into_iter().find(|member| member.name == name);
            let member = found.with_context(|| {
                format!("node {name} is unknown; weft node list shows those that are known")
            })?;
            session.print(&member, |member| sheet(member, now()))
        }
    }
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
enum State {
    /// It registered, and is heard.
    Alive,
    /// An operator says so, whether it lives or not.
    ByHand,
    /// It has blocks, and no record: it left, or is not heard.
    Withdrawn,
}

#[derive(Debug, Serialize)]
struct Member {
    name: Name,
    state: State,
    /// None of one that was withdrawn.
    record: Option<Node>,
    blocks: Vec<IpNet>,
    /// Held in its blocks.
    addresses: u64,
}

fn members(session: &mut Session) -> anyhow::Result<Vec<Member>> {
    let nodes = session.ask(&Request::Nodes, |reply| match reply {
        Reply::Nodes(nodes) => Some(nodes),
        _ => None,
    })?;
    let blocks = session.ask(&Request::Blocks, |reply| match reply {
        Reply::Blocks(blocks) => Some(blocks),
        _ => None,
    })?;
    Ok(joined_by_name(nodes, blocks))
}

fn joined_by_name(nodes: Vec<Node>, blocks: Vec<BlockUsage>) -> Vec<Member> {
    let mut members = BTreeMap::new();
    for node in nodes {
        let state = match node.registered {
            Some(_) => State::Alive,
            None => State::ByHand,
        };
        let mut member = Member::new(node.name.clone(), state);
        member.record = Some(node);
        members.insert(member.name.clone(), member);
    }
    for block in blocks {
        let Some(owner) = block.owner else { continue };
        let new = || Member::new(owner.clone(), State::Withdrawn);
        let member = members.entry(owner.clone()).or_insert_with(new);
        member.blocks.push(block.block);
        member.addresses += block.usage.used;
    }
    members.into_values().collect()
}

impl Member {
    fn new(name: Name, state: State) -> Self {
        Self {
            name,
            state,
            record: None,
            blocks: Vec::new(),
            addresses: 0,
        }
    }

    fn since(&self, now: Time) -> Option<String> {
        Some(ago(self.record.as_ref()?.registered?, now))
    }
}

fn page(members: &[Member], now: Time) -> String {
    if members.is_empty() {
        return "no node is known; start its forwarder with --register, or make it known by \
                weft ipam node put\n"
            .to_owned();
    }
    let mut rows = table(&[
        "node",
        "state",
        "registered",
        "underlay",
        "vtep mac",
        "tunnel",
        "blocks",
        "addresses",
    ]);
    for member in members {
        let record = member.record.as_ref();
        rows.add_row([
            member.name.to_string(),
            word(&member.state),
            maybe(&member.since(now)),
            maybe(&record.map(|node| joined(&node.underlay))),
            maybe(&record.map(|node| node.vtep_mac)),
            maybe(&record.map(|node| joined(&node.tunnel))),
            joined(&member.blocks),
            member.addresses.to_string(),
        ]);
    }
    lines(&rows)
}

fn sheet(member: &Member, now: Time) -> String {
    let mut page = format!("node       {}\n", member.name);
    let mut line = |what: &str, value: String| page += &format!("{what:<11}{value}\n");
    line("state", word(&member.state));
    if let Some(node) = &member.record {
        line("registered", maybe(&member.since(now)));
        line("underlay", joined(&node.underlay));
        line("vtep mac", node.vtep_mac.to_string());
        line(
            "vxlan",
            format!("VNI {}, port {}", node.vni.value(), node.port),
        );
        line("tunnel", joined(&node.tunnel));
        let label = |(key, value): (&String, &String)| format!("{key}={value}");
        let labels: Vec<_> = node.labels.iter().map(label).collect();
        line("labels", joined(&labels));
    }
    line("blocks", joined(&member.blocks));
    line("addresses", member.addresses.to_string());
    page
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn each_node_is_told_with_its_state_and_its_blocks() {
        let nodes = serde_json::from_value(json!([
            {"name": "n1", "underlay": ["192.0.2.1/24"], "vtep_mac": "02:00:00:00:01:01",
             "registered": 60_000},
            {"name": "n2", "underlay": ["192.0.2.2/24"], "vtep_mac": "02:00:00:00:01:02",
             "labels": {"rack": "a"}},
        ]));
        let block = |block: &str, owner: Option<&str>| {
            json!({"block": block, "pool": "p", "owner": owner, "affinity": "confirmed",
                "total": 64, "used": 3, "kept": 0, "resting": 0, "reserved": 0, "free": 61})
        };
        let blocks = serde_json::from_value(json!([
            block("10.1.0.0/26", Some("n1")),
            block("10.1.0.64/26", Some("n3")),
            block("10.1.0.128/26", Some("n1")),
            block("10.1.0.192/26", None),
        ]));
        let members = joined_by_name(nodes.expect("nodes"), blocks.expect("blocks"));
        let page = page(&members, 180_000);
        for parts in [
            ["n1", "alive", "2 min ago", "10.1.0.0/26", "6"],
            ["n2", "by-hand", "02:00:00:00:01:02", "192.0.2.2/24", "0"],
            ["n3", "withdrawn", "  ", "10.1.0.64/26", "3"],
        ] {
            let line = page.lines().find(|line| line.starts_with(parts[0]));
            let line = line.expect("each has a line");
            assert!(parts.iter().all(|part| line.contains(part)), "{page}");
        }
        let sheet = sheet(&members[1], 0);
        assert!(
            sheet.contains("rack=a") && sheet.contains("VNI 4096, port 4789"),
            "{sheet}"
        );
    }
}

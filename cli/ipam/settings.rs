//! `weft ipam configure` and `config`: the settings of the whole cluster.

use std::process::ExitCode;

use weft_api::ipam::{Config, ConfigChange, Reply, Request};

use super::Session;

/// Change settings; those that are not given stay.
#[derive(Debug, clap::Args)]
#[group(required = true, multiple = true)]
pub struct Args {
    /// Whether addresses come from the node's own blocks only.
    #[arg(long, value_name = "BOOL")]
    strict_affinity: Option<bool>,
    /// Whether nodes may claim blocks.
    #[arg(long, value_name = "BOOL")]
    claim_blocks: Option<bool>,
    /// Most blocks of one family a node may own; 0 takes the limit away.
    #[arg(long, value_name = "COUNT")]
    blocks_per_node: Option<u32>,
    /// How long a released address rests.
    #[arg(long, value_name = "SECONDS")]
    cooldown: Option<u32>,
}

pub fn change(args: Args, session: &mut Session) -> anyhow::Result<ExitCode> {
    let change = ConfigChange {
        strict_affinity: args.strict_affinity,
        claim_blocks: args.claim_blocks,
        blocks_per_node: args.blocks_per_node,
        cooldown_seconds: args.cooldown,
    };
    session.change(&Request::Configure(change), "the settings are changed")
}

pub fn show(session: &mut Session) -> anyhow::Result<ExitCode> {
    let config = session.ask(&Request::Config, |reply| match reply {
        Reply::Config(config) => Some(config),
        _ => None,
    })?;
    session.print(&config, page)
}

fn page(config: &Config) -> String {
    let limit = match config.blocks_per_node {
        Some(limit) => limit.to_string(),
        None => "no limit".to_owned(),
    };
    format!(
        "strict affinity  {}\nclaim blocks     {}\nblocks per node  {limit}\ncooldown         {} s\n",
        config.strict_affinity, config.claim_blocks, config.cooldown_seconds
    )
}

//! Which forwarder a command speaks to.

use std::{env, path::PathBuf};

use anyhow::Context;
use weft_api::forwarder::{Reply, Request};
use weft_cni::forwarder::Client;

const DEFAULT: &str = "/run/weft/forwarder.sock";

#[derive(Debug, clap::Args)]
pub struct Target {
    /// The forwarder's control socket [default: $WEFT_CONTROL, else
    /// /run/weft/forwarder.sock].
    #[arg(long, value_name = "PATH", conflicts_with = "lab")]
    control: Option<PathBuf>,
    /// Speak to a forwarder of this lab.
    #[arg(long, value_name = "NAME")]
    lab: Option<String>,
    /// The node of the lab.
    #[arg(long, value_name = "NODE", requires = "lab", default_value = "n1")]
    node: String,
}

impl Target {
    pub fn connect(&self) -> anyhow::Result<Client> {
        Ok(Client::connect(&self.path()?)?)
    }

    pub fn path(&self) -> anyhow::Result<PathBuf> {
        if let Some(control) = &self.control {
            return Ok(control.clone());
        }
        if let Some(lab) = &self.lab {
            return lab_socket(lab, &self.node);
        }
        let named = env::var_os("WEFT_CONTROL").filter(|path| !path.is_empty());
        Ok(named.map_or_else(|| DEFAULT.into(), PathBuf::from))
    }
}

fn lab_socket(lab: &str, node: &str) -> anyhow::Result<PathBuf> {
    let nodes = weft_lab::session::status(lab)?.state.nodes;
    let names: Vec<String> = nodes.iter().map(|node| node.plan.name.clone()).collect();
    let named = nodes.into_iter().find(|other| other.plan.name == node);
    let named = named.with_context(|| {
        format!(
            "lab {lab} has no node {node}; its nodes are {}",
            names.join(", ")
        )
    })?;
    let forwarder = named.forwarder.with_context(|| {
        format!("node {node} of lab {lab} has no forwarder: the kernel carries its packets")
    })?;
    Ok(forwarder.control)
}

/// Asks for what only one kind of reply can answer.
pub fn ask<T>(
    client: &mut Client,
    request: &Request,
    expected: impl FnOnce(Reply) -> Option<T>,
) -> anyhow::Result<T> {
    let reply = client.request(request)?;
    expected(reply).with_context(|| {
        format!(
            "the forwarder's answer to {request:?} is of another kind; are both of one version?"
        )
    })
}

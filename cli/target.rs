//! Which forwarder a command speaks to.

use std::{env, path::PathBuf};

use anyhow::Context;
use weft_api::{
    forwarder::{Reply, Request},
    names::Name,
};
use weft_cni::forwarder::Client;

const DEFAULT: &str = "/run/weft/forwarder.sock";

#[derive(Debug, clap::Args)]
pub struct Target {
    /// The forwarder's control socket [default: $WEFT_CONTROL, else
    /// /run/weft/forwarder.sock].
    #[arg(long, value_name = "PATH", conflicts_with = "lab")]
    control: Option<PathBuf>,
    /// Speak to a forwarder of this lab.
    #[arg(long, value_name = "NAME", value_parser = plain)]
    lab: Option<String>,
    /// The node of the lab.
    #[arg(long, value_name = "NODE", requires = "lab", default_value = "n1", value_parser = plain)]
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

/// A name that is no path.
fn plain(text: &str) -> Result<String, String> {
    let name = Name::new(text).map_err(|fault| fault.to_string())?;
    if name.as_str().contains('/') {
        return Err(format!("{name} holds a '/'"));
    }
    Ok(name.into())
}

fn lab_socket(lab: &str, node: &str) -> anyhow::Result<PathBuf> {
    let folder = weft_lab::dir_of(lab)?;
    let known = folder.is_dir();
    known.then_some(()).with_context(|| {
        format!("there is no lab {lab} of this user; `weft lab up --name {lab}` makes one")
    })?;
    Ok(folder.join(format!("{node}.sock")))
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

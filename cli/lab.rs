//! `weft lab`: throw-away nodes and pods to try things on.

use std::{ffi::OsString, io, process::ExitCode};

use clap::{Args, Subcommand, ValueEnum};
use comfy_table::Table;
use weft_lab::{
    Attach, Spec, State, keeper,
    session::{self, Status},
};

use crate::output::{lines, show, show_json, table};

/// Bring up nodes and pods in network namespaces, to try things on.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Bring up a lab that stays until `weft lab down`.
    Up(Up),
    /// Show the parts of a lab, and whether they live.
    Status {
        #[command(flatten)]
        name: Name,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Run a command inside a pod or a node.
    Exec {
        #[command(flatten)]
        name: Name,
        /// A pod, as n1p1, or a node, as n1.
        #[arg(value_name = "POD_OR_NODE")]
        place: String,
        #[arg(last = true, required = true, value_name = "CMD")]
        command: Vec<OsString>,
    },
    /// End a lab and everything that runs in it.
    Down {
        #[command(flatten)]
        name: Name,
    },
}

#[derive(Debug, Args)]
pub struct Name {
    /// Which lab.
    #[arg(long, default_value = "lab")]
    name: String,
}

#[derive(Debug, Args)]
pub struct Up {
    /// Nodes, joined by an underlay of 192.0.2.0/24 and 2001:db8::/64.
    #[arg(long, default_value_t = 2)]
    nodes: usize,
    /// Pods on each node.
    #[arg(long, default_value_t = 2)]
    pods: usize,
    /// The underlay's MTU.
    #[arg(long, default_value_t = 1500)]
    mtu: u16,
    /// How pods are attached.
    #[arg(long, value_enum, default_value_t)]
    attach: AttachBy,
    /// Workers of each node's forwarder.
    #[arg(long, value_name = "COUNT")]
    workers: Option<usize>,
    #[command(flatten)]
    name: Name,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, Default, ValueEnum)]
pub enum AttachBy {
    #[default]
    Tap,
    Veth,
}

impl From<AttachBy> for Attach {
    fn from(by: AttachBy) -> Self {
        match by {
            AttachBy::Tap => Self::Tap,
            AttachBy::Veth => Self::Veth,
        }
    }
}

pub fn run(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Up(up) => up.run(),
        Command::Status { name, json } => status(&name.name, json),
        Command::Exec {
            name,
            place,
            command,
        } => exec(&name.name, &place, &command),
        Command::Down { name } => {
            if let Some(caution) = session::down(&name.name)? {
                eprintln!("weft: {caution}");
            }
            Ok(ExitCode::SUCCESS)
        }
    }
}

impl Up {
    fn run(self) -> anyhow::Result<ExitCode> {
        let state = keeper::start(&Spec {
            name: self.name.name,
            nodes: self.nodes,
            pods: self.pods,
            mtu: self.mtu,
            attach: self.attach.into(),
            workers: self.workers,
            ..Spec::default()
        })?;
        if self.json {
            return show_json(&state);
        }
        let name = &state.spec.name;
        let (first, last) = (state.nodes.first(), state.nodes.last());
        let pods = first
            .and_then(|n| n.plan.pods.first())
            .zip(last.and_then(|n| n.plan.pods.last()));
        let mut text = lines(&places(&state, |_| "up"));
        if let Some((from, to)) = pods {
            text += &format!(
                "\ntry: weft lab exec --name {name} {} -- ping {}\nend: weft lab down --name {name}\n",
                from.name, to.v4
            );
        }
        show(&text)
    }
}

/// Fails where a part of the lab is dead, for scripts.
fn status(name: &str, json: bool) -> anyhow::Result<ExitCode> {
    let status = session::status(name)?;
    if json {
        show_json(&status)?;
    } else {
        let forwarder = |at: usize| match status.forwarder_runs.get(at).copied().flatten() {
            Some(true) => "up",
            Some(false) => "dead",
            None => "none",
        };
        let places = lines(&places(&status.state, forwarder));
        let ipam = match &status.state.ipam {
            Some(ipam) => format!("\nIPAM server: {}\n", ipam.socket.display()),
            None => String::new(),
        };
        show(&format!(
            "lab {name}: {}\n\n{places}{ipam}",
            summary(&status)
        ))?;
    }
    Ok(if status.is_whole() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn summary(status: &Status) -> String {
    let State { keeper, nodes, .. } = &status.state;
    let dead = |at: &usize| status.forwarder_runs.get(*at) == Some(&Some(false));
    let dead = (0..nodes.len()).filter(dead);
    let mut dead: Vec<_> = dead
        .map(|at| format!("the forwarder of {}", nodes[at].plan.name))
        .collect();
    if status.ipam_runs == Some(false) {
        dead.push("the IPAM server".to_owned());
    }
    if !status.keeper_runs {
        "dead, its keeper is gone; clean up by weft lab down".to_owned()
    } else if nodes.is_empty() {
        format!("coming up, kept by process {}", keeper.pid)
    } else if dead.is_empty() {
        format!("up, kept by process {}", keeper.pid)
    } else {
        format!(
            "kept by process {}, but {} {} dead",
            keeper.pid,
            dead.join(" and "),
            if dead.len() == 1 { "is" } else { "are" }
        )
    }
}

fn places(state: &State, forwarder: impl Fn(usize) -> &'static str) -> Table {
    let mut table = table(&["node", "underlay", "forwarder", "pod", "addresses"]);
    for (at, node) in state.nodes.iter().enumerate() {
        let underlay = node
            .plan
            .underlay
            .map(|address| address.to_string())
            .join(" ");
        let mut left = [node.plan.name.clone(), underlay, forwarder(at).to_owned()];
        for pod in &node.plan.pods {
            let addresses = pod.addresses().map(|address| address.to_string()).join(" ");
            table.add_row(left.into_iter().chain([pod.name.clone(), addresses]));
            left = Default::default();
        }
    }
    table
}

/// As shells do: 127 for a command that is not there, 126 for one that may
/// not run.
fn exec(name: &str, place: &str, command: &[OsString]) -> anyhow::Result<ExitCode> {
    let Err(error) = session::exec(name, place, command);
    let code = match error
        .downcast_ref::<session::NotRun>()
        .map(|e| e.error.kind())
    {
        Some(io::ErrorKind::NotFound) => 127,
        Some(_) => 126,
        None => return Err(error),
    };
    eprintln!("weft: {error:#}");
    Ok(ExitCode::from(code))
}

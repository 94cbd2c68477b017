//! `weft ipam status`: who answers.

use std::process::ExitCode;

use weft_api::ipam::{Reply, Request, Status};

use super::Session;
use crate::output::counted;

pub fn run(session: &mut Session) -> anyhow::Result<ExitCode> {
    let status = session.ask(&Request::Status, |reply| match reply {
        Reply::Status(status) => Some(status),
        _ => None,
    })?;
    session.print(&status, page)
}

fn page(status: &Status) -> String {
    format!(
        "server  weft-ipam {}, process {}, {}\nstore   {}, revision {}\nholds   {}, {}, {}, addresses: {}\n",
        status.version,
        status.pid,
        counted(status.clients, "client"),
        status.store,
        status.revision,
        counted(status.pools, "pool"),
        counted(status.blocks, "block"),
        counted(status.nodes, "node"),
        status.allocations,
    )
}

//! `weft ipam watch`: nodes and routes as they change.

use std::{
    io::{self, ErrorKind, Write},
    process::ExitCode,
};

use weft_api::ipam::{Event, Node, Route};

use super::{
    Session, told,
    words::{joined, word},
};

/// Print nodes and routes as they change, until interrupted; with --json one
/// event a line.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Go on after this revision, not from a snapshot.
    #[arg(long, value_name = "REVISION")]
    from: Option<u64>,
}

pub fn run(args: Args, session: Session) -> anyhow::Result<ExitCode> {
    let Session { client, json } = session;
    let (mut watch, mut event) = client.watch(args.from).map_err(told)?;
    let mut output = io::stdout();
    loop {
        let text = if json {
            serde_json::to_string(&event)? + "\n"
        } else {
            text(&event)
        };
        match output.write_all(text.as_bytes()) {
            Ok(()) => {}
            // Whoever reads has read enough.
            Err(fault) if fault.kind() == ErrorKind::BrokenPipe => return Ok(ExitCode::SUCCESS),
            Err(fault) => return Err(fault.into()),
        }
        event = watch.next_event().map_err(told)?;
    }
}

fn text(event: &Event) -> String {
    match event {
        Event::Snapshot {
            revision,
            nodes,
            routes,
        } => {
            let nodes = nodes.iter().map(|each| node(*revision, each));
            let routes = routes.iter().map(|each| route(*revision, each));
            format!("{revision} snapshot\n") + &nodes.chain(routes).collect::<String>()
        }
        Event::Node {
            revision,
            node: each,
        } => node(*revision, each),
        Event::NodeGone { revision, name } => format!("{revision} node {name} is gone\n"),
        Event::Route {
            revision,
            route: each,
        } => route(*revision, each),
        Event::RouteGone { revision, net } => format!("{revision} route {net} is gone\n"),
        Event::Alive { revision } => format!("{revision} nothing new\n"),
    }
}

fn node(revision: u64, node: &Node) -> String {
    format!(
        "{revision} node {}: underlay {}, tunnel {}\n",
        node.name,
        joined(&node.underlay),
        joined(&node.tunnel)
    )
}

fn route(revision: u64, route: &Route) -> String {
    let encapsulation = word(&route.encapsulation);
    format!(
        "{revision} route {} is on {}, {encapsulation}\n",
        route.net, route.node
    )
}

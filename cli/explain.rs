//! `weft explain`: may this flow pass, and who says so? A forwarder answers
//! by what is in force, or files by what would be.

use std::{path::PathBuf, process::ExitCode};

use weft_api::forwarder::{Explain, Explanation, Reply, Request};
use weft_forwarder::feeds::{asked, told};
use weft_policy::{Change, Compiler, explain};

use crate::{
    output::{show, show_json},
    policy::load,
    target::{Target, ask},
};

/// Say whether a flow may pass, and which policy says so.
///
/// An end is an address, a port of the forwarder, a pod (NAMESPACE/NAME, or
/// NAME in default) or a node (node/NAME). Fails if the flow is denied.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    target: Target,
    #[arg(long, value_name = "END")]
    from: String,
    #[arg(long, value_name = "END")]
    to: String,
    /// PORT/tcp, PORT/udp, PORT/sctp, or icmp.
    #[arg(long, default_value = "80/tcp")]
    port: String,
    /// Ask no forwarder: judge by the objects in these files and folders.
    #[arg(short, long = "file", value_name = "PATH")]
    files: Vec<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let asked = Explain {
        from: args.from,
        to: args.to,
        port: args.port,
    };
    let explanation = if args.files.is_empty() {
        let request = Request::Explain(asked);
        ask(&mut args.target.connect()?, &request, |reply| match reply {
            Reply::Explanation(explanation) => Some(*explanation),
            _ => None,
        })?
    } else {
        offline(&args.files, &asked)?
    };
    if args.json {
        show_json(&explanation)?;
    } else {
        show(&explanation.text)?;
    }
    Ok(if explanation.allowed {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn offline(files: &[PathBuf], asked: &Explain) -> anyhow::Result<Explanation> {
    let mut compiler = Compiler::default();
    let objects = load(files)?.into_iter().map(|one| one.object);
    compiler.apply(objects.map(Change::Put));
    let flow = asked::flow(asked, compiler.objects(), |_| None)?;
    Ok(told::explanation(&explain(&compiler.rulebook(), &flow)))
}

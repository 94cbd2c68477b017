//! `weft policy`: gives a forwarder the objects of files, and shows what is
//! in force.

mod files;
mod trial;
mod watch;

use std::{path::PathBuf, process::ExitCode};

use anyhow::{Context, ensure};
use serde::Serialize;
use serde_json::Value;
use weft_api::{
    forwarder::{ObjectRef, Policies, PolicyRow, Reply, Request, Rules},
    names::Name,
};
use weft_cni::forwarder::{Client, ClientError};

pub use files::load;

use crate::{
    output::{counted, grouped, lines, show, show_json, table},
    target::{Target, ask},
};

/// Bytes of objects in one request, about: far from the longest line.
const PART_LEN: usize = 1 << 20;

/// Say who may speak to whom.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    Apply(Apply),
    Drop(Drop),
    List(List),
    Show(Show),
}

/// Put the policies, pods, namespaces and nodes of files in force, in place
/// of what the same source gave before.
#[derive(Debug, clap::Args)]
pub struct Apply {
    #[command(flatten)]
    target: Target,
    /// A file, or a folder whose .yaml, .yml and .json files are read, and
    /// those of the folders in it.
    #[arg(short, long = "file", value_name = "PATH", required = true)]
    files: Vec<PathBuf>,
    /// Whose objects they are.
    #[arg(long, value_name = "NAME", default_value = "files", value_parser = name)]
    source: Name,
    /// Go on, and put in force what changes, until interrupted. Waits for a
    /// forwarder, and gives all again to one that came back; does not see that
    /// its source was dropped.
    #[arg(long)]
    watch: bool,
    /// Files without an object withdraw all that the source gave.
    #[arg(long)]
    allow_empty: bool,
    /// Put nothing in force: tell which of the connections that are alive, and
    /// of the flows that were denied of late, would be judged otherwise. Fails
    /// if there are any.
    #[arg(long, conflicts_with = "watch")]
    dry_run: bool,
    /// Look at what flows in so many seconds.
    #[arg(
        long = "for",
        value_name = "SECONDS",
        requires = "dry_run",
        default_value_t = 0
    )]
    seconds: u64,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Forget a source and all that it gave.
#[derive(Debug, clap::Args)]
pub struct Drop {
    #[command(flatten)]
    target: Target,
    #[arg(value_name = "SOURCE", default_value = "files", value_parser = name)]
    source: Name,
}

/// List the policies in force, in the order in which they are asked.
#[derive(Debug, clap::Args)]
pub struct List {
    #[command(flatten)]
    target: Target,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Show a policy as it is in force, and the pods that it selects.
#[derive(Debug, clap::Args)]
pub struct Show {
    #[command(flatten)]
    target: Target,
    /// NAMESPACE/NAME of a NetworkPolicy, NAME of a ClusterNetworkPolicy.
    name: String,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
struct Applied {
    source: Name,
    objects: usize,
    /// Objects that the source gave before, and does not any more.
    withdrawn: usize,
    epoch: u64,
}

pub fn run(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Apply(args) if args.dry_run => trial::run(&args),
        Command::Apply(args) if args.watch => watch::run(&args),
        Command::Apply(args) => {
            let values = objects(&args)?;
            let applied = give_all(&mut args.target.connect()?, &args.source, &values)?;
            tell(&applied, args.json)
        }
        Command::Drop(args) => {
            let source = args.source;
            args.target
                .connect()?
                .request(&Request::PolicyDrop { source })?;
            Ok(ExitCode::SUCCESS)
        }
        Command::List(args) => list(&args),
        Command::Show(args) => show_one(&args),
    }
}

/// What the files say.
fn objects(args: &Apply) -> anyhow::Result<Vec<Value>> {
    let loaded = load(&args.files)?;
    ensure!(
        args.allow_empty || !loaded.is_empty(),
        "there is no object in the files; give --allow-empty to withdraw all that {} gave",
        args.source
    );
    Ok(loaded.into_iter().map(|one| one.value).collect())
}

fn give_all(client: &mut Client, source: &Name, values: &[Value]) -> anyhow::Result<Applied> {
    let Reply::Given { withdrawn, epoch } = give(client, source, values, false)? else {
        return Err(ClientError::Confused.into());
    };
    Ok(Applied {
        source: source.clone(),
        objects: values.len(),
        withdrawn,
        epoch,
    })
}

/// Hands over all objects of a source, in as many parts as it takes. Yields
/// the answer to the last.
fn give(
    client: &mut Client,
    source: &Name,
    values: &[Value],
    dry_run: bool,
) -> anyhow::Result<Reply> {
    let mut parts = parts(values).into_iter().zip(0..).peekable();
    while let Some((objects, part)) = parts.next() {
        let more = parts.peek().is_some();
        let request = Request::Policies(Policies {
            source: source.clone(),
            objects: objects.to_vec(),
            part,
            more,
            dry_run,
        });
        let reply = client.request(&request)?;
        if !more {
            return Ok(reply);
        }
    }
    Err(ClientError::Confused.into())
}

/// At least one.
fn parts(values: &[Value]) -> Vec<&[Value]> {
    let (mut parts, mut begin, mut len) = (Vec::new(), 0, 0);
    for (place, value) in values.iter().enumerate() {
        let size = value.to_string().len();
        if len > 0 && len + size > PART_LEN {
            parts.push(&values[begin..place]);
            (begin, len) = (place, 0);
        }
        len += size;
    }
    parts.push(&values[begin..]);
    parts
}

fn tell(applied: &Applied, json: bool) -> anyhow::Result<ExitCode> {
    if json {
        return show(&format!("{}\n", serde_json::to_string(applied)?));
    }
    let objects = counted(applied.objects, "object");
    let withdrawn = match applied.withdrawn {
        0 => String::new(),
        count => format!(", {count} withdrawn"),
    };
    show(&format!(
        "{objects} of {} in force{withdrawn}, epoch {}\n",
        applied.source, applied.epoch
    ))
}

fn list(args: &List) -> anyhow::Result<ExitCode> {
    let rules = ask(
        &mut args.target.connect()?,
        &Request::PolicyList,
        |reply| match reply {
            Reply::Rules(rules) => Some(rules),
            _ => None,
        },
    )?;
    if args.json {
        show_json(&rules)
    } else {
        show(&page(&rules))
    }
}

fn page(rules: &Rules) -> String {
    if rules.sources.is_empty() {
        return "no policy is in force: everybody may speak to everybody\n".to_owned();
    }
    let sources = rules
        .sources
        .iter()
        .map(|one| format!("{} ({})", one.source, counted(one.objects, "object")));
    let mut text = format!(
        "edition {}, {} connections tracked, from {}\n",
        rules.edition,
        grouped(rules.connections as u64),
        sources.collect::<Vec<_>>().join(", ")
    );
    let mut rows = table(&[
        "policy", "tier", "source", "edition", "ingress", "egress", "pods",
    ]);
    for row in &rules.policies {
        rows.add_row([
            row.policy.clone(),
            row.tier.clone(),
            row.source.to_string(),
            row.edition.to_string(),
            rules_of(row.ingress_rules),
            rules_of(row.egress_rules),
            row.pods.to_string(),
        ]);
    }
    if !rules.policies.is_empty() {
        text += &lines(&rows);
    }
    text
}

fn rules_of(count: Option<usize>) -> String {
    count.map_or_else(|| "-".to_owned(), |count| counted(count, "rule"))
}

fn show_one(args: &Show) -> anyhow::Result<ExitCode> {
    let policy = match args.name.split_once('/') {
        Some((namespace, name)) => ObjectRef {
            kind: "NetworkPolicy".into(),
            namespace: Some(namespace.into()),
            name: name.into(),
        },
        None => ObjectRef {
            kind: "ClusterNetworkPolicy".into(),
            namespace: None,
            name: args.name.clone(),
        },
    };
    let request = Request::PolicyShow { policy };
    let row = ask(&mut args.target.connect()?, &request, |reply| match reply {
        Reply::Policy(row) => Some(*row),
        _ => None,
    })?;
    if args.json {
        return show_json(&row);
    }
    show(&one_page(&row)?)
}

fn one_page(row: &PolicyRow) -> anyhow::Result<String> {
    let object = row
        .object
        .as_ref()
        .context("the forwarder left the object out")?;
    Ok(format!(
        "{}: {}, of {} since edition {}\nselects {}{}\n{}\n",
        row.policy,
        row.tier,
        row.source,
        row.edition,
        counted(row.pods, "pod"),
        row.selected
            .iter()
            .map(|pod| format!("\n  {pod}"))
            .collect::<String>(),
        serde_json::to_string_pretty(object)?
    ))
}

fn name(text: &str) -> Result<Name, String> {
    Name::new(text).map_err(|fault| fault.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_small_and_leave_nothing_out() {
        let value = |len: usize| Value::from("x".repeat(len));
        let lens = |values: Vec<Value>| -> Vec<usize> {
            parts(&values).iter().map(|part| part.len()).collect()
        };
        assert_eq!(lens(Vec::new()), [0], "an empty source is one part");
        assert_eq!(lens(vec![value(PART_LEN * 2)]), [1]);
        assert_eq!(lens(vec![value(PART_LEN / 2); 5]), [1, 1, 1, 1, 1]);
        assert_eq!(lens(vec![value(PART_LEN / 4); 7]), [3, 3, 1]);
    }
}

//! The file that names every node of a network, the same on all of them:
//! TOML, one `[[node]]` each, with the fields that `apply` has.
//!
//! A version is taken whole or not at all. [`parse`] is pure;
//! [`crate::watched`] tells that there is another version. The control thread
//! alone publishes it.

use std::{
    collections::HashMap,
    fmt::Display,
    fs::File,
    hash::Hash,
    io::{self, Read},
    ops::Range,
    path::{Path, PathBuf},
};

use ipnet::IpNet;
use serde::Deserialize;
use toml::Spanned;
use weft_api::{
    forwarder::{Node, Nodes, REQUEST_MAX},
    names::Name,
};

use crate::publish::{checks, unique::places_of};

#[derive(Debug, thiserror::Error)]
pub enum NodesError {
    #[error("nodes file {}: {error}; put a readable file there", path.display())]
    Read { path: PathBuf, error: io::Error },
    #[error("{}:{line}: {problem}; {remedy}", path.display())]
    Flaw {
        path: PathBuf,
        line: usize,
        problem: String,
        remedy: String,
    },
    #[error(
        "{}: node {node} is not in it; add it, or start the forwarder with --node and a name that \
         is there", path.display()
    )]
    Stranger { path: PathBuf, node: Name },
    /// It contradicts what the forwarder was started with, or its ports.
    #[error("{}: {refusal}", path.display())]
    Refused {
        path: PathBuf,
        refusal: weft_api::forwarder::Error,
    },
}

impl NodesError {
    /// Whether the same version may be in force later: once a pod has left
    /// that is in its way, once the file can be read.
    pub fn may_pass(&self) -> bool {
        match self {
            Self::Read { .. } | Self::Refused { .. } => true,
            Self::Flaw { .. } | Self::Stranger { .. } => false,
        }
    }
}

/// What is wrong with a version.
#[derive(Debug, PartialEq, Eq)]
pub struct Flaw {
    pub line: usize,
    pub problem: String,
    pub remedy: String,
}

/// All nodes of the file at `path`.
pub fn read(path: &Path) -> Result<Vec<Node>, NodesError> {
    let text = text_of(path).map_err(|error| NodesError::Read {
        path: path.to_owned(),
        error,
    })?;
    parse(&text).map_err(|flaw| NodesError::Flaw {
        path: path.to_owned(),
        line: flaw.line,
        problem: flaw.problem,
        remedy: flaw.remedy,
    })
}

/// The file at `path` as node `own` has to see it.
pub fn read_as(path: &Path, own: &Name) -> Result<Nodes, NodesError> {
    let mut peers = read(path)?;
    let place = peers.iter().position(|node| node.name == *own);
    let place = place.ok_or_else(|| NodesError::Stranger {
        path: path.to_owned(),
        node: own.clone(),
    })?;
    let node = peers.remove(place);
    Ok(Nodes { node, peers })
}

fn text_of(path: &Path) -> io::Result<String> {
    let file = File::open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("it is no plain file"));
    }
    let mut text = String::new();
    // As large as the same nodes may be by `apply`.
    let most = REQUEST_MAX as u64;
    if file.take(most + 1).read_to_string(&mut text)? as u64 > most {
        return Err(io::Error::other(format!("it has more than {most} bytes")));
    }
    Ok(text)
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Table {
    #[serde(rename = "node", default)]
    nodes: Vec<Spanned<Node>>,
}

/// The nodes that `text` lists, none of which may have what is another's.
pub fn parse(text: &str) -> Result<Vec<Node>, Flaw> {
    let table: Table = toml::from_str(text).map_err(|error| Flaw {
        line: error.span().map_or(1, |span| line_of(text, &span)),
        problem: error.message().replace('\n', ", "),
        remedy: "docs/static.md shows each key".to_owned(),
    })?;
    let entry = |node: &Spanned<Node>| (line_of(text, &node.span()), node.get_ref().clone());
    let entries: Vec<_> = table.nodes.iter().map(entry).collect();
    for (line, node) in &entries {
        checks::node(node).map_err(|error| Flaw {
            line: *line,
            problem: error.message,
            remedy: error.hint,
        })?;
    }
    let alone = |node: &Node| [node.name.clone()];
    no_two_have(&entries, "name", alone)?;
    no_two_have(&entries, "underlay address", |node| node.underlay.clone())?;
    no_two_have(&entries, "vtep_mac", |node| [node.vtep_mac])?;
    no_blocks_overlap(&entries)?;
    Ok(entries.into_iter().map(|(_, node)| node).collect())
}

type Entry = (usize, Node);

fn no_two_have<T: Eq + Hash + Display, I: IntoIterator<Item = T>>(
    entries: &[Entry],
    what: &str,
    have: impl Fn(&Node) -> I,
) -> Result<(), Flaw> {
    let mut owners = HashMap::new();
    for (line, node) in entries {
        for one in have(node) {
            let told = format!("node {}: {what} {one}", node.name);
            if let Some((first, owner)) = owners.insert(one, (line, &node.name)) {
                return Err(Flaw {
                    line: *line,
                    problem: format!("{told} is node {owner}'s, in line {first}"),
                    remedy: "correct one of the two".to_owned(),
                });
            }
        }
    }
    Ok(())
}

fn no_blocks_overlap(entries: &[Entry]) -> Result<(), Flaw> {
    let places = |entry| {
        let (line, node): &Entry = entry;
        places_of(node)
            .into_iter()
            .map(move |net| (net, line, node))
    };
    let mut places: Vec<_> = entries.iter().flat_map(places).collect();
    // Prefixes are disjoint or nested: what lies within one follows it.
    places.sort_by_key(|(net, ..)| (net.network(), net.prefix_len()));
    let overlap = places.windows(2).find(|pair| {
        let [(outer, ..), (inner, ..)]: [(IpNet, _, _); 2] = [pair[0], pair[1]];
        outer.contains(&inner)
    });
    let Some(&[first, second]) = overlap else {
        return Ok(());
    };
    let [(net, line, node), (other, other_line, owner)] = match first.1 < second.1 {
        true => [second, first],
        false => [first, second],
    };
    Err(Flaw {
        line: *line,
        problem: format!(
            "node {}: {net} overlaps {other} of node {}, in line {other_line}",
            node.name, owner.name
        ),
        remedy: "give each node blocks of its own".to_owned(),
    })
}

/// Counted from 1.
fn line_of(text: &str, span: &Range<usize>) -> usize {
    let before = text.as_bytes().get(..span.start).unwrap_or_default();
    before.iter().filter(|byte| **byte == b'\n').count() + 1
}

#[cfg(test)]
mod tests;

//! The nodes where a file names them. A version that cannot be in force
//! leaves the tables as they are, and is told.

use std::path::{Path, PathBuf};

use tracing::{error, info};
use weft_api::forwarder::{self as api, Code, Error, Nodes};

use super::{Forwarder, refusal};
use crate::{
    nodes::{NodesError, read_as},
    watched::{Stamp, Watched},
};

#[derive(Debug)]
pub(super) struct NodesFile {
    path: PathBuf,
    watched: Watched<Stamp>,
    /// In force.
    nodes: Option<Nodes>,
    /// Why the newest version is not.
    fault: Option<String>,
    /// Whether that may pass by itself.
    may_pass: bool,
}

impl NodesFile {
    pub(super) fn is_in_force(&self) -> bool {
        self.fault.is_none()
    }

    pub(super) fn report(&self) -> api::NodesFile {
        api::NodesFile {
            path: self.path.clone(),
            fault: self.fault.clone(),
        }
    }

    /// The answer to whoever else would say what nodes there are.
    pub(super) fn rules(&self) -> Error {
        let message = format!(
            "apply: what nodes there are comes from the file {}",
            self.path.display()
        );
        let hint = "change it there, or start the forwarder without --nodes";
        refusal(Code::Ruled, message, hint)
    }
}

impl Forwarder {
    /// Takes the nodes from the file at `path`, and from nobody else.
    pub fn keep_to_file(&mut self, path: &Path) -> Result<(), NodesError> {
        let mut file = NodesFile {
            path: path.to_owned(),
            watched: Watched::new(Stamp::of(path)),
            nodes: None,
            fault: None,
            may_pass: false,
        };
        self.take_version(&mut file)?;
        self.file = Some(file);
        Ok(())
    }

    /// Puts the file's newest version in force, if there is one.
    pub fn look_at_file(&mut self) {
        let is_due =
            |file: &mut NodesFile| file.watched.is_new(Stamp::of(&file.path)) || file.may_pass;
        let Some(mut file) = self.file.take_if(is_due) else {
            return;
        };
        let fault = self.take_version(&mut file).err();
        file.may_pass = fault.as_ref().is_some_and(NodesError::may_pass);
        let fault = fault.map(|fault| fault.to_string());
        if let Some(fault) = fault.as_ref().filter(|_| fault != file.fault) {
            error!("{fault}; the tables stay as they are");
        }
        file.fault = fault;
        self.file = Some(file);
    }

    fn take_version(&mut self, file: &mut NodesFile) -> Result<(), NodesError> {
        let path = &file.path;
        let nodes = read_as(path, &self.state.own().name)?;
        if file.nodes.as_ref() == Some(&nodes) {
            return Ok(());
        }
        self.replace_nodes(nodes.clone())
            .map_err(|refusal| NodesError::Refused {
                path: path.to_owned(),
                refusal,
            })?;
        info!(file = %path.display(), peers = nodes.peers.len(), "the nodes are in force");
        file.nodes = Some(nodes);
        Ok(())
    }
}

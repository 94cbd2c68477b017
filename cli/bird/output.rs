//! Where the configuration goes, and that BIRD reads it.

use std::{
    fs,
    io::{self, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt, chown},
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::Context;

use super::birdc;
use crate::output::show;

#[derive(Debug)]
pub struct Output {
    file: Option<PathBuf>,
    bird: Option<PathBuf>,
}

impl Output {
    pub fn new(file: Option<PathBuf>, bird: Option<PathBuf>) -> Self {
        Self { file, bird }
    }

    /// Writes what is not there yet, and has BIRD read it. A BIRD that is away
    /// reads it when it starts.
    pub fn put(&self, text: &str) -> anyhow::Result<()> {
        let Some(path) = &self.file else {
            return show(text).map(|_: ExitCode| ());
        };
        if fs::read(path).ok().as_deref() == Some(text.as_bytes()) {
            return Ok(());
        }
        replace(path, text).with_context(|| format!("write {path:?}"))?;
        self.bird.as_deref().map_or(Ok(()), birdc::configure)
    }
}

/// Whole or not at all, and with the mode and owner of what was there.
fn replace(path: &Path, text: &str) -> io::Result<()> {
    let mut new = path.as_os_str().to_owned();
    new.push(".new");
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&new)?;
    file.write_all(text.as_bytes())?;
    if let Ok(before) = fs::metadata(path) {
        chown(&new, Some(before.uid()), Some(before.gid()))?;
        file.set_permissions(before.permissions())?;
    }
    file.sync_all()?;
    fs::rename(&new, path)
}

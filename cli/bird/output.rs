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
    /// BIRD was not told of the newest file.
    owed: bool,
}

impl Output {
    pub fn new(file: Option<PathBuf>, bird: Option<PathBuf>) -> Self {
        Self {
            file,
            bird,
            owed: false,
        }
    }

    /// Writes what is not there yet.
    pub fn put(&mut self, text: &str) -> anyhow::Result<()> {
        let Some(path) = &self.file else {
            return show(text).map(|_: ExitCode| ());
        };
        if fs::read(path).ok().as_deref() == Some(text.as_bytes()) {
            return Ok(());
        }
        replace(path, text).with_context(|| format!("write {path:?}"))?;
        self.owed = true;
        Ok(())
    }

    /// Has BIRD read what was written. One that is away is to be told later: it
    /// may have read the file of before, and not yet listen.
    pub fn reload(&mut self) -> anyhow::Result<()> {
        let Some(socket) = self.bird.as_deref().filter(|_| self.owed) else {
            return Ok(());
        };
        let stream = birdc::connect(socket)?;
        // What it refuses it would refuse again.
        self.owed = false;
        birdc::configure(&stream).with_context(|| format!("BIRD at {socket:?}"))
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

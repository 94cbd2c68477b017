//! Directories that are gone with the process that made them; those of
//! processes that were killed go with the next.
//!
//! The maker holds a lock on its directory, which the kernel lets go with the
//! maker, however it ends. What is not locked is nobody's.

use std::{
    env,
    fs::{self, File, TryLockError},
    io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use anyhow::Context;
use nix::unistd::{geteuid, mkdtemp};

const PREFIX: &str = "weft-throwaway-";

/// A directory of the lab's own, 0700 and gone with it.
#[derive(Debug)]
pub(crate) struct ThrowAwayDir {
    path: PathBuf,
    /// Locked.
    _held: File,
}

impl ThrowAwayDir {
    pub(crate) fn make() -> anyhow::Result<Self> {
        clear_abandoned();
        Self::make_in(&env::temp_dir())
    }

    fn make_in(parent: &Path) -> anyhow::Result<Self> {
        let template = parent.join(format!("{PREFIX}XXXXXX"));
        loop {
            let path = mkdtemp(&template)
                .with_context(|| format!("make a directory like {template:?}"))?;
            // Until it is locked, another process may take it for abandoned.
            match lock(&path) {
                Ok(Some(held)) => return Ok(Self { path, _held: held }),
                Ok(None) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error).with_context(|| format!("lock {path:?}")),
            }
        }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for ThrowAwayDir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.path);
    }
}

/// Removes this user's directories whose makers are gone. What cannot be
/// removed stays for the next to try.
pub(crate) fn clear_abandoned() {
    clear_abandoned_in(&env::temp_dir());
}

fn clear_abandoned_in(parent: &Path) {
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        let is_one = entry
            .file_name()
            .to_str()
            .is_some_and(|name| name.starts_with(PREFIX));
        // Of the entry itself, not of what it may link to.
        let is_ours = |found: fs::Metadata| found.is_dir() && found.uid() == geteuid().as_raw();
        if is_one
            && entry.metadata().is_ok_and(is_ours)
            && let Ok(Some(_held)) = lock(&entry.path())
        {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

/// None where somebody else holds it, or removed it meanwhile.
fn lock(dir: &Path) -> io::Result<Option<File>> {
    let held = File::open(dir)?;
    match held.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Ok(None),
        Err(TryLockError::Error(error)) => return Err(error),
    }
    let is_still_there = fs::metadata(dir)?.ino() == held.metadata()?.ino();
    Ok(is_still_there.then_some(held))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn only_what_nobody_holds_is_cleared() {
        let place = tempfile::tempdir().expect("a directory");
        let held = ThrowAwayDir::make_in(place.path()).expect("made");
        let named = |name: &str| place.path().join(format!("{PREFIX}{name}"));
        let abandoned = named("abcdef");
        fs::create_dir(&abandoned).expect("made");
        fs::write(abandoned.join("n1.log"), "words").expect("written");
        let other = place.path().join("weft-other");
        fs::create_dir(&other).expect("made");
        symlink(&other, named("link")).expect("a link");
        clear_abandoned_in(place.path());
        assert!(held.path().exists() && !abandoned.exists());
        assert!(other.exists() && named("link").exists());
        let path = held.path().to_owned();
        drop(held);
        assert!(!path.exists());
    }
}
